"""One side of a comparison: what each arm of a result measured, and the interval between two sides. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvdemo.errors import UsageError
from kvdemo.judge import stats
from kvdemo.judge.comparison import Change
from kvdemo.judge.result import Row
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, judge
from kvdemo.report.savedrun import ForeignRun, SavedRun, number
from kvdemo.words import comparison as words

FEWEST_SAMPLES = 3
"""Samples on each side without which nothing is said about their difference."""

RESAMPLES = 2000
SEED = 20240917
INTERVAL, RANGE = "95 % interval", "range"

Key = tuple[str, str]
"""An arm: its name, and the engine unless its part in the run says it all."""


def comparable(name: str, value: Any) -> Any:
    """The condition without names of files: where an interpreter or model lies makes no difference, what it is does."""
    if name in ("versions", "model_digest") and isinstance(value, Mapping):
        by_file = [part for key, part in value.items() if "/" in key]
        different = [part for index, part in enumerate(by_file) if part not in by_file[:index]]
        return value if not by_file else different[0] if len(different) == 1 else sorted(different, key=str)
    return value


def differences(name: str, old: Any, new: Any) -> list[str]:
    """How a condition differs, in words; of a mapping only the parts that do."""
    one, other = comparable(name, old), comparable(name, new)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = dict.fromkeys((*one, *other))
        return [text for key in keys for text in differences(f"{name}: {key}", one.get(key), other.get(key))]
    return [] if one == other else [f"{name}: {short(one)} and {short(other)}"]


def short(value: Any) -> str:
    """A condition in at most 100 characters."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else "unknown" if value is None else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


@dataclass(frozen=True)
class Arm:
    """One arm of a result: median TTFT in ms, the samples behind it, or why there is none."""

    median: float | None
    values: tuple[float, ...]
    verdict: str


def arms(run: SavedRun) -> dict[Key, Arm]:
    """What each arm measured. Only samples whose verdict supports their arm count."""
    arms: dict[Key, Arm] = {}
    for row in run.result.rows:
        key = (row.arm, row.engine if row.arm == "cold" and row.engine != run.result.conditions.baseline else "")
        if key in arms:
            continue
        values = tuple(sample.ttft * 1000 for sample in supporting(run, row) if sample.ttft)
        median = statistics.median(values) if values else None
        if run.samples is None and row.ttft and row.verdict in SUPPORTS_SPEEDUP.get(row.arm, ()):
            median = row.ttft.median
        arms[key] = Arm(median, values, row.verdict)
    return arms


def supporting(run: SavedRun, row: Row) -> list[Sample]:
    """The samples of a row that count; of a sweep over lengths those of the longest, of a matrix none."""
    own = [s for s in run.samples or () if (s.engine, s.arm) == (row.engine, row.arm) and not s.writer]
    longest = max((sample.length for sample in own), default=0)
    return [s for s in own if s.length == longest and judge(s).verdict in SUPPORTS_SPEEDUP.get(s.arm, ())]


def paired_ratios(run: SavedRun) -> tuple[float, ...]:
    """Baseline's cold over reuse, trial by trial, as the result has its median."""
    sides: list[dict[int, list[float]]] = [{}, {}]
    for row in run.result.rows:
        baseline = row.engine == run.result.conditions.baseline and row.arm in ("cold", "store")
        if baseline or row.arm == "reuse":
            for sample in supporting(run, row):
                sides[not baseline].setdefault(sample.trial, []).append(sample.ttft or 0.0)
    cold, reuse = ({trial: statistics.median(values) for trial, values in side.items()} for side in sides)
    return tuple(cold[trial] / reuse[trial] for trial in sorted(cold.keys() & reuse.keys()) if reuse[trial])


def change(old: Sequence[float], new: Sequence[float]) -> tuple[Change | None, Change | None]:
    """Ratio new/old and difference new-old of the medians.

    From six values on each side with the unpaired bootstrap's interval (Efron 1979; the tests show its coverage), below
    that with the range between the most different values. (None, None) where a side has fewer than three: of two and
    two, one side is above the other by chance once in three times.
    """
    if min(len(old), len(new)) < FEWEST_SAMPLES or not min(*old, *new) > 0:
        return None, None
    one, other = statistics.median(old), statistics.median(new)
    if min(len(old), len(new)) < stats.FEWEST_FOR_INTERVAL:
        lowest, highest = min(new) - max(old), max(new) - min(old)
        ratio = Change(other / one, min(new) / max(old), max(new) / min(old), RANGE)
        return ratio, Change(other - one, lowest, highest, RANGE)
    generator = random.Random(SEED)  # noqa: S311 (statistics, not secrets)
    resamples = [
        [statistics.median(generator.choices(values, k=len(values))) for values in (old, new)] for _ in range(RESAMPLES)
    ]
    low, high = int(0.025 * RESAMPLES), int(0.975 * RESAMPLES) - 1
    ratios = sorted(b / a for a, b in resamples)
    differences = sorted(b - a for a, b in resamples)
    return (
        Change(other / one, ratios[low], ratios[high], INTERVAL),
        Change(other - one, differences[low], differences[high], INTERVAL),
    )


def foreign(run: ForeignRun) -> tuple[Arm, list[str]]:
    """What ``vllm bench serve`` measured, and what must be said with it. Raises UsageError if nothing succeeded."""
    document = run.document
    errors = document["errors"] if isinstance(document.get("errors"), list) else []
    times = document["ttfts"] if isinstance(document.get("ttfts"), list) else []
    # vLLM writes 0.0 for a request that failed: that is no time.
    values = tuple(value * 1000 for value in map(number, times) if value is not None and value > 0)
    median = statistics.median(values) if values else number(document.get("median_ttft_ms"))
    if not median:
        raise UsageError(f"{run.path}: no request of it succeeded")
    notes = [words.unchecked(str(run.path))]
    if (concurrency := document.get("max_concurrency")) != 1:
        notes.append(words.at_once(concurrency))
    if not values:
        notes.append(words.NO_SINGLE_TIMES)
    if failures := sum(bool(error) for error in errors):
        notes.append(words.failures(failures))
    return Arm(median, values, ""), notes
