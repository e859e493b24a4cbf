"""One side of a comparison: what each arm of a result measured, and the interval between two sides. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvdemo.errors import UsageError
from kvdemo.judge.sample import Sample
from kvdemo.judge.stats import RESAMPLES, SEED, Interval
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, judge
from kvdemo.report.saved import Result, mappings, number

ENOUGH = 3
"""Samples on each side without which there is no interval."""

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
    shown = ", ".join(map(str, value)) if isinstance(value, list) else "unknown" if value is None else str(value)
    return shown if len(shown) <= 100 else shown[:97] + "..."


@dataclass(frozen=True)
class Arm:
    """One arm of a result: median TTFT in ms, the samples behind it, or why there is none."""

    median: float | None
    values: tuple[float, ...]
    verdict: str


def arms(result: Result) -> dict[Key, Arm]:
    """What each arm measured. Only samples whose verdict supports their arm count."""
    found: dict[Key, Arm] = {}
    for row in mappings(result.document.get("rows")):
        key = (
            str(row.get("arm")),
            "" if row.get("engine") == result.document.get("baseline") else str(row.get("engine")),
        )
        if key[0] != "cold":
            key = (key[0], "")
        if key in found:
            continue
        values = tuple(sample.ttft * 1000 for sample in supporting(result, row) if sample.ttft)
        median = statistics.median(values) if values else None
        if result.samples is None and row.get("verdict") in SUPPORTS_SPEEDUP.get(key[0], ()):
            median = number(row.get("median_ttft_ms"))
        found[key] = Arm(median, values, str(row.get("verdict")))
    return found


def supporting(result: Result, row: Mapping[str, Any]) -> list[Sample]:
    """The samples of a row that count; of a sweep over lengths those of the longest, of a matrix none."""
    mine = [
        s for s in result.samples or () if (s.engine, s.arm) == (row.get("engine"), row.get("arm")) and not s.writer
    ]
    longest = max((sample.length for sample in mine), default=0)
    return [s for s in mine if s.length == longest and judge(s).verdict in SUPPORTS_SPEEDUP.get(s.arm, ())]


def paired(result: Result) -> tuple[float, ...]:
    """Baseline's cold over reuse, trial by trial, as the result document has its median."""
    sides: list[dict[int, list[float]]] = [{}, {}]
    for row in mappings(result.document.get("rows")):
        baseline = row.get("engine") == result.document.get("baseline") and row.get("arm") in ("cold", "store")
        if baseline or row.get("arm") == "reuse":
            for sample in supporting(result, row):
                sides[not baseline].setdefault(sample.trial, []).append(sample.ttft or 0.0)
    cold, reuse = ({trial: statistics.median(values) for trial, values in side.items()} for side in sides)
    return tuple(cold[trial] / reuse[trial] for trial in sorted(cold.keys() & reuse.keys()) if reuse[trial])


def bootstrap(old: Sequence[float], new: Sequence[float]) -> tuple[Interval | None, Interval | None]:
    """Ratio new/old and difference new-old of the medians, each with its unpaired 95 % interval.

    (None, None) where a side has fewer than three values: they carry no interval.
    """
    if min(len(old), len(new)) < ENOUGH:
        return None, None
    generator = random.Random(SEED)  # noqa: S311 (statistics, not secrets)
    drawn = [
        [statistics.median(generator.choices(values, k=len(values))) for values in (old, new)] for _ in range(RESAMPLES)
    ]
    one, other = statistics.median(old), statistics.median(new)
    low, high = int(0.025 * RESAMPLES), int(0.975 * RESAMPLES) - 1
    ratios = sorted(b / a for a, b in drawn if a)
    differences = sorted(b - a for a, b in drawn)
    if len(ratios) < RESAMPLES or not one:
        return None, None
    return Interval(other / one, ratios[low], ratios[high]), Interval(other - one, differences[low], differences[high])


def foreign(result: Result) -> tuple[Arm, list[str]]:
    """What ``vllm bench serve`` measured, and what must be said with it. Raises UsageError if nothing succeeded."""
    document = result.document
    errors = document["errors"] if isinstance(document.get("errors"), list) else []
    given = document["ttfts"] if isinstance(document.get("ttfts"), list) else []
    # vLLM writes 0.0 for a request that failed: that is no time.
    values = tuple(value * 1000 for value in map(number, given) if value is not None and value > 0)
    median = statistics.median(values) if values else number(document.get("median_ttft_ms"))
    if not median:
        raise UsageError(f"{result.path}: no request of it succeeded")
    notes = [
        f"{result.path} is of vllm bench serve: model digest, prompt, chunk size, device, length of the answer and "
        "versions cannot be checked, nor whether its requests were cold or cached"
    ]
    at_once = document.get("max_concurrency")
    if at_once != 1:
        notes.append(f"it sent {at_once or 'any number of'} requests at once: its TTFT holds waiting for each other")
    if not values:
        notes.append("it holds no single times (--save-detailed): no interval")
    if bad := sum(bool(error) for error in errors):
        notes.append(f"{bad} of its requests failed and do not count")
    return Arm(median, values, ""), notes
