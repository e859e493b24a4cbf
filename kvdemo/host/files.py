"""Files and directories that others may have prepared: read without waiting, used only if they are private."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from kvdemo.errors import ServiceError

LARGEST = 16 * 1024**2
"""Bytes of a document or record that is read at most: a larger one is none of ours."""


def read_text(path: Path) -> str:
    """The text of a small file of ours. Raises OSError for anything else: a pipe would be waited for without end."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > LARGEST:
            raise OSError(errno.EFBIG, f"larger than {LARGEST >> 20} MiB", str(path))
        return file.read().decode()


def private_directory(path: Path) -> Path:
    """This directory, made if it is not there: a real one, of this user, closed to others. Raises ServiceError."""
    remedy = "remove it, or set TMPDIR to a directory that only you can write"
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
    except OSError as error:
        raise ServiceError(f"cannot make {path}: {error.strerror}", remedy) from error
    if not stat.S_ISDIR(status.st_mode):
        raise ServiceError(f"{path} is not a directory" + (", but a link" if path.is_symlink() else ""), remedy)
    if status.st_uid != os.getuid():
        raise ServiceError(f"{path} belongs to another user (uid {status.st_uid})", remedy)
    if status.st_mode & 0o077:
        raise ServiceError(f"{path} is open to others (mode {status.st_mode & 0o777:o})", remedy)
    return path
