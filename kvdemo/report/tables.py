"""A result in the terminal: the words of ``kvdemo.words``, set as tables, bars and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvdemo import units
from kvdemo.judge.result import Result
from kvdemo.judge.sample import Sample
from kvdemo.words import exchange, findings, sections
from kvdemo.words.table import COLUMNS, PHASES, note
from kvdemo.words.tones import Piece, Tone

STYLES: Mapping[Tone, str] = {
    Tone.PLAIN: "",
    Tone.DIM: "dim",
    Tone.STRONG: "bold",
    Tone.GOOD: "green",
    Tone.SHARED: "bold green",
    Tone.LOCAL: "blue",
    Tone.COMPUTED: "",
    Tone.WARN: "yellow",
    Tone.BAD: "bold red",
}
PARTS: Mapping[str, str] = {"client": "plum3", "queue": "dark_orange3", "prefill": "medium_purple3"}
"""Phases of a request have colours of their own: grey, blue and green say where tokens came from."""
SHADES: Mapping[str, str] = {"client": "░", "queue": "▒", "prefill": "█"}
"""What tells them apart where there is no colour: in a file, a CI log, a pipe."""

BAR = 46


def result(one: Result, samples: Sequence[Sample] = (), *, verbose: bool = False) -> Group:
    """What a person wants to know of a run: tables, question and answer, the finding; the rest if ``verbose``."""
    parts: list[RenderableType] = [_heading(one), ""]
    if one.rows:
        parts += [latency(one), ""]
    if verbose and (bars := waterfall(one)):
        parts += [bars, ""]
    parts += [part for part in (matrix(one), lengths(one)) if part]
    lines = exchange.lines(one, samples)
    parts += [*map(text, lines), *([""] if lines else [])]
    return Group(*parts, *map(text, findings.lines(one)), *map(text, findings.details(one) if verbose else ()))


def text(*pieces: Piece) -> Text:
    """Pieces one after the other, each in the style of its tone."""
    return Text.assemble(*((units.printable(piece.text), STYLES[piece.tone]) for piece in pieces))


def _heading(one: Result) -> Text:
    return (
        Text("\n")
        .append("Time to First Token", style="bold")
        .append(units.printable(f"  {', '.join(findings.facts(one))}"))
    )


def _grid(headings: Sequence[tuple[str, bool]]) -> Table:
    """An empty table; headings with whether their column is numeric."""
    grid = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0), pad_edge=False)
    for heading, numeric in headings:
        grid.add_column(units.printable(heading), justify="right" if numeric else "left", no_wrap=True)
    return grid


def latency(one: Result) -> Table:
    """The table of arms; narrow enough for a terminal of 80 columns."""
    grid = _grid([(column.heading, column.numeric) for column in COLUMNS])
    for row in one.rows:
        grid.add_row(*(text(*column.cell(one, row)) for column in COLUMNS))
    grid.caption = text(Piece(note(one)))
    return grid


def waterfall(one: Result) -> Table | None:
    """Each arm's median TTFT as a bar of its parts."""
    rows = [(row, parts) for row in one.rows if (parts := sections.parts(row))]
    if not rows:
        return None
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    longest = max(sum(part.milliseconds for part in parts) for _, parts in rows) or 1
    for row, parts in rows:
        bar = Text()
        for part in parts:
            size = round(BAR * part.milliseconds / longest)
            bar.append(SHADES[part.style] * size or ("▏" if part.milliseconds else ""), style=PARTS[part.style])
        grid.add_row(text(Piece(row.engine)), PHASES.get(row.arm, row.arm), bar)
    legend = Text()
    for style, words in sections.PARTS.values():
        legend.append(SHADES[style], style=PARTS[style]).append(f" {words}  ")
    grid.add_row("", "", legend)
    return grid


def matrix(one: Result) -> Table | None:
    """Writers down, readers across."""
    if one.matrix is None:
        return None
    grid = _grid([("writer \\ reader", False), *((engine, True) for engine in one.matrix.engines)])
    cells = {(cell.writer, cell.reader): cell for cell in one.matrix.cells}
    for writer in one.matrix.engines:
        row = [text(sections.cell(cells.get((writer, reader)))) for reader in one.matrix.engines]
        grid.add_row(text(Piece(writer)), *row)
    grid.caption = text(Piece(sections.matrix(one.matrix)))
    return grid


def lengths(one: Result) -> Table | None:
    """The sweep as bars on one scale, and where reuse begins to win."""
    if one.lengths is None:
        return None
    longest = max(point.cold_ms for point in one.lengths.points)
    grid = _grid([*((heading, True) for heading in sections.LENGTHS), ("cold / reuse", False)])
    for point in one.lengths.points:
        bars = Text("█" * max(1, round(20 * point.cold_ms / longest)), style="red")
        bars.append("\n" + "█" * max(1, round(20 * point.reuse_ms / longest)), style="green")
        grid.add_row(*sections.point(one, point), bars)
    grid.caption = sections.break_even(one, one.lengths)
    return grid
