"""The demonstration as a story: who is asked in which order, what each step shows, and how long it should take here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from kvdemo.bench import workload
from kvdemo.errors import UsageError
from kvdemo.ui.conversation import Document
from kvdemo.ui.engines import NOTHING, EnginePool


@dataclass(frozen=True)
class Step:
    """One step: an engine, what it does with the document, where its tokens come from, and seconds, if known."""

    engine: str
    text: str
    source: Literal["computed", "shared"]
    seconds: float | None = None


def steps(pool: EnginePool, document: Document) -> list[Step]:
    """The steps in order; none for a fleet in which no engine can read what another one stored."""
    with suppress(UsageError):
        roles = workload.roles(pool.plan)
        writer, reader = roles.writer.name, roles.reader.name
        stored = Step(
            writer,
            "reads the document: computes its KV cache and stores it in the shared cache",
            "computed",
            pool.seconds_cold(writer, document.tokens),
        )
        loaded = Step(reader, "has never read it: loads that KV cache and answers", "shared")
        if not roles.plain:
            return [stored, loaded]
        plain = roles.baseline.name
        seconds = pool.seconds_cold(plain, document.tokens)
        return [stored, Step(plain, "shares nothing: computes all of it again", "computed", seconds), loaded]
    return []


def groups(pool: EnginePool) -> list[list[str]]:
    """The engines to ask, group after group.

    The plain engine and the reader race each other only where they do not share hardware: two engines on the same
    processor would slow each other down, and their ratio would measure nothing.
    """
    writer, *others = (step.engine for step in steps(pool, NOTHING))
    together = len(others) > 1 and not pool.share_hardware(*others)
    return [[writer], others] if together else [[writer], *([name] for name in others)]


def estimate(plan: list[Step]) -> str:
    """How long the steps that compute take at the least, in words; empty if nobody knows."""
    durations = [step.seconds for step in plan if step.source == "computed" and step.seconds is not None]
    if not durations or len(durations) < sum(step.source == "computed" for step in plan):
        return ""
    return f"about {sum(durations):.0f} s in all at the pace of the warm-up; a longer text takes longer per token"
