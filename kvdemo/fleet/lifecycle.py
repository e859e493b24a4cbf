"""The stories ``stop``, ``start``, ``events`` and ``down SERVICE``: parts of a fleet end and come again.

A stopped fleet keeps its plan, and the project's document lists what was stopped: ``start`` brings exactly that up
again. What uses a cache ends before it, and with it. Nothing here prints.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import replace

from kvdemo.fleet import fleet, launchers, precheck, teardown
from kvdemo.host import process
from kvdemo.host.launcher import Event, Launcher, Remains, State
from kvdemo.host.state import Project
from kvdemo.host.survey import saved_plan
from kvdemo.planning.plan import Plan

POLL = 1.0
"""Seconds between two looks of ``events``: readiness is asked for, nothing announces it."""

STOPPED = "stopped"
"""The key of the project's document that lists what ``start`` brings up again."""


def stop(project: Project, lock_fd: int, names: Sequence[str], timeout: float | None = None) -> Generator[Event]:
    """Stop services (all if none is named) and the engines of a stopped cache; their plan stays.

    Raises UsageError for a service that the plan has not, NotReadyError if the project is not up.
    """
    plan = fleet.load_plan(project)
    launcher = launchers.of(project, plan, lock_fd)
    launcher.recover()
    targets = dependents(plan, names)
    ending = [name for name in launcher.started_services() if name in targets]
    _note(project, _stopped_services(project) | set(ending))
    yield from teardown.stop(launcher, ending, plan, timeout)
    launcher.tidy()


def start(
    project: Project, environ: Mapping[str, str], lock_fd: int, names: Sequence[str], timeout: float | None = None
) -> Generator[Event]:
    """Start services by the plan of the last ``up``: those named, else all that were stopped or have ended.

    If it fails, what it started is stopped again, and the plan stays. Raises as ``fleet.up`` does, and PreflightError
    for what has become impossible since, before anything starts.
    """
    plan = fleet.load_plan(project)
    launcher = launchers.of(project, plan, lock_fd)
    launcher.recover()
    fleet.resolve_names(plan, names)
    in_plan = {spec.name for spec in plan.services}
    targets = sorted(names or (_stopped_services(project) | set(launcher.started_services())) & in_plan or in_plan)
    running = launcher.running()
    needed = set(targets) | {plan.service(name).server for name in targets}
    specs = [spec for spec in plan.services if spec.name in needed - running]
    precheck.check(project, specs, environ, launcher, "nothing was started")
    with teardown.plan_kept(project):
        yield from fleet.up(plan, project, environ, lock_fd, names=targets, timeout=timeout)
    _note(project, _stopped_services(project) - needed)


def down(project: Project, names: Sequence[str], timeout: float | None = None) -> Generator[Event | Remains]:
    """Take down these services and the engines of a cache among them, nothing else; the last thing is their Remains.

    Taking down the last ones of a project is the ``down`` of the project. Raises UsageError for an unknown service.
    """
    plan = fleet.load_plan(project)
    launcher = launchers.of(project, plan)
    launcher.recover()
    targets = dependents(plan, names)
    if not (set(launcher.started_services()) | _stopped_services(project)) - targets:
        yield from teardown.down(project, timeout=timeout)
        return
    ending = [name for name in launcher.started_services() if name in targets]
    yield from teardown.stop(launcher, ending, plan, timeout)
    launcher.tidy()
    _note(project, _stopped_services(project) - targets)
    yield _remains(plan, launcher, ending, targets)


def _remains(plan: Plan, launcher: Launcher, exited: Collection[str], targets: Collection[str]) -> Remains:
    """What is left of these services; ports are looked at on this machine only."""
    running = launcher.running() & set(targets)
    ports = [address for spec in plan.services if spec.name in targets and not spec.node for address in spec.addresses]
    ports_in_use = [port for host, port in ports if not process.port_free(host, port)]
    return Remains(sorted(running), ports_in_use, checked={"services": len(exited), "ports": len(ports)})


def dependents(plan: Plan, names: Collection[str]) -> set[str]:
    """These services (all if none is named) and the engines of a cache among them. Raises UsageError."""
    targets = fleet.resolve_names(plan, names)
    return targets | {spec.name for spec in plan.services if spec.cache in targets}


def _stopped_services(project: Project) -> set[str]:
    names = (project.load(strict=False) or {}).get(STOPPED)
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _note(project: Project, stopped: Collection[str]) -> None:
    document = project.load(strict=False)
    if document is not None and _stopped_services(project) != set(stopped):
        project.save({**document, STOPPED: sorted(stopped)})


def changes(project: Project, environ: Mapping[str, str], names: Sequence[str]) -> Generator[Event]:
    """The state of each service now, then every change of it, for ever; what is taken down is absent.

    Raises NotReadyError if the project is not up at the beginning, UsageError for an unknown service.
    """
    before: dict[str, Event] = {}
    for event in fleet.status(project, environ, names):
        before[event.service] = event
        yield event
    while True:
        time.sleep(POLL)
        now = _observe(project, environ, names, before)
        for event in now:
            if (was := before.get(event.service)) is None or _sign(was) != _sign(event):
                yield event
        before |= {event.service: event for event in now}


def _observe(
    project: Project, environ: Mapping[str, str], names: Sequence[str], before: Mapping[str, Event]
) -> list[Event]:
    plan = saved_plan(project)
    present = [spec.name for spec in plan.services if spec.name in names or not names] if plan else []
    events = fleet.observe(plan, project, environ, present) if plan and present else []
    services = {event.service for event in events}
    absent = [Event(name, State.ABSENT, was.kind, at=was.at) for name, was in before.items() if name not in services]
    return [*events, *(replace(event, node=before[event.service].node) for event in absent)]


def _sign(event: Event) -> tuple[str, str, str]:
    """What of an event is a change of state: not its memory or age."""
    return event.state, event.detail, event.started_at
