"""The report's figures: samples as dots, waterfall, curves over length, matrix, costs, the limit. Pure.

Each takes the document (and samples) and gives a section, or nothing where there is nothing to show. The document may
come from an edited file: a value of another kind than expected counts as absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, judge
from kvdemo.report import svg
from kvdemo.report.markup import Markup, join, tag
from kvdemo.report.saved import mapping, mappings, number
from kvdemo.report.tables import PHASES, milliseconds, times

NO_BREAK = "\N{NO-BREAK SPACE}"
SHORT = 8
"""Bars shorter than the longest by this factor are drawn once more, magnified."""

PARTS = {
    "client_http": ("client", "client and HTTP"),
    "queue_and_load": ("queue", "queue (in LMCache engines with lookup and load)"),
    "prefill": ("prefill", "prefill"),
}
"""What a TTFT is made of: class and words. vLLM counts as queued also the time in which LMCache looks up and loads."""

COSTS = {
    "store_tax": "Storing while computing",
    "lookup_tax": "Asking the cache",
    "decode_tax": "Decoding while others store",
    "visibility_lag": "Until others can load it",
}


def span(value: float | None) -> str:
    """Milliseconds for people: 264 ms, 12.7 s."""
    if value is None:
        return "-"
    if value < 1000:
        return f"{milliseconds(value)} ms"
    return f"{value / 1000:,.{0 if value >= 100_000 else 1 if value >= 10_000 else 2}f} s"


def _tick(value: float) -> str:
    return f"{value / 1000:g} s" if value >= 1000 else f"{value:g} ms"


def section(title: str, say: object, *children: object) -> Markup:
    """A section with a heading and a sentence that says what is seen."""
    return tag("section", tag("h2", title), tag("p", say, class_="say") if say else "", *children)


def arm_name(row: Mapping[str, Any]) -> Markup:
    """How figures call a row of the table."""
    return join(row["engine"], " ", tag("small", PHASES.get(row["arm"], row["arm"])))


def samples_of(row: Mapping[str, Any], samples: Sequence[Sample]) -> list[Sample]:
    """The requests behind a row of the table: none of a matrix, and of a sweep over lengths those of the row's."""
    length = row.get("prompt_tokens")
    mine = [s for s in samples if (s.engine, s.arm) == (row["engine"], row["arm"]) and not s.writer]
    return [s for s in mine if length is None or s.prompt_tokens in (None, length)]


def counts(sample: Sample) -> bool:
    """Does the sample's verdict support what its arm claims?"""
    return judge(sample).verdict in SUPPORTS_SPEEDUP.get(sample.arm, set())


def requests(document: Mapping[str, Any], samples: Sequence[Sample]) -> Markup:
    """Every request as a dot."""
    rows = []
    hollow = False
    for row in document["rows"]:
        drawn = []
        for sample in samples_of(row, samples):
            if sample.ttft:
                judgement = judge(sample)
                title = f"trial {sample.trial}: {span(sample.ttft * 1000)}, {judgement.verdict} {judgement.why}".strip()
                drawn.append(svg.Dot(sample.ttft * 1000, title, counts(sample)))
        hollow = hollow or not all(dot.counts for dot in drawn)
        rows.append(svg.Row(arm_name(row), drawn, row["arm"], number(row.get("median_ttft_ms"))))
    figure = svg.dots(rows, _tick)
    if not figure:
        return Markup()
    values = [dot.value for row in rows for dot in row.dots]
    log = " The scale is logarithmic." if svg.Scale.over(values).log else ""
    empty = " Hollow dots do not count: their tokens did not come from where they should." if hollow else ""
    say = f"One dot is one request, its time to first token; the line is the median.{log}{empty}"
    return section("Every request", say, figure)


def waterfall(document: Mapping[str, Any]) -> Markup:
    """What each arm's time to first token is made of, as far as the engines tell."""
    drawn: list[tuple[svg.Bar, float]] = []
    legend: dict[str, str] = {}
    for row in document["rows"]:
        pieces = []
        for key, value in mapping(row.get("waterfall")).items():
            name, known = key.removesuffix("_ms"), number(value)
            colour, words = PARTS.get(name, ("lookup", name.replace("_", " ")))
            if known is not None and known > 0:
                pieces.append((colour, words, known))
        if pieces:
            under = " · ".join(
                f"{words.split(' (')[0]} {span(value)}".replace(" ", NO_BREAK) for _, words, value in pieces
            )
            bar = svg.Bar(arm_name(row), [(value, colour) for colour, _, value in pieces], under)
            drawn.append((bar, sum(value for _, _, value in pieces)))
            legend |= {colour: words for colour, words, _ in pieces}
    if not drawn:
        return Markup()
    longest = max(total for _, total in drawn)
    short = [(bar, total) for bar, total in drawn if total * SHORT < longest]
    magnified: list[Markup] = []
    if short:
        factor = longest / max(total for _, total in short)
        bare = svg.bars([svg.Bar(bar.name, bar.parts) for bar, _ in short])
        magnified = [tag("h3", f"The short ones, magnified {factor:.0f} times"), bare]
    say = "Medians on one scale; queue and prefill are the engines' own figures, the rest of the time is the client's."
    shown = svg.legend(list(legend.items()))
    return section("Where the time goes", say, shown, svg.bars([bar for bar, _ in drawn]), *magnified)


def lengths(document: Mapping[str, Any]) -> Markup:
    """Cold, reuse and floor over the prompt's length."""
    given = mapping(document.get("lengths"))
    points = sorted(
        (point for point in mappings(given.get("points")) if (number(point.get("prompt_tokens")) or 0) > 0),
        key=lambda point: point["prompt_tokens"],
    )
    names = {"cold": "computed (cold)", "reuse": "loaded (reuse)", "floor": "floor: what this machine could do"}
    lines, legend = [], []
    for arm, words in names.items():
        found = [(p["prompt_tokens"], y) for p in points if (y := number(p.get(f"{arm}_ms"))) is not None and y > 0]
        if found:
            lines.append(svg.Curve(found, arm))
            legend.append((arm, words))
    if not lines:
        return Markup()
    even = number(given.get("break_even_tokens"))
    say = "Time to first token over the length of the prompt in tokens."
    mark: tuple[float, str] | None = None
    if even is not None and even <= min(p["prompt_tokens"] for p in points):
        say += " Loading is quicker than computing at every length measured."
    elif even is not None:
        say += f" From about {even:,.0f} tokens on, loading is quicker than computing."
        mark = (even, f"break-even: {even:,.0f} tokens")
    else:
        say += " No break-even was seen."
    cells = [[f"{p['prompt_tokens']:,.0f}", *(span(number(p.get(f"{a}_ms"))) for a in names)] for p in points]
    table = _table(["Prompt tokens", "Cold", "Reuse", "Floor"], cells)
    plot = svg.curves(lines, (lambda x: f"{x:,.0f}", _tick), mark)
    return section(
        "By length of the prompt", say, svg.legend(legend), plot, tag("details", tag("summary", "As a table"), table)
    )


def matrix(document: Mapping[str, Any]) -> Markup:
    """Writer by reader, as a heat map of speed-ups."""
    given = mapping(document.get("matrix"))
    engines = [str(name) for name in given["engines"]] if isinstance(given.get("engines"), list) else []
    cells = {(str(cell.get("writer")), str(cell.get("reader"))): cell for cell in mappings(given.get("cells"))}
    if not engines or not cells:
        return Markup()
    best = max([number(cell.get("speedup")) or 1.0 for cell in cells.values()] + [1.0])
    rows = [tag("tr", tag("th"), *(tag("th", name, scope="col", class_="n") for name in engines))]
    for writer in engines:
        drawn = [_cell(cells.get((writer, reader), {}), best) for reader in engines]
        rows.append(tag("tr", tag("th", writer, scope="row"), *drawn))
    say = "Rows write, columns read; how many times sooner than the reader's own cold answer. " + str(
        given.get("text") or ""
    )
    return section(
        "From every writer to every reader", say, tag("div", tag("table", *rows, class_="heat"), class_="wide")
    )


def _cell(cell: Mapping[str, Any], best: float) -> Markup:
    if not cell:
        return tag("td", "-")
    speedup = number(cell.get("speedup"))
    heat = math.log(speedup) / math.log(best) if speedup and speedup > 1 and best > 1 else 0.0
    shown = times(speedup) if speedup is not None else "-"
    small = f"{span(number(cell.get('median_ttft_ms')))} {cell.get('verdict', '')}"
    return tag("td", shown, tag("small", small), style=f"--heat:{0.55 * heat:.3f}")


def costs(document: Mapping[str, Any]) -> Markup:
    """What sharing costs those who do not profit from it."""
    rows = []
    for key, value in mapping(document.get("costs")).items():
        cost = mapping(value)
        if not cost:
            continue
        unit = str(cost.get("unit") or "")
        low, high = figure(cost.get("low"), unit), figure(cost.get("high"), unit)
        low = low.removesuffix(unit).rstrip() if unit != "x" else low
        interval = f"{low} to {high}" if "-" not in (low, high) else "-"
        few = (number(cost.get("n")) or 0) < 3 and interval != "-"
        name = COSTS.get(key, key.replace("_", " "))
        interval += " (range)" if few else ""
        rows.append([name, figure(cost.get("median"), unit), interval, figure(cost.get("n")), cost.get("text") or ""])
    if not rows:
        return Markup()
    headings = ["Cost", "Median", "95 % interval", "n", ""]
    return section("What it costs", "", _table(headings, rows, left=(0, 4)))


def limit(document: Mapping[str, Any]) -> Markup:
    """How far from what this machine could do."""
    given = mapping(document.get("limit"))
    rows = [
        [row.get("name", ""), figure(row.get("value"), str(row.get("unit") or ""))]
        for row in mappings(given.get("rows"))
    ]
    if not rows and not given.get("text"):
        return Markup()
    said = tag("p", given["text"]) if given.get("text") else ""
    return section("The limit", "", said, _table(["", ""], rows, head=False, kind="few") if rows else "")


def figure(value: Any, unit: str = "") -> str:
    """A number with its unit, three significant digits; text as it is."""
    known = number(value)
    if known is None:
        return str(value) if isinstance(value, str) else "-"
    if unit.startswith("of "):
        return f"{100 * known:.3g} % {unit}"
    shown = f"{known:,.0f}" if abs(known) >= 100 or known == int(known) else f"{known:.3g}"
    return f"{shown}{unit}" if unit in ("x", "") else f"{shown} {unit}"


def _table(
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
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
