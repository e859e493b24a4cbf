"""The end of a log file, in bounded memory and time whatever its size: lines are cut, not the number of them.

A log is read backwards in blocks. Of a line only its beginning is kept, so that an error above a line of a hundred
megabytes (a request that was logged) is still found.
"""

from __future__ import annotations

import os
from pathlib import Path

BLOCK = 1024**2
"""Bytes read at a time."""

LONGEST_SCAN = 512 * 1024**2
"""Bytes read at most."""

LONGEST_TAIL = 4 * 1024**2
"""Bytes kept at most."""

LINES = 20_000
"""Lines kept at most."""

WIDTH = 4096
"""Bytes kept of the beginning of a line."""


def read(path: Path, limit: int = LONGEST_SCAN) -> bytes:
    """The last lines of a file, each cut to WIDTH bytes; empty if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return _read(stream.fileno(), limit)
    except OSError:
        return b""


def _read(fd: int, limit: int) -> bytes:
    """Backwards: what a block begins with belongs to a line whose beginning stands in the block before."""
    position = os.fstat(fd).st_size
    lowest = max(0, position - limit)
    rows: list[bytes] = []
    size, beginning = 0, b""
    while position > lowest and size < LONGEST_TAIL and len(rows) < LINES:
        start = max(lowest, position - BLOCK)
        first, *others = os.pread(fd, position - start, start).split(b"\n")
        position = start
        if not others:
            beginning = (first + beginning)[:WIDTH]
            continue
        others[-1] += beginning
        beginning = first[:WIDTH]
        for row in reversed(others):
            rows.append(row[:WIDTH])
            size += len(rows[-1]) + 1
    if not position:
        rows.append(beginning)
    return b"\n".join(reversed(rows[:LINES]))
