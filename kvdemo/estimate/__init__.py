"""Would sharing help this traffic? Requests read from a file, replayed against caches that are only counted. Pure."""
