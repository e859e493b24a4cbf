"""The document to ask about, read from a file or a pipe; every way in which it can be unfit has its own message."""

from __future__ import annotations

import codecs
import os
import select
import stat
from pathlib import Path

from kvdemo.errors import UsageError

LARGEST = 64 << 20
"""Bytes; no model reads more, and a pipe may have no end."""

PATIENCE = 30.0
"""Seconds in which something must come out of a pipe."""

WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""What such a text begins with; the longer mark first, since it begins with the shorter one."""


def read(path: Path, patience: float = PATIENCE) -> str:
    """The text of a document; a pipe is read once, to its end.

    Raises UsageError if it is missing, empty, binary, not UTF-8 or too large, or if nobody writes into the pipe.
    """
    try:
        data = _drain(path, patience)
    except FileNotFoundError:
        raise UsageError(f"context {path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"context {path}: is a directory", "give one text file") from None
    except OSError as error:
        raise UsageError(f"context {path}: cannot be read: {error.strerror}") from None
    if len(data) > LARGEST:
        raise UsageError(
            f"context {path}: is larger than {LARGEST >> 20} MiB", "no model reads that; give a part of it"
        )
    return decode(data, f"context {path}")


def name(path: Path) -> str:
    """What the document is called: its file's name, or what the pipe is."""
    if not _is_stream(path):
        return path.name
    return "standard input" if path.name in {"stdin", "0"} else "a pipe" if path.parent.name == "fd" else path.name


def _is_stream(path: Path) -> bool:
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)


def _drain(path: Path, patience: float) -> bytes:
    """All that the file or pipe holds, or one byte more than may be; opening a pipe waits for nobody."""
    if path.is_dir():
        raise IsADirectoryError
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.set_blocking(fd, False)
        poll, pieces, size = select.poll(), list[bytes](), 0
        poll.register(fd, select.POLLIN | select.POLLHUP)
        while size <= LARGEST:
            if not poll.poll(patience * 1000):
                raise UsageError(
                    f"context {path}: nothing came out of this pipe for {patience:g} seconds",
                    "give a file, or a command that writes: --context <(COMMAND)",
                )
            try:
                piece = os.read(fd, 1 << 20)
            except BlockingIOError:
                continue
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def decode(data: bytes, name: str) -> str:
    """The text of a document that is here already. Raises UsageError as ``read`` does."""
    if encoding := _wide_encoding(data):
        raise UsageError(f"{name}: is {encoding} text", f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW")
    if b"\0" in data:
        raise UsageError(f"{name}: is binary", "give a plain text file (extract the text of a PDF first)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{name}:{line}: is not UTF-8", "convert it: iconv -f ENCODING -t UTF-8 FILE > NEW") from None
    if not text.strip():
        raise UsageError(f"{name}: is empty")
    return text


def _wide_encoding(data: bytes) -> str:
    """The encoding of text whose characters have two or four bytes; empty if it is no such text.

    Without a byte order mark it shows by what it decodes to: printable text, at least an eighth of it ASCII, with its
    zero bytes in the upper halves of characters (a character that ends in a zero byte is rare in any script).
    """
    for mark, encoding in WIDE:
        if data.startswith(mark):
            return encoding
    if b"\0" not in data[:4096]:
        return ""
    for encoding, wide in (("utf-32-le", 4), ("utf-32-be", 4), ("utf-16-le", 2), ("utf-16-be", 2)):
        sample = data[: len(data[:4096]) // wide * wide]
        lowest = 0 if encoding.endswith("le") else wide - 1
        if sample[lowest::wide].count(0) * 50 > sample.count(0):
            continue
        try:
            text = sample.decode(encoding)
        except UnicodeDecodeError:
            continue
        plain = sum(character.isascii() for character in text)
        if plain > max(1, len(text) / 8) and all(
            character.isprintable() or character in "\t\r\n\f" for character in text
        ):
            return encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    return ""
