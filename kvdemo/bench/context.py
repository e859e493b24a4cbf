"""The document to ask about, read from a file; every way in which it can be unfit has its own message."""

from __future__ import annotations

from pathlib import Path

from kvdemo.errors import UsageError


def read(path: Path) -> str:
    """The text of a document. Raises UsageError if it is missing, empty, binary or not UTF-8."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"context {path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"context {path}: is a directory", "give one text file") from None
    except OSError as error:
        raise UsageError(f"context {path}: cannot be read: {error.strerror}") from None
    return decode(data, f"context {path}")


def decode(data: bytes, name: str) -> str:
    """The text of a document that is here already. Raises UsageError as ``read`` does."""
    if b"\0" in data:
        raise UsageError(f"{name}: is binary", "give a plain text file (extract the text of a PDF first)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{name}:{line}: is not UTF-8", "convert it: iconv -t UTF-8") from None
    if not text.strip():
        raise UsageError(f"{name}: is empty")
    return text
