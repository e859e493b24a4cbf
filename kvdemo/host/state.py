"""Where a project keeps what must outlive the command: its lock, its document, the guardians' records, the logs.

One directory per project, private to the user. Writes are atomic and readers take no lock. Limits: the lock is
``flock``, which some network file systems grant to everybody; a record of another boot is read like any other.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kvdemo.errors import LockedError, ServiceError, UsageError
from kvdemo.host import files, locks, procfs
from kvdemo.host.procfs import Record

SCHEMA_VERSION = 1
RELEASE_PATIENCE = 5.0
"""Seconds for a lock to become free after its last holder was killed."""

LOCK_POLL = 1.0
"""Seconds between two looks for a stopped process that keeps the lock."""

_LOCK_INTERVAL = 0.1  # seconds; flock cannot wait with a deadline without a signal


def root(environ: Mapping[str, str]) -> Path:
    """The directory of all projects of this user on this machine (a home directory may be shared by many)."""
    base = Path(environ["KVDEMO_STATE_DIR"]).absolute() if environ.get("KVDEMO_STATE_DIR") else _xdg(environ) / "kvdemo"
    return base / _machine()


def _xdg(environ: Mapping[str, str]) -> Path:
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    path = Path(environ.get("XDG_STATE_HOME", ""))
    return path if path.is_absolute() else home / ".local" / "state"  # the standard says to ignore relative ones


def _machine() -> str:
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return machine[:8] or hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def projects(root: Path, *, stores: bool = False) -> list[Project]:
    """The projects that have something to tell (a document or a record; with ``stores`` a KV store too), by name.

    One that cannot be looked at is left out; see ``damaged``.
    """
    return [p for p in _directories(root) if _exists(p.document) or _records(p.dir) or (stores and _exists(p.stores))]


def damaged_paths(root: Path) -> list[tuple[str, str]]:
    """What stands where projects do and cannot be used: its path, and why."""
    problems = []
    for name in _names(root):
        if not procfs.is_label(name):
            continue
        path = root / name
        try:
            if not stat.S_ISDIR(path.stat().st_mode):
                problems.append((str(path), "it is not a directory"))
                continue
            next(path.iterdir(), None)
            Project(root, name).load()
        except OSError as error:
            problems.append((str(path), error.strerror or str(error)))
        except ServiceError as error:
            problems.append((str(path), str(error)))
        else:
            problems += [(str(record), "not a record of a service") for record in Project(root, name).unreadable()]
    return problems


def _names(root: Path) -> list[str]:
    try:
        return sorted(path.name for path in root.iterdir())
    except OSError:
        return []


def _directories(root: Path) -> list[Project]:
    return [Project(root, name) for name in _names(root) if procfs.is_label(name) and _mode(root / name, stat.S_ISDIR)]


def _mode(path: Path, test: Callable[[int], bool]) -> bool:
    try:
        return test(path.stat().st_mode)
    except OSError:
        return False


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _records(directory: Path) -> list[Path]:
    names = [name.removesuffix(".json") for name in _names(directory / "services") if name.endswith(".json")]
    return [directory / "services" / f"{name}.json" for name in names if procfs.is_label(name)]


def amounts(document: Mapping[str, Any] | None) -> dict[str, int]:
    """Bytes of each GPU's memory that were in use before the first start; what is damaged is left out."""
    used = (document or {}).get("gpu_used")
    return {uuid: n for uuid, n in used.items() if isinstance(n, int)} if isinstance(used, dict) else {}


class Project:
    """The directory of one project. Raises UsageError for a name that is not a DNS label."""

    def __init__(self, root: Path, name: str) -> None:
        self.dir = root / _label(name)
        self.name = name

    @contextmanager
    def lock(self, verb: str, timeout: float = 0, waiting: Callable[[str, str], None] | None = None) -> Iterator[int]:
        """Hold the project's lock; yields its descriptor, which guardians inherit until their record is complete.

        Waits at most ``timeout`` seconds, then raises LockedError naming the holder. ``waiting`` is called with the
        same words, and what to do, as soon as somebody else holds it. A guardian that was stopped while it started a
        service would hold it for ever: it is ended. A directory that holds nothing else is removed at the end.
        """
        fd = self._acquire(timeout, waiting or _say_nothing)
        try:
            with suppress(OSError):  # a full or read-only disk is no reason not to stop anything
                os.ftruncate(fd, 0)
                os.pwrite(fd, locks.stamp(verb).encode(), 0)
            yield fd
        finally:
            self._leave()
            os.close(fd)  # never an explicit unlock: that would take it from a guardian that still starts

    def _acquire(self, timeout: float, waiting: Callable[[str, str], None]) -> int:
        """The descriptor of the locked file; opened anew if its holder removed it while we waited."""
        deadline = time.monotonic() + timeout
        last_look = 0.0
        while True:
            self._make(self.dir)
            fd = _open_lock(self.dir)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stamp = _stamp(fd)
                what, how = locks.holder(self.name, self.dir, stamp)
                os.close(fd)
            except BaseException:
                os.close(fd)
                raise
            else:
                if _is_lock(fd, self.dir):
                    return fd
                os.close(fd)
                continue
            now = time.monotonic()
            if not last_look:
                waiting(what, how)
            if now > last_look + LOCK_POLL:
                last_look = now
                if text := locks.end_stopped(self.dir):
                    waiting(text, "")
                    deadline = max(deadline, now + RELEASE_PATIENCE)
            if now >= deadline or locks.holder_stopped(stamp):
                raise LockedError(what, how)
            time.sleep(_LOCK_INTERVAL)

    def _leave(self) -> None:
        """Remove the directory if it holds nothing but the lock, which is ours now: no command leaves an empty one."""
        with suppress(OSError):
            for empty in ("services", "logs"):
                with suppress(OSError):
                    (self.dir / empty).rmdir()
            if _names(self.dir) == [locks.FILE] and not locks.keepers(self.dir):
                (self.dir / locks.FILE).unlink()
                self.dir.rmdir()

    def save(self, document: dict[str, Any]) -> None:
        """Replace the project's document; a reader sees the old one or the new one."""
        self._make(self.dir)
        temporary = self.dir / f"project.json.{os.getpid()}.tmp"
        text = json.dumps({**document, "schema_version": SCHEMA_VERSION}, indent=2)
        with _writing(self.document):
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(fd, "w") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(fd)
                temporary.replace(self.document)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    def try_writing(self, size: int) -> None:
        """Write so many bytes where state and logs go, and remove them again. Raises ServiceError if that fails."""
        for directory in (self.dir, self.dir / "logs"):
            self._make(directory)
            probe = directory / f"space.{os.getpid()}.tmp"
            with _writing(directory):
                try:
                    with probe.open("wb") as file:
                        file.write(bytes(size))
                        file.flush()
                        os.fsync(file.fileno())
                finally:
                    probe.unlink(missing_ok=True)

    def load(self, *, strict: bool = True) -> dict[str, Any] | None:
        """The project's document, or None if there is none.

        One that this version cannot read raises ServiceError; with ``strict=False`` it is None too.
        """
        path = self.document
        try:
            document = json.loads(files.read_text(path))
            if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
                raise ValueError("written by another version of kvdemo")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            if not strict:
                return None
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ServiceError(f"cannot use {path}: {why}", f"run `kvdemo down -p {self.name}`") from error
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
        with suppress(OSError):  # a record that cannot be removed says that the service has ended
            self._record(service).unlink(missing_ok=True)

    def _record(self, service: str) -> Path:
        return self.dir / "services" / f"{_label(service)}.json"

    def log(self, service: str) -> Path:
        """The log of this service's current or last start."""
        return self.dir / "logs" / f"{_label(service)}.log"

    def note_secrets(self, names: Collection[str], profile: str) -> None:
        """Keep the names of secrets (never a value) beside the logs, and the profile: who shows a log blanks them."""
        secrets = self.secrets()
        if new := set(names) - secrets[0]:
            self._make(self._secrets.parent)
            document = json.dumps({"names": sorted(secrets[0] | new), "profile": profile})
            with _writing(self._secrets):
                temporary = self._secrets.with_suffix(f".{os.getpid()}.tmp")
                temporary.write_text(document)
                temporary.replace(self._secrets)

    def secrets(self) -> tuple[set[str], str]:
        """Names of the secrets that services of this project ever got, and the profile that named the last of them."""
        try:
            document = json.loads(files.read_text(self._secrets))
            return {str(name) for name in document["names"]}, str(document["profile"])
        except (OSError, ValueError, KeyError, TypeError):
            return set(), ""

    @property
    def _secrets(self) -> Path:
        return self.dir / "logs" / "secrets.json"

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
    def document(self) -> Path:
        """The file of the project's document."""
        return self.dir / "project.json"

    @property
    def stores(self) -> Path:
        """The file that lists the KV stores this project used."""
        return self.dir / "stores.jsonl"

    def clear(self) -> None:
        """Forget everything but the logs (and the lock file, which others may be waiting on), whatever stands there."""
        for path in (self.dir / "services", *self.dir.glob("project.json*")):
            with suppress(OSError):
                if path.is_symlink() or not path.is_dir():
                    path.unlink(missing_ok=True)
                else:
                    shutil.rmtree(path)

    def _make(self, directory: Path) -> None:
        with _writing(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "set KVDEMO_STATE_DIR to another place"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"free space there, or {remedy}"
        elif error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
            remedy = f"remove what stands there, or {remedy}"
        raise ServiceError(f"cannot write {path}: {error.strerror}", remedy) from error


def _open_lock(directory: Path) -> int:
    """The lock file, to be read only where nothing can be written; there, if it is missing, the directory itself."""
    path = directory / locks.FILE
    with _writing(path):
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT):
                raise
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return os.open(directory, os.O_RDONLY | os.O_CLOEXEC)


def _stamp(fd: int) -> str:
    try:
        return os.pread(fd, 200, 0).decode(errors="replace")
    except OSError:  # a directory that stands for its lock file
        return ""


def _is_lock(fd: int, directory: Path) -> bool:
    """Whether this descriptor still means the lock of the directory: nobody removed it, or made another."""
    for path in (directory / locks.FILE, directory):
        try:
            return os.path.samestat(os.fstat(fd), path.stat())
        except OSError:
            continue
    return False


def _say_nothing(what: str, how: str) -> None:
    """For whom waiting is no news."""


def _label(name: str) -> str:
    if not procfs.is_label(name):
        raise UsageError(f"{name!r} is not a name: use a to z, 0 to 9 and '-', at most 63 of them")
    return name


def _read(path: Path) -> Record | None:
    try:
        return Record.from_json(files.read_text(path))
    except (OSError, ValueError):
        return None
