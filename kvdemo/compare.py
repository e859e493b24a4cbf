"""Two results side by side: did it become slower, and how sure is that? Pure but for nothing; files are read by ``saved``.

Runs are compared only if the same question was put to the same model under the same conditions; what a foreign file
does not tell is said, not assumed. Intervals are unpaired bootstraps: the trials of two runs have nothing in common.
"""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvdemo.errors import GateError, UsageError
from kvdemo.figures import mapping, mappings, number
from kvdemo.sample import Sample
from kvdemo.saved import Result
from kvdemo.stats import RESAMPLES, SEED, Interval
from kvdemo.tables import PHASES, milliseconds, times
from kvdemo.verdict import SUPPORTS_SPEEDUP, judge

ENOUGH = 3
"""Samples on each side without which there is no interval."""

MUST_AGREE = ("model_id", "model_digest", "prompt_sha256", "prompt_tokens", "chunk_size", "device", "max_tokens", "backend",
              "endpoint", "tier", "max_concurrency", "versions")  # fmt: skip
"""Conditions that make runs comparable; a condition that neither run knows agrees."""

Key = tuple[str, str]
"""An arm: its name, and the engine unless its part in the run says it all."""


@dataclass(frozen=True)
class Line:
    """One thing compared: a TTFT in ms, or (``better`` is more) the speed-up. Values may be absent, with the reason."""

    name: str
    old: float | None
    new: float | None
    sizes: tuple[int, int] = (0, 0)
    ratio: Interval | None = None
    difference: Interval | None = None
    more_is_better: bool = False
    lost: str = ""

    @property
    def change(self) -> float | None:
        """New over old."""
        return self.new / self.old if self.old and self.new else None


@dataclass(frozen=True)
class Comparison:
    """All lines, and what could not be checked."""

    lines: tuple[Line, ...]
    notes: tuple[str, ...] = field(default=())


def percentage(text: str) -> float:
    """``10%`` or ``0.1`` as 0.1. Raises UsageError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text, re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if match is None or (not match[2] and value >= 1):
        raise UsageError(f"{text!r} is not a share", "write 10% or 0.1")
    return value


def compare(old: Result, new: Result, *, across_versions: bool = False, arm: str = "reuse") -> Comparison:
    """Compare two results. Raises UsageError if they are not comparable, naming the fields that differ."""
    if old.foreign and new.foreign:
        raise UsageError("neither file is a run of kvdemo", "one of them must be one that `kvdemo bench` saved")
    if old.foreign or new.foreign:
        return _with_foreign(old, new, arm)
    _refuse(old, new, across_versions)
    before, after = _arms(old), _arms(new)
    lines = [_line(_name(key), before[key], after.get(key)) for key in before]
    lines += [_line(_name(key), None, after[key]) for key in after if key not in before]
    lines.append(_speedup(old, new))
    notes = [f"{result.path} is only a summary (no .jsonl beside it): no intervals"
             for result in (old, new) if result.samples is None]  # fmt: skip
    if new.document.get("answer", {}).get("same") is False:
        lines.append(Line("answer", None, None, lost="the new run's reuse gives another answer than computing"))
    return Comparison(tuple(lines), tuple(notes))


def _refuse(old: Result, new: Result, across_versions: bool) -> None:
    differing = []
    for name in MUST_AGREE:
        if name == "versions" and across_versions:
            continue
        one, other = (_comparable(name, result.document.get(name)) for result in (old, new))
        if one != other:
            differing.append(f"{name}: {_short(one)} and {_short(other)}")
    if differing:
        only_versions = len(differing) == 1 and differing[0].startswith("versions")
        raise UsageError(
            "not comparable: they differ in\n  " + "\n  ".join(differing),
            "compare them all the same: --across versions"
            if only_versions
            else "measure both under one set of conditions",
        )


def _comparable(name: str, value: Any) -> Any:
    """The condition without names of files: where an interpreter or model lies makes no difference, what it is does."""
    if name in ("versions", "model_digest") and isinstance(value, Mapping):
        return sorted(
            {str(dict(sorted(part.items())) if isinstance(part, Mapping) else part) for part in value.values()}
        )
    return value


def _short(value: Any) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list) else "unknown" if value is None else str(value)
    return shown if len(shown) <= 100 else shown[:97] + "..."


@dataclass(frozen=True)
class _Arm:
    """One side of a line: median TTFT in ms, the samples behind it, or why there is none."""

    median: float | None
    values: tuple[float, ...]
    verdict: str


def _arms(result: Result) -> dict[Key, _Arm]:
    """What each arm measured. Only samples whose verdict supports their arm count."""
    found: dict[Key, _Arm] = {}
    for row in mappings(result.document.get("rows")):
        key = (
            str(row.get("arm")),
            "" if row.get("engine") == result.document.get("baseline") else str(row.get("engine")),
        )
        if key[0] != "cold":
            key = (key[0], "")
        if key in found:
            continue
        values = tuple(sample.ttft * 1000 for sample in _supporting(result, row) if sample.ttft)
        median = statistics.median(values) if values else None
        if result.samples is None and row.get("verdict") in SUPPORTS_SPEEDUP.get(key[0], ()):
            median = number(row.get("median_ttft_ms"))
        found[key] = _Arm(median, values, str(row.get("verdict")))
    return found


def _supporting(result: Result, row: Mapping[str, Any]) -> list[Sample]:
    mine = [
        s for s in result.samples or () if (s.engine, s.arm) == (row.get("engine"), row.get("arm")) and not s.writer
    ]
    longest = max((sample.length for sample in mine), default=0)
    return [s for s in mine if s.length == longest and judge(s).verdict in SUPPORTS_SPEEDUP.get(s.arm, ())]


def _name(key: Key) -> str:
    arm, engine = key
    baseline = " (baseline)" if arm == "cold" and not engine else ""
    return f"{PHASES.get(arm, arm)}{baseline}" + (f" {engine}" if engine else "")


def _line(name: str, old: _Arm | None, new: _Arm | None) -> Line:
    if old is None or old.median is None:
        return Line(name, None, new.median if new else None)
    if new is None or new.median is None:
        why = f"{name} is no longer measured" if new is None else f"{name} is {new.verdict} now: it proves nothing"
        return Line(name, old.median, None, lost=why)
    ratio, _ = bootstrap(old.values, new.values)
    return Line(name, old.median, new.median, (len(old.values), len(new.values)), ratio)


def _speedup(old: Result, new: Result) -> Line:
    """The speed-up of reuse, from the paired ratios of each run's trials."""
    before, after = (number(mapping(result.document.get("speedup")).get("median")) for result in (old, new))
    pairs = [_paired(result) for result in (old, new)]
    ratio, difference = bootstrap(*pairs)
    lost = "the new run proves no reuse" if before is not None and after is None else ""
    sizes = (len(pairs[0]), len(pairs[1]))
    return Line("speed-up of reuse", before, after, sizes, ratio, difference, more_is_better=True, lost=lost)


def _paired(result: Result) -> tuple[float, ...]:
    """Baseline's cold over reuse, trial by trial, as the result document has its median."""
    sides: list[dict[int, list[float]]] = [{}, {}]
    for row in mappings(result.document.get("rows")):
        baseline = row.get("engine") == result.document.get("baseline") and row.get("arm") in ("cold", "store")
        if baseline or row.get("arm") == "reuse":
            for sample in _supporting(result, row):
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


def _with_foreign(old: Result, new: Result, arm: str) -> Comparison:
    """One side is of ``vllm bench serve``: TTFT of one arm only."""
    ours, theirs = (new, old) if old.foreign else (old, new)
    arms = _arms(ours)
    mine = arms.get((arm, ""))
    if mine is None or mine.median is None:
        known = ", ".join(key[0] for key, side in arms.items() if side.median is not None and not key[1])
        raise UsageError(f"{ours.path}: arm {arm!r} proves nothing there", f"--arm one of: {known or 'none'}")
    failed = theirs.document.get("errors")
    errors = failed if isinstance(failed, list) else []
    given = theirs.document.get("ttfts")
    # vLLM writes 0.0 for a request that failed: that is no time.
    values = [v * 1000 for v in map(number, given if isinstance(given, list) else []) if v is not None and v > 0]
    foreign = _Arm(
        statistics.median(values) if values else number(theirs.document.get("median_ttft_ms")), tuple(values), ""
    )
    if not foreign.median:
        raise UsageError(f"{theirs.path}: no request of it succeeded")
    sides = (foreign, mine) if old.foreign else (mine, foreign)
    notes = [
        f"{theirs.path} is of vllm bench serve, model {_short(theirs.document.get('model_id'))} "
        f"(here {_short(ours.document.get('model_id'))}): digest, prompt, chunk size, device, length of the answer and "
        "versions cannot be checked, nor whether its requests were cold or cached"
    ]
    at_once = theirs.document.get("max_concurrency")
    if at_once != 1:
        notes.append(f"it sent {at_once or 'any number of'} requests at once: its TTFT holds waiting for each other")
    if not values:
        notes.append("it holds no single times (--save-detailed): no interval")
    if bad := sum(bool(error) for error in errors):
        notes.append(f"{bad} of its requests failed and do not count")
    return Comparison((_line(_name((arm, "")), *sides),), tuple(notes))


def gate(comparison: Comparison, limit: float) -> str:
    """The sentence that nothing is worse by more than ``limit``. Raises GateError (exit 3) if something is.

    Raises UsageError if not a single line has an interval: then nothing could ever fail.
    """
    found = [line.lost for line in comparison.lines if line.lost]
    judged = [line for line in comparison.lines if line.ratio]
    if not found and not judged:
        raise UsageError(f"--max-regress needs {ENOUGH} samples on each side: nothing could be judged")
    for line in judged:
        change, ratio = line.change, line.ratio
        if change is None or ratio is None:
            continue
        worse = 1 - change if line.more_is_better else change - 1
        sure = ratio.high < 1 if line.more_is_better else ratio.low > 1
        if worse > limit and sure:
            word = "smaller" if line.more_is_better else "longer"
            found.append(f"{line.name} is {worse:.0%} {word} ({_value(line, line.old)} to {_value(line, line.new)})")
    if found:
        raise GateError(f"worse than the {limit:.3g} allowed (as a share): " + "; ".join(found))
    return f"Nothing is worse by more than {limit:.0%} with an interval that excludes no change."


def _value(line: Line, value: float | None) -> str:
    if value is None:
        return "-"
    return times(value) if line.more_is_better else f"{milliseconds(value)} ms"


def text(comparison: Comparison) -> str:
    """The comparison as aligned columns and sentences."""
    table = [("", "old", "new", "new/old", "95 % interval", "n")]
    for line in comparison.lines:
        if line.old is None and line.new is None:
            continue
        change = "-" if line.change is None else f"{line.change:.2f}x"
        interval = f"{line.ratio.low:.2f} to {line.ratio.high:.2f}" if line.ratio else "-"
        sizes = f"{line.sizes[0]}, {line.sizes[1]}" if any(line.sizes) else "-"
        table.append((line.name, _value(line, line.old), _value(line, line.new), change, interval, sizes))
    widths = [max(len(row[column]) for row in table) for column in range(6)]
    lines = ["  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width)
             in enumerate(zip(row, widths, strict=True))) for row in table]  # fmt: skip
    for line in comparison.lines:
        if line.difference:
            d = line.difference
            lines.append(f"The speed-up differs by {d.median:+.1f} (95 % interval {d.low:+.1f} to {d.high:+.1f}).")
        if line.lost:
            lines.append(f"Lost: {line.lost}.")
    return "\n".join([*lines, *(f"Note: {note}." for note in comparison.notes)])
