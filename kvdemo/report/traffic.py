"""A traffic run in the terminal and as a self-contained page: both only set what ``words.traffic`` says."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvdemo import units
from kvdemo.judge.traffic import PLAIN, TrafficResult
from kvdemo.report import look, svg
from kvdemo.report.figures import section
from kvdemo.report.markup import Markup, join, tag
from kvdemo.words import traffic as words

BAR = 14
COLOURS = ("cold", "reuse", "again", "store")


def terminal(result: TrafficResult) -> Group:
    """Latency and sources in two tables, each narrow enough for 80 columns, then the sentence."""
    latency, sources = _grid(words.COLUMNS[: words.LATENCY]), _grid((*words.KEYS, *words.COLUMNS[words.LATENCY :], ""))
    for point in result.points:
        cells, style = words.cells(point), "" if point.punctual and not point.failed else "yellow"
        latency.add_row(*cells[: words.LATENCY], style=style)
        bar = Text("█" * round(BAR * point.share), style="green" if point.side != PLAIN else "")
        bar.append("·" * (BAR - round(BAR * point.share)), style="dim").append(f" {words.outcome(point, result.limit)}")
        sources.add_row(*cells[: len(words.KEYS)], *cells[words.LATENCY :], bar)
    parts: list[RenderableType] = [
        Text.assemble(("\nTraffic  ", "bold"), words.heading(result)),
        Text(words.limit(result)),
        "",
        latency,
        "",
        sources,
        "",
    ]
    parts += [Text(line, style="bold") for line in words.sentences(result)]
    parts += [Text(line, style="yellow") for line in result.problems]
    parts += [Text(line, style="dim") for line in words.notes(result)]
    return Group(*parts)


def _grid(headings: Sequence[str]) -> Table:
    grid = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(headings):
        grid.add_column(heading, justify="left" if number == 0 or not heading else "right", no_wrap=True)
    return grid


def page(result: TrafficResult) -> str:
    """One HTML file; nothing is fetched, whatever comes from engines or files is text."""
    first, *others = words.sentences(result)
    factor = next((words.factor(result, gain) for gain in result.gains), "No ratio")
    main = tag(
        "main",
        tag(
            "header",
            tag("p", "Requests a second within a limit on TTFT", class_="eyebrow"),
            tag("h1", factor[0].upper() + factor[1:], class_="" if result.gains else "plain"),
            tag("p", first, class_="lead"),
            *(tag("p", line) for line in others),
            *(tag("p", line, class_="warn") for line in result.problems),
        ),
        section("TTFT over the rate", "", _plot(result, [gain.side for gain in result.gains])),
        section("Every rate", "", _table(result)),
        section(
            "Conditions",
            "",
            tag("p", words.heading(result)),
            tag("p", words.limit(result)),
            *(tag("p", line, class_="dim") for line in words.notes(result)),
        ),
    )
    about = result.conditions
    return look.page(f"kvdemo load: {about['model_id']}", str(about.get("kvdemo_version", "")), main)


def _table(result: TrafficResult) -> Markup:
    rows = [tag("tr", *(tag("th", name, scope="col") for name in words.COLUMNS))]
    rows += [tag("tr", *(tag("td", cell) for cell in words.cells(point))) for point in result.points]
    return tag("div", tag("table", join(*rows)), class_="wide rates")


def _plot(result: TrafficResult, sides: Sequence[str]) -> Markup:
    """p90 (median where n does not carry it) over the rate, both in the units of the table."""
    lines, legend = [], []
    for colour, side in zip(COLOURS, dict.fromkeys([PLAIN, *sides, *result.conditions["sides"]]), strict=False):
        points = [
            (one.rate, value)
            for one in result.points
            if one.side == side and (value := one.p90_ttft_ms or one.p50_ttft_ms) is not None
        ]
        if not points:
            continue
        lines.append(svg.Curve(points, colour))
        legend.append((colour, side))
        rates = [one.rate for one in result.points if one.side == side]
        model = [(rate, 1000 * value) for rate, value in words.queueing_estimate(result, side, rates)]
        if model:
            lines.append(svg.Curve([point for point in model if point[1] <= 2 * max(y for _, y in points)], "floor"))
    if not lines:
        return Markup()
    plot = svg.curves(lines, (lambda x: f"{x:.3g}/s", units.duration))
    legend.append(("floor", "what a queue with the times of single requests would do (an estimate)"))
    caption = (
        "p90 of the TTFT (p50 of fewer than ten requests) over requests a second; none where so many were hung up "
        "(the limit could no longer be kept) that nobody knows it."
    )
    return join(tag("p", caption, class_="say"), svg.legend(legend), plot)
