"""All requests of this page, of every browser: a chart, a table, a file."""

from __future__ import annotations

import time
from typing import Any

from nicegui import ui

from kvdemo import units
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import judge
from kvdemo.ui.engines import EnginePool
from kvdemo.ui.parts import box, style, text
from kvdemo.words.tones import SOURCES, VERDICTS

COLOURS = {"computed": "#8f9aa6", "local": "#4d8be8", "shared": "#1fa67a", "not proved": "#d98c1f"}
NEWEST = 200
"""Rows of the table; the file holds all."""


def source(sample: Sample) -> str:
    """Where most of a request's prompt came from, if that is proved."""
    return SOURCES.get(VERDICTS[judge(sample).verdict], "not proved")


class History:
    """The panel."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool, self.count = pool, -1
        with box("section", "stack history", aria_label="History"):
            with box("div", "card stack"):
                with box("div", "bits"):
                    text("Time to first token of every request", "question grow", "h2")
                    ui.link("Download as JSONL", "/history.jsonl").props("download")
                self.chart = ui.echart(self._options(), renderer="svg").classes("chart")
            with box("div", "card scroll"), box("table", "grid"):
                with box("thead"), box("tr"):
                    for name in ("Turn", "Time", "Engine", "TTFT", "Verdict", "Computed", "Local", "Shared"):
                        right = name not in {"Time", "Engine", "Verdict"}
                        text(name, "r" if right else "", "th")
                self.body = box("tbody")
        self.show()

    def show(self) -> None:
        """Show what has changed: samples are only ever added."""
        samples = self.pool.history
        if len(samples) == self.count:
            return
        new = samples[max(self.count, 0) :]
        self.count = len(samples)
        self.chart.options.clear()
        self.chart.options.update(self._options())
        for sample in new[-NEWEST:]:
            with self.body:
                row = box("tr")
                with row:
                    self._cells(sample)
            row.move(target_index=0)
        for old in list(self.body.default_slot.children)[NEWEST:]:
            self.body.remove(old)

    def _cells(self, sample: Sample) -> None:
        judgement, sources = judge(sample), sample.sources
        counts = [sources.computed, sources.local, sources.shared] if sources else [None] * 3
        text(str(sample.trial), "r", "td")
        text(time.strftime("%H:%M:%S", time.localtime(sample.started)), "", "td")
        text(sample.engine, "", "td")
        text(units.duration(None if sample.ttft is None else sample.ttft * 1000), "r", "td")
        with box("td"):
            text(judgement.verdict.value, f"verdict tone-{VERDICTS[judgement.verdict]}", "span")
            if judgement.why:
                style(text(judgement.why), "why")
        for count in counts:
            text("-" if count is None else f"{count:,}", "r", "td")

    def _options(self) -> dict[str, Any]:
        """One point a request: engines down, seconds across, coloured by source."""
        names = [spec.name for spec in self.pool.plan.engines]
        measured = [sample for sample in self.pool.history if sample.ttft and not sample.error]
        grey = "#8a94a0"
        axis = {"axisLabel": {"color": grey, "fontSize": 15}, "axisLine": {"lineStyle": {"color": grey}}}
        series = [
            {
                "name": name,
                "type": "scatter",
                "symbolSize": 17,
                "itemStyle": {"color": colour, "opacity": 0.8},
                "data": [[s.ttft, s.engine] for s in measured if source(s) == name],
            }
            for name, colour in COLOURS.items()
        ]
        return {
            "animation": False,
            "grid": {"left": 12, "right": 24, "top": 48, "bottom": 36, "containLabel": True},
            "legend": {"top": 4, "left": 0, "textStyle": {"color": grey, "fontSize": 15}},
            "tooltip": {"trigger": "item", "renderMode": "richText"},
            "xAxis": {
                **axis,
                "type": "log",
                "name": "seconds",
                "nameLocation": "middle",
                "nameGap": 30,
                "nameTextStyle": {"color": grey, "fontSize": 14},
                "splitLine": {"lineStyle": {"color": grey, "opacity": 0.25}},
            },
            "yAxis": {**axis, "type": "category", "data": names, "inverse": True},
            "series": series,
        }
