"""What a chart shows, as questions to Prometheus. Pure.

Series are summed over everything but the service before their increase is taken, by a subquery: LMCache has a series
for every salt, and `rate` never sees the first value of a series that begins, so that a salt's only request would not
count. All series of a service begin anew together, with its process, hence the sum falls as a single counter would.
Histograms of vLLM have no such labels, and hold their zeros from the start.
"""

from __future__ import annotations

from kvdemo.backends.series import Line, Series

STEP = "5s"
"""How often targets are scraped; steps of subqueries."""

WINDOW = "$__rate_interval"
"""What Grafana replaces by at least four scrapes."""


def question(line: Line, project: str) -> str:
    """The expression: one series for each service of the project, and for each value of the label of a rate."""
    selector = _selector(line, project)
    if line.how in {"p50", "p90"}:
        buckets = f"sum by (service, le) (rate({line.series.name}_bucket{selector}[{WINDOW}]))"
        return f"histogram_quantile(0.{line.how[1:]}, {buckets})"
    return {
        "rate": _rate(line.series, selector, *filter(None, [line.series.label])),
        "rest": f"1 - {_rate(line.series, selector)} / {_rate(line.series, _selector(None, project))}",
        "mean": " / ".join(f"sum by (service) (rate({line.series.name}_{part}{selector}[{WINDOW}]))" for part in PARTS),
        "age": f"time() - max by (service) ({line.series.name}{selector})",
        "share": f"avg by (service) ({line.series.name}{selector})",
        "value": _sum(line.series, selector) + (f" - {_sum(line.less, selector)}" if line.less else ""),
    }[line.how]


PARTS = ("sum", "count")


def _selector(line: Line | None, project: str) -> str:
    one = f',{line.series.label}="{line.where}"' if line and line.where else ""
    return f'{{project="{project}"{one}}}'


def _sum(series: Series, selector: str, *labels: str) -> str:
    return f"sum by ({', '.join(('service', *labels))}) ({series.name}{selector})"


def _rate(series: Series, selector: str, *labels: str) -> str:
    return f"rate(({_sum(series, selector, *labels)})[{WINDOW}:{STEP}])"
