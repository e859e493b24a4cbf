"""Prometheus series by name: those of a vLLM engine that kvdemo reads, and the form in which a backend says its own.

Every name is written here, or in its backend, and nowhere else: what verdicts are read from is what a dashboard shows.
Source: /metrics of vLLM 0.32.0 and LMCache 0.5.6. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Series:
    """One family of series: ``prefix`` and ``key`` make its name, to which a counter adds ``_total``.

    ``host.health.counters`` calls it ``key``, and what has one value of its label ``label`` ``key{value}``.
    """

    prefix: str
    key: str
    kind: Literal["counter", "gauge", "histogram"]
    label: str = ""

    @property
    def name(self) -> str:
        """As it is exposed."""
        return f"{self.prefix}{self.key}{'_total' if self.kind == 'counter' else ''}"

    def at(self, value: str) -> str:
        """The key of what has this value of the label."""
        return f"{self.key}{{{value}}}"


@dataclass(frozen=True)
class Line:
    """What of a series a chart shows for each service. ``legend`` names it beside the service; empty: nothing does.

    ``how`` is one of

    - ``rate``: the increase a second of a counter, for each value of the series' label if it has one
    - ``rest``: the share of the increase of a counter that has another value of the label than ``where``
    - ``value``: the sum now, less that of ``less``
    - ``share``: the mean of what is a share already
    - ``mean``: of a histogram, over what was observed meanwhile
    - ``p50``, ``p90``: of a histogram, likewise, to the precision of its buckets
    - ``age``: seconds since the latest time that a gauge holds

    ``where`` is the one value of the label that counts, or with ``rest`` does not.
    """

    series: Series
    how: Literal["rate", "rest", "value", "share", "mean", "p50", "p90", "age"]
    legend: str = ""
    where: str = ""
    less: Series | None = None

    @property
    def seconds(self) -> str:
        """The key of the sum of a histogram."""
        return f"{self.series.key}_sum" + (f"{{{self.where}}}" if self.where else "")


@dataclass(frozen=True)
class Chart:
    """Lines of one unit in one picture. ``unit`` is its name in Grafana, ``text`` what a reader should know."""

    title: str
    unit: str
    text: str
    lines: tuple[Line, ...]
    stacked: bool = False


COMPUTED, LOCAL, SHARED = "local_compute", "local_cache_hit", "external_kv_transfer"
SOURCES = (COMPUTED, LOCAL, SHARED)
"""Where prompt tokens come from, in vLLM's words; as ``judge.sample.Sources`` orders them."""

PROMPT_TOKENS = Series("vllm:", "prompt_tokens", "counter")
BY_SOURCE = Series("vllm:", "prompt_tokens_by_source", "counter", "source")
OWN_QUERIES = Series("vllm:", "prefix_cache_queries", "counter")
OWN_HITS = Series("vllm:", "prefix_cache_hits", "counter")
OTHERS_HITS = Series("vllm:", "external_prefix_cache_hits", "counter")
"""What the engine's own cache was asked for and had, and what its connector had of the rest: in tokens."""

RUNNING = Series("vllm:", "num_requests_running", "gauge")
WAITING = Series("vllm:", "num_requests_waiting", "gauge")
KV_USE = Series("vllm:", "kv_cache_usage_perc", "gauge")
"""Share of the engine's KV blocks that are in use, 0 to 1 whatever its name says."""

TTFT = Series("vllm:", "time_to_first_token_seconds", "histogram")
PREFILL_SECONDS = Series("vllm:", "request_prefill_time_seconds", "histogram")
START = Series("process_", "start_time_seconds", "gauge")
UP = Series("", "up", "gauge")
"""1 while Prometheus can read the series of a service; its own."""

COUNTING_SINCE = Series("vllm:", "generation_tokens_created", "gauge")
CACHE_CONFIG = Series("vllm:", "cache_config_info", "gauge")

LABELS = (BY_SOURCE.label, "reason", "operation")
"""Labels whose values ``host.health.counters`` tells apart."""
