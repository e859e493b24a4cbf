"""A Frame in the terminal: the words of ``kvdemo.words.top`` in two tables, whose bars take the room that is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvdemo import units
from kvdemo.judge.frame import Cache, Engine, Frame
from kvdemo.report import tables, terminal
from kvdemo.words import top as words
from kvdemo.words.tones import Piece, Tone

GLYPHS = {"computed": "░", "local": "▒", "shared": "█", "l1": "█", "l2": "▓"}
"""Told apart without colours too."""

ASCII = {"computed": ".", "local": "-", "shared": "#", "l1": "#", "l2": "="}
"""For a terminal that cannot show the others."""

NAME, LEAST, MOST = 24, 6, 40
"""Characters of a name at most, and of a bar."""


class View:
    """A frame, as wide as the console; ``keys`` says how to leave."""

    def __init__(self, frame: Frame, keys: str = "") -> None:
        self.frame, self.keys = frame, keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Heading, engines, caches, the last prompts, what is wrong."""
        glyphs = ASCII if options.ascii_only else GLYPHS
        width = options.max_width if console.is_terminal else min(options.max_width, 120)
        yield Text(f"{self.frame.title}  {words.window(self.frame)}{self.keys}", style="bold", overflow="fold")
        if self.frame.engines:
            columns: Sequence[Any] = words.engine_gauges(self.frame.engines)
            yield _table("ENGINE", self.frame.engines, columns, glyphs, width)
            yield _legend(words.SOURCES, glyphs)
        if self.frame.caches:
            yield _table("CACHE", self.frame.caches, words.CACHE_GAUGES, glyphs, width)
            yield _legend(words.TIERS, glyphs)
        yield from self._below()

    def _below(self) -> RenderResult:
        for row in words.recent(self.frame):
            yield _line(row)
        for piece in words.complaints(self.frame):
            yield _line((piece,))
        if legend := words.legend(self.frame):
            yield Text(legend, style="dim")


def _line(pieces: Sequence[Piece]) -> Text:
    line = Text(overflow="fold")
    for piece in pieces:
        line.append(units.printable(piece.text), style=tables.STYLES[piece.tone])
    return line


def _table(
    kind: str, services: Sequence[Engine] | Sequence[Cache], columns: Sequence[Any], glyphs: dict[str, str], width: int
) -> RenderableType:
    """One line a service; the bar takes what the numbers leave, names are cut where not even that is enough."""
    cells = [[_cell(gauge, one) for gauge in columns] for one in services]
    numbers = [max(len(gauge.heading), *(len(row[n].text) for row in cells)) for n, gauge in enumerate(columns)]
    name = min(NAME, max(len(kind), *(len(one.name) for one in services)))
    room = width - sum(numbers) - len(columns) - 1
    name = max(len(kind), min(name, room - LEAST))
    bar = min(MOST, room - name)
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    grid.add_column(kind, no_wrap=True, overflow="ellipsis", width=name)
    for gauge, size in zip(columns, numbers, strict=True):
        grid.add_column(gauge.heading, justify="right", no_wrap=True, min_width=size)
        if gauge.heading == "TOK/S" and bar >= LEAST:
            grid.add_column("", no_wrap=True, width=bar)
    most = words.most(services)
    for one, row in zip(services, cells, strict=True):
        texts: list[Text] = []
        for gauge, piece in zip(columns, row, strict=True):
            texts.append(Text(piece.text, style=tables.STYLES[piece.tone]))
            if gauge.heading == "TOK/S" and bar >= LEAST:
                texts.append(_bar(words.parts(one), most, bar, glyphs))
        grid.add_row(Text(units.printable(one.name), style="bold red" if one.problem else ""), *texts)
    return grid


def _cell(gauge: Any, one: Engine | Cache) -> Piece:
    piece: Piece = gauge.cell(one)
    return Piece("", Tone.DIM) if one.problem else piece


def _bar(parts: Sequence[words.Part], most: float, width: int, glyphs: dict[str, str]) -> Text:
    """As long as the rate is of the highest one; where its parts end is rounded, so that it is no longer than they."""
    text, so_far = Text(), 0.0
    for part in parts if most > 0 else ():
        start, so_far = round(so_far / most * width), so_far + part.rate
        cells = round(so_far / most * width) - start
        text.append(glyphs[part.source.key] * cells, style=tables.STYLES[part.source.tone])
    return text


def _legend(sources: Sequence[words.Source], glyphs: dict[str, str]) -> Text:
    text = Text(style="dim")
    for source in sources:
        text.append(f"{glyphs[source.key]} ", style=tables.STYLES[source.tone]).append(f"{source.name}  ")
    return text


class Screen:
    """Where frames replace each other, on a terminal; use it under ``with``."""

    def __init__(self, keys: str) -> None:
        self.keys = keys
        self.live = Live(console=terminal.out, auto_refresh=False)

    def __enter__(self) -> Screen:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, frame: Frame) -> None:
        """Show a frame."""
        self.live.update(View(frame, self.keys), refresh=True)


def once(frame: Frame) -> None:
    """Print a frame, and an empty line after it."""
    terminal.out.print(View(frame))
    terminal.out.print()
