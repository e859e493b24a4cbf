"""Whose turn it is to start on a GPU: vLLM measures free memory as it starts, and neighbours disturb that.

One lock file a GPU, for all projects of this user on this machine: an engine that measures holds it alone, engines that
were told the size of their KV cache share it. Limits: other users' engines are not known; ``flock`` as in ``state``.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kvdemo.errors import ServiceError
from kvdemo.fleet.watch import place
from kvdemo.host.files import private_directory
from kvdemo.host.launcher import Event, State
from kvdemo.planning.order import measures
from kvdemo.planning.plan import ServiceSpec

INTERVAL = 0.1  # seconds; flock cannot wait with a deadline without a signal


def directory() -> Path:
    """Where the lock files are: the same place for all projects, whatever TMPDIR says."""
    return Path(f"/tmp/kvdemo-{os.getuid()}-gpus")


class GpuLock:
    """The right of one engine to start on these GPUs; ``alone`` for one that measures. Release it when it is ready."""

    def __init__(self, uuids: Sequence[str], *, alone: bool, owner: str) -> None:
        self.uuids, self.owner = sorted(set(uuids)), owner  # one order for all, so that no two wait for each other
        self.mode = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        self.descriptors: list[int] = []
        self.guard = threading.Lock()

    @property
    def complete(self) -> bool:
        """Whether every GPU is ours."""
        return len(self.descriptors) == len(self.uuids)

    def take(self) -> str:
        """Try now: empty if it is our turn (or no GPU is used), else whom we wait for."""
        with self.guard:
            for uuid in self.uuids[len(self.descriptors) :]:
                fd = _open(uuid)
                try:
                    fcntl.flock(fd, self.mode | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.pread(fd, 200, 0).decode(errors="replace").strip()
                    os.close(fd)
                    return holder or "another kvdemo"
                os.ftruncate(fd, 0)
                os.pwrite(fd, self.owner.encode(), 0)
                self.descriptors.append(fd)
        return ""

    def wait(self, stopped: Callable[[], bool], deadline: float) -> str:
        """Wait for our turn; whom we still wait for when ``stopped`` says so or the monotonic ``deadline`` is over."""
        while (holder := self.take()) and not stopped() and time.monotonic() < deadline:
            time.sleep(INTERVAL)
        if stopped():
            self.release()
        return holder

    def release(self) -> None:
        """Let the next one start."""
        with self.guard:
            while self.descriptors:
                os.close(self.descriptors.pop())


class GpuLocks:
    """The turns of one `up`: asked before each start, given back when a service is ready or has failed."""

    def __init__(self, project: str, emit: Callable[[Event], None], stopping: threading.Event) -> None:
        self.project, self.emit, self.stopping = project, emit, stopping
        self.all: dict[str, GpuLock] = {}

    def may_start(self, spec: ServiceSpec, deadline: float) -> bool:
        """Whether this service may start now. If not, an event comes when asking again is worth it."""
        if spec.kind == "cache" or not spec.uuids:
            return True
        if lock := self.all.get(spec.name):
            return not lock.take()
        lock = GpuLock(spec.uuids, alone=measures(spec), owner=f"engine {spec.name} of project {self.project}")
        self.all[spec.name] = lock
        if holder := lock.take():
            event = Event(
                spec.name, State.WAITING, spec.kind, at=place(spec), detail=f"for its GPU: {holder} starts there"
            )
            self.emit(event)
            threading.Thread(target=self._wait, args=(lock, event, deadline), daemon=True).start()
        return lock.complete

    def _wait(self, lock: GpuLock, event: Event, deadline: float) -> None:
        holder = lock.wait(self.stopping.is_set, deadline)
        if holder and not self.stopping.is_set():
            self.emit(replace(event, state=State.FAILED, phase="timeout", detail=f"waited {event.detail}"))
        else:
            self.emit(replace(event, detail=""))

    def note(self, event: Event) -> None:
        """Give the turn of a service back that is ready or has failed."""
        if event.state in (State.READY, State.FAILED) and event.service in self.all:
            self.all.pop(event.service).release()

    def close(self) -> None:
        """Give all turns back."""
        for lock in self.all.values():
            lock.release()


def _open(uuid: str) -> int:
    file = directory() / f"{re.sub(r'[^A-Za-z0-9-]', '-', uuid)}.lock"
    try:
        private_directory(file.parent)
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ServiceError(
            f"cannot lock a GPU with {file}: {error.strerror}", "remove it if it is not yours"
        ) from error
