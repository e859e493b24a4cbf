"""Where a project keeps what must outlive the command: its lock, its document, the guardians' records, the logs.

One directory per project, private to the user. Writes are atomic and readers take no lock. Limits: the lock is
``flock``, which some network file systems grant to everybody; a record of another boot is read like any other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvdemo.errors import LockedError, ServiceError, UsageError
from kvdemo.host.procfs import Record

SCHEMA_VERSION = 1
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LOCK_INTERVAL = 0.1  # seconds; flock cannot wait with a deadline without a signal


def root(environ: Mapping[str, str]) -> Path:
    """The directory of all projects of this user on this machine (a home directory may be shared by many)."""
    base = Path(environ["KVDEMO_STATE_DIR"]).absolute() if environ.get("KVDEMO_STATE_DIR") else _xdg(environ) / "kvdemo"
    return base / _machine()


def _xdg(environ: Mapping[str, str]) -> Path:
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    given = Path(environ.get("XDG_STATE_HOME", ""))
    return given if given.is_absolute() else home / ".local" / "state"  # the standard says to ignore relative ones


def _machine() -> str:
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return machine[:8] or hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def projects(root: Path, *, stores: bool = False) -> list[Project]:
    """The projects that have something to tell (a document or a record; with ``stores`` a KV store too), by name."""
    found = sorted(path for path in root.glob("*") if _LABEL.fullmatch(path.name) and path.is_dir())
    told = [Project(root, path.name) for path in found]
    return [p for p in told if (p.dir / "project.json").exists() or _records(p.dir) or (stores and p.stores.exists())]


def _records(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / "services").glob("*.json") if _LABEL.fullmatch(path.stem))


class Project:
    """The directory of one project. Raises UsageError for a name that is not a DNS label."""

    def __init__(self, root: Path, name: str) -> None:
        self.dir = root / _label(name)
        self.name = name

    @contextmanager
    def lock(self, verb: str, timeout: float = 0) -> Iterator[int]:
        """Hold the project's lock; yields its descriptor, which guardians inherit until their record is complete.

        Waits at most ``timeout`` seconds, then raises LockedError naming the holder.
        """
        self._make(self.dir)
        with _writing(self.dir):
            fd = os.open(self.dir / "project.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._acquire(fd, timeout)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {verb}\n".encode(), 0)
            yield fd
        finally:
            os.close(fd)  # never an explicit unlock: that would take it from a guardian that still starts

    def _acquire(self, fd: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_LOCK_INTERVAL)
                    continue
                pid, _, verb = os.pread(fd, 200, 0).decode(errors="replace").strip().partition(" ")
                by = f"`kvdemo {verb}` (pid {pid})" if verb else "another kvdemo"
                raise LockedError(f"project {self.name} is in use by {by}", "wait for it, or stop it") from None

    def save(self, document: dict[str, Any]) -> None:
        """Replace the project's document; a reader sees the old one or the new one."""
        self._make(self.dir)
        path = self.dir / "project.json"
        temporary = self.dir / f"project.json.{os.getpid()}.tmp"
        text = json.dumps({**document, "schema_version": SCHEMA_VERSION}, indent=2)
        with _writing(path):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            temporary.replace(path)

    def load(self, *, strict: bool = True) -> dict[str, Any] | None:
        """The project's document, or None if there is none.

        One that this version cannot read raises ServiceError; with ``strict=False`` it is None too.
        """
        path = self.dir / "project.json"
        try:
            document = json.loads(path.read_text())
            if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
                raise ValueError("written by another version of kvdemo")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if not strict:
                return None
            raise ServiceError(f"cannot use {path}: {error}", f"run `kvdemo down -p {self.name}`") from error
        return document

    def records(self) -> dict[str, Record]:
        """What the guardians wrote, by service. A file that cannot be read is left out; see ``unreadable``."""
        read = {path.stem: _read(path) for path in _records(self.dir)}
        return {service: record for service, record in read.items() if record}

    def unreadable(self) -> list[Path]:
        """Record files that say nothing: damaged, or of another version."""
        return [path for path in _records(self.dir) if path.exists() and _read(path) is None]

    def record(self, service: str) -> Record | None:
        """What the guardian of this service wrote last, or None."""
        return _read(self._record(service))

    def forget(self, service: str) -> None:
        """Remove the record of a service that is gone; its logs stay."""
        self._record(service).unlink(missing_ok=True)

    def _record(self, service: str) -> Path:
        return self.dir / "services" / f"{_label(service)}.json"

    def log(self, service: str) -> Path:
        """The log of this service's current or last start."""
        return self.dir / "logs" / f"{_label(service)}.log"

    def rotate_log(self, service: str, keep: int = 5) -> Path:
        """Move the log aside (``.1`` is the newest, ``.KEEP`` the oldest); returns the path for the new one."""
        log = self.log(service)
        self._make(log.parent)
        for number in range(keep - 1, -1, -1):
            older = Path(f"{log}.{number}") if number else log
            if older.exists():
                older.replace(f"{log}.{number + 1}")
        return log

    @property
    def sockets(self) -> Path:
        """A private directory for ZMQ sockets; short, whatever TMPDIR and the project's name are."""
        mark = hashlib.sha256(str(self.dir).encode()).hexdigest()[:8]
        base = tempfile.gettempdir() if len(tempfile.gettempdir()) < 40 else "/tmp"
        return Path(base) / f"kvdemo-{os.getuid()}-{mark}"

    @property
    def stores(self) -> Path:
        """The file that lists the KV stores this project used."""
        return self.dir / "stores.jsonl"

    def clear(self) -> None:
        """Forget everything but the logs (and the lock file, which others may be waiting on)."""
        shutil.rmtree(self.dir / "services", ignore_errors=True)
        for path in self.dir.glob("project.json*"):
            path.unlink(missing_ok=True)

    def _make(self, directory: Path) -> None:
        with _writing(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceError(f"cannot write {path}: {error.strerror}", "set KVDEMO_STATE_DIR to another place") from error


def _label(name: str) -> str:
    if not _LABEL.fullmatch(name):
        raise UsageError(f"{name!r} is not a name: use a to z, 0 to 9 and '-', at most 63 of them")
    return name


def _read(path: Path) -> Record | None:
    try:
        return Record.from_json(path.read_text())
    except (OSError, ValueError):
        return None
