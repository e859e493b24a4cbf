"""Two results side by side: did it become slower, and how sure is that? Pure: ``saved`` reads the files.

Runs are compared only if the same question was put to the same model under the same conditions; what a foreign file
does not tell is said, not assumed. Comparisons are unpaired: the trials of two runs have nothing in common.
"""

from __future__ import annotations

import re

from kvdemo.errors import GateError, UsageError
from kvdemo.judge.comparison import Comparison, Line
from kvdemo.report import sides
from kvdemo.report.savedrun import ForeignRun, SavedRun
from kvdemo.report.sides import Arm
from kvdemo.words import comparison as words

MUST_AGREE = ("model_id", "model_digest", "prompt_sha256", "chunk_size", "device", "max_tokens", "versions")
"""Conditions that make runs comparable; one that neither run knows agrees."""

IF_KNOWN = ("backend", "endpoint", "tier", "max_concurrency")
"""Conditions that must agree too, if both runs know them: older runs do not."""


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
    before, after = sides.arms(old), sides.arms(new)
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
    differ = {name: texts for name in names if (texts := sides.differences(name, one.get(name), other.get(name)))}
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
    ratio, _ = sides.change(old.values, new.values)
    return Line(name, old.median, new.median, (len(old.values), len(new.values)), ratio)


def _speedup(old: SavedRun, new: SavedRun) -> Line:
    """The speed-up of reuse, from the paired ratios of each run's trials."""
    before, after = (run.result.speedup.median if run.result.speedup else None for run in (old, new))
    pairs = [sides.paired_ratios(run) for run in (old, new)]
    ratio, difference = sides.change(*pairs)
    loss = words.NO_REUSE if before is not None and after is None else ""
    sizes = (len(pairs[0]), len(pairs[1]))
    return Line(words.SPEEDUP, before, after, sizes, ratio, difference, more_is_better=True, lost=loss)


def _with_foreign(run: SavedRun, other: ForeignRun, arm: str, *, foreign_first: bool) -> Comparison:
    """One side is of ``vllm bench serve``: TTFT of one arm only."""
    arms = sides.arms(run)
    own = arms.get((arm, ""))
    if own is None or own.median is None:
        proved = ", ".join(key[0] for key, side in arms.items() if side.median is not None and not key[1])
        raise UsageError(f"{run.path}: arm {arm!r} proves nothing there", f"--arm one of: {proved or 'none'}")
    foreign, notes = sides.foreign(other)
    pair = (foreign, own) if foreign_first else (own, foreign)
    model = words.models(sides.short(other.document.get("model_id")), run.result.conditions.model_id)
    return Comparison((_line(words.name(arm, ""), *pair),), (f"{notes[0]}; {model}", *notes[1:]))


def gate(comparison: Comparison, limit: float) -> str:
    """The sentence that nothing is worse by more than ``limit``. Raises GateError (exit 3) if something is.

    Raises UsageError if not a single line has an interval: then nothing could ever fail.
    """
    worse_lines = [line.lost for line in comparison.lines if line.lost]
    lines = [line for line in comparison.lines if line.ratio]
    if not worse_lines and not lines:
        raise UsageError(f"--max-regress needs {sides.FEWEST_SAMPLES} samples on each side: nothing could be judged")
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
