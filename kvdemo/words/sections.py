"""Waterfall, lengths, matrix, costs and limit: their headings, cells and captions. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kvdemo import units
from kvdemo.judge.result import Cell, Lengths, Limit, Matrix, Point, Result, Row
from kvdemo.judge.verdict import Verdict
from kvdemo.words.findings import COSTS, cost, spread
from kvdemo.words.tones import VERDICTS, Piece, Tone


@dataclass(frozen=True)
class Part:
    """One part of a TTFT: the name of its style, and what it is."""

    style: str
    words: str
    milliseconds: float


PARTS = {
    "client_http_ms": ("client", "client and HTTP"),
    "queue_and_load_ms": ("queue", "queue (with lookup and load from the cache)"),
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


def point(one: Point) -> tuple[str, ...]:
    """The cells of one length."""
    gain = one.cold_ms / one.reuse_ms
    faster = units.ratio(gain) if gain >= 1 else f"{units.ratio(1 / gain)} slower"
    times = (units.duration(value) for value in (one.cold_ms, one.reuse_ms, one.floor_ms))
    return f"{one.prompt_tokens:,}", *times, faster


def break_even(lengths: Lengths) -> str:
    """From where on reuse is faster."""
    if all(one.reuse_ms <= one.cold_ms for one in lengths.points):
        return "Reuse is faster at all of these lengths."
    if lengths.break_even_tokens is None:
        return "Reuse is not faster at these lengths."
    return f"Reuse is faster from about {lengths.break_even_tokens:,} tokens on."


def matrix(one: Matrix) -> str:
    """How to read the matrix, and what it shows of nodes."""
    read = "Rows write, columns read; how many times faster (TTFT) than the reader's own cold answer."
    return f"{read} {one.text}" if one.text else read


def cell(one: Cell | None) -> Piece:
    """One cell: a speed-up where reuse was promised and proved, and the verdict."""
    if one is None:
        return Piece(units.NO_VALUE)
    ratio = f"{units.ratio(one.speedup)} " if one.speedup and one.verdict is not Verdict.COLD else ""
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
    return [(line.name, units.quantity(line.value, line.unit)) for line in one.rows]
