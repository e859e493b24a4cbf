"""Two results side by side: did it become slower, and how sure is that? Pure: ``saved`` reads the files.

Runs are compared only if the same question was put to the same model under the same conditions; what a foreign file
does not tell is said, not assumed. Comparisons are unpaired: the trials of two runs have nothing in common.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kvdemo import units
from kvdemo.errors import GateError, UsageError
from kvdemo.report import sides
from kvdemo.report.savedrun import ForeignRun, SavedRun
from kvdemo.report.sides import Arm, Change, Key
from kvdemo.words.table import PHASES

MUST_AGREE = ("model_id", "model_digest", "prompt_sha256", "chunk_size", "device", "max_tokens", "versions")
"""Conditions that make runs comparable; one that neither run knows agrees."""

IF_KNOWN = ("backend", "endpoint", "tier", "max_concurrency")
"""Conditions that must agree too, if both runs know them: older runs do not."""


@dataclass(frozen=True)
class Line:
    """One thing compared: a TTFT in ms, or a figure of which more is better. Values may be absent, with the reason.

    ``unit`` is that of a figure other than a ratio.
    """

    name: str
    old: float | None
    new: float | None
    sizes: tuple[int, int] = (0, 0)
    ratio: Change | None = None
    difference: Change | None = None
    more_is_better: bool = False
    lost: str = ""
    unit: str = ""

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
    lines = [_line(_name(key), before[key], after.get(key)) for key in before]
    lines += [_line(_name(key), None, after[key]) for key in after if key not in before]
    lines.append(_speedup(old, new))
    notes = [
        f"{run.path} is only a summary (no .jsonl beside it): no intervals" for run in (old, new) if run.samples is None
    ]
    if new.result.answer.same is False:
        lines.append(Line("answer", None, None, lost="the new run's reuse gives another answer than computing"))
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


def _name(key: Key) -> str:
    arm, engine = key
    baseline = " (baseline)" if arm == "cold" and not engine else ""
    return f"{PHASES.get(arm, arm)}{baseline}" + (f" {engine}" if engine else "")


def _line(name: str, old: Arm | None, new: Arm | None) -> Line:
    if old is None or old.median is None:
        return Line(name, None, new.median if new else None)
    if new is None or new.median is None:
        why = f"{name} is no longer measured" if new is None else f"{name} is {new.verdict} now: it proves nothing"
        return Line(name, old.median, None, lost=why)
    ratio, _ = sides.change(old.values, new.values)
    return Line(name, old.median, new.median, (len(old.values), len(new.values)), ratio)


def _speedup(old: SavedRun, new: SavedRun) -> Line:
    """The speed-up of reuse, from the paired ratios of each run's trials."""
    before, after = (run.result.speedup.median if run.result.speedup else None for run in (old, new))
    pairs = [sides.paired_ratios(run) for run in (old, new)]
    ratio, difference = sides.change(*pairs)
    warning = "the new run proves no reuse" if before is not None and after is None else ""
    sizes = (len(pairs[0]), len(pairs[1]))
    return Line("speed-up of reuse", before, after, sizes, ratio, difference, more_is_better=True, lost=warning)


def _with_foreign(run: SavedRun, other: ForeignRun, arm: str, *, foreign_first: bool) -> Comparison:
    """One side is of ``vllm bench serve``: TTFT of one arm only."""
    arms = sides.arms(run)
    own = arms.get((arm, ""))
    if own is None or own.median is None:
        proved = ", ".join(key[0] for key, side in arms.items() if side.median is not None and not key[1])
        raise UsageError(f"{run.path}: arm {arm!r} proves nothing there", f"--arm one of: {proved or 'none'}")
    foreign, notes = sides.foreign(other)
    pair = (foreign, own) if foreign_first else (own, foreign)
    model = f"its model is {sides.short(other.document.get('model_id'))}, here {run.result.conditions.model_id}"
    return Comparison((_line(_name((arm, "")), *pair),), (f"{notes[0]}; {model}", *notes[1:]))


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
            word = "smaller" if line.more_is_better else "longer"
            worse_lines.append(
                f"{line.name} is {100 * worse:.3g} % {word} ({_value(line, line.old)} to {_value(line, line.new)}; "
                f"new/old: {_spread(ratio)})"
            )
    if worse_lines:
        raise GateError(f"worse by more than {100 * limit:.3g} %: " + "; ".join(worse_lines))
    return f"Nothing is worse by more than {100 * limit:.3g} % with an interval or range that excludes no change."


def _spread(change: Change) -> str:
    """Its interval or range."""
    return f"{change.kind} {change.low:.2f} to {change.high:.2f}"


def _value(line: Line, value: float | None) -> str:
    if value is None:
        return "-"
    if line.unit:
        return units.quantity(value, line.unit)
    return units.ratio(value) if line.more_is_better else units.duration(value)


def text(comparison: Comparison) -> str:
    """The comparison as aligned columns and sentences."""
    table = [("", "old", "new", "new/old", "spread", "n")]
    for line in comparison.lines:
        if line.old is None and line.new is None:
            continue
        change = "-" if line.change is None else f"{line.change:.2f}x"
        interval = _spread(line.ratio) if line.ratio else "-"
        sizes = f"{line.sizes[0]}, {line.sizes[1]}" if any(line.sizes) else "-"
        table.append((line.name, _value(line, line.old), _value(line, line.new), change, interval, sizes))
    widths = [max(len(row[column]) for row in table) for column in range(6)]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    for line in comparison.lines:
        if line.difference:
            d = line.difference
            lines.append(f"The speed-up differs by {d.median:+.1f} ({d.kind} {d.low:+.1f} to {d.high:+.1f}).")
        if line.lost:
            lines.append(f"Lost: {line.lost}.")
    return units.printable("\n".join([*lines, *(f"Note: {note}." for note in comparison.notes)]))
