"""Watch one service: what state it is in now, and the wait until it can really serve.

Waiting races three things: ready, ended, deadline. The end of a process is awaited (pidfd), readiness is asked for.
Ready means: alive, healthy, the right model, the port answered by *this* service, one token generated; a cached engine
also has to be registered with its cache server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from kvdemo import backends
from kvdemo.fleet import diagnose
from kvdemo.host import health
from kvdemo.host.launcher import BEGIN, Event, Launcher, State, Status
from kvdemo.planning.plan import ServiceSpec

__all__ = ["Event", "State", "observe", "place", "until_ready"]

JUST_ENDED = "has just ended; its guardian has yet to record how"

TICK = 0.5
"""Seconds between two questions to a service that is not ready yet."""

LOOK = 2.0
"""Seconds between two looks at its processes: at every tick those for five services took an eighth of two cores."""


RECENT = 64 * 1024
"""Bytes at the end of a log in which the phase of a start is looked for."""


def place(spec: ServiceSpec) -> str:
    """Where a service lives, for people: port and GPUs."""
    gpus = f" GPU {','.join(map(str, spec.gpus))}" if spec.gpus else ""
    return f"{spec.host if spec.node else ''}:{spec.port}{gpus}"


def observe(spec: ServiceSpec, status: Status | None, key: str = "") -> Event:
    """The state of a service at this moment, from what its launcher knows and what it says itself."""
    event = Event(
        spec.name,
        State.ABSENT,
        spec.kind,
        at=place(spec),
        node=spec.node,
        host=spec.host,
        port=spec.port,
        url=spec.url,
    )
    if status is None or status.lost:
        return replace(event, state=State.LOST, detail=status.lost) if status else event
    started = datetime.fromtimestamp(status.started_at).astimezone().isoformat(timespec="milliseconds")
    event = replace(event, elapsed=time.time() - status.started_at, started_at=started)
    if not status.alive:
        exit = status.exit
        if exit is None:
            trace = JUST_ENDED if status.guarded else "gone without a trace (its guardian was killed too)"
            return replace(event, state=State.EXITED, detail=trace)
        how = f"signal {exit.signal}" if exit.signal else f"code {exit.code}"
        return replace(event, state=State.EXITED, detail=f"exited with {how}", elapsed=exit.at - status.started_at)
    event = replace(event, memory=status.memory, nice=status.nice, pid=status.pid, start_ticks=status.start_ticks)
    guarded = _guardian_problem(status)
    if not health.healthy(spec):
        return replace(
            event, state=State.UNHEALTHY, detail=guarded or "does not answer its health check (still starting?)"
        )
    detail, fix = _useless(spec, key) if spec.kind == "engine" else ("", "")
    if detail:
        return replace(event, state=State.UNHEALTHY, detail=detail, fix=fix)
    return replace(event, state=State.READY, detail=guarded)


def _useless(spec: ServiceSpec, key: str) -> tuple[str, str]:
    """Why a healthy engine is of no use to us, and what helps; empty if it is."""
    code, models = health.models(spec.url, key)
    if code in (401, 403):
        return _refusal(code, key)
    return ("" if spec.model in models else f"does not offer model {spec.model}"), ""


def _guardian_problem(status: Status) -> str:
    """Why nobody would tidy up behind this service; empty while its guardian does."""
    if status.guardian_stopped:
        return f"its guardian was stopped (SIGSTOP): kill -CONT {status.guardian_stopped}, or restart the service"
    return "" if status.guarded else "its guardian was killed"


class Follower:
    """Reads what is new in a log, and keeps the phase that it shows."""

    def __init__(self, launcher: Launcher, service: str) -> None:
        self.launcher, self.service = launcher, service
        self.place, self.phase = BEGIN, "import"

    def update(self) -> str:
        """The phase of starting, after whatever was written since the last call."""
        self.place, new = self.launcher.read_log(self.service, self.place, last=RECENT)
        self.phase = diagnose.phase(new.decode(errors="replace"), self.phase)
        return self.phase


def until_ready(
    spec: ServiceSpec,
    launcher: Launcher,
    *,
    deadline: float,
    stopped: Callable[[], bool],
    emit: Callable[[Event], None],
    cache: ServiceSpec | None = None,
    key: str = "",
) -> None:
    """Emit STARTING events until READY, or FAILED with the root cause (``detail``, ``fix``).

    A ready service is watched on, because the others still need it: FAILED may follow. ``deadline`` is on the monotonic
    clock. Returns when ``stopped`` says so.
    """
    follower = Follower(launcher, spec.name)
    event = Event(spec.name, State.STARTING, spec.kind, at=place(spec), node=spec.node)
    doubt = "health check not answered"
    began = time.monotonic()
    status, looked = None, 0.0
    while not stopped():
        # Ask at once, then ever more seldom: what runs already is found so without a wait.
        exit = launcher.wait_for_end(spec.name, min(TICK, (time.monotonic() - began) / 2))
        if exit or time.monotonic() > looked + LOOK:
            status, looked = launcher.status(spec.name), time.monotonic()
            launcher.note(spec.name)
        if exit or status is None or (status.guardian_stopped and not status.alive):
            cause = _cause(spec, launcher, status)
            emit(replace(_with_cause(event, cause, cause.words), state=State.FAILED, phase=""))
            return
        elapsed = time.time() - status.started_at
        event = replace(event, phase=follower.update(), elapsed=elapsed, memory=status.memory)
        if health.healthy(spec):
            doubt, hopeless = _doubt(spec, launcher, cache, key, deadline)
            if hopeless:
                emit(replace(event, state=State.FAILED, phase="", detail=doubt, fix=hopeless))
                return
            if not doubt:
                emit(replace(event, state=State.READY, phase="", elapsed=time.time() - status.started_at))
                _watch_until_stopped(spec, launcher, stopped, emit)
                return
        if time.monotonic() > deadline:
            late = f"not ready in time: {doubt}; last phase: {event.phase}"
            emit(
                replace(event, state=State.FAILED, phase="timeout", detail=late, fix="raise --timeout, or see its log")
            )
            return
        emit(event)


def explain(event: Event, spec: ServiceSpec, launcher: Launcher) -> Event:
    """An event of ``observe`` with the cause, if the service has ended or the core of an engine has died."""
    dying = event.state is State.UNHEALTHY and spec.kind == "engine" and health.core_died(spec.url)
    if event.state is not State.EXITED and not dying:
        return event
    status = launcher.status(spec.name)
    cause = _cause(spec, launcher, status)
    if dying and not cause.logged:
        return replace(event, detail="its core has died, and the log does not say why (yet)")
    how = "its core has died" if dying else event.detail
    if not cause.logged:
        recorded = cause.code == diagnose.STATUS and status is not None and status.exit is not None
        return _with_cause(event, cause, cause.words if recorded else how)
    return _with_cause(event, cause, f"{how}: {cause.words}")


def _with_cause(event: Event, cause: diagnose.Cause, detail: str) -> Event:
    return replace(event, detail=detail, fix=cause.fix, cause=cause.code, line=cause.line if cause.logged else "")


def _watch_until_stopped(
    spec: ServiceSpec, launcher: Launcher, stopped: Callable[[], bool], emit: Callable[[Event], None]
) -> None:
    while not stopped():
        if launcher.wait_for_end(spec.name, TICK):
            cause = _cause(spec, launcher, launcher.status(spec.name))
            event = Event(spec.name, State.FAILED, spec.kind, at=place(spec))
            emit(_with_cause(event, cause, f"ended after it was ready: {cause.words}"))
            return


def _doubt(
    spec: ServiceSpec, launcher: Launcher, cache: ServiceSpec | None, key: str, deadline: float
) -> tuple[str, str]:
    """Why a service that says it is healthy is not ready yet, empty when it is; and what helps if no wait can."""
    if stranger := launcher.stranger(spec):
        return f"port {spec.port} is answered by another program{_pid(stranger)}, which took it after it was checked", (
            "end that program, or leave `port` out and kvdemo chooses one; then kvdemo up again"
        )
    if spec.kind == "cache":
        usable = backends.of(spec.backend).usable(health.counters(spec.url))
        return "" if usable else "it answers, but has no memory to store in yet", ""
    code, models = health.models(spec.url, key)
    if code in (401, 403):
        return _refusal(code, key)
    return _inability(spec, models, cache, key, deadline), ""


def _inability(spec: ServiceSpec, models: list[str], cache: ServiceSpec | None, key: str, deadline: float) -> str:
    """What an engine that answers cannot do yet; empty when it serves."""
    if spec.model not in models:
        return f"it offers {models or 'no models'} instead of {spec.model}"
    if failed := health.generates(spec.url, spec.model, max(1.0, deadline - time.monotonic()), key):
        return f"it cannot generate: {failed}"
    if cache and not _has_engines(cache):
        return "it has not registered with its cache server"
    return ""


def _pid(pid: int) -> str:
    """A pid for people, if it can be seen."""
    return f" (pid {pid})" if pid > 0 else ""


def _refusal(code: int, key: str) -> tuple[str, str]:
    """What a refused request means, with or without a key of ours."""
    if key:
        return f"it refuses the API key that VLLM_API_KEY holds ({code})", (
            "take `api-key` out of args and env: with `secrets: [VLLM_API_KEY]` engine and kvdemo have the same key"
        )
    return f"it asks for an API key ({code}), and kvdemo has none for it", (
        "write `secrets: [VLLM_API_KEY]` into the profile, set VLLM_API_KEY, and take `api-key` out of args and env"
    )


def _has_engines(cache: ServiceSpec) -> bool:
    """Whether a cache server knows engines, if it must."""
    backend = backends.of(cache.backend)
    return not backend.registers or bool(backend.registered(health.report(cache)))


def _cause(spec: ServiceSpec, launcher: Launcher, status: Status | None) -> diagnose.Cause:
    """What the log and the guardian's record of a dead service say."""
    if status and status.lost:
        return diagnose.Cause(status.lost, code="node-lost")
    text = launcher.log_end(spec.name).decode(errors="replace")
    exit = status.exit if status else None
    if exit is None:
        return diagnose.root_cause(text, spec=spec)
    return diagnose.root_cause(
        text, exit.code, exit.signal, spec=spec, oom_kills=exit.oom_kills, oom_ours=exit.oom_ours
    )
