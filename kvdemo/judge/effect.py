"""Is a ratio an effect, or could it be noise? Pure.

A ratio counts as an effect only if its interval (below ``stats.ENOUGH`` trials its range) excludes 1, and if it is
larger than what two plain engines differ by when both compute the same prompt: the run's cold-against-cold noise.
"""

from __future__ import annotations

from enum import StrEnum

from kvdemo.judge import stats
from kvdemo.judge.result import Ratio

PRINTED_STEP = 0.005
"""A ratio closer to 1 than this is printed as 1.00x."""

ROUNDING = 1.001
"""Ratios are kept to four decimals: the same times over each other and the other way round differ by less than this."""


class Effect(StrEnum):
    """What a ratio of TTFTs (cold over this arm) shows."""

    FASTER = "faster"
    SLOWER = "slower"
    NONE = "no difference within noise"


def of(ratio: Ratio, noise: Ratio | None) -> Effect:
    """The effect that ``ratio`` shows beside the ``noise``, where that is known."""
    low, high = bounds(ratio)
    if abs(ratio.median - 1) < PRINTED_STEP or (ratio.n > 1 and low <= 1 <= high):
        return Effect.NONE
    if noise and 1 / spread(noise) / ROUNDING <= ratio.median <= spread(noise) * ROUNDING:
        return Effect.NONE
    return Effect.FASTER if ratio.median > 1 else Effect.SLOWER


def bounds(ratio: Ratio) -> tuple[float, float]:
    """Its interval, or its range where n carries none."""
    if ratio.low is None or ratio.high is None or ratio.n < stats.FEWEST_FOR_INTERVAL:
        return ratio.min, ratio.max
    return ratio.low, ratio.high


def spread(noise: Ratio) -> float:
    """The largest factor, at least 1, by which one cold request differed from the other of its trial."""
    return max(noise.max, 1 / noise.min if noise.min > 0 else float("inf"), 1.0)
