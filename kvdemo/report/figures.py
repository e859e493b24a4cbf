"""The report's figures: samples as dots, waterfall, curves over length, matrix, costs, the limit. Pure.

Each takes the result (and samples) and gives a section, or nothing where there is nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvdemo import units
from kvdemo.judge.result import Cell, Result, Row
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, judge
from kvdemo.report import svg
from kvdemo.report.markup import Markup, join, tag
from kvdemo.words import sections
from kvdemo.words.table import PHASES

NO_BREAK = "\N{NO-BREAK SPACE}"
SHORT = 8
"""Bars shorter than the longest by this factor are drawn once more, magnified."""


def _tick(value: float) -> str:
    return f"{value / 1000:g} s" if value >= 1000 else f"{value:g} ms"


def section(title: str, caption: object, *children: object) -> Markup:
    """A section with a heading and a sentence that says what is seen."""
    return tag("section", tag("h2", title), tag("p", caption, class_="say") if caption else "", *children)


def arm_name(row: Row) -> Markup:
    """How figures call a row of the table."""
    return join(row.engine, " ", tag("small", PHASES.get(row.arm, row.arm)))


def samples_of(row: Row, samples: Sequence[Sample]) -> list[Sample]:
    """The requests behind a row of the table: none of a matrix, and of a sweep over lengths those of the row's."""
    own = [s for s in samples if (s.engine, s.arm) == (row.engine, row.arm) and not s.writer]
    return [s for s in own if row.prompt_tokens is None or s.prompt_tokens in (None, row.prompt_tokens)]


def counts(sample: Sample) -> bool:
    """Does the sample's verdict support what its arm claims?"""
    return judge(sample).verdict in SUPPORTS_SPEEDUP.get(sample.arm, set())


def requests(result: Result, samples: Sequence[Sample]) -> Markup:
    """Every request as a dot."""
    rows = []
    has_hollow = False
    for row in result.rows:
        plots = []
        for sample in samples_of(row, samples):
            if sample.ttft:
                judgement, time = judge(sample), units.duration(sample.ttft * 1000)
                title = f"trial {sample.trial}: {time}, {judgement.verdict} {judgement.why}".strip()
                plots.append(svg.Dot(sample.ttft * 1000, title, counts(sample)))
        has_hollow = has_hollow or not all(dot.counts for dot in plots)
        rows.append(svg.Row(arm_name(row), plots, row.arm, row.ttft.median if row.ttft else None))
    figure = svg.dots(rows, _tick)
    if not figure:
        return Markup()
    values = [dot.value for row in rows for dot in row.dots]
    log = " The scale is logarithmic." if svg.Scale.over(values).log else ""
    empty = " Hollow dots do not count: their tokens did not come from where they should." if has_hollow else ""
    caption = f"One dot is one request, its time to first token; the line is the median.{log}{empty}"
    return section("Every request", caption, figure)


def waterfall(result: Result) -> Markup:
    """What each arm's time to first token is made of, as far as the engines tell."""
    plots: list[tuple[svg.Bar, float]] = []
    for row in result.rows:
        parts = [part for part in sections.parts(row) if part.milliseconds > 0]
        if parts:
            under = " · ".join(
                f"{part.words.split(' (')[0]} {units.duration(part.milliseconds)}".replace(" ", NO_BREAK)
                for part in parts
            )
            bar = svg.Bar(arm_name(row), [(part.milliseconds, part.style) for part in parts], under)
            plots.append((bar, sum(part.milliseconds for part in parts)))
    if not plots:
        return Markup()
    longest = max(total for _, total in plots)
    short = [(bar, total) for bar, total in plots if total * SHORT < longest]
    magnified: list[Markup] = []
    if short:
        factor = longest / max(total for _, total in short)
        bare = svg.bars([svg.Bar(bar.name, bar.parts) for bar, _ in short])
        magnified = [tag("h3", f"The short ones, magnified {factor:.0f} times"), bare]
    legend = svg.legend(list(sections.PARTS.values()))
    return section("Where the time goes", sections.WATERFALL, legend, svg.bars([bar for bar, _ in plots]), *magnified)


def lengths(result: Result) -> Markup:
    """Cold, reuse and floor over the prompt's length."""
    if result.lengths is None or not result.lengths.points:
        return Markup()
    points = sorted(result.lengths.points, key=lambda point: point.prompt_tokens)
    curves = {
        ("cold", "computed (cold)"): [(p.prompt_tokens, p.cold_ms) for p in points],
        ("reuse", "loaded (reuse)"): [(p.prompt_tokens, p.reuse_ms) for p in points],
        ("floor", "floor: what this machine could do"): [(p.prompt_tokens, p.floor_ms) for p in points if p.floor_ms],
    }
    lines = [svg.Curve(values, colour) for (colour, _), values in curves.items() if values]
    even, shortest = result.lengths.break_even_tokens, points[0].prompt_tokens
    mark = (float(even), f"break-even: {even:,} tokens") if even is not None and even > shortest else None
    plot = svg.curves(lines, (lambda x: f"{x:,.0f}", _tick), mark)
    table = _table(sections.LENGTHS, [sections.point(result, point) for point in points])
    caption = (
        f"Time to first token over the length of the prompt in tokens. {sections.break_even(result, result.lengths)}"
    )
    legend = svg.legend([key for key, values in curves.items() if values])
    return section(
        "By length of the prompt", caption, legend, plot, tag("details", tag("summary", "As a table"), table)
    )


def matrix(result: Result) -> Markup:
    """Writer by reader, as a heat map of speed-ups."""
    one = result.matrix
    if one is None or not one.engines or not one.cells:
        return Markup()
    cells = {(cell.writer, cell.reader): cell for cell in one.cells}
    best = max([cell.speedup or 1.0 for cell in one.cells] + [1.0])
    rows = [tag("tr", tag("th"), *(tag("th", name, scope="col", class_="n") for name in one.engines))]
    for writer in one.engines:
        plots = [_cell(cells.get((writer, reader)), best) for reader in one.engines]
        rows.append(tag("tr", tag("th", writer, scope="row"), *plots))
    table = tag("div", tag("table", *rows, class_="heat"), class_="wide")
    return section("From every writer to every reader", f"{sections.READ} {sections.matrix(one)}".strip(), table)


def _cell(cell: Cell | None, best: float) -> Markup:
    words = sections.cell(cell)
    if cell is None:
        return tag("td", words)
    shade = math.log(cell.speedup) / math.log(best) if cell.speedup and cell.speedup > 1 and best > 1 else 0.0
    small = tag("small", units.duration(cell.median_ttft_ms))
    return tag("td", tag("span", words, class_=words.tone), small, style=f"--heat:{0.55 * shade:.3f}")


def costs(result: Result) -> Markup:
    """What sharing costs those who do not profit from it."""
    rows = sections.costs(result)
    return section("What it costs", "", _table(sections.COST_HEADINGS, rows, left=(0, 2, 3))) if rows else Markup()


def limit(result: Result) -> Markup:
    """How far from what this machine could do."""
    if result.limit is None:
        return Markup()
    rows = sections.limit(result.limit)
    return section("The limit", "", tag("p", result.limit.text), _table(["", ""], rows, head=False, kind="few"))


def _table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: Sequence[int] = (0,),
    head: bool = True,
    kind: str = "",
) -> Markup:
    """A table whose columns are numbers but for those in ``left``."""
    kinds = ["n" if column not in left else "words" if column else None for column in range(len(headings))]
    top = tag("tr", *(tag("th", name, class_=kind) for name, kind in zip(headings, kinds, strict=True))) if head else ""
    lines = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    return tag("div", tag("table", top, *lines, class_=kind or None), class_="wide")
