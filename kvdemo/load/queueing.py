"""What a queue of such requests should do: a simulation beside the measurement, and instead of it for what-if. Pure.

Each engine serves one prefill after another, first come first served; prefills do not overlap, and decoding costs them
nothing. A prefill takes ``cold`` seconds, or ``local`` or ``shared`` when the engine's own cache or the shared one
still holds the document (least recently used first out). This is the queue M/G/1 with one server an engine; real
engines batch, chunk and overlap loads with computing, so it is an estimate and is called one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvdemo.judge.stats import percentile
from kvdemo.judge.traffic import PLAIN, Limit
from kvdemo.load import schedule, search

REQUESTS = 2000
"""Requests of one simulated rate."""


@dataclass(frozen=True)
class Service:
    """Seconds from an idle engine's first look at a request to its first token, by where the prompt comes from."""

    cold: float
    local: float
    shared: float


@dataclass(frozen=True)
class Caches:
    """How many documents fit: in one engine's own prefix cache, and in the shared cache (0: there is none)."""

    own: int
    shared: int = 0


class Shelf:
    """Documents that a cache holds, the least recently used leaving first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.documents: OrderedDict[int, None] = OrderedDict()

    def holds(self, document: int) -> bool:
        """Whether it is there; that is a use of it."""
        if document in self.documents:
            self.documents.move_to_end(document)
            return True
        return False

    def put(self, document: int) -> None:
        """Take it in."""
        if not self.size:
            return
        self.documents[document] = None
        self.documents.move_to_end(document)
        if len(self.documents) > self.size:
            self.documents.popitem(last=False)


def prefills(
    arrivals: Sequence[schedule.Arrival], traffic: schedule.Traffic, service: Service, caches: Caches
) -> list[float]:
    """Seconds of each arrival's prefill, after every known document was read once (by the engines in turn)."""
    own = [Shelf(caches.own) for _ in range(traffic.engines)]
    shared = Shelf(caches.shared)
    room = max(caches.shared, caches.own * traffic.engines)  # what was read before that has left every cache again
    for document in range(max(0, traffic.documents - room), traffic.documents):
        own[document % traffic.engines].put(document)
        shared.put(document)
    seconds = []
    for arrival in arrivals:
        cache = own[arrival.engine]
        if cache.holds(arrival.document):
            seconds.append(service.local)
        elif shared.holds(arrival.document):
            seconds.append(service.shared)
        else:
            seconds.append(service.cold)
        cache.put(arrival.document)
        shared.put(arrival.document)
    return seconds


def waits(arrivals: Sequence[schedule.Arrival], seconds: Sequence[float], engines: int) -> list[float]:
    """TTFT in seconds of each arrival whose prefill takes so long."""
    free = [0.0] * engines
    times = []
    for arrival, prefill in zip(arrivals, seconds, strict=True):
        free[arrival.engine] = max(free[arrival.engine], arrival.at) + prefill
        times.append(free[arrival.engine] - arrival.at)
    return times


def ttfts(
    arrivals: Sequence[schedule.Arrival], traffic: schedule.Traffic, service: Service, caches: Caches
) -> list[float]:
    """Both: TTFT in seconds of each arrival."""
    return waits(arrivals, prefills(arrivals, traffic, service, caches), traffic.engines)


def share_within(
    limit: Limit,
    traffic: schedule.Traffic,
    service: Service,
    caches: Caches,
    rate: float,
    requests: int = REQUESTS,
) -> float:
    """The share of some ``requests`` requests at this rate that would keep the limit.

    None keeps it at a rate beyond what the engines can compute: that queue only grows, however slowly it reaches the
    limit.
    """
    arrivals = schedule.arrivals(traffic, rate, requests / rate)
    seconds = prefills(arrivals, traffic, service, caches)
    if not arrivals or rate * sum(seconds) / len(seconds) > traffic.engines:
        return 0.0
    return sum(time <= limit.ttft for time in waits(arrivals, seconds, traffic.engines)) / len(arrivals)


def capacity(
    limit: Limit, traffic: schedule.Traffic, service: Service, caches: Caches, requests: int = REQUESTS
) -> float | None:
    """The highest rate within the limit, as ``search`` finds it; None if even a single request misses it."""
    finder = search.rates(traffic.engines / service.cold, finest=1.03, most=24)
    best: float | None = None
    rate = next(finder)
    while True:
        met = share_within(limit, traffic, service, caches, rate, requests) >= limit.share
        if met:
            best = max(rate, best or 0.0)
        try:
            rate = finder.send(met)
        except StopIteration:
            return best


def of_run(conditions: Mapping[str, Any], side: str) -> tuple[schedule.Traffic, Service, Caches]:
    """Traffic, single-request times and cache sizes of a saved run, for one side. Raises KeyError for what is missing.

    An own cache whose size nobody knows is taken to hold all documents.
    """
    times, tokens, documents = conditions["single_ttft"][side], conditions["document_tokens"], conditions["documents"]
    traffic = schedule.Traffic(
        documents,
        conditions["reuse"],
        conditions["popularity"],
        conditions["turns"],
        len(conditions["sides"][side]),
        conditions["seed"],
    )
    own = (conditions.get("own_tokens") or {}).get(side)
    per_document = (conditions.get("kv_bytes_per_token") or 0) * tokens
    l1 = (conditions.get("l1_bytes") or {}).get(side)
    shared = 0 if side == PLAIN else int(l1 // per_document) if l1 and per_document else documents
    return traffic, Service(**times), Caches(own // tokens if own else documents, shared)


def curve(conditions: Mapping[str, Any], limit: Limit, side: str, rates: Sequence[float]) -> list[tuple[float, float]]:
    """For each rate (requests/s) the TTFT in seconds that the limit's share of simulated requests does not exceed."""
    traffic, service, caches = of_run(conditions, side)
    points = []
    for rate in rates:
        arrivals = schedule.arrivals(traffic, rate, REQUESTS / rate)
        value = percentile(ttfts(arrivals, traffic, service, caches), limit.share)
        if value is not None:
            points.append((rate, value))
    return points


def estimate(conditions: Mapping[str, Any], limit: Limit, side: str) -> float | None:
    """The capacity (requests/s) that the queue would have with this run's single-request times."""
    return capacity(limit, *of_run(conditions, side))
