"""What every launcher offers, and the words in which it speaks of services: local processes now, a cluster the same.

A launcher starts, watches and stops the services of one project; everything else (plan, readiness, order, reports) is
shared. Services are asked for by name; what a launcher says of one comes from its guardian, never from the service.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kvdemo.host.procfs import Exit
    from kvdemo.planning.plan import ServiceSpec

Place = tuple[int, int]
"""How far a log was read: which file (its inode), and the offset in it."""

BEGIN: Place = (0, 0)

PIECE = 1024**2
"""Bytes of a log that are read at once: a log may hold a line of any length."""


class State(StrEnum):
    """What a service is, in every table, JSON document and event."""

    ABSENT = "absent"
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UNCHANGED = "unchanged"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    EXITED = "exited"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True)
class Event:
    """What was seen of a service. ``elapsed`` seconds since its start, ``memory`` bytes (anonymous and shared)."""

    service: str
    state: State
    kind: str = ""
    phase: str = ""
    detail: str = ""
    fix: str = ""
    cause: str = ""
    """The code of the cause of a failure, as in ``fleet.signatures``: what programs decide by."""
    line: str = ""
    """The line of the log that shows the cause."""
    elapsed: float = 0.0
    memory: int = 0
    at: str = ""
    """Where it listens, and on which GPUs."""
    node: str = ""
    nice: int = 0
    host: str = ""
    port: int = 0
    url: str = ""
    pid: int = 0
    """Of the service's leader, while it runs; with ``start_ticks`` (clock ticks since boot) never that of another."""
    start_ticks: int = 0
    started_at: str = ""
    """When it was started, in ISO 8601."""


@dataclass(frozen=True)
class Status:
    """A started service at this moment: whether its leader and its guardian live, how it ended, bytes of memory.

    ``nice`` is its leader's, as are ``pid`` and ``start_ticks`` (clock ticks since boot), which tell it from any other
    process; ``guardian_stopped`` is the pid of its guardian if that was stopped; ``lost`` says why nothing else can be
    known.
    """

    started_at: float
    alive: bool
    guarded: bool
    exit: Exit | None = None
    memory: int = 0
    nice: int = 0
    lost: str = ""
    pid: int = 0
    start_ticks: int = 0
    guardian_stopped: int = 0


@dataclass
class Remains:
    """What was looked for after ``down``; empty lists are the proof.

    ``gone`` ended with its node: nobody answers there. ``unseen`` is on a node out of reach, where nobody can look.
    """

    processes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    """How many of each kind were checked."""

    def add(self, other: Remains, node: str) -> None:
        """Take in what was found on a node."""
        self.processes += [f"{name} on {node}" for name in other.processes]
        self.ports += other.ports
        self.segments += other.segments
        self.gpus += [f"{node}: {text}" for text in other.gpus]
        for kind, count in other.checked.items():
            self.checked[kind] = self.checked.get(kind, 0) + count

    @property
    def has_leftovers(self) -> bool:
        """Whether anything is known to be left."""
        return bool(self.processes or self.ports or self.segments or self.gpus)

    def __bool__(self) -> bool:
        return self.has_leftovers or bool(self.unseen)

    def __str__(self) -> str:
        parts = [f"process {name}" for name in self.processes]
        parts += [f"port {port}" for port in self.ports]
        parts += [f"/dev/shm/{name}" for name in self.segments]
        parts += [f"out of reach: {text}" for text in self.unseen]
        return ", ".join(parts + self.gpus)


class Launcher(Protocol):
    """Services of one project, wherever they run."""

    def recover(self) -> list[str]:
        """Look for services that run without a record, and treat them as started from now on; their names."""

    def started_services(self) -> list[str]:
        """The services that were started and not forgotten, running or not."""

    def running(self) -> set[str]:
        """The services of which anything lives."""

    def prepare(self, *, fresh: bool) -> dict[str, Any]:
        """What ``remains`` will need to know of the time before the start; ``fresh``: nothing of the project runs."""

    def start(self, spec: ServiceSpec, run_id: str, environ: Mapping[str, str]) -> None:
        """Start a service; returns once its leader runs. Raises ServiceError if it cannot be started."""

    def note(self, service: str) -> None:
        """Note what a service that starts holds by now: once it is killed, nobody can see that any more."""

    def note_shared_memory(self) -> None:
        """Everything is up: note what it holds, to know it again even after a SIGKILL."""

    def status(self, service: str) -> Status | None:
        """What is known of a service; None if it was not started."""

    def wait_for_end(self, service: str, timeout: float) -> bool:
        """Wait for the end of a service, at most ``timeout`` seconds."""

    def stranger(self, spec: ServiceSpec) -> int:
        """The pid of another program that listens on the service's port; 0 if there is none, -1 if it is hidden."""

    def logs(self, *, previous: bool = False) -> list[str]:
        """The services that have a log (of the start before, with ``previous``)."""

    def read_log(
        self, service: str, place: Place = BEGIN, *, previous: bool = False, last: int = 0
    ) -> tuple[Place, bytes]:
        """A piece of what was written since ``place``, of that file, then of the one in its place; how far that is.

        No piece is larger than PIECE bytes; when it is empty, nothing more was written. With ``last`` all but the last
        so many bytes of each file are passed over.
        """

    def log_end(self, service: str) -> bytes:
        """The last lines of the current log, cut as ``logend`` does; costs the same for a log of any size."""

    def stop(self, services: Collection[str], timeout: float) -> Generator[Event]:
        """End these services together; what has not ended after ``timeout`` seconds is killed."""

    def release(self) -> None:
        """Give back what was reserved for services, none of which runs where anybody can look."""

    def tidy(self) -> None:
        """Remove the shared memory that stopped services left."""

    def remains(self, specs: Collection[ServiceSpec], runs: Collection[str]) -> Remains:
        """Look for whatever is left of the services ``specs`` and of the runs that were stopped."""

    def runs(self) -> set[str]:
        """The marks of everything that was started and not forgotten."""
