"""The profile: what the user wants, read from a YAML file and refused with line, column and a caret if it is wrong.

Read ``findings`` and ``variables`` (text and what is wrong in it), ``values`` and ``fields`` (one value),
``yamlfile`` (its place), ``settings`` (every key), ``consistency`` (mistakes between keys), then ``profile``.
"""
