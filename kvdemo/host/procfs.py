"""Who a process is and what it holds (memory, shared memory, ports), as /proc tells it.

An ``Identity`` means one process for ever: pid, kernel start ticks, boot and pid namespace. A ``Record`` is what the
guardian of a service wrote about it. Limits: Linux; a process of another user or namespace is only ever "not ours".
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from kvdemo.errors import PreflightError
from kvdemo.host import shim

SHM = Path(shim.SHM)
_VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*=")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LAST_PID = 2**22


def is_label(name: str) -> bool:
    """Whether this may be the name of a project or a service: a DNS label."""
    return bool(_LABEL.fullmatch(name))


@dataclass(frozen=True)
class Identity:
    """One process: never equal to a later one that got its pid. ``starttime`` in clock ticks since boot."""

    pid: int
    starttime: int
    boot_id: str
    pidns: int
    uid: int


@dataclass(frozen=True)
class Exit:
    """How a leader ended: ``code`` or ``signal``, when (unix seconds), how many processes had to be killed after it.

    ``error`` says why the program could not even be executed (``code`` is 127 then). ``oom_kills`` counts processes
    that the kernel killed for want of memory meanwhile: of its control group (``oom_ours``) or of the machine.
    """

    code: int | None
    signal: int | None
    at: float
    swept: int
    error: str = ""
    oom_kills: int = 0
    oom_ours: bool = False


@dataclass(frozen=True)
class Record:
    """What a guardian wrote about its service; ``leader`` is None until the service was forked."""

    service: str
    run_id: str
    started_at: float
    guardian: Identity
    leader: Identity | None
    exit: Exit | None

    def to_json(self) -> str:
        """The text of the record file."""
        return json.dumps({"schema": 1, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record in this text; raises ValueError when it is none."""
        try:
            raw: dict[str, Any] = json.loads(text)
            if not is_label(str(raw["service"])):
                raise ValueError("it names no service")
            return cls(
                service=str(raw["service"]),
                run_id=str(raw["run_id"]),
                started_at=float(raw["started_at"]),
                guardian=_identity(raw["guardian"]),
                leader=_identity(raw["leader"]) if raw["leader"] else None,
                exit=_exit(raw["exit"]) if raw["exit"] else None,
            )
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a service record: {error!r}") from error


def _exit(raw: Mapping[str, Any]) -> Exit:
    code, number = raw["code"], raw["signal"]
    return Exit(
        code=None if code is None else int(code),
        signal=None if number is None else int(number),
        at=float(raw["at"]),
        swept=int(raw["swept"]),
        error=str(raw.get("error", "")),
        oom_kills=int(raw.get("oom_kills", 0)),
        oom_ours=bool(raw.get("oom_ours", False)),
    )


def _identity(raw: Mapping[str, Any]) -> Identity:
    if not 0 <= int(raw["pid"]) <= _LAST_PID:
        raise ValueError(f"{raw['pid']} is no process id")
    return Identity(int(raw["pid"]), int(raw["starttime"]), str(raw["boot_id"]), int(raw["pidns"]), int(raw["uid"]))


@cache
def boot_and_namespace() -> tuple[str, int]:
    """This boot and this pid namespace; neither changes during the life of a process."""
    return shim.boot_id(), Path("/proc/self/ns/pid").stat().st_ino


def is_here(identity: Identity) -> bool:
    """Whether the identity was taken in this boot and pid namespace; any other says nothing about our pids."""
    return (identity.boot_id, identity.pidns) == boot_and_namespace()


def nice_of(pid: int) -> int:
    """The nice value of a process; 0 if it is gone."""
    try:
        return os.getpriority(os.PRIO_PROCESS, pid)
    except OSError:
        return 0


def uid_of(pid: int) -> int | None:
    """The real user id of a process, or None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(b"Uid:")), None)


def identify(pid: int) -> Identity | None:
    """Who has this pid now (zombies included), or None."""
    entry = shim.stat(pid)
    uid = uid_of(pid)
    return None if entry is None or uid is None else Identity(pid, entry.starttime, *boot_and_namespace(), uid)


def alive(identity: Identity | None) -> bool:
    """Whether exactly this process still runs; a zombie does not, nor anything of another boot or pid namespace."""
    if identity is None or not is_here(identity):
        return False
    entry = shim.stat(identity.pid)
    return entry is not None and entry.starttime == identity.starttime and not entry.dead


def stopped(identity: Identity | None) -> bool:
    """Whether exactly this process is there, but was stopped (SIGSTOP, Ctrl-Z)."""
    if identity is None or not is_here(identity):
        return False
    entry = shim.stat(identity.pid)
    return entry is not None and entry.starttime == identity.starttime and entry.stopped


def environ(pid: int) -> list[bytes] | None:
    """The ``NAME=value`` pairs a process was started with; None if unreadable, empty if it has overwritten them."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    return [pair for pair in text.split(b"\0") if _VARIABLE.match(pair)]


def command_line(pid: int) -> list[bytes]:
    """The words a process was started with; empty if it is gone, or has none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def command_lines() -> Iterator[list[bytes]]:
    """The words of every live process that is visible here."""
    for pid, entry in shim.table().items():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] and not entry.dead:
            yield words


def memory_of(pid: int) -> int:
    """Bytes of memory of a process: its fair share (PSS), where not readable all it has resident; 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Resident(NamedTuple):
    """Bytes of memory that a process holds: its own (anonymous), and shared ones, as often as they are mapped."""

    own: int
    shared: int


def resident_of(pid: int) -> Resident:
    """What a process holds: a hundredth of what the kernel needs to tell its fair share."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return Resident(0, 0)
    rows = dict(row.split(":", 1) for row in text.splitlines())
    return Resident(*(int(rows.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssShmem")))


def shared_sizes(pid: int) -> dict[tuple[str, str], int]:
    """Bytes up to the end of what a process maps of each shared object, by device and inode; devices do not count."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    except OSError:
        return {}
    sizes: dict[tuple[str, str], int] = {}
    for place, access, offset, device, inode, *path in (line.split(maxsplit=5) for line in maps.splitlines()):
        if access.endswith("s") and not "".join(path).startswith("/dev/nvidia"):
            begin, end = (int(address, 16) for address in place.split("-"))
            sizes[device, inode] = max(sizes.get((device, inode), 0), int(offset, 16) + end - begin)
    return sizes


def shm_maps(pid: int) -> set[str]:
    """The names in /dev/shm that a process maps now; nothing where its maps are not readable."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    except OSError:
        return set()
    paths = (line.split(maxsplit=5)[-1] for line in maps.splitlines())
    names = (path for path in paths if path.startswith(f"{SHM}/") and not path.endswith(" (deleted)"))
    return {path.removeprefix(f"{SHM}/") for path in names}


def segments(pids: Collection[int]) -> set[str]:
    """The names in /dev/shm that belong to these processes: mapped by them now, or named after one by a cache."""
    prefixes = tuple(pool.format(pid=pid) for pid in pids for pool in shim.POOLS)
    names = {path.name for path in SHM.iterdir() if path.name.startswith(prefixes)} if prefixes else set()
    return names.union(*(shm_maps(pid) for pid in pids))


def remove_segments(names: Collection[str]) -> list[str]:
    """Unlink these names from /dev/shm, except what a live process still maps or another user owns; what stayed."""
    in_use: set[str] = set().union(*(shm_maps(pid) for pid in shim.table()))
    stayed = []
    for name in sorted(names):
        path = SHM / name
        outside = ".." in path.parts or not path.is_relative_to(SHM)
        try:
            if outside or name in in_use or path.lstat().st_uid != os.getuid():
                stayed.append(name)
            else:
                path.unlink()
        except FileNotFoundError:
            pass
        except OSError:
            stayed.append(name)
    return stayed


def listeners(port: int, *, hidden: bool = False) -> list[int]:
    """The pids that listen on this TCP port; with ``hidden`` 0 stands for those that this user may not see."""
    return sorted({pid or 0 for status, pid in _sockets(port) if status == psutil.CONN_LISTEN and (pid or hidden)})


def _sockets(port: int) -> list[tuple[str, int | None]]:
    return [(c.status, c.pid) for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port]


def port_free(host: str, port: int) -> bool:
    """Whether a server could bind this TCP port now; raises PreflightError where no server ever could.

    A plain bind also finds ports that are bound but not yet listened on, as vLLM's are while it loads its model.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for reuse in (False, True):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            try:
                probe.bind((host, port))
                return True
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise PreflightError(f"cannot bind {host}:{port}: {error.strerror}") from error
        # Old connections of a server that has left hold the port against a plain bind only. No sign of
        # them: then somebody has it bound without listening, and would share it with a bind that reuses.
        states = {status for status, _ in _sockets(port)}
        if not states or psutil.CONN_LISTEN in states:
            return False
    return False
