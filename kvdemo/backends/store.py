"""The two kinds of L2 that a cache server may have: a directory, or a Redis or Valkey server."""

from __future__ import annotations


def is_server(l2: str) -> bool:
    """Whether this L2 is a Redis or Valkey server, not a directory."""
    return l2.startswith("redis://")


def server(l2: str) -> tuple[str, int]:
    """Host and port of an L2 that is a server."""
    host, _, port = l2.removeprefix("redis://").rpartition(":")
    return host.strip("[]"), int(port)
