"""The requests of a trace, in arrays: when each came, how long its prompt is, and the chain of its blocks. Pure.

A block's name is a hash of 64 bits over its own tokens (or the name that the trace gives it) and the name of the block
before it, so that equal names mean equal prefixes, as in the keys of the caches themselves. That two of ten million
different blocks share a name has a probability of 3 in a million.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

WIDTH = 4
"""Bytes of a token id."""


def chain_of_tokens(tokens: array[int], block: int, seed: str = "") -> list[int]:
    """The names of a prompt's whole blocks of so many tokens; ``tokens`` are unsigned integers of 32 bits.

    ``seed`` keeps prompts apart whose KV is not shared, such as those of another salt.
    """
    data, step = tokens.tobytes(), block * WIDTH
    name, names = hash(seed), []
    for at in range(0, len(data) - step + 1, step):
        name = hash((name, data[at : at + step]))
        names.append(name)
    return names


def chain_of_names(items: Iterable[int], seed: str = "") -> list[int]:
    """The names of blocks that a trace names itself, whether or not its names stand for what is before a block too."""
    name, names = hash(seed), []
    for one in items:
        name = hash((name, one))
        names.append(name)
    return names


@dataclass
class Trace:
    """Requests in the order in which they were read. ``block`` is how many tokens a name of ``names`` stands for.

    Of request i the chain is ``names[begins[i]:begins[i + 1]]``: whole blocks only. ``tokens`` are those of its prompt,
    ``answers`` those of its answer (0: unknown), ``times`` in seconds. ``sessions`` are numbers from 0 on, -1 is none.
    """

    block: int
    names: array[int] = field(default_factory=lambda: array("q"))
    begins: array[int] = field(default_factory=lambda: array("q", [0]))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    answers: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    sessions: array[int] = field(default_factory=lambda: array("q"))
    numbers: dict[str, int] = field(default_factory=dict)
    """The number of each session."""

    def add(
        self, chain: Sequence[int], tokens: int, *, time: float = 0.0, answer: int = 0, session: str | None = None
    ) -> None:
        """Take in one request."""
        self.names.extend(chain)
        self.begins.append(len(self.names))
        self.tokens.append(tokens)
        self.answers.append(answer)
        self.times.append(time)
        self.sessions.append(-1 if session is None else self.numbers.setdefault(session, len(self.numbers)))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sorted(self) -> bool:
        """Whether they stand in the order in which they came."""
        times = self.times
        return all(times[i] <= times[i + 1] for i in range(len(times) - 1))

    def order(self) -> Sequence[int]:
        """The requests in the order in which they came; those of one time as they stand."""
        return range(len(self)) if self.sorted else sorted(range(len(self)), key=self.times.__getitem__)

    def every(self, step: int) -> Trace:
        """The same requests in blocks of ``step`` of these blocks each."""
        if step == 1:
            return self
        wide = Trace(self.block * step, tokens=self.tokens, answers=self.answers, times=self.times)
        wide.sessions, wide.numbers = self.sessions, self.numbers
        begins, names = self.begins, self.names
        for i in range(len(self)):
            wide.names.extend(names[begins[i] + step - 1 : begins[i + 1] : step])
            wide.begins.append(len(wide.names))
        return wide
