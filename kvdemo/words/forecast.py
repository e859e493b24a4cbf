"""How long a run will take, in words."""

from __future__ import annotations

from kvdemo import units
from kvdemo.bench.events import Estimate


def sentence(estimate: Estimate) -> str:
    """How long it will take here, and why."""
    requests = units.count(estimate.requests, "request")
    if not estimate.computed:
        return f"This takes about {units.about(estimate.seconds)}: {requests}."
    what = "it computes" if estimate.computed == estimate.requests == 1 else f"{estimate.computed:,} of them compute"
    each = units.about(estimate.seconds_each)
    return (
        f"This takes about {units.about(estimate.seconds)}: {requests}; {what} a whole prompt, about {each} each here."
    )
