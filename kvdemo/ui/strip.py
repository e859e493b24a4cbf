"""What the engines do now, above whatever the page shows: the frame of `kvdemo top`, in its words.

One line of the whole fleet; opened, one of each engine and cache. It stands still while a request or a benchmark is
timed: whoever answers for its counters, and whoever draws them, takes processor time from that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui

from kvdemo.judge.frame import Cache, Engine, Frame
from kvdemo.ui.engines import EnginePool
from kvdemo.ui.parts import box, change, style, text
from kvdemo.words import top as words
from kvdemo.words.tones import Piece

MEASURED = "paused while a benchmark measures"
TIMED = "paused until the first token has come"
UNREAD = "the engines' counters have not been read yet"
Service = Engine | Cache


class Flow:
    """A bar: its parts, and how long it is beside the longest one."""

    def __init__(self, classes: str = "") -> None:
        self.place = box("div", f"flow {classes}".strip(), role="img")
        self.parts: list[ui.element] = []
        self.place.set_visibility(False)

    def show(self, parts: Sequence[words.Part], most: float) -> None:
        """Show these rates; nothing if nobody tells."""
        self.place.set_visibility(bool(parts))
        if len(self.parts) != len(parts):
            self.place.clear()
            with self.place:
                self.parts = [box("i", part.source.key) for part in parts]
        for element, part in zip(self.parts, parts, strict=True):
            element.style(f"width: {100 * part.rate / most if most > 0 else 0:.1f}%")
        title = words.rates(parts)
        change(self.place, title=title, aria_label=title)


class Table:
    """One line a service."""

    def __init__(self, kind: str, gauges: Callable[[Sequence[Any]], Sequence[words.Gauge[Any]]]) -> None:
        self.kind, self.gauges = kind, gauges
        self.place = box("table", "grid")
        self.shape: tuple[list[str], list[str]] | None = None
        self.rows: list[tuple[Flow, list[ui.label]]] = []

    def show(self, services: Sequence[Service]) -> None:
        """Show what has changed."""
        gauges = self.gauges(services)
        shape = [one.name for one in services], [gauge.heading for gauge in gauges]
        if shape != self.shape:
            self.shape = shape
            self.place.clear()
            with self.place:
                self._head(gauges)
                with box("tbody"):
                    self.rows = [self._row(one, gauges) for one in services]
        most = words.most(services)
        for (flow, cells), one in zip(self.rows, services, strict=True):
            flow.show(words.parts(one), most)
            for cell, gauge in zip(cells, gauges, strict=True):
                piece = Piece("") if one.problem else gauge.cell(one)
                cell.text = piece.text
                style(cell, f"r tone-{piece.tone}")
        self.place.set_visibility(bool(services))

    def _head(self, gauges: Sequence[words.Gauge[Any]]) -> None:
        with box("thead"), box("tr"):
            text(self.kind, "", "th")
            box("th", "flowing")
            for gauge in gauges:
                change(text(gauge.heading, "r", "th"), title=gauge.about)

    def _row(self, one: Service, gauges: Sequence[words.Gauge[Any]]) -> tuple[Flow, list[ui.label]]:
        with box("tr", data_service=one.name):
            text(one.name, "", "td")
            with box("td", "flowing"):
                flow = Flow()
            return flow, [text("", "r", "td") for _ in gauges]


class Strip:
    """The strip."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool
        with box("details", "card strip", id="live"):
            with box("summary", "", aria_label="What the engines do now"):
                text("Live", "", "b")
                self.flow = Flow()
                self.line = text("", "n", "span")
            with box("div", "scroll"):
                self.engines = Table("ENGINE", words.engine_gauges)
            self._legend(words.SOURCES)
            with box("div", "scroll"):
                self.caches = Table("CACHE", lambda _: words.CACHE_GAUGES)
            self.tiers = self._legend(words.TIERS)
            self.below = box("div", "prompts n")
        self.lines: list[tuple[Piece, ...]] = []
        self.show()

    def _legend(self, sources: Sequence[words.Source]) -> ui.element:
        with box("div", "key") as legend:
            for source in sources:
                text(source.name, f"k-{source.key}", "span")
        return legend

    def show(self) -> None:
        """Show what has changed."""
        frame = self.pool.frame
        if self.pool.paused or frame is None:
            self.line.text = MEASURED if self.pool.reserved else TIMED if self.pool.paused else UNREAD
            return
        self.line.text = words.summary(frame)
        total = words.total(frame)
        self.flow.show(total, sum(part.rate for part in total))
        self.engines.show(frame.engines)
        self.caches.show(frame.caches)
        self.tiers.set_visibility(bool(frame.caches))
        self._sentences(frame)

    def _sentences(self, frame: Frame) -> None:
        legend = words.legend(frame)
        lines = [*words.recent(frame), *((piece,) for piece in words.complaints(frame))]
        lines += [(Piece(legend),)] if legend else []
        if lines == self.lines:
            return
        self.lines = lines
        self.below.clear()
        with self.below:
            for pieces in lines:
                with box("div", "wrap"):
                    for piece in pieces:
                        text(piece.text, f"tone-{piece.tone}", "span")
