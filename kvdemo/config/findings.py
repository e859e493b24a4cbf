"""What is wrong in a text file, shown as a compiler shows it: place, message, the line, a caret.

Findings are collected, never raised one by one: ``failure`` makes one error of all of them.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
import select
import stat
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kvdemo.config import secrecy
from kvdemo.errors import ProfileError

Keys = tuple[str | int, ...]
"""The way from the top of the file to a value: ``("engines", "vllm-a", "gpus", 0)``."""

LARGEST = 128 << 10
"""A file of more bytes is not read."""

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What ends a line in YAML."""

_WIDTH = 110


def dotted_path(keys: Keys) -> str:
    """``engines.vllm-a.gpus[0]``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{secrecy.covered_key(key)}" for key in keys).lstrip(".")


@dataclass(frozen=True, order=True)
class Finding:
    """One mistake, at a line and column (from 1) of a file; equal ones are one mistake seen twice."""

    file: str
    line: int
    column: int
    message: str
    excerpt: str = field(compare=False)
    keys: Keys = field(compare=False, default=())

    def __str__(self) -> str:
        """Place and message, the line itself, a caret under the column."""
        where = f"{dotted_path(self.keys)}: " if self.keys else ""
        return f"{self.file}:{self.line}:{self.column}: {where}{self.message}\n{self.excerpt}".rstrip("\n")


def failure(findings: Iterable[Finding], hint: str = "") -> ProfileError:
    """All findings as one error, sorted by place, each mistake once (an anchor used twice repeats its mistakes)."""
    return ProfileError("\n".join(str(finding) for finding in sorted(set(findings))), hint)


def _clean(text: str) -> str:
    """The text without what a terminal would not show as one cell, or would obey."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


@dataclass(frozen=True)
class Source:
    """A text and the name its findings carry."""

    file: str
    text: str
    private: bool = False
    """Whether any line may hold a secret, whatever its name is (``.env``): no value of it is shown."""

    @cached_property
    def lines(self) -> list[str]:
        """Its lines, without what ends them."""
        return LINE_BREAK.split(self.text)

    @cached_property
    def starts(self) -> list[int]:
        """Where each line begins."""
        return [0, *(match.end() for match in LINE_BREAK.finditer(self.text))]

    def finding(self, index: int, message: str, keys: Keys = ()) -> Finding:
        """A finding at this character of the text; whatever may be a secret is covered in it."""
        index = min(index, len(self.text))
        row = bisect_right(self.starts, index) - 1
        start = self.starts[row]
        line = secrecy.covered_line(self.lines, row)
        if self.private:
            name = line.partition("=")[0] if "=" in line else ""
            line = f"{name}{secrecy.COVER}" if line.strip() else line
        column = index - start
        # A window of a long line.
        first = max(0, column - 80)
        text = _clean(line)[first:]
        text = ("…" if first else "") + text[bool(first) :]
        text = text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
        width = column - first
        indent = "".join("\t" if c == "\t" else " " for c in text[:width].ljust(width))
        excerpt = f"{row + 1:>5} | {text}\n{'':>5} | {indent}^" if line.strip() else ""
        return Finding(self.file, row + 1, column + 1, _clean(secrecy.blank_secrets(message)), excerpt, keys)


def _siblings(path: Path) -> list[Path]:
    try:
        return [file for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml")]
    except OSError:
        return []


PATIENCE = 10.0
"""Seconds to wait for somebody to open the other end of a pipe."""

_streams: dict[Path, bytes] = {}
"""What pipes and terminals held: it can be read once only, and a command loads its profile more than once."""


def is_stream(path: Path) -> bool:
    """Whether this is no file but a pipe or a terminal, such as ``/dev/stdin`` or what ``<(...)`` becomes."""
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)


def place(path: Path) -> Path:
    """The file, absolute; what comes through a pipe lies nowhere, and counts as a file of the working directory."""
    return Path(os.path.abspath("profile" if is_stream(path) else path))  # noqa: PTH100 (resolve() would follow links)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(LARGEST + 1)


def _once(path: Path) -> bytes:
    if path not in _streams:
        _streams[path] = _read_pipe(path)
    return _streams[path]


def _read_pipe(path: Path) -> bytes:
    """All that comes out of a pipe or terminal. Raises ProfileError if nobody writes into it."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            poll = select.poll()
            poll.register(fd, select.POLLIN | select.POLLHUP)
            if not poll.poll(PATIENCE * 1000):
                raise ProfileError(
                    f"{path}: nobody wrote into this pipe for {PATIENCE:g} seconds", "give a file, or <(COMMAND)"
                )
        os.set_blocking(fd, True)
        with os.fdopen(os.dup(fd), "rb") as stream:
            return stream.read(LARGEST + 1)
    finally:
        os.close(fd)


def _looks_like_utf16(data: bytes) -> bool:
    """Without a byte order mark: every second byte of a profile's first line, which is ASCII, is zero then."""
    first = data[:64]
    return len(first) >= 4 and any(not any(first[at::2]) and all(first[1 - at :: 2]) for at in (0, 1))


def read(path: Path, *, private: bool = False) -> Source:
    """The text of this file. Raises ProfileError if it is not there, not readable, not UTF-8 text, or huge."""
    try:
        data = _once(path) if is_stream(path) else _read_file(path)
    except FileNotFoundError:
        matches = difflib.get_close_matches(path.name, [file.name for file in _siblings(path)], 1, 0.5)
        hint = f"did you mean {path.with_name(matches[0])}?" if matches else ""
        raise ProfileError(f"{path}: no such file", hint) from None
    except IsADirectoryError:
        raise ProfileError(f"{path}: is a directory, not a file") from None
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > LARGEST:
        raise ProfileError(f"{path}: is larger than {LARGEST >> 10} KiB; this is no profile")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _looks_like_utf16(data):
        way = f"iconv -f UTF-16 -t UTF-8 {path} > NEW.yaml, or choose UTF-8 where your editor saves"
        raise ProfileError(f"{path}: is UTF-16 text; kvdemo reads UTF-8", way)
    if b"\0" in data:
        raise ProfileError(f"{path}: is a binary file, not UTF-8 text")
    try:
        return Source(str(path), data.decode("utf-8-sig"), private)
    except UnicodeDecodeError as error:
        source = Source(str(path), data[: error.start].decode("utf-8-sig", "replace"), private)
        raise failure([source.finding(error.start, f"byte 0x{data[error.start]:02x} is not UTF-8 text")]) from None
