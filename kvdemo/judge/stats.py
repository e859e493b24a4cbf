"""Summaries of few, skewed numbers: median, range, and intervals by bootstrap. Pure and repeatable (fixed seed)."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000
SEED = 20240917


@dataclass(frozen=True)
class Summary:
    """n values: median, smallest, largest; p90 and p99 only where n carries them (None otherwise)."""

    n: int
    median: float
    min: float
    max: float
    mean: float
    std: float
    p90: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Half the interval relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else float("inf")


def summarize(values: Sequence[float]) -> Summary:
    """Summary of at least one value. A percentile p needs 10 / (1 - p) values: 100 for p90, 1,000 for p99."""
    ordered = sorted(values)
    n = len(ordered)
    cuts = statistics.quantiles(ordered, n=100, method="inclusive") if n > 1 else []
    return Summary(
        n=n,
        median=statistics.median(ordered),
        min=ordered[0],
        max=ordered[-1],
        mean=statistics.fmean(ordered),
        std=statistics.stdev(ordered) if n > 1 else 0.0,
        p90=cuts[89] if n >= 100 else None,
        p99=cuts[98] if n >= 1000 else None,
    )


def bootstrap_median(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Percentile bootstrap of the median (Efron 1979); None for fewer than three values, which carry no interval."""
    if len(values) < 3:
        return None
    generator = random.Random(SEED)  # noqa: S311 (statistics, not secrets)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = (1 - confidence) / 2
    low, high = medians[int(tail * RESAMPLES)], medians[int((1 - tail) * RESAMPLES) - 1]
    return Interval(statistics.median(values), low, high)
