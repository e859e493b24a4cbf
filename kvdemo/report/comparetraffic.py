"""Two runs of ``kvdemo load`` side by side: does the fleet serve fewer requests a second than it did? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from kvdemo.errors import UsageError
from kvdemo.judge import traffic
from kvdemo.judge.comparison import Comparison, Line
from kvdemo.judge.traffic import Spread
from kvdemo.judge.trafficfile import TrafficRun
from kvdemo.report import compare as bench
from kvdemo.words import comparison as words
from kvdemo.words import traffic as traffic_words

MUST_AGREE = (
    "model_id",
    "slo_ttft",
    "slo_share",
    "documents",
    "document_tokens",
    "reuse",
    "popularity",
    "turns",
    "max_tokens",
    "engines",
    "l1_bytes",
    "device",
    "versions",
)
"""Conditions that make runs comparable; ``engines`` is their number on each side."""

IF_KNOWN = ("model_digest",)
"""Conditions that must agree too, if both runs know them: older runs do not."""


def compare(old: TrafficRun, new: TrafficRun, *, across_versions: bool = False) -> Comparison:
    """Each side's capacity and the gains. Raises UsageError, naming what differs, if the runs are not comparable."""
    before, after = _conditions(old), _conditions(new)
    names = [name for name in MUST_AGREE if name != "versions" or not across_versions]
    names += [name for name in IF_KNOWN if before.get(name) and after.get(name)]
    differences = [text for name in names for text in bench.differences(name, before.get(name), after.get(name))]
    if differences:
        hint = "measure both under the same conditions: give --slo-ttft, --documents and --document-tokens"
        if all(text.startswith("versions") for text in differences):
            hint = "compare them all the same: --across versions"
        raise UsageError("not comparable: they differ in\n  " + "\n  ".join(differences), hint)
    names = list(dict.fromkeys([*old.result.conditions["sides"], *new.result.conditions["sides"]]))
    lines = [_capacity(side, old, new) for side in names]
    lines += [_gain(side, old, new) for side in names if side != traffic.PLAIN]
    notes = [note for run in (old, new) for note in _bounds(run)]
    notes += [f"{run.path}: {problem}" for run in (old, new) for problem in run.result.problems]
    return Comparison(tuple(lines), tuple(notes))


def _conditions(run: TrafficRun) -> Mapping[str, Any]:
    """With the number of engines of each side."""
    conditions = run.result.conditions
    return {**conditions, "engines": {side: len(engines) for side, engines in conditions["sides"].items()}}


def _capacity(side: str, old: TrafficRun, new: TrafficRun) -> Line:
    values = [traffic.capacities(run.result.limit, side, run.phases) for run in (old, new)]
    before, after = (median(one) if one else None for one in values)
    now = next((one for one in new.result.capacities if one.side == side), None)
    bound = now.rate if now and now.open and not now.died else None
    lost = _lost(f"capacity of {side}", before, after, bound)
    change, _ = bench.change(*values)
    sizes = (len(values[0]), len(values[1]))
    return Line(words.capacity(side), before, after, sizes, change, more_is_better=True, lost=lost, unit="requests/s")


def _gain(side: str, old: TrafficRun, new: TrafficRun) -> Line:
    """The ratios of capacities, of which a run keeps the spread alone: told, and judged by the capacities above."""
    gains = [next((one for one in run.result.gains if one.side == side), None) for run in (old, new)]
    before, after = (one.ratio.median if one and not one.at_least else None for one in gains)
    bound = gains[1].ratio if gains[1] and gains[1].at_least else None
    lost = _lost(f"gain of {side}", before, after, bound)
    return Line(words.gain(side), before, after, more_is_better=True, lost=lost)


def _lost(what: str, before: float | None, after: float | None, bound: Spread | None) -> str:
    """That the new run has no figure where the old one had, unless it has a lower bound that is no smaller."""
    gone = before is not None and after is None
    return words.not_found(what) if gone and not (bound and bound.low >= (before or 0)) else ""


def _bounds(run: TrafficRun) -> list[str]:
    """What a run says of sides that have no capacity in it."""
    result = run.result
    return [
        words.not_a_figure(str(run.path), one.side, traffic_words.capacity(one))
        for one in result.capacities
        if not traffic.capacities(result.limit, one.side, run.phases)
    ]
