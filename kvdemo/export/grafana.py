"""A dashboard for Grafana, and the files by which Grafana finds it. Pure.

It shows the series on which verdicts rest, each under the name by which kvdemo reads it, and nothing else. The JSON is
Grafana's classic model, schema 42 (Grafana 12); newer versions read it, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from kvdemo import backends
from kvdemo.backends import series
from kvdemo.backends.backend import Backend
from kvdemo.backends.series import Chart, Line
from kvdemo.export import promql
from kvdemo.planning.plan import Plan

SCHEMA = 42
LONGEST_UID = 40
WIDTH, HEIGHT = 12, 8
"""Of a chart, in units of Grafana's grid, which has 24 columns."""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

ENGINES = (
    Chart(
        "Prompt tokens by source",
        "suffix: tok/s",
        "Where prompt tokens came from, by the engine's own counter: computed, found in its own prefix cache, or "
        "loaded from a shared one. kvdemo's verdicts are this counter around one request.",
        (Line(series.BY_SOURCE, "rate"),),
        stacked=True,
    ),
    Chart(
        "Prompt tokens that were not computed",
        "percentunit",
        "Share of the prompt tokens that came from a cache, own or shared. No value while nothing is asked.",
        (Line(series.BY_SOURCE, "rest", where=series.COMPUTED),),
    ),
    Chart(
        "Time to First Token",
        "s",
        "By the engine's own clock, to the precision of its histogram's buckets. kvdemo bench measures at the client.",
        (Line(series.TTFT, "p50", "p50"), Line(series.TTFT, "p90", "p90")),
    ),
    Chart(
        "Requests",
        "short",
        "In the engine's hands, and in its queue.",
        (Line(series.RUNNING, "value", "running"), Line(series.WAITING, "value", "waiting")),
    ),
    Chart("KV cache in use", "percentunit", "Share of the engine's KV blocks.", (Line(series.KV_USE, "share"),)),
)
PROCESSES = (
    Chart(
        "Age of the process",
        "s",
        "Of engines and caches. Where it falls a process began, and its counters with it.",
        (Line(series.START, "age"),),
    ),
    Chart("Can be read", "short", "1 while Prometheus reads the service's series.", (Line(series.UP, "value"),)),
)


def charts(plan: Plan) -> list[tuple[str, tuple[Chart, ...]]]:
    """What the dashboard shows of this fleet, under headings."""
    used = _used(plan)
    asking = tuple(
        Chart(f"Asking {one.title}", "s", "Mean time that an engine spends on asking its cache.", (line,))
        for one in used
        if (line := one.lookup)
    )
    groups = [("Engines", (*ENGINES, *asking)), *((one.title, one.charts) for one in used), ("Processes", PROCESSES)]
    return [(heading, panels) for heading, panels in groups if panels]


def _used(plan: Plan) -> list[Backend]:
    kinds = dict.fromkeys(spec.backend for spec in plan.services if spec.kind == "cache" or spec.cache)
    return list({one.kind: one for one in map(backends.of, kinds)}.values())


def dashboard(plan: Plan) -> str:
    """The dashboard of this fleet, as JSON."""
    panels: list[dict[str, Any]] = []
    top = 0
    for heading, row_panels in charts(plan):
        place = {"x": 0, "y": top, "w": 2 * WIDTH, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": heading, "collapsed": False, "gridPos": place, "panels": []}
        )
        for number, chart in enumerate(row_panels):
            place = {"x": number % 2 * WIDTH, "y": top + 1 + number // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(chart, plan.project)})
        top += 1 + (len(row_panels) + 1) // 2 * HEIGHT
    return json.dumps(_document(plan, panels), indent=2) + "\n"


def _document(plan: Plan, panels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "uid": uid(plan.project),
        "title": f"kvdemo: {plan.project}",
        "description": "The series on which kvdemo's verdicts rest. Made by `kvdemo export prometheus`.",
        "tags": ["kvdemo"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-15m", "to": "now"},
        "refresh": promql.STEP,
        "annotations": {"list": []},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": NAME, "value": NAME},
                }
            ]
        },
        "panels": list(panels),
    }


def _panel(chart: Chart, project: str) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}} if chart.stacked else {}
    defaults = {"unit": chart.unit, "min": 0, "custom": {"showPoints": "never", **custom}}
    return {
        "type": "timeseries",
        "title": chart.title,
        "description": chart.text,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": promql.question(line, project),
                "legendFormat": _legend(line),
                "range": True,
            }
            for number, line in enumerate(chart.lines)
        ],
    }


def _legend(line: Line) -> str:
    label = f"{{{{{line.series.label}}}}}" if line.how == "rate" and line.series.label else ""
    return " ".join(filter(None, ("{{service}}", label, line.legend)))


NAME = "kvdemo"
"""Of the data source, and of what provides dashboards."""


def uid(project: str) -> str:
    """The dashboard's identifier, and the end of its address. Grafana allows 40 characters."""
    whole = f"{NAME}-{project}"
    mark = hashlib.sha256(project.encode()).hexdigest()[:8]
    return whole if len(whole) <= LONGEST_UID else f"{whole[: LONGEST_UID - 9].rstrip('-')}-{mark}"


def datasource(url: str) -> dict[str, Any]:
    """The Prometheus at this address, for Grafana to provision."""
    how = {"httpMethod": "POST", "timeInterval": promql.STEP}
    one = {"name": NAME, "uid": NAME, "type": "prometheus", "access": "proxy", "url": url, "jsonData": how}
    return {"apiVersion": 1, "datasources": [one]}


def provider(directory: str) -> dict[str, Any]:
    """Where Grafana is to look for dashboards: an absolute path. It replaces variables in what it reads."""
    one = {"name": NAME, "type": "file", "options": {"path": directory.replace("$", "$$")}}
    return {"apiVersion": 1, "providers": [one]}
