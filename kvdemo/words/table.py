"""The table of arms: one Column holds a column's heading and the cell that it makes of a row. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from kvdemo import units
from kvdemo.judge import effect, stats
from kvdemo.judge.effect import Effect
from kvdemo.judge.result import Cost, Ratio, Result, Row
from kvdemo.words.tones import VERDICTS, Piece, Tone

PHASES: Mapping[str, str] = {"cold": "cold", "store": "cold+store", "reuse": "reuse", "again": "again"}
"""What the phase of an arm is called, if not as the arm."""


@dataclass(frozen=True)
class Column:
    """A column; ``numeric`` ones are set to the right."""

    heading: str
    cell: Callable[[Result, Row], tuple[Piece, ...]]
    numeric: bool = False


def is_baseline(result: Result, row: Row) -> bool:
    """Whether this row's cold requests are what the others are compared with."""
    return row.engine == result.conditions.baseline and row.arm in ("cold", "store")


def token_sources(row: Row) -> str:
    """How many prompt tokens came from where."""
    parts = [(row.local_cached_tokens, "local"), (row.external_cached_tokens, "shared")]
    if any(tokens is None for tokens, _ in parts):
        return "unknown"
    return " + ".join(f"{tokens:,} {source}" for tokens, source in parts if tokens) or "0"


def extent(low: float, high: float, unit: str) -> str:
    """Two values of one unit, which is written once if it can be: 102 to 123 ms."""
    one, other = units.quantity(low, unit), units.quantity(high, unit)
    first, _, name = one.partition(" ")
    if unit == "ms" and name in ("ms", "s") and other.endswith(f" {name}"):
        return f"{first} to {other}"
    return f"{one} to {other}"


def spread(ratio: Ratio | Cost, unit: str) -> str:
    """How sure a median is: its 95 % interval, the range of few trials, or that there is only one."""
    n = units.count(ratio.n, "trial" if unit == "x" else "request")
    if ratio.n == 1:
        return n
    if ratio.low is not None and ratio.high is not None and ratio.n >= stats.FEWEST_FOR_INTERVAL:
        return f"95 % interval {extent(ratio.low, ratio.high, unit)}, {n}"
    low, high = (ratio.low, ratio.high) if ratio.min is None or ratio.max is None else (ratio.min, ratio.max)
    return n if low is None or high is None else f"range of {n} {extent(low, high, unit)}"


def _range(row: Row) -> str:
    if row.ttft is None or row.ttft.n < 2:
        return units.NO_VALUE
    return extent(row.ttft.min, row.ttft.max, "ms")


def factor(speedup: Ratio, noise: Ratio | None) -> str:
    """How many times faster, or slower, a median is; or that it may be ``noise``."""
    match effect.of(speedup, noise):
        case Effect.NONE:
            return "within noise"
        case Effect.SLOWER:
            return f"{units.ratio(1 / speedup.median)} slower"
    return units.ratio(speedup.median)


def few(ratios: Collection[Ratio]) -> str:
    """That these factors are of one trial, to be set behind them."""
    return " in 1 trial" if ratios and all(ratio.n == 1 for ratio in ratios) else ""


def unknown_noise(trials: Mapping[str, int]) -> str:
    """What is said below factors, by their names the number of their trials, where one alone shows no noise."""
    single = [name for name, n in trials.items() if n == 1]
    names = "these factors" if 1 < len(single) == len(trials) else ", ".join(single)
    return f"1 trial: the noise of {names} is unknown." if single else ""


def note(result: Result) -> str:
    """The same of the table of arms."""
    factors = {
        f"{row.engine} {PHASES.get(row.arm, row.arm)}": row.speedup.n
        for row in result.rows
        if row.speedup and not is_baseline(result, row)
        if effect.of(row.speedup, result.noise_floor) is not Effect.NONE
    }
    return unknown_noise(factors)


def _faster(result: Result, row: Row) -> Piece:
    if is_baseline(result, row):
        return Piece("baseline", Tone.DIM)
    if row.speedup is None:
        return Piece(units.NO_VALUE)
    faster = Tone.STRONG if row.arm == "reuse" else Tone.PLAIN
    tones = {Effect.NONE: Tone.DIM, Effect.SLOWER: Tone.WARN, Effect.FASTER: faster}
    return Piece(factor(row.speedup, result.noise_floor), tones[effect.of(row.speedup, result.noise_floor)])


def _verdict(row: Row) -> tuple[Piece, ...]:
    verdict = Piece(row.verdict, VERDICTS[row.verdict])
    if len(row.verdicts) < 2:
        return (verdict,)
    return verdict, Piece(" (" + ", ".join(f"{n} {name}" for name, n in row.verdicts.items()) + ")", Tone.DIM)


COLUMNS = (
    Column("Engine", lambda _, row: (Piece(row.engine),)),
    Column("Phase", lambda _, row: (Piece(PHASES.get(row.arm, row.arm)),)),
    Column("Cached tokens", lambda _, row: (Piece(token_sources(row)),), numeric=True),
    Column("TTFT", lambda _, row: (Piece(units.duration(row.ttft.median if row.ttft else None)),), numeric=True),
    Column("Range", lambda _, row: (Piece(_range(row), Tone.DIM),), numeric=True),
    Column("Faster", lambda result, row: (_faster(result, row),), numeric=True),
    Column("Verdict", lambda _, row: _verdict(row)),
)
