"""What is on the page of one browser tab: its document and its turns, each turn one question to some engines.

Plain state, changed by whoever asks (in threads) and shown by whoever listens (on the event loop, see ``Bell``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import Judgement, Verdict

GAP = 0.05
"""Seconds between two looks at what has changed: tokens come faster than anybody reads."""


class Bell:
    """Tells listeners on the event loop that something has changed; may be rung by any thread, and often."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.listeners: set[Callable[[], None]] = set()
        self.pending = False

    def ring(self) -> None:
        """Something has changed."""
        if not self.pending:
            self.pending = True
            with suppress(RuntimeError):  # the loop is closed: nobody looks any more
                self.loop.call_soon_threadsafe(self.loop.call_later, GAP, self._tell)

    def ring_later(self, seconds: float) -> None:
        """Something will have changed by then."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.call_later, seconds, self.ring)

    def _tell(self) -> None:
        self.pending = False
        for listener in tuple(self.listeners):
            listener()


class Phase(StrEnum):
    """How far one engine's answer is."""

    QUEUED = "queued"
    SENT = "sent"
    ANSWERING = "answering"
    CHECKING = "checking"
    DONE = "done"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self in {Phase.DONE, Phase.FAILED}


@dataclass
class Lane:
    """One engine's part of a turn.

    ``since`` is when its clock started (monotonic); ``beside`` are the engines that computed on the same hardware for
    another request before its first token came, which makes its time longer than it would be alone.
    """

    engine: str
    cache: str = ""
    phase: Phase = Phase.QUEUED
    since: float = 0.0
    ttft: float | None = None
    text: str = ""
    sample: Sample | None = None
    judgement: Judgement | None = None
    beside: set[str] = field(default_factory=set)

    @property
    def verdict(self) -> Verdict | None:
        """What its sample proves, once that is known."""
        return self.judgement.verdict if self.judgement else None


@dataclass(frozen=True)
class Document:
    """What is asked about. The salt makes it a document that no cache has seen; a new salt makes it cold again."""

    name: str
    text: str
    tokens: int
    salt: str

    @property
    def words(self) -> int:
        """As ``wc -w`` counts them."""
        return len(self.text.split())


@dataclass
class Turn:
    """One question: engines of one group are asked together, groups one after another."""

    number: int
    question: str
    document: Document
    groups: Sequence[Sequence[Lane]]
    earlier: Sequence[tuple[str, str]] = ()
    max_tokens: int = 16

    @property
    def lanes(self) -> list[Lane]:
        """All of them, in order."""
        return [lane for group in self.groups for lane in group]

    @property
    def over(self) -> bool:
        """Whether every engine is done."""
        return all(lane.phase.over for lane in self.lanes)

    @property
    def answer(self) -> str:
        """What the conversation goes on with: the answer that came first."""
        answers = [lane for lane in self.lanes if lane.phase is Phase.DONE and lane.ttft is not None]
        return min(answers, key=lambda lane: lane.ttft or 0).text if answers else ""

    @property
    def same_tokens(self) -> bool | None:
        """Whether all engines gave the same tokens; None before there are two answers."""
        answers = [lane.sample.token_ids for lane in self.lanes if lane.sample and lane.phase is Phase.DONE]
        return all(one == other for one, other in pairwise(answers)) if len(answers) > 1 else None

    @property
    def finding(self) -> tuple[Lane, Lane, float] | None:
        """A lane fed by a cache, the slowest one that computed everything, and how many times faster the first was."""
        fed = [lane for lane in self.lanes if lane.verdict in {Verdict.SHARED, Verdict.LOCAL}]
        cold = [lane for lane in self.lanes if lane.verdict is Verdict.COLD]
        if not (fed and cold):
            return None
        # Plain engines first: a cached one that stores what it computes is no fair baseline.
        slow = next((lane for lane in cold if not lane.cache), cold[0])
        fast = min(fed, key=lambda lane: (lane.verdict is not Verdict.SHARED, lane.ttft or 0))
        return fast, slow, (slow.ttft or 0) / (fast.ttft or 1)


@dataclass
class Conversation:
    """Everything one browser tab sees of its own."""

    document: Document
    system: str
    bell: Bell
    turns: list[Turn] = field(default_factory=list)
    question: str = ""

    @property
    def busy(self) -> bool:
        """Whether a question is still being answered."""
        return any(not turn.over for turn in self.turns)

    @property
    def earlier(self) -> list[tuple[str, str]]:
        """Questions and answers about the document as it is now."""
        turns = [turn for turn in self.turns if turn.document.salt == self.document.salt and turn.answer]
        return [(turn.question, turn.answer) for turn in turns]
