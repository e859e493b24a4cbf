"""Stop services, and prove that they are gone.

Engines end before caches: a cache server has mapped the memory of its engines, and gives it back only when they
leave in good order. After the last one, the launcher looks for anything that outlived its owner.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager

from kvdemo.fleet import launchers
from kvdemo.fleet.stores import delete as delete_stores
from kvdemo.host.launcher import Event, Launcher, Remains
from kvdemo.host.state import Project
from kvdemo.host.survey import saved_plan
from kvdemo.planning.plan import Plan

__all__ = ["Remains", "down", "stop"]


def stop(
    launcher: Launcher, names: Collection[str], plan: Plan | None, timeout: float | None = None
) -> Generator[Event]:
    """Stop these services, engines first. What has not ended after ``timeout`` (default: the plan's) is killed."""
    if timeout is None:
        timeout = max([spec.stop_timeout for spec in plan.services] if plan else [30.0])
    services = [name for name in launcher.started_services() if name in names]
    kinds = {spec.name: spec.kind for spec in plan.services} if plan else {}
    yield from launcher.stop([name for name in services if kinds.get(name) != "cache"], timeout)
    yield from launcher.stop([name for name in services if kinds.get(name) == "cache"], timeout)


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP: what is done inside is short, and must come to its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def down(project: Project, *, remove_store: bool = False, timeout: float | None = None) -> Generator[Event | Remains]:
    """Stop everything of a project; the last thing yielded are its Remains. Safe to repeat, and after any crash."""
    plan = saved_plan(project)
    launcher = launchers.of(project, plan)
    launcher.recover()
    names, runs = launcher.started_services(), launcher.runs()
    yield from stop(launcher, names, plan, timeout)
    deleted = delete_stores(project.stores) if remove_store else {}
    remains = launcher.remains(plan.services if plan else (), runs)
    if not remains.has_leftovers:
        launcher.release()
        if not remains.unseen:
            project.clear()
    remains.checked |= {"services": len(names), **deleted}
    yield remains


@contextmanager
def plan_kept(project: Project) -> Generator[None]:
    """An ``up`` that fails forgets what it was to start; of who starts by a saved plan, that plan stays."""
    document = project.load()
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        if document and project.load(strict=False) is None:
            with ignore_signals():
                project.save(document)
        raise
