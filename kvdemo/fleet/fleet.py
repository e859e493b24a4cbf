"""The stories ``up``, ``restart`` and ``ps``: streams of events about services; nothing here prints.

``up`` starts what is missing and replaces what changed: caches first, and their engines beside them, which take longer
until they ask for it than the cache takes until it answers. An engine that came too early all the same is started again
when its cache is ready. Engines that measure the memory of a GPU start one after another, and after their cache.
What a failing or interrupted ``up`` started, it stops again; consume it under ``contextlib.closing``.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from kvdemo.errors import KvdemoError, NotReadyError, ServiceError, StartTimeoutError, UsageError
from kvdemo.fleet import excerpts, launchers, precheck, signature, stores, teardown, watch
from kvdemo.fleet.gpulocks import GpuLocks
from kvdemo.host import health, locks, survey
from kvdemo.host.launcher import Event, Launcher, State
from kvdemo.host.state import Project
from kvdemo.planning import order
from kvdemo.planning.plan import Plan, ServiceSpec

RECORD_PATIENCE = 10.0
"""Seconds in which a guardian has ended what its service left, and recorded the end."""

RECORD_POLL = 0.05


def up(  # noqa: PLR0913 (each is one wish of the caller)
    plan: Plan,
    project: Project,
    environ: Mapping[str, str],
    lock_fd: int,
    *,
    names: Sequence[str] = (),
    wait: bool = True,
    keep: bool = False,
    timeout: float | None = None,
    then: Callable[[], Iterable[Event]] | None = None,
) -> Generator[Event]:
    """Bring the plan (or only ``names`` and the caches they need) up; ends when every service can generate.

    ``then`` is done at the end, as a part of it: whoever interrupts it stops what was started.
    Raises UsageError for an API key that no request can carry, before anything is touched.
    Raises ServiceError or StartTimeoutError with the root cause, after stopping what it started (unless ``keep``).
    """
    specs = _closure(plan, names)
    for spec in specs:
        key_of(spec, environ)
    document = project.load(strict=False) or {}
    previous = survey.plan_of(document)
    launcher = launchers.of(project, previous, lock_fd, plan)
    launcher.recover()
    same = _unchanged_services(specs, previous, launcher)
    running = launcher.running()
    fresh = [spec for spec in specs if spec.name not in same]
    stale = running & ({spec.name for spec in fresh} | (running - {spec.name for spec in plan.services}))
    project.try_writing(precheck.SPACE)  # before anything is stopped
    yield from teardown.stop(launcher, stale, previous)
    # Saved before anything starts: whatever happens next, `down` knows what to look for.
    merged = _merge(plan, specs, previous, running)
    project.save({**document, **launcher.prepare(fresh=not running - stale), "plan": merged.to_json()})
    started: list[str] = []
    try:
        yield from _Starter(plan, project, environ, launcher, started).run(specs, same, wait=wait, timeout=timeout)
        launcher.note_shared_memory()
        if wait:
            _note_contexts(project, merged, specs, environ)
        if then:
            yield from then()
    except (Exception, KeyboardInterrupt):
        if not keep:
            yield from _undo(project, launcher, started, plan)
        raise
    except GeneratorExit:
        for _ in () if keep else _undo(project, launcher, started, plan):
            pass
        raise


def _note_contexts(project: Project, plan: Plan, specs: Sequence[ServiceSpec], environ: Mapping[str, str]) -> None:
    """Ask engines for the longest sequence where the plan could not know it (``max_model_len: auto``)."""
    unknown = [spec for spec in specs if spec.kind == "engine" and spec.context is None]
    longest = {spec.name: health.window(spec.url, spec.model, key_of(spec, environ)) for spec in unknown}
    document = project.load(strict=False)
    if document and any(longest.values()):
        services = tuple(replace(spec, context=longest.get(spec.name) or spec.context) for spec in plan.services)
        project.save({**document, "plan": replace(plan, services=services).to_json()})


def _undo(project: Project, launcher: Launcher, started: Collection[str], plan: Plan) -> Generator[Event]:
    """Stop what was started and remove its traces. Whoever interrupts that has it killed at once."""
    launcher.recover()  # a start that was interrupted may be known by its process only
    try:
        yield from teardown.stop(launcher, started, plan)
    except (KeyboardInterrupt, GeneratorExit):
        with teardown.ignore_signals():
            launcher.recover()
            for _ in teardown.stop(launcher, started, plan, timeout=0):
                pass
            _tidy(project, launcher, plan)
        raise
    with teardown.ignore_signals():
        _tidy(project, launcher, plan)


def _tidy(project: Project, launcher: Launcher, plan: Plan) -> None:
    launcher.tidy()
    if launcher.running():
        return
    launcher.release()
    if not plan.on:
        stores.prune(project.stores)
        project.clear()


def _merge(plan: Plan, specs: Sequence[ServiceSpec], previous: Plan | None, running: Set[str]) -> Plan:
    """What will run: the plan, except for services that nobody asked to replace and that run from an earlier one."""
    names = {spec.name for spec in specs}
    old = {spec.name: spec for spec in previous.services if spec.name in running - names} if previous else {}
    return replace(plan, services=tuple(old.get(spec.name, spec) for spec in plan.services))


def _closure(plan: Plan, names: Sequence[str]) -> list[ServiceSpec]:
    selection = resolve_names(plan, names)
    selection |= {spec.server for spec in plan.services if spec.name in selection and spec.server}
    return [spec for spec in plan.services if spec.name in selection]


def resolve_names(plan: Plan, names: Collection[str]) -> set[str]:
    """These services, all if none is named. Raises UsageError for one that is not in the plan."""
    existing = {spec.name for spec in plan.services}
    if unknown := [name for name in names if name not in existing]:
        raise UsageError(f"no service {unknown[0]} in project {plan.project}", f"it has: {', '.join(sorted(existing))}")
    return set(names) or existing


def _unchanged_services(specs: Sequence[ServiceSpec], previous: Plan | None, launcher: Launcher) -> set[str]:
    """Services that run exactly as planned; the engines of a cache that is replaced must follow it."""
    before = {spec.name: spec.digest for spec in previous.services} if previous else {}
    same: set[str] = set()
    for spec in specs:  # caches come first
        status = launcher.status(spec.name)
        lives = (
            status
            and status.alive
            and status.guarded
            and not status.guardian_stopped
            and not health.core_died(spec.url)
        )
        follows = not spec.server or spec.server in same
        if lives and follows and before.get(spec.name) == spec.digest:
            same.add(spec.name)
    return same


class _Starter:
    """Spawns services as soon as what they need is ready, and watches all of them at once."""

    def __init__(
        self, plan: Plan, project: Project, environ: Mapping[str, str], launcher: Launcher, started: list[str]
    ) -> None:
        self.plan, self.project, self.environ, self.launcher, self.started_services = (
            plan,
            project,
            environ,
            launcher,
            started,
        )
        self.run_id = secrets.token_hex(8)
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.stopping = threading.Event()
        self.watching: set[str] = set()
        self.locks = GpuLocks(plan.project, self.events.put, self.stopping)

    def run(
        self, specs: Sequence[ServiceSpec], same: set[str], *, wait: bool, timeout: float | None
    ) -> Generator[Event]:
        """Events until all are ready; raises on the first failure."""
        deadline = time.monotonic() + (timeout or max(spec.start_timeout for spec in specs))
        pending = {spec.name: order.at_start(spec, specs) for spec in specs}
        ready: set[str] = set()
        early: set[str] = set()
        try:
            yield from (
                Event(spec.name, State.WAITING, spec.kind, at=watch.place(spec), node=spec.node) for spec in specs
            )
            while pending or (self.watching and wait):
                for spec in [spec for spec in specs if spec.name in pending and pending[spec.name] <= ready]:
                    if spec.name not in same and not self.locks.may_start(spec, deadline):
                        continue
                    del pending[spec.name]
                    if spec.name not in same:
                        self._spawn(spec)
                    self.watching.add(spec.name)
                    # A daemon: one that hangs in a question to a stuck engine must not hold up Ctrl-C.
                    threading.Thread(target=self._watch, args=(spec, deadline), daemon=True).start()
                if not (pending or wait):
                    break
                event = self.events.get()
                self.locks.note(event)
                if event.state is State.READY:
                    ready.add(event.service)
                    self.watching.discard(event.service)
                    if event.service in same:
                        event = replace(event, state=State.UNCHANGED)
                if event.state is State.FAILED and event.service not in early and _too_early(event):
                    early.add(event.service)
                    self.watching.discard(event.service)
                    pending[event.service] = {self.plan.service(event.service).server}
                    event = Event(event.service, State.WAITING, event.kind, detail="for its cache", at=event.at)
                yield event
                if event.state is State.FAILED:
                    raise self._failure(event)
        finally:
            self.stopping.set()
            self.locks.close()

    def _spawn(self, spec: ServiceSpec) -> None:
        if spec.directory:
            stores.make(Path(spec.directory), dict(self.plan.models), self.project.stores)
        elif spec.store:
            stores.claim(spec, self.environ)
        self.project.note_secrets(spec.secrets, self.plan.profile)
        self.started_services.append(spec.name)
        self.launcher.start(spec, self.run_id, self.environ)

    def _watch(self, spec: ServiceSpec, deadline: float) -> None:
        cache = self.plan.service(spec.server) if spec.server else None
        secrets = {name: self.environ[name] for name in spec.secrets if self.environ.get(name)}
        try:
            watch.until_ready(
                spec,
                self.launcher,
                deadline=deadline,
                stopped=self.stopping.is_set,
                emit=lambda event: self.events.put(_blank(event, secrets)),
                cache=cache,
                key=key_of(spec, self.environ),
            )
        except Exception as error:
            self.events.put(Event(spec.name, State.FAILED, spec.kind, detail=f"cannot be watched: {error!r}"))

    def _failure(self, event: Event) -> KvdemoError:
        kind = StartTimeoutError if event.phase == "timeout" else ServiceError
        hint = f"log: {self.project.log(event.service)} (kvdemo logs {event.service} -p {self.project.name})"
        excerpt = f"it says: {event.line}" if event.line and event.line not in event.detail else ""
        return kind(f"{event.service}: {event.detail}", "\n".join(filter(None, (event.fix, excerpt, hint))))


def _too_early(event: Event) -> bool:
    """Whether an engine ended because its cache server did not answer (yet)."""
    return event.cause == signature.CACHE_UNREACHABLE


def key_of(spec: ServiceSpec, environ: Mapping[str, str]) -> str:
    """The API key for requests to this engine, if the profile gives it one.

    Raises UsageError for one that no request can carry: an engine that was started with it would refuse everybody.
    """
    key = environ.get("VLLM_API_KEY", "") if "VLLM_API_KEY" in spec.secrets else ""
    if why := health.unusable(key):
        raise UsageError(
            f"VLLM_API_KEY {why}", "set it again: export VLLM_API_KEY=$(tr -d '\\r\\n' < FILE) drops line ends"
        )
    return key


def restart(
    project: Project, environ: Mapping[str, str], lock_fd: int, names: Sequence[str], timeout: float | None = None
) -> Generator[Event]:
    """Stop and start services of a fleet, else all that were started; the engines of a restarted cache follow it.

    If it fails, what it started is stopped again, and the plan stays: ``start`` tries again.
    """
    plan = load_plan(project)
    resolve_names(plan, names)
    launcher = launchers.of(project, plan, lock_fd)
    launcher.recover()
    started = {spec.name for spec in plan.services} & set(launcher.started_services())
    if not (selection := {*names, *(spec.name for spec in plan.services if spec.cache in names)} or started):
        raise NotReadyError("no service is up", f"kvdemo start -p {project.name}")
    precheck.check(project, [spec for spec in plan.services if spec.name in selection], environ, launcher)
    with teardown.plan_kept(project):
        yield from teardown.stop(launcher, selection, plan)
        launcher.tidy()
        yield from up(plan, project, environ, lock_fd, names=sorted(selection), timeout=timeout)


def wait(
    project: Project, environ: Mapping[str, str], names: Sequence[str], timeout: float | None = None
) -> Generator[Event]:
    """Wait until these services (all if none is named) can generate; starts and stops nothing, needs no lock.

    Raises ServiceError with the root cause as soon as one has ended, StartTimeoutError after ``timeout`` seconds
    (default: the longest ``start_timeout``), NotReadyError for one that nobody has started or is about to start.
    """
    plan = load_plan(project)
    launcher = launchers.of(project, plan)
    launcher.recover()
    selection = resolve_names(plan, names)
    specs = [spec for spec in plan.services if spec.name in selection]
    patience = max(spec.start_timeout for spec in specs) if timeout is None else timeout
    deadline = time.monotonic() + patience
    while absent := sorted(selection - set(launcher.started_services())):
        if not locks.keepers(project.dir):
            raise NotReadyError(
                f"not started: {', '.join(absent)}", f"kvdemo start {' '.join(absent)} -p {project.name}"
            )
        if time.monotonic() > deadline:
            raise StartTimeoutError(f"not started within {patience:g} s: {', '.join(absent)}", "raise --timeout")
        time.sleep(watch.TICK)  # another command starts them, and tells nobody when
    starter = _Starter(plan, project, environ, launcher, [])
    for event in starter.run(specs, selection, wait=True, timeout=max(deadline - time.monotonic(), watch.TICK)):
        yield replace(event, state=State.READY) if event.state is State.UNCHANGED else event


def load_plan(project: Project) -> Plan:
    """The plan of a project that is up. Raises NotReadyError if it is not."""
    document = project.load()
    if plan := survey.plan_of(document):
        return plan
    if document:
        raise ServiceError(
            f"cannot use {project.document}: what it says of the plan is damaged, or of another version",
            f"run `kvdemo down -p {project.name}`",
        )
    if strays := launchers.of(project, None).recover():
        raise ServiceError(
            f"project {project.name} runs ({', '.join(strays)}), but {project.document} is gone",
            f"run `kvdemo down -p {project.name}`",
        )
    raise NotReadyError(f"project {project.name} is not up", "start it: kvdemo up PROFILE")


def status(project: Project, environ: Mapping[str, str], names: Collection[str] = ()) -> list[Event]:
    """What every service of the saved plan is doing at this moment, in start order. Raises as ``load_plan`` does."""
    return observe(load_plan(project), project, environ, names)


def observe(plan: Plan, project: Project, environ: Mapping[str, str], names: Collection[str] = ()) -> list[Event]:
    """What these services of a plan (all if none is named) are doing at this moment, in start order."""
    selected = resolve_names(plan, names)
    selection = [spec for spec in plan.services if spec.name in selected]
    launcher = launchers.of(project, plan)
    if {spec.name for spec in selection} - set(launcher.started_services()):
        launcher.recover()
    with ThreadPoolExecutor(max_workers=len(selection) or 1) as pool:
        return list(pool.map(lambda spec: _observe(spec, launcher, environ), selection))


def _observe(spec: ServiceSpec, launcher: Launcher, environ: Mapping[str, str]) -> Event:
    """One service now; of one that has ended, why."""
    event = watch.explain(watch.observe(spec, launcher.status(spec.name), key_of(spec, environ)), spec, launcher)
    secrets = {name: environ[name] for name in spec.secrets if environ.get(name)}
    return _blank(event, secrets)


def _blank(event: Event, secrets: dict[str, str]) -> Event:
    """An event whose words come from a log, without the secrets of its service."""
    detail, line = (excerpts.redact(text, secrets) for text in (event.detail, event.line))
    return replace(event, detail=detail, line=line)


def exits(project: Project, environ: Mapping[str, str], names: Collection[str]) -> list[Event]:
    """Those of these services that have ended, with the cause; none of a project that is not up any more."""
    plan = survey.saved_plan(project)
    present = [spec.name for spec in plan.services if spec.name in names] if plan else []
    return [event for event in observe(plan, project, environ, present) if event.cause] if plan and present else []


def death(project: Project, environ: Mapping[str, str], service: str) -> str:
    """Why this service has ended, and what to do, in one sentence; empty if it lives or nothing is known of it.

    Of one that has just ended, the record of its guardian is waited for.
    """
    deadline = time.monotonic() + RECORD_PATIENCE
    while True:
        (now,) = status(project, environ, [service])
        if not now.detail.startswith(watch.JUST_ENDED) or time.monotonic() > deadline:
            break
        time.sleep(RECORD_POLL)
    event = now if now.cause else None
    return f"{event.detail}: {event.fix}" if event and event.fix else event.detail if event else ""
