"""What a comparison of two results says: names, values, losses, and the sentence of its gate. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kvdemo import units
from kvdemo.judge.comparison import Change, Comparison, Line
from kvdemo.words.table import PHASES

SPEEDUP = "speed-up of reuse"
ANSWER = "answer"
OTHER_ANSWER = "the new run's reuse gives another answer than computing"
NO_REUSE = "the new run proves no reuse"
NO_SINGLE_TIMES = "it holds no single times (--save-detailed): no interval"


def name(arm: str, engine: str) -> str:
    """What a line is about; an arm without an engine is the one that its part in the run names."""
    baseline = " (baseline)" if arm == "cold" and not engine else ""
    return f"{PHASES.get(arm, arm)}{baseline}" + (f" {engine}" if engine else "")


def capacity(side: str) -> str:
    """The highest rate that a side kept."""
    return f"capacity {side}"


def gain(side: str) -> str:
    """A side's capacity over the plain one's."""
    return f"gain {side}"


def loss(line: str, verdict: str | None) -> str:
    """Why the new run has no time for this line: its verdict, or None if it was not measured."""
    return f"{line} is no longer measured" if verdict is None else f"{line} is {verdict} now: it proves nothing"


def not_found(what: str) -> str:
    """That the new run has no figure where the old one had."""
    return f"the {what} is no longer found"


def not_a_figure(path: str, side: str, capacity: str) -> str:
    """What a run says of a side instead of a capacity."""
    return f"{path}: capacity of {side}: {capacity}"


def only_summary(path: str) -> str:
    """Why a run has no intervals."""
    return f"{path} is only a summary (no .jsonl beside it): no intervals"


def models(foreign: str, own: str) -> str:
    """Both models, where nobody can tell whether they are one."""
    return f"its model is {foreign}, here {own}"


def unchecked(path: str) -> str:
    """What a result of ``vllm bench serve`` does not tell."""
    return (
        f"{path} is of vllm bench serve: model digest, prompt, chunk size, device, length of the answer and versions "
        "cannot be checked, nor whether its requests were cold or cached"
    )


def at_once(number: object) -> str:
    """That its requests waited for each other."""
    return f"it sent {number or 'any number of'} requests at once: its TTFT holds waiting for each other"


def failures(number: int) -> str:
    """How many of its requests say nothing."""
    return f"{number} of its requests failed and do not count"


def worse(line: Line, share: float, ratio: Change) -> str:
    """By what share a line is worse, from what to what, and how sure that is."""
    word = "smaller" if line.more_is_better else "longer"
    values = f"{_value(line, line.old)} to {_value(line, line.new)}"
    return f"{line.name} is {100 * share:.3g} % {word} ({values}; new/old: {_spread(ratio)})"


def missed(limit: float, losses: Sequence[str]) -> str:
    """The gate's sentence when something is worse by more than ``limit``."""
    return f"worse by more than {100 * limit:.3g} %: " + "; ".join(losses)


def kept(limit: float) -> str:
    """The gate's sentence when nothing is."""
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
