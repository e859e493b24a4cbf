"""How long a run will take, in words."""

from __future__ import annotations

from kvdemo import units
from kvdemo.bench.events import Estimate


def sentence(estimate: Estimate) -> str:
    """How long it will take here, and why."""
    words = (
        f"This takes about {units.approximate_duration(estimate.seconds)}: {units.count(estimate.requests, 'request')}"
    )
    if not estimate.computed:
        return f"{words}."
    what = "computing" if estimate.computed == estimate.requests else f"{estimate.computed:,} of them computing"
    each = units.approximate_duration(estimate.seconds_each)
    pace = f"about {each} each here"
    if estimate.first:
        pace = f"{each} here for the first, which pays for what comes once: less if the others are quicker"
    return f"{words}, {what} a whole prompt ({pace})."
