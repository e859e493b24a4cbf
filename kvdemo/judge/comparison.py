"""What changed from one result to another, as data: ``report.compare`` makes it, ``words.comparison`` says it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Change:
    """A ratio or difference of two medians, and its 95 % interval or (of few values) its range."""

    median: float
    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Line:
    """One thing compared: a TTFT in ms, or a figure of which more is better. Values may be absent, with the reason.

    ``unit`` is that of a figure other than a ratio.
    """

    name: str
    old: float | None
    new: float | None
    sizes: tuple[int, int] = (0, 0)
    ratio: Change | None = None
    difference: Change | None = None
    more_is_better: bool = False
    lost: str = ""
    unit: str = ""

    @property
    def change(self) -> float | None:
        """New over old."""
        return self.new / self.old if self.old and self.new else None


@dataclass(frozen=True)
class Comparison:
    """All lines, and what could not be checked."""

    lines: tuple[Line, ...]
    notes: tuple[str, ...] = field(default=())
