"""Waterfall, lengths, matrix, costs and limit: their headings, cells and captions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvdemo import units
from kvdemo.judge import effect
from kvdemo.judge.effect import Effect
from kvdemo.judge.result import Cell, Lengths, Limit, LimitLine, Matrix, Point, Result, Row
from kvdemo.judge.verdict import Verdict
from kvdemo.words.findings import COSTS, cost
from kvdemo.words.table import spread, unknown_noise
from kvdemo.words.tones import VERDICTS, Piece, Tone


@dataclass(frozen=True)
class Part:
    """One part of a TTFT: the name of its style, and what it is."""

    style: str
    words: str
    milliseconds: float


PARTS = {
    "client_http_ms": ("client", "client and HTTP"),
    "queue_and_load_ms": ("queue", "queue and cache load"),
    "prefill_ms": ("prefill", "prefill"),
}
WATERFALL = (
    "Medians on one scale; queue and prefill are the engines' own figures, the rest of the time is the client's."
)


def parts(row: Row) -> list[Part]:
    """What the TTFT of a row is made of; nothing where the engine does not tell."""
    if row.waterfall is None:
        return []
    return [Part(style, words, getattr(row.waterfall, field)) for field, (style, words) in PARTS.items()]


LENGTHS = ("Prompt tokens", "Cold", "Reuse", "Floor", "Faster")


def point(result: Result, one: Point) -> tuple[str, ...]:
    """The cells of one length."""
    gain = one.cold_ms / one.reuse_ms
    match _effect(result, one):
        case None:
            faster = units.NO_VALUE
        case Effect.NONE:
            faster = "within noise"
        case Effect.SLOWER:
            faster = f"{units.ratio(1 / gain)} slower"
        case _:
            faster = units.ratio(gain)
    times = (units.duration(value) for value in (one.cold_ms, one.reuse_ms, one.floor_ms))
    return f"{one.prompt_tokens:,}", *times, faster


def _effect(result: Result, one: Point) -> Effect | None:
    """Whether reuse is faster at this length; None where nothing supports a ratio."""
    return effect.of(one.speedup, result.noise_floor) if one.speedup else None


def break_even(result: Result, lengths: Lengths) -> str:
    """From where on reuse is faster, and how sure the factors are."""
    effects = [_effect(result, one) for one in lengths.points]
    factors = {
        f"{one.prompt_tokens:,} tokens": one.speedup.n
        for one, effect in zip(lengths.points, effects, strict=True)
        if one.speedup and effect is not Effect.NONE
    }
    return f"{_from_where(lengths, effects)} {unknown_noise(factors)}".strip()


def _from_where(lengths: Lengths, effects: Sequence[Effect | None]) -> str:
    if not any(effects):
        return "Nothing is proved at these lengths."
    if None in effects:
        return "Not every length proves something: from where on reuse is faster is unknown."
    if all(one is Effect.FASTER for one in effects):
        return "Reuse is faster at all of these lengths."
    if lengths.break_even_tokens is None or Effect.FASTER not in effects:
        return "Reuse is not faster at these lengths."
    return f"Reuse is faster from about {lengths.break_even_tokens:,} tokens on."


READ = "Rows write, columns read; the TTFT of the reader's own cold answer over that of this one."
"""How to read the matrix."""


def matrix(one: Matrix) -> str:
    """What the matrix shows of nodes, and how sure its factors are."""
    factors = {f"{cell.writer} to {cell.reader}": cell.n for cell in one.cells if _factor(cell)}
    return f"{one.text or ''} {unknown_noise(factors)}".strip()


def _factor(cell: Cell) -> float | None:
    return None if cell.verdict is Verdict.COLD else cell.speedup


def cell(one: Cell | None) -> Piece:
    """One cell: a speed-up where reuse was promised and proved, and the verdict."""
    if one is None:
        return Piece(units.NO_VALUE)
    ratio = f"{units.ratio(factor)} " if (factor := _factor(one)) else ""
    return Piece(f"{ratio}{one.verdict}", VERDICTS[one.verdict] if one.verdict is one.expected else Tone.BAD)


COST_HEADINGS = ("Cost", "Median", "Spread", "What it is")


def costs(result: Result) -> list[tuple[str, ...]]:
    """The rows of the table of costs."""
    return [
        (COSTS.get(name, name.replace("_", " ")), cost(result, name, one), spread(one, one.unit), one.text)
        for name, one in (result.costs or {}).items()
    ]


def limit(one: Limit) -> list[tuple[str, str]]:
    """The arithmetic of the limit: names and figures."""
    return [(line.name, _figure(line)) for line in one.rows]


def _figure(line: LimitLine) -> str:
    if line.name == "efficiency":
        return f"{line.value:.0%}" if line.value <= 1 else "at the limit, within noise"
    return units.quantity(line.value, line.unit)
