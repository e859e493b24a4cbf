"""The physical limit: what reuse could take at best here, and when it pays at all. Pure arithmetic.

    floor      = TTFT of a local hit + KV bytes of the hit / bandwidth of the copy
    efficiency = floor / measured TTFT of the reuse
    needed     = KV bytes / (cold TTFT - TTFT of a local hit): the bandwidth at which reuse and computing take the same

The local hit holds all that reuse must do besides moving KV: HTTP, tokenizing, the last tokens' prefill, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvdemo import units

BEYOND = 1.1
"""A reuse so many times faster than its floor is not noise: it was not bound by the rate that was measured."""


@dataclass(frozen=True)
class Limit:
    """Times in seconds, ``bandwidth`` and ``needed`` in bytes a second."""

    kv_bytes: float
    bandwidth: float
    floor: float
    efficiency: float
    needed: float

    @property
    def worthwhile(self) -> bool:
        """Whether this tier is fast enough for reuse to beat computing at all."""
        return self.bandwidth > self.needed


def limit(kv_bytes: float, bandwidth: float, local: float, reuse: float, cold: float) -> Limit:
    """The limit of a reuse of ``kv_bytes`` over a tier of ``bandwidth``; times are median TTFTs in seconds."""
    floor = local + kv_bytes / bandwidth
    saved = cold - local
    return Limit(kv_bytes, bandwidth, floor, floor / reuse, kv_bytes / saved if saved > 0 else float("inf"))


def break_even(points: Sequence[tuple[int, float, float]]) -> int | None:
    """Prompt tokens from which reuse is faster than computing, interpolated between measured (tokens, cold, reuse).

    None if it is not within the measured lengths; the shortest length if reuse wins everywhere.
    """
    ordered = sorted(points)
    for (tokens, cold, reuse), before in zip(ordered, [None, *ordered], strict=False):
        if reuse > cold:
            continue
        if before is None:
            return tokens
        gap_before, gap = before[2] - before[1], reuse - cold
        share = gap_before / (gap_before - gap) if gap_before != gap else 1.0
        return round(before[0] + share * (tokens - before[0]))
    return None


def of_run(tier: str, bound: Limit, *, differs: bool = True) -> str:
    """The finding about the tier that a run loaded from; a disk's own rate cannot bound what came from elsewhere."""
    local = bound.floor - bound.kv_bytes / bound.bandwidth
    loading = bound.floor / bound.efficiency - local
    if tier != "disk" or bound.efficiency <= BEYOND or loading <= 0:
        return sentence(tier, bound, differs=differs)
    achieved, measured, needed = (rate / 1e9 for rate in (bound.kv_bytes / loading, bound.bandwidth, bound.needed))
    takes = f" Beating computing takes {units.digits(needed)} GB/s here." if differs and needed < float("inf") else ""
    return (
        f"Loading moved {units.digits(achieved)} GB/s, more than the {units.digits(measured)} GB/s that the disk was "
        f"measured at: the files' pages were in memory, or the disk's rate changes.{takes}"
    )


def sentence(tier: str, bound: Limit, *, differs: bool = True) -> str:
    """The finding in plain words; ``differs``: whether a local hit differs from computing beyond noise."""
    moves = f"{units.digits(bound.bandwidth / 1e9)} GB/s"
    if differs and bound.needed == float("inf"):
        return f"Reuse from {tier} has nothing to gain here: computing this prompt takes no longer than a local hit."
    needed = f"{units.digits(bound.needed / 1e9)} GB/s"
    if differs and not bound.worthwhile:
        return f"Reuse from {tier} cannot beat computing here: it moves {moves}, and would need {needed}."
    share = f"{bound.efficiency:.0%} of what this machine can do"
    if bound.efficiency > 1:
        share = "at the limit of this machine, within noise"
    pays = f"above {needed} it beats computing" if differs else "a local hit is no faster than computing, within noise"
    return (
        f"Reuse from {tier} is {share}: {bound.kv_bytes / 1e6:,.0f} MB at {moves} and a local hit's time make "
        f"{units.duration(bound.floor * 1000)}; {pays}."
    )
