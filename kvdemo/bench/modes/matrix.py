"""The matrix: every engine writes a document of its own, every engine (itself included) is then asked about it."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from kvdemo.bench import cacheserver, trials
from kvdemo.bench.events import Doing
from kvdemo.bench.modes.mode import Mode, Work
from kvdemo.bench.session import Session
from kvdemo.bench.workload import Step
from kvdemo.judge.sample import Arm, Sample
from kvdemo.planning.plan import ServiceSpec


class Matrix(Mode):
    """Who can reuse what whom computed."""

    option = "matrix"
    section = "matrix"
    contradictory = ("lengths", "concurrency", "tier", "max_trials", "expected_ttft_gain")

    def engines(self, session: Session) -> Sequence[ServiceSpec]:
        """All of them."""
        return session.plan.engines

    def work(self, session: Session) -> Work:
        """Each writer computes once a pair, and so does a reader that shares nothing with it."""
        engines = session.plan.engines
        pairs = len(engines) ** 2
        computed = pairs + sum(not _shares(one, other) for one in engines for other in engines)
        return Work(2 * pairs, computed, computed * session.prompt.tokens).times(session.options.trials)

    def samples(self, session: Session) -> Generator[Doing | Sample]:
        """Pair by pair, each under a salt of its own."""
        engines, most = session.plan.engines, session.options.trials
        pairs = [(trial, one, other) for trial in range(1, most + 1) for one in engines for other in engines]
        for behind, (trial, writer, reader) in enumerate(pairs):
            text = f"trial {trial}: {writer.name} writes, {reader.name} reads"
            yield Doing(text, behind / len(pairs), trial, most, reader.name, "reuse")
            yield from _pair(session, trial, writer, reader)


def _pair(session: Session, trial: int, writer: ServiceSpec, reader: ServiceSpec) -> Generator[Sample]:
    """One engine reads the document, then another one."""
    prompt, salt = session.prompt, session.salt(f"{trial}-{writer.name}-{reader.name}")
    chunks = prompt.tokens // (writer.chunk_size or session.chunk) if writer.cache else 0
    arm: Arm = "store" if writer.cache else "cold"
    step = Step(trial, arm, writer, salt, 0, writer=writer.name)
    yield session.meter.ask(step, prompt.path, prompt.body(writer, salt), chunks)
    shared = _shares(writer, reader)
    if shared and chunks:
        trials.make_loadable(session, [salt], chunks, writer, reader)
    hit = session.reusable(prompt.tokens, reader) if shared else 0
    step = Step(trial, "reuse", reader, salt, hit, writer=writer.name)
    yield session.meter.ask(step, prompt.path, prompt.body(reader, salt))
    cacheserver.forget(session.plan, salt, session.meter.began)


def _shares(writer: ServiceSpec, reader: ServiceSpec) -> bool:
    """Whether the reader should find what the writer computed: in its own cache, or in a shared one."""
    pools = {writer.shared_cache, reader.shared_cache}
    return writer is reader or (len(pools) == 1 and "" not in pools)
