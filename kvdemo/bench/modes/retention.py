"""What is kept outside of an engine outlives its own prefix cache, and the engine: asked again after either was lost.

A trial asks each engine about a document it has not seen, takes its own prefix cache from it, and asks again. A plain
engine has to compute everything anew, an engine with a cache finds there what it had stored. Limits: a flood fills the
cache server too, as the requests of others would; an L1 that holds less than an engine's own KV cache keeps nothing.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Generator, Sequence
from itertools import cycle, islice
from typing import ClassVar

from kvdemo.bench import cacheserver, measure, trials, workload
from kvdemo.bench.events import Doing
from kvdemo.bench.modes.mode import Mode, Work
from kvdemo.bench.session import Session
from kvdemo.bench.workload import Step
from kvdemo.errors import UsageError
from kvdemo.host import health
from kvdemo.judge.sample import Arm, Sample
from kvdemo.planning.plan import ServiceSpec

RESET = "/reset_prefix_cache"
"""Empties an engine's own prefix cache; only engines with VLLM_SERVER_DEV_MODE=1 have it."""

PIECE = 8192
"""Prompt tokens of one request of a flood."""


class _Retention(Mode):
    # Ask, take away, ask again.
    section = "rows"
    contradictory = ("lengths", "concurrency", "tier", "max_trials", "expected_ttft_gain")
    arm: ClassVar[Arm]

    def engines(self, session: Session) -> Sequence[ServiceSpec]:
        """The baseline, and the reader of each cache. Each reads under a salt of its own: nobody helps another."""
        return (session.roles.baseline, *(pair.reader for pair in session.roles.pairs))

    def work(self, session: Session) -> Work:
        """Everybody computes once, plain engines twice; then the control."""
        engines, tokens = self.engines(session), session.prompt.tokens
        computed, controls = len(engines) + sum(not engine.cache for engine in engines), len(trials.controls(session))
        requests = Work(2 * len(engines), computed, computed * tokens).times(session.options.trials)
        return requests + Work(2 * controls, controls, controls * tokens)

    def samples(self, session: Session) -> Generator[Doing | Sample]:
        """Each second trial asks the engines in the opposite order."""
        most, order = session.options.trials, list(self.engines(session))
        for trial in range(1, most + 1):
            for engine in order:
                arm: Arm = "store" if engine.cache else "cold"
                yield Doing(
                    f"trial {trial} of {most}: {engine.name} {arm}", (trial - 1) / most, trial, most, engine.name, arm
                )
                yield _ask(session, trial, arm, engine)
            yield from self.take_away(session, order, trial)
            for engine in order:
                text = f"trial {trial} of {most}: {engine.name} {self.arm}"
                yield Doing(text, (trial - 0.5) / most, trial, most, engine.name, self.arm)
                yield _ask(session, trial, self.arm, engine)
            cacheserver.forget(session.plan, session.salt(f"kept-{trial}-*"), session.meter.began)
            order.reverse()
        yield from trials.control(session, session.prompt)

    @abstractmethod
    def take_away(self, session: Session, engines: Sequence[ServiceSpec], trial: int) -> Generator[Doing]:
        """Make these engines lose their own prefix caches."""


class Evicted(_Retention):
    """Other requests fill the engine's own KV cache, or it is told to forget."""

    option = "evicted"
    arm = "evicted"

    def check(self, session: Session) -> None:
        """An engine has to say how much would flood it, or take the order to forget."""
        for engine in self.engines(session):
            if measure.own_tokens(engine, session.meter.key) is None and not _reset(session, engine):
                raise UsageError(f"--evicted: {engine.name} does not tell the size of its KV cache")

    def work(self, session: Session) -> Work:
        """Also the floods, most of it. Nothing has been asked yet: to forget now costs an engine nothing."""
        floods = [_flood(session, engine) for engine in self.engines(session) if not _reset(session, engine)]
        each = sum((Work(count, count, count * piece) for count, piece in floods), Work())
        return super().work(session) + each.times(session.options.trials)

    def take_away(self, session: Session, engines: Sequence[ServiceSpec], trial: int) -> Generator[Doing]:
        """Told to forget where it can be told, else flooded."""
        for engine in engines:
            yield Doing(f"emptying the prefix cache of {engine.name}", trial=trial, engine=engine.name)
            if not _reset(session, engine):
                _fill(session, engine, trial)
            if server := session.meter.cache(engine):
                cacheserver.settle(server)


class Restarted(_Retention):
    """The engine ends and comes again."""

    option = "restarted"
    arm = "restarted"

    def check(self, session: Session) -> None:
        """Only what kvdemo started can be restarted."""
        if session.restart is None:
            raise UsageError("--restarted needs a fleet that kvdemo started", "leave --target out")

    def take_away(self, session: Session, engines: Sequence[ServiceSpec], trial: int) -> Generator[Doing]:
        """All at once; a throwaway afterwards pays for what a new process does once."""
        assert session.restart is not None  # noqa: S101 (what check has refused)
        yield Doing(f"restarting {', '.join(engine.name for engine in engines)}", trial=trial)
        session.restart([engine.name for engine in engines])
        options = session.options
        for engine in engines:
            session.meter.forget(engine)
            session.meter.counters(engine)
            salt = session.salt(f"warm-{trial}")
            trials.warm_up(session.meter, engine, options.system, session.document, salt, options.asked_question)


def _ask(session: Session, trial: int, arm: Arm, engine: ServiceSpec) -> Sample:
    """One request; after the first one the cache has all of its chunks."""
    prompt, salt, first = session.prompt, session.salt(f"kept-{trial}-{engine.name}"), arm in ("cold", "store")
    expected = session.reusable(prompt.tokens, engine) if engine.cache and not first else 0
    chunks = prompt.tokens // (engine.chunk_size or session.chunk) if arm == "store" else 0
    return session.meter.ask(Step(trial, arm, engine, salt, expected), prompt.path, prompt.body(engine, salt), chunks)


def _reset(session: Session, engine: ServiceSpec) -> bool:
    """Tell an engine to forget; whether it did."""
    return health.request(engine.url, RESET, timeout=30, key=session.meter.key, body={})[0] == 200


def _flood(session: Session, engine: ServiceSpec) -> tuple[int, int]:
    """How many requests of how many tokens come to as many as its KV cache holds."""
    piece = min(PIECE, (engine.context or PIECE) - 1)
    return math.ceil((measure.own_tokens(engine, session.meter.key) or 0) / piece), piece


def _fill(session: Session, engine: ServiceSpec, trial: int) -> None:
    """Flood an engine, each request under a salt of its own."""
    count, piece = _flood(session, engine)
    ids = list(islice(cycle(session.prompt.ids), piece))
    for number in range(count):
        salt = session.salt(f"flood-{trial}-{number}")
        body = workload.body(engine.model, {"prompt": ids}, max_tokens=1, salt=salt, logprobs=None)
        session.meter.client(engine).stream("/v1/completions", body)
