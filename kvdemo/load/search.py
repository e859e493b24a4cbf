"""Which rate comes next: bracketing by doubling, then halving the bracket. Pure."""

from __future__ import annotations

from collections.abc import Generator
from math import sqrt

FINEST = 1.15
"""A bracket is narrow enough when its ends are within this factor."""

MOST = 12
"""Rates that are tried at most in one search."""


def rates(start: float, finest: float = FINEST, most: int = MOST) -> Generator[float, bool, None]:
    """Yields a rate (requests/s), is sent whether the limit was kept there, and ends when the bracket is narrow.

    Doubles while the limit is kept, halves while it is missed; then takes the geometric middle of the bracket.
    """
    low: float | None = None
    high: float | None = None
    rate = start
    for _ in range(most):
        if (yield rate):
            low = max(rate, low or 0.0)
        else:
            high = min(rate, high or rate)
        if low is None:
            rate = rate / 2
        elif high is None:
            rate = rate * 2
        elif high / low <= finest:
            return
        else:
            rate = float(f"{sqrt(low * high):.3g}")
            if rate in (low, high):
                return
