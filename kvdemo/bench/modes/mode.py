"""What a mode brings: the options that choose it, those that contradict it, its requests, its part of the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvdemo.bench.events import Doing
from kvdemo.bench.session import Session
from kvdemo.config.benchmark import Bench, flag
from kvdemo.errors import UsageError
from kvdemo.judge.sample import Sample
from kvdemo.planning.plan import ServiceSpec


@dataclass(frozen=True)
class Work:
    """What a mode has to do, at most: ``requests``, of which ``computed`` compute ``tokens`` prompt tokens in all."""

    requests: int = 0
    computed: int = 0
    tokens: int = 0

    def __add__(self, other: Work) -> Work:
        """Both."""
        return Work(self.requests + other.requests, self.computed + other.computed, self.tokens + other.tokens)

    def times(self, count: int) -> Work:
        """The same several times."""
        return Work(self.requests * count, self.computed * count, self.tokens * count)


class Mode(ABC):
    """One shape of a run."""

    option: ClassVar[str] = ""
    """The option that chooses it; empty for what runs when none is chosen."""
    section: ClassVar[str]
    """The key of its part of the result."""
    contradictory: ClassVar[tuple[str, ...]] = ()
    """Options that mean nothing in this mode."""
    beside: ClassVar[bool] = False
    """Whether it runs after another mode instead of in its place."""

    def applies_to(self, options: Bench) -> bool:
        """Whether these options ask for it."""
        return bool(self.option and options.non_default_flags(self.option))

    def refuse(self, options: Bench) -> None:
        """Raises UsageError for an option that would be left out silently."""
        if options.non_default_flags(*self.contradictory):
            *names, last = map(flag, self.contradictory)
            others = f"{', '.join(names)} or {last}" if names else last
            raise UsageError(f"{flag(self.option)} cannot be combined with {others}")

    def check(self, session: Session) -> None:  # noqa: B027 (most modes have nothing to add)
        """Raises UsageError for what cannot be measured with this prompt, before anything is generated."""

    def engines(self, session: Session) -> Sequence[ServiceSpec]:
        """The engines that take part, each once."""
        return session.roles.engines

    @abstractmethod
    def work(self, session: Session) -> Work:
        """What is to be done."""

    @abstractmethod
    def samples(self, session: Session) -> Generator[Doing | Sample]:
        """Yield all requests in order."""
