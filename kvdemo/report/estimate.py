"""An estimate in the terminal: it only sets what ``words.estimate`` says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvdemo.estimate.result import Estimate
from kvdemo.words import estimate as words


def terminal(estimate: Estimate) -> Group:
    """Where tokens would come from, what other sizes would give, what it comes to; at most 80 columns wide."""
    parts: list[RenderableType] = [
        Text.assemble(("\nEstimate  ", "bold"), words.heading(estimate)),
        Text(words.against(estimate)),
        "",
        _grid(words.SOURCES, words.sources(estimate)),
        "",
        _grid(words.SIZES, (words.size(row, estimate) for row in estimate.sizes)),
        "",
    ]
    first, *others = words.sentences(estimate)
    parts += [Text(first, style="bold"), *map(Text, others)]
    parts += [Text(line, style="dim") for line in (*estimate.notes, words.LIMITS)]
    return Group(*parts)


def _grid(headings: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Table:
    grid = Table(box=None, header_style="bold underline", padding=(0, 2, 0, 0), pad_edge=False)
    for number, heading in enumerate(headings):
        grid.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    return grid
