"""One answer of ``/metrics`` as numbers: sums over labels, and the buckets of histograms. Pure.

Source: the text format of Prometheus (prometheus.io/docs/instrumenting/exposition_formats), as engines write it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from kvdemo.backends.series import COUNTING_SINCE, LABELS, START

LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

BIRTH = (START.key, COUNTING_SINCE.key)
"""Of two processes one of these differs: engines that start together may have the same start, in its coarse unit."""

EVENTS = ("_total", "_bucket", "_count")
"""How the names end of series that never fall while their process lives."""


@dataclass(frozen=True)
class Scrape:
    """The samples of one process, ``at`` seconds of the monotonic clock.

    ``values`` are sums over labels, by name without prefix and ``_total``; what has a source or a reason has one more
    for each (``prompt_tokens_by_source{local_compute}``). ``series`` says how many series each is the sum of,
    ``buckets`` are the cumulative counts of a histogram by upper bound (seconds), ``rising`` the names that never fall.
    """

    at: float
    values: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    rising: Collection[str] = ()

    @property
    def birth(self) -> tuple[float | None, ...] | None:
        """What tells its process from others; None if it does not say."""
        births = tuple(self.values.get(name) for name in BIRTH)
        return births if any(births) else None

    def mean(self, name: str) -> float | None:
        """The mean of a gauge over its series: an engine of several cores has one for each. None if it has none."""
        return self.values[name] / self.series[name] if self.series.get(name) else None


def parse(text: str, prefixes: Collection[str], at: float = 0.0) -> Scrape:
    """The samples whose names begin with one of the prefixes, then ``:`` or ``_``; what is no number is left out."""
    sample = re.compile(
        rf"^(?:{'|'.join(prefixes)})[:_](\w+?)(_total)?(?:\{{(.*)\}})? ([-+.\deE]+|\+?Inf)$", re.MULTILINE
    )
    values: dict[str, float] = {}
    series: dict[str, int] = {}
    buckets: dict[str, dict[float, float]] = {}
    rising: set[str] = set()
    for match in sample.finditer(text):
        name, labels, value = match[1], dict(LABEL.findall(match[3] or "")), float(match[4])
        if math.isinf(value):
            continue
        for key in (name, *(f"{name}{{{labels[label]}}}" for label in LABELS if label in labels)):
            values[key] = values.get(key, 0.0) + value
            series[key] = series.get(key, 0) + 1
            if f"{name}{match[2] or ''}".endswith(EVENTS):
                rising.add(key)
        if "le" in labels and name.endswith("_bucket"):
            bounds = buckets.setdefault(name.removesuffix("_bucket"), {})
            bound = float(labels["le"])
            bounds[bound] = bounds.get(bound, 0.0) + value
    return Scrape(at, values, series, buckets, frozenset(rising))


def went_back(before: Scrape, after: Scrape) -> bool:
    """Whether something that never falls has fallen: another process counts, or the same one anew."""
    return any(after.values[name] < before.values[name] for name in before.rising if name in after.values)
