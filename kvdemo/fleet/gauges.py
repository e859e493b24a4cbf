"""Ask a fleet for its counters again and again: every look is a Frame. It disturbs nobody: ``/metrics`` only.

Each service is asked by a thread of its own: one that hangs, or computes in the process that answers, keeps neither the
others nor the screen waiting. It says so, and is there again as soon as it answers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from kvdemo import backends
from kvdemo.backends.series import PROMPT_TOKENS
from kvdemo.errors import KvdemoError
from kvdemo.fleet import fleet, launchers
from kvdemo.host import gpus, health, survey
from kvdemo.host.state import Project
from kvdemo.judge import rates
from kvdemo.judge.frame import Cache, Engine, Frame, PromptsSeen
from kvdemo.judge.rates import Prompts
from kvdemo.judge.scrape import Scrape
from kvdemo.judge.window import Break, Window
from kvdemo.planning.plan import ServiceSpec

WINDOW = 10.0
"""Seconds that rates are of, once there are so many."""

PATIENCE = 1.0
"""Seconds that a look waits for answers; whoever has not answered by then is asked no more until it has."""

HANGS = 30.0
"""Seconds after which a question is given up."""

RECENT = 5
"""How many of the last prompts a frame shows."""

SEVERAL = "several processes answer here in turn: give each engine's own address, not that of a router"
FOREIGN = "its /metrics has no counters of {}"


@dataclass(frozen=True)
class Answer:
    """What came of one question; ``report`` is a cache server's own."""

    reading: Scrape | None
    problem: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)


class Question:
    """One question, asked in a thread that nobody has to wait for."""

    def __init__(self, work: Callable[[], Answer]) -> None:
        self.asked_at, self.answer, self.finished = time.monotonic(), Answer(None), threading.Event()
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[], Answer]) -> None:
        try:
            self.answer = work()
        except Exception as error:  # an address that no library can read: whoever asked is told
            self.answer = Answer(None, f"cannot be asked ({str(error) or type(error).__name__})")
        self.finished.set()


class Source:
    """One service: its readings, and what was last heard of it."""

    def __init__(self, spec: ServiceSpec, key: str, length: float) -> None:
        self.spec, self.key, self.window = spec, key, Window(length)
        self.question: Question | None = None
        self.answer = Answer(None, "not asked yet")
        self.new = False
        self.broken = Break.NONE
        self.restarted: datetime | None = None
        self.silent_since: float | None = None

    def ask(self) -> None:
        """Ask, unless an answer is still awaited; one that came too late for the look before is of no use to this."""
        self.new = False
        if self.question is None or self.question.finished.is_set():
            self.question = Question(self._read)

    def _read(self) -> Answer:
        reading, problem = health.metrics(self.spec.url, self.key, HANGS)
        if reading is None or self.spec.kind == "engine":
            return Answer(reading, problem)
        return Answer(reading, problem, health.report(self.spec))

    def hear(self, deadline: float) -> None:
        """Take the answer if it comes in time."""
        if self.question is None:
            return
        if self.question.finished.wait(max(0.0, deadline - time.monotonic())):
            self.answer, self.question = self.question.answer, None
            self._take(self.answer.reading)
        else:
            self.answer = Answer(None, "no answer yet: busy, or it hangs")
            self.silent_since = self.silent_since or self.question.asked_at
        if not self.answer.problem:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = time.monotonic()

    def _take(self, reading: Scrape | None) -> None:
        if reading is None:
            return
        if self.spec.kind == "engine" and PROMPT_TOKENS.key not in reading.values:
            self.answer = Answer(None, FOREIGN.format("vLLM"))
            return
        broken = self.window.add(reading)
        self.new = True
        if broken:
            self.broken, self.restarted = broken, datetime.now().astimezone()

    @property
    def problem(self) -> str:
        """Why it has no rates now."""
        return self.answer.problem or (SEVERAL if self.window.several else "")

    @property
    def readings(self) -> tuple[Scrape, Scrape] | None:
        """The last two readings, if the last one is of this look."""
        before = self.window.previous
        return (before, self.window.last) if before and self.new and not self.problem else None


class Gauges:
    """The fleet. ``services`` says at every look who belongs to it, ``memory`` gives a service's bytes."""

    def __init__(
        self,
        title: str,
        services: Callable[[], Sequence[ServiceSpec]],
        key: Callable[[ServiceSpec], str],
        memory: Callable[[str], int | None] = lambda _: None,
        environ: Mapping[str, str] | None = None,
        *,
        length: float = WINDOW,
    ) -> None:
        self.title, self.services, self.key, self.memory, self.environ = title, services, key, memory, environ
        self.length = length
        self.sources: dict[str, Source] = {}
        self.recent: deque[PromptsSeen] = deque(maxlen=RECENT)

    def look(self) -> Frame:
        """Ask everybody; what has not answered within ``PATIENCE`` says so. Raises nothing."""
        with suppress(KvdemoError):  # a fleet that was taken down: its services say it themselves
            self._adopt(self.services())
        for source in self.sources.values():
            source.ask()
        deadline = time.monotonic() + PATIENCE
        for source in self.sources.values():
            source.hear(deadline)
        now = datetime.now().astimezone()
        fresh = [PromptsSeen(now, one) for one in self._prompts()]
        self.recent.extendleft(fresh)
        loads = self._loads()
        engines = [self._engine(one, loads) for one in self.sources.values() if one.spec.kind == "engine"]
        caches = [self._cache(one) for one in self.sources.values() if one.spec.kind == "cache"]
        return Frame(self.title, now, self.length, engines, caches, fresh, tuple(self.recent))

    def _adopt(self, specs: Sequence[ServiceSpec]) -> None:
        current = self.sources
        self.sources = {}
        for spec in specs:
            before = current.get(spec.name)
            same = before is not None and before.spec.url == spec.url
            self.sources[spec.name] = before if before and same else Source(spec, self.key(spec), self.length)

    def _loads(self) -> dict[int, Any]:
        """The GPUs of this machine, if an engine here has any."""
        on_gpu = any(one.spec.gpus and not one.spec.node for one in self.sources.values())
        return gpus.loads(self.environ) if on_gpu and self.environ is not None else {}

    def _engine(self, source: Source, loads: Mapping[int, Any]) -> Engine:
        rates_now = rates.EngineRates()
        if not source.problem:
            rates_now = rates.engine(source.window.first, source.window.last)
        numbers = source.spec.gpus if not source.spec.node else ()
        own_loads = tuple(loads[number] for number in numbers if number in loads)
        return Engine(**self._service(source), rates=rates_now, gpus=own_loads)

    def _cache(self, source: Source) -> Cache:
        rates_now = rates.CacheRates()
        if not source.problem:
            backend = backends.of(source.spec.backend)
            rates_now = rates.cache(backend, source.window.first, source.window.last, source.answer.report)
        return Cache(**self._service(source), rates=rates_now)

    def _service(self, source: Source) -> dict[str, Any]:
        memory = None
        with suppress(KvdemoError, OSError):
            memory = self.memory(source.spec.name)
        silent = time.monotonic() - source.silent_since if source.silent_since else 0.0
        return {
            "name": source.spec.name,
            "problem": source.problem,
            "silent": silent,
            "broken": str(source.broken),
            "restarted": source.restarted,
            "memory": memory,
        }

    def _prompts(self) -> list[Prompts]:
        """What every engine began to answer since the look before, and where its cache had that."""
        engines = [one for one in self.sources.values() if one.spec.kind == "engine"]
        prompts_by_engine = {
            one.spec.name: rates.prompts(one.spec.name, *one.readings) for one in engines if one.readings
        }
        return [self._tiers(one, prompts_by_engine) for one in prompts_by_engine.values() if one]

    def _tiers(self, one: Prompts, prompts_by_engine: Mapping[str, Prompts | None]) -> Prompts:
        """The same with the tiers, if the engine tells, or if nobody else can have asked the cache meanwhile."""
        engine = self.sources[one.engine]
        cache = self.sources.get(engine.spec.cache)
        if cache is None and engine.readings is not None:
            return replace(one, tiers=rates.own_tiers(backends.of(engine.spec.backend), one, *engine.readings))
        if cache is None or cache.readings is None:
            return one
        sharers = [source for source in self.sources.values() if source.spec.cache == cache.spec.name]
        for source in sharers:
            quiet = source.readings and all(rates.idle(reading) for reading in source.readings)
            if not quiet or (source.spec.name != one.engine and prompts_by_engine.get(source.spec.name)):
                return one
        return replace(one, tiers=rates.tiers(backends.of(cache.spec.backend), one, *cache.readings))


def of_project(
    project: Project, environ: Mapping[str, str], names: Sequence[str] = (), length: float = WINDOW
) -> Gauges:
    """Of a project's services, or these of them.

    Raises NotReadyError if it is not up, UsageError for a service that it has not.
    """
    fleet.resolve_names(fleet.load_plan(project), names)

    def services() -> list[ServiceSpec]:
        plan = fleet.load_plan(project)
        return [spec for spec in plan.services if spec.name in names or not names]

    def memory(name: str) -> int | None:
        status = launchers.of(project, survey.saved_plan(project)).status(name)
        return status.memory if status and status.alive and status.memory else None

    key = fleet.key_of
    return Gauges(project.name, services, lambda spec: key(spec, environ), memory, environ, length=length)


def of_targets(specs: Sequence[ServiceSpec], key: str, length: float = WINDOW) -> Gauges:
    """Of what something else started: of its memory and GPUs nothing is known."""
    return Gauges("attached", lambda: specs, lambda _: key, length=length)
