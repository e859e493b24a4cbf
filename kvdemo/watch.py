"""Watch one service: what state it is in now, and the wait until it can really serve.

Waiting races three things: ready, ended, deadline. The end of a process is awaited (pidfd), readiness is asked for.
Ready means: alive, healthy, the right model, the port answered by *this* service, one token generated; a cached engine
also has to be registered with its cache server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from kvdemo import diagnose, health, process
from kvdemo.plan import ServiceSpec
from kvdemo.procfs import Record, alive
from kvdemo.state import Project

TICK = 0.5
"""Seconds between two questions to a service that is not ready yet."""


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
    elapsed: float = 0.0
    memory: int = 0
    at: str = ""
    """Where it listens, and on which GPUs."""


def place(spec: ServiceSpec) -> str:
    """Where a service lives, for people: port and GPUs."""
    gpus = f" GPU {','.join(map(str, spec.gpus))}" if spec.gpus else ""
    return f":{spec.port}{gpus}"


def observe(spec: ServiceSpec, record: Record | None, key: str = "") -> Event:
    """The state of a service at this moment."""
    event = Event(spec.name, State.ABSENT, spec.kind, at=place(spec))
    if record is None:
        return event
    event = replace(event, elapsed=time.time() - record.started_at)
    if not alive(record.leader):
        ended = record.exit
        if ended is None:
            return replace(event, state=State.EXITED, detail="gone without a trace (its guardian was killed too)")
        how = f"signal {ended.signal}" if ended.signal else f"code {ended.code}"
        return replace(event, state=State.EXITED, detail=f"exited with {how}", elapsed=ended.at - record.started_at)
    event = replace(event, memory=process.resident(record))
    guarded = "" if alive(record.guardian) else "its guardian was killed"
    if not health.healthy(spec.url, spec.kind):
        return replace(
            event, state=State.UNHEALTHY, detail=guarded or "does not answer its health check (still starting?)"
        )
    if spec.kind == "engine" and spec.model not in health.served_models(spec.url, key):
        return replace(event, state=State.UNHEALTHY, detail=f"does not offer model {spec.model}")
    return replace(event, state=State.READY, detail=guarded)


class Follower:
    """Reads what is new in a log, and keeps the phase that it shows."""

    def __init__(self, log: Path) -> None:
        self.log, self.offset, self.phase = log, 0, "import"

    def update(self) -> str:
        """The phase of starting, after whatever was written since the last call."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(self.offset)
                new = stream.read()
        except OSError:
            return self.phase
        self.offset += len(new)
        self.phase = diagnose.phase(new.decode(errors="replace"), self.phase)
        return self.phase


def until_ready(
    spec: ServiceSpec,
    record: Record,
    project: Project,
    *,
    deadline: float,
    stopped: Callable[[], bool],
    emit: Callable[[Event], None],
    cache_url: str = "",
    key: str = "",
) -> None:
    """Emit STARTING events until READY, or FAILED with the root cause (``detail``, ``fix``).

    A ready service is watched on, because the others still need it: FAILED may follow. ``deadline`` is on the monotonic
    clock. Returns when ``stopped`` says so.
    """
    follower = Follower(project.log(spec.name))
    event = Event(spec.name, State.STARTING, spec.kind, at=place(spec))
    doubt = "health check not answered"
    began = time.monotonic()
    while not stopped():
        elapsed = time.time() - record.started_at
        # Ask at once, then ever more seldom: what runs already is found so without a wait.
        if process.wait_exit([record], min(TICK, (time.monotonic() - began) / 2)):
            cause = _cause(spec, project)
            emit(replace(event, state=State.FAILED, phase="", elapsed=elapsed, detail=cause.line, fix=cause.fix))
            return
        event = replace(event, phase=follower.update(), elapsed=elapsed, memory=process.resident(record))
        if health.healthy(spec.url, spec.kind):
            doubt = _doubt(spec, record, cache_url, key, deadline)
            if not doubt:
                emit(replace(event, state=State.READY, phase="", elapsed=time.time() - record.started_at))
                _until_stopped(spec, record, project, stopped, emit)
                return
        if time.monotonic() > deadline:
            late = f"not ready in time: {doubt}; last phase: {event.phase}"
            emit(
                replace(event, state=State.FAILED, phase="timeout", detail=late, fix="raise --timeout, or see its log")
            )
            return
        emit(event)


def _until_stopped(
    spec: ServiceSpec, record: Record, project: Project, stopped: Callable[[], bool], emit: Callable[[Event], None]
) -> None:
    while not stopped():
        if process.wait_exit([record], TICK):
            cause = _cause(spec, project)
            detail = f"ended after it was ready: {cause.line}"
            emit(Event(spec.name, State.FAILED, spec.kind, detail=detail, fix=cause.fix, at=place(spec)))
            return


def _doubt(spec: ServiceSpec, record: Record, cache_url: str, key: str, deadline: float) -> str:
    """Why a service that says it is healthy is not ready yet; empty when it is."""
    pids = {member.pid for member in process.members(record)}
    strangers = [pid for pid in process.listeners(spec.port) if pid not in pids]
    if strangers and not pids & set(process.listeners(spec.port)):
        return f"port {spec.port} is answered by another program (pid {strangers[0]})"
    if spec.kind == "cache":
        return ""
    models = health.served_models(spec.url, key)
    if spec.model not in models:
        return f"it offers {models or 'no models'} instead of {spec.model}"
    if failed := health.generates(spec.url, spec.model, max(1.0, deadline - time.monotonic()), key):
        return f"it cannot generate: {failed}"
    if cache_url and not registered(cache_url):
        return "it has not registered with its cache server"
    return ""


def registered(cache_url: str) -> int:
    """How many engines an LMCache server knows."""
    return len(health.status(cache_url).get("registered_gpu_ids", []))


def _cause(spec: ServiceSpec, project: Project) -> diagnose.Cause:
    """What the log and the guardian's record of a dead service say."""
    try:
        text = project.log(spec.name).read_text(errors="replace")
    except OSError:
        text = ""
    record = project.record(spec.name)
    ended = record.exit if record else None
    return diagnose.root_cause(text, ended.code if ended else None, ended.signal if ended else None)
