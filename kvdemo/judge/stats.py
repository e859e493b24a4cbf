"""Summaries of few, skewed numbers: median, range, and exact intervals. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kvdemo.judge.result import Ratio

FEWEST_FOR_INTERVAL = 6
"""Values without which a median has no 95 % interval: of five the whole range encloses it in 93.75 % of cases."""


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


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The median's exact interval by order statistics; None for fewer than ``ENOUGH`` values, which carry none.

    How many of n values lie below the true median is binomial(n, 1/2) whatever they are distributed like, so the k-th
    smallest and the k-th largest enclose it with a probability of at least ``confidence`` (David and Nagaraja, Order
    Statistics, section 7.1). A percentile bootstrap of so few values encloses it less often than it says.
    """
    n = len(values)
    if n < FEWEST_FOR_INTERVAL:
        return None
    ordered, rank = sorted(values), 0
    while 1 - 2 * sum(math.comb(n, below) for below in range(rank + 1)) / 2**n >= confidence:
        rank += 1
    return Interval(statistics.median(ordered), ordered[rank - 1], ordered[n - rank])


def ratio(values: Sequence[float]) -> Ratio | None:
    """Ratios summed up; None of none."""
    if not values:
        return None
    summary, bounds = summarize(values), interval(values)
    return Ratio(
        n=summary.n,
        median=round(summary.median, 4),
        min=round(summary.min, 4),
        max=round(summary.max, 4),
        low=round(bounds.low, 4) if bounds else None,
        high=round(bounds.high, 4) if bounds else None,
    )


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of the values do not exceed (nearest rank).

    None without values, and where it would be infinite.
    """
    value = sorted(values)[math.ceil(share * len(values)) - 1] if values else math.inf
    return value if math.isfinite(value) else None


def supported_percentile(values: Sequence[float], share: float) -> float | None:
    """A percentile, where there are values beyond it: at least 10 for p90, 100 for p99."""
    return percentile(values, share) if len(values) * (1 - share) >= 1 - 1e-9 else None
