"""Plots as inline SVG that keep their text readable at any width: x is in percent, y in pixels, labels are HTML. Pure.

Nothing here knows what is plotted: rows of dots, stacked bars, curves. Colours are classes of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvdemo.report.markup import Markup, join, tag

STRIP = 34
"""Height of a row of dots in pixels."""
BAR = 18
CURVES = 300

Format = Callable[[float], str]


@dataclass(frozen=True)
class Dot:
    """One value of a row: what a pointer sees over it, and whether it counts (otherwise it is drawn hollow)."""

    value: float
    title: str
    counts: bool = True


@dataclass(frozen=True)
class Row:
    """A row of dots of one colour (a class), with its median where there is one."""

    name: object
    dots: Sequence[Dot]
    colour: str
    median: float | None = None


@dataclass(frozen=True)
class Bar:
    """A bar of stacked parts: (value, class) each; ``under`` is said below it."""

    name: object
    parts: Sequence[tuple[float, str]]
    under: object = ""


@dataclass(frozen=True)
class Curve:
    """Points (x, y) of one colour, in order of x."""

    points: Sequence[tuple[float, float]]
    colour: str


@dataclass(frozen=True)
class Scale:
    """From values to 0..1; logarithmic when the values span more than a factor of ten."""

    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], *, zero: bool = True) -> Scale:
        """A scale that holds all values with some air; a linear one starts at zero if ``zero``."""
        low, high = min(values), max(values)
        if low > 0 and high / low > 10:
            return cls(low / 1.3, high * 1.3, log=True)
        margin = (high - low or abs(high) or 1.0) * 0.06
        return cls(0.0 if zero and low >= 0 else low - margin, high + margin, log=False)

    def at(self, value: float) -> float:
        """Where a value lies, 0 to 1 within the scale."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the scale, at most so many."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks: list[float] = []
            for leading in ((1, 2, 5), (1, 3), (1,)):
                ticks = [n * 10.0**p for p in powers for n in leading if self.low <= n * 10.0**p <= self.high]
                if len(ticks) <= most:
                    return ticks
            return ticks[:: math.ceil(len(ticks) / most)]
        size = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(n * size for n in (1, 2, 5, 10, 20) if (self.high - self.low) / (n * size) <= most)
        return [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _svg(height: int, *children: Markup, label: str) -> Markup:
    return tag("svg", *children, height=height, width="100%", role="img", aria_label=label)


def _line(x: float, top: float, bottom: float, colour: str) -> Markup:
    return tag("line", x1=_percent(x), x2=_percent(x), y1=top, y2=bottom, class_=colour)


def _row(name: object, drawing: Markup, under: object = "") -> Markup:
    below = tag("div", under, class_="under") if under else ""
    return tag("div", tag("div", name, class_="name"), drawing, below, class_="row")


def _axis(scale: Scale, form: Format) -> Markup:
    labels = [
        tag("text", form(tick), x=_percent(scale.at(tick)), y=14, text_anchor=_anchor(scale.at(tick)))
        for tick in scale.ticks()
    ]
    return _row("", _svg(20, *labels, label="scale" + (", logarithmic" if scale.log else "")))


def _anchor(share: float) -> str:
    """Labels at the ends lean inwards: a phone has no margin to spare."""
    return "start" if share < 0.05 else "end" if share > 0.95 else "middle"


def dots(rows: Sequence[Row], form: Format) -> Markup:
    """A strip of dots for each row on one common scale; a line marks the median. Empty if no row has a dot."""
    values = [dot.value for row in rows for dot in row.dots]
    if not values:
        return Markup()
    scale = Scale.over(values)
    grid = [_line(scale.at(tick), 0, STRIP, "grid") for tick in scale.ticks()]
    strips = []
    for row in rows:
        elements = [
            tag(
                "circle",
                tag("title", dot.title),
                cx=_percent(scale.at(dot.value)),
                cy=_spread(number),
                r=5,
                class_=f"dot {row.colour}" + ("" if dot.counts else " open"),
            )
            for number, dot in enumerate(row.dots)
        ]
        middle = [] if row.median is None else [_line(scale.at(row.median), 4, STRIP - 4, "median")]
        label = f"{len(row.dots)} requests"
        strips.append(_row(row.name, _svg(STRIP, *grid, *elements, *middle, label=label)))
    return tag("figure", *strips, _axis(scale, form))


def _spread(number: int) -> float:
    """A height for the n-th dot of a row: neighbours must not hide each other, and the page must not vary."""
    return STRIP / 2 + (number * 3 % 5 - 2) * 3


def bars(rows: Sequence[Bar]) -> Markup:
    """Stacked bars on one linear scale from zero."""
    longest = max((sum(value for value, _ in row.parts) for row in rows), default=0.0)
    if longest <= 0:
        return Markup()
    elements = []
    for row in rows:
        offset, parts = 0.0, []
        for value, colour in row.parts:
            width = value / longest
            parts.append(
                tag("rect", x=_percent(offset), y=2, width=_percent(width), height=BAR - 4, class_=f"part {colour}")
            )
            offset += width
        elements.append(_row(row.name, _svg(BAR, *parts, label="parts of a request"), row.under))
    return tag("figure", *elements)


def curves(lines: Sequence[Curve], forms: tuple[Format, Format], mark: tuple[float, str] | None = None) -> Markup:
    """Curves over a common x, ``forms`` name x and y; ``mark`` is an x to point at and what to say there."""
    points = [point for curve in lines for point in curve.points]
    if not points:
        return Markup()
    across = Scale.over([x for x, _ in points] + ([mark[0]] if mark else []), zero=False)
    upward = Scale.over([y for _, y in points])

    def down(y: float) -> float:
        return CURVES * (1 - upward.at(y))

    elements = []
    for tick in upward.ticks():
        elements.append(tag("line", x1="0%", x2="100%", y1=down(tick), y2=down(tick), class_="grid"))
        elements.append(tag("text", forms[1](tick), x=0, y=down(tick) - 4))
    if mark:
        where = across.at(mark[0])
        elements.append(_line(where, 0, CURVES, "mark"))
        anchor = "end" if where > 0.5 else "start"
        elements.append(
            tag(
                "text",
                mark[1],
                x=_percent(where),
                dx=-8 if where > 0.5 else 8,
                y=14,
                text_anchor=anchor,
                class_="strong",
            )
        )
    for curve in lines:
        for (x1, y1), (x2, y2) in pairwise(curve.points):
            elements.append(
                tag(
                    "line",
                    x1=_percent(across.at(x1)),
                    y1=down(y1),
                    x2=_percent(across.at(x2)),
                    y2=down(y2),
                    class_=f"curve {curve.colour}",
                )
            )
        for x, y in curve.points:
            elements.append(tag("circle", cx=_percent(across.at(x)), cy=down(y), r=3.5, class_=curve.colour))
    for tick in across.ticks():
        share = across.at(tick)
        elements.append(tag("text", forms[0](tick), x=_percent(share), y=CURVES + 18, text_anchor=_anchor(share)))
    return tag("figure", _svg(CURVES + 26, *elements, label="curves"))


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """What the colours mean: (class, words) each."""
    swatches = [
        tag("span", tag("svg", tag("rect", width="12", height="12", rx="2", class_=colour), aria_hidden="true"), words)
        for colour, words in entries
    ]
    return tag("div", join(*swatches), class_="legend")
