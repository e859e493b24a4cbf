"""Two results side by side: did it become slower, and how sure is that? Pure: ``savedrun`` reads the files.

Runs are compared only if the same question was put to the same model under the same conditions; what a foreign file
does not tell is said, not assumed. Comparisons are unpaired: the trials of two runs have nothing in common.
"""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvdemo.errors import GateError, UsageError
from kvdemo.judge import stats
from kvdemo.judge.comparison import Change, Comparison, Line
from kvdemo.judge.result import Row
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, judge
from kvdemo.report.savedrun import ForeignRun, SavedRun, number
from kvdemo.words import comparison as words

MUST_AGREE = ("model_id", "model_digest", "prompt_sha256", "chunk_size", "device", "max_tokens", "versions")
"""Conditions that make runs comparable; one that neither run knows agrees."""

IF_KNOWN = ("backend", "endpoint", "tier", "max_concurrency")
"""Conditions that must agree too, if both runs know them: older runs do not."""

FEWEST_SAMPLES = 3
"""Samples on each side without which nothing is said about their difference."""

RESAMPLES = 2000
SEED = 20240917
INTERVAL, RANGE = "95 % interval", "range"

Key = tuple[str, str]
"""An arm: its name, and the engine unless its part in the run says it all."""


def percentage(text: str) -> float:
    """``10%`` or ``0.1`` as 0.1. Raises UsageError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text, re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if match is None or (not match[2] and value >= 1):
        raise UsageError(f"{text!r} is not a share", "write 10% or 0.1")
    return value


def compare(
    old: SavedRun | ForeignRun, new: SavedRun | ForeignRun, *, across_versions: bool = False, arm: str = "reuse"
) -> Comparison:
    """Compare two results. Raises UsageError if they are not comparable, naming the fields that differ."""
    if isinstance(old, ForeignRun):
        if isinstance(new, ForeignRun):
            raise UsageError("neither file is a run of kvdemo", "one of them must be one that `kvdemo bench` saved")
        return _with_foreign(new, old, arm, foreign_first=True)
    if isinstance(new, ForeignRun):
        return _with_foreign(old, new, arm, foreign_first=False)
    _refuse(old, new, across_versions)
    before, after = arms(old), arms(new)
    lines = [_line(words.name(*key), before[key], after.get(key)) for key in before]
    lines += [_line(words.name(*key), None, after[key]) for key in after if key not in before]
    lines.append(_speedup(old, new))
    notes = [words.only_summary(str(run.path)) for run in (old, new) if run.samples is None]
    if new.result.answer.same is False:
        lines.append(Line(words.ANSWER, None, None, lost=words.OTHER_ANSWER))
    return Comparison(tuple(lines), tuple(notes))


def _refuse(old: SavedRun, new: SavedRun, across_versions: bool) -> None:
    one, other = old.result.conditions.everything, new.result.conditions.everything
    names = [name for name in MUST_AGREE if name != "versions" or not across_versions]
    names += [name for name in IF_KNOWN if name in one and name in other]
    differ = {name: texts for name in names if (texts := differences(name, one.get(name), other.get(name)))}
    if not differ:
        return
    only_versions = set(differ) == {"versions"}
    hint = "compare them all the same: --across versions" if only_versions else "measure both under the same conditions"
    raise UsageError(
        "not comparable: they differ in\n  " + "\n  ".join(text for texts in differ.values() for text in texts), hint
    )


def _line(name: str, old: Arm | None, new: Arm | None) -> Line:
    if old is None or old.median is None:
        return Line(name, None, new.median if new else None)
    if new is None or new.median is None:
        return Line(name, old.median, None, lost=words.loss(name, new.verdict if new else None))
    ratio, _ = change(old.values, new.values)
    return Line(name, old.median, new.median, (len(old.values), len(new.values)), ratio)


def _speedup(old: SavedRun, new: SavedRun) -> Line:
    """The speed-up of reuse, from the paired ratios of each run's trials."""
    before, after = (run.result.speedup.median if run.result.speedup else None for run in (old, new))
    pairs = [paired_ratios(run) for run in (old, new)]
    ratio, difference = change(*pairs)
    loss = words.NO_REUSE if before is not None and after is None else ""
    sizes = (len(pairs[0]), len(pairs[1]))
    return Line(words.SPEEDUP, before, after, sizes, ratio, difference, more_is_better=True, lost=loss)


def _with_foreign(run: SavedRun, other: ForeignRun, arm: str, *, foreign_first: bool) -> Comparison:
    """One side is of ``vllm bench serve``: TTFT of one arm only."""
    own_arms = arms(run)
    own = own_arms.get((arm, ""))
    if own is None or own.median is None:
        proved = ", ".join(key[0] for key, side in own_arms.items() if side.median is not None and not key[1])
        raise UsageError(f"{run.path}: arm {arm!r} proves nothing there", f"--arm one of: {proved or 'none'}")
    other_arm, notes = foreign(other)
    pair = (other_arm, own) if foreign_first else (own, other_arm)
    model = words.models(short(other.document.get("model_id")), run.result.conditions.model_id)
    return Comparison((_line(words.name(arm, ""), *pair),), (f"{notes[0]}; {model}", *notes[1:]))


def gate(comparison: Comparison, limit: float) -> str:
    """The sentence that nothing is worse by more than ``limit``. Raises GateError (exit 3) if something is.

    Raises UsageError if not a single line has an interval: then nothing could ever fail.
    """
    worse_lines = [line.lost for line in comparison.lines if line.lost]
    lines = [line for line in comparison.lines if line.ratio]
    if not worse_lines and not lines:
        text = f"--max-regress needs {FEWEST_SAMPLES} samples on each side: nothing could be judged"
        raise UsageError(text, f"--trials {FEWEST_SAMPLES} of bench, --repetitions {FEWEST_SAMPLES} of load, or more")
    for line in lines:
        change, ratio = line.change, line.ratio
        if change is None or ratio is None:
            continue
        worse = 1 - change if line.more_is_better else change - 1
        certain = ratio.high < 1 if line.more_is_better else ratio.low > 1
        if worse > limit and certain:
            worse_lines.append(words.worse(line, worse, ratio))
    if worse_lines:
        raise GateError(words.missed(limit, worse_lines))
    return words.kept(limit)


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
