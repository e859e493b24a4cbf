"""Requests that arrived over time -> what each side served within the limit, and the ratio of the sides. Pure.

A *side* is a group of engines under comparison: the plain ones, or those that share one cache. A *phase* is one side
under one rate of arrivals. Times are seconds; TTFT counts from the scheduled arrival, so that a request that had to
wait for the client is as late as its user would find it (no coordinated omission).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Annotated, Any

from pydantic import Field

from kvdemo import units
from kvdemo.judge import stats
from kvdemo.judge.sample import Count, Finite, Positive, Seconds, Sources

PLAIN = "plain"
"""The side of the engines without a cache."""

LATENESS_SHARE = 0.02
"""A phase counts only if the client itself is late by no more than this share of the TTFT limit, ..."""

LATENESS_FLOOR = 0.002
"""... or than this many seconds, for the share of requests that the limit is about."""


Rate = Annotated[float, Field(allow_inf_nan=False, ge=1e-6, le=1e9)]
"""Requests a second, when they are read from a file."""


@dataclass(frozen=True)
class Request:
    """One request of a phase.

    ``at`` is its scheduled arrival since the phase began, ``late`` how much later the client sent it; ``ttft`` and
    ``e2el`` count from the scheduled arrival. ``unseen``: its document had not been read before. ``cut``: hung up since
    the phase could no longer keep the limit; it counts as a miss, not as a failure. ``waited`` is how long it had been
    under way by then.
    """

    engine: str
    document: int
    at: Seconds
    unseen: bool = False
    late: Finite = 0.0
    ttft: Seconds | None = None
    e2el: Seconds | None = None
    itl: tuple[Seconds, ...] = ()
    prompt_tokens: Count | None = None
    cached_tokens: Count | None = None
    completion_tokens: Count | None = None
    error: str = ""
    cut: bool = False
    waited: Seconds | None = None

    @property
    def completed(self) -> bool:
        """Whether the whole answer came."""
        return not (self.error or self.cut)


@dataclass(frozen=True)
class Phase:
    """One side under one rate, once.

    ``duration`` is that of the arrivals. ``sources`` are the engines' own counts of prompt tokens over the phase,
    summed over the side's engines; None if a counter could not be read. ``waiting`` are the looks at their queues: the
    number of requests that waited in all of them. ``died`` names an engine that no longer answered afterwards.
    """

    side: str
    rate: Rate
    repetition: Count
    duration: Positive
    requests: tuple[Request, ...]
    sources: Sources | None = None
    waiting: tuple[Count, ...] = ()
    died: str = ""

    def to_json(self) -> dict[str, Any]:
        """One line of a saved run."""
        return {"kind": "phase", **asdict(self)}


@dataclass(frozen=True)
class Limit:
    """The service level: ``share`` of all requests sent must have their first token within ``ttft`` seconds."""

    ttft: float
    share: float

    def hits(self, phase: Phase) -> int:
        """Requests of the phase within the limit."""
        return sum(r.completed and r.ttft is not None and r.ttft <= self.ttft for r in phase.requests)

    def kept(self, phase: Phase) -> bool:
        """Whether the phase kept it."""
        return bool(phase.requests) and self.hits(phase) >= self.share * len(phase.requests)

    def measures_failures(self, phase: Phase) -> bool:
        """Whether failed requests alone keep it from having kept the limit: then it measures no capacity."""
        failed = sum(bool(request.error) for request in phase.requests)
        return not self.kept(phase) and bool(failed) and self.hits(phase) + failed >= self.share * len(phase.requests)

    def out_of_reach(self, sent: int, misses: int) -> bool:
        """Whether so many misses of ``sent`` requests can no longer be made good."""
        return misses > (1 - self.share) * sent

    def client_kept_up(self, phase: Phase) -> bool:
        """Whether the client sent as many requests in time as the limit is about: else the rate was not kept.

        A rate that is missed without the client's own lateness is missed all the same, and by a lighter load.
        """
        late = stats.percentile([r.late for r in phase.requests], self.share)
        in_time = late is None or late <= max(LATENESS_FLOOR, LATENESS_SHARE * self.ttft)
        misses = sum(map(self._missed_by_engine, phase.requests))
        return in_time or len(phase.requests) - misses < self.share * len(phase.requests)

    def _missed_by_engine(self, request: Request) -> bool:
        """Whether a request was too late by the time after it was sent."""
        if request.cut:
            return request.waited is not None and request.waited > self.ttft
        return request.completed and request.ttft is not None and request.ttft - request.late > self.ttft


@dataclass(frozen=True)
class Point:
    """What a side did under one rate, over ``repetitions`` phases taken together. Times in ms, None where unknown.

    ``share`` is that of the requests sent that were within the limit, ``goodput`` those per second. A percentile of
    TTFT is of those that did not fail; None where it falls among those that were cut. ``accounted`` says whether the
    sources add up to the prompts of all requests (None: not to be told, since requests failed or were cut).
    """

    side: str
    rate: float
    repetitions: int
    sent: int
    completed: int
    failed: int
    cut: int
    share: float
    kept: int
    goodput: float
    p50_ttft_ms: float | None
    p90_ttft_ms: float | None
    p99_ttft_ms: float | None
    median_itl_ms: float | None
    sources: Sources | None
    accounted: bool | None
    mean_waiting: float | None
    max_waiting: int | None
    p99_late_ms: float | None
    punctual: bool


@dataclass(frozen=True)
class Spread:
    """A figure over n repetitions: the median, and its 95 % interval from ``stats.ENOUGH`` on, else the range."""

    n: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Capacity:
    """The highest rate (requests/s) at which a side kept the limit, over repetitions.

    ``open``: in some repetition the highest rate that was tried still kept it, so the capacity is at least that.
    ``none``: in some repetition no rate that was tried kept it, so the capacity is below the lowest, ``lowest``.
    """

    side: str
    engines: tuple[str, ...]
    rate: Spread | None
    open: bool
    none: bool
    lowest: float
    died: str = ""


@dataclass(frozen=True)
class Gain:
    """One side's capacity over the plain side's, paired by repetition. ``at_least``: a bound, not a value."""

    side: str
    ratio: Spread
    at_least: bool


@dataclass(frozen=True)
class TrafficResult:
    """Everything that a run of ``kvdemo load`` says. ``conditions`` are as saved."""

    conditions: Mapping[str, Any]
    limit: Limit
    points: tuple[Point, ...]
    capacities: tuple[Capacity, ...]
    gains: tuple[Gain, ...]
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result document."""
        return {
            "schema_version": 1,
            "mode": "load",
            **self.conditions,
            "points": [asdict(point) for point in self.points],
            "capacities": [asdict(capacity) for capacity in self.capacities],
            "gains": [asdict(gain) for gain in self.gains],
            "problems": list(self.problems),
        }


def judge(conditions: Mapping[str, Any], phases: Sequence[Phase]) -> TrafficResult:
    """All of it. Raises KeyError, TypeError or ValueError for conditions that are none of a traffic run."""
    limit = Limit(float(conditions["slo_ttft"]), float(conditions["slo_share"]))
    sides: Mapping[str, Sequence[str]] = conditions["sides"]
    points = [
        point(limit, [phase for phase in phases if (phase.side, phase.rate) == key])
        for key in sorted(
            {(phase.side, phase.rate) for phase in phases}, key=lambda key: ([*sides].index(key[0]), key[1])
        )
    ]
    capacities = [_capacity(limit, side, tuple(engines), phases) for side, engines in sides.items()]
    gains = [gain for side in sides if side != PLAIN and (gain := _gain(limit, side, phases))]
    return TrafficResult(
        conditions, limit, tuple(points), tuple(capacities), tuple(gains), tuple(_problems(limit, points, phases))
    )


def point(limit: Limit, phases: Sequence[Phase]) -> Point:
    """The phases of one side and rate, taken together."""
    requests = [request for phase in phases for request in phase.requests]
    # One that was hung up had waited longer than any that was answered may have: leaving it out would flatter.
    answers = [request.ttft for request in requests if request.completed and request.ttft is not None]
    cut = sum(request.cut for request in requests)
    ttfts = [1000 * ttft for ttft in answers] + [math.inf] * cut
    gaps = [1000 * gap for request in requests for gap in request.itl]
    looks = [look for phase in phases for look in phase.waiting]
    hits, sent = sum(map(limit.hits, phases)), len(requests)
    late = stats.percentile([request.late for request in requests], 0.99)
    sources = _sum([phase.sources for phase in phases])
    return Point(
        side=phases[0].side,
        rate=phases[0].rate,
        repetitions=len(phases),
        sent=sent,
        completed=sum(request.completed for request in requests),
        failed=sum(bool(request.error) for request in requests),
        cut=cut,
        share=hits / sent if sent else 0.0,
        kept=sum(map(limit.kept, phases)),
        goodput=hits / sum(phase.duration for phase in phases),
        p50_ttft_ms=stats.percentile(ttfts, 0.5),
        p90_ttft_ms=stats.supported_percentile(ttfts, 0.9),
        p99_ttft_ms=stats.supported_percentile(ttfts, 0.99),
        median_itl_ms=median(gaps) if gaps else None,
        sources=sources,
        accounted=_sources_complete(requests, sources),
        mean_waiting=sum(looks) / len(looks) if looks else None,
        max_waiting=max(looks, default=None),
        p99_late_ms=None if late is None else 1000 * late,
        punctual=all(map(limit.client_kept_up, phases)),
    )


def _sources_complete(requests: Sequence[Request], sources: Sources | None) -> bool | None:
    if sources is None or not all(request.completed for request in requests):
        return None
    return sources.total == sum(request.prompt_tokens or 0 for request in requests)


def _sum(parts: Sequence[Sources | None]) -> Sources | None:
    reported = [part for part in parts if part is not None]
    if len(reported) < len(parts):
        return None
    return Sources(
        sum(part.computed for part in reported),
        sum(part.local for part in reported),
        sum(part.shared for part in reported),
    )


def _best_rate(limit: Limit, side: str, repetition: int, phases: Sequence[Phase]) -> tuple[float | None, bool] | None:
    """The highest rate kept below the first one missed, and whether none was missed; None if nothing was measured.

    Failures count as misses, but those of the plain side, with which the others are compared, must not make them look
    better: a phase of it that only failures kept from the limit measures nothing. Nor does one during which somebody
    else used the engines, or with which this client could not keep up.
    """
    attempts = sorted(
        (phase for phase in phases if (phase.side, phase.repetition) == (side, repetition)), key=lambda one: one.rate
    )
    usable = [
        phase
        for phase in attempts
        if limit.client_kept_up(phase) and _sources_complete(phase.requests, phase.sources) is not False
    ]
    if not usable:
        return None
    best: float | None = None
    for phase in usable:
        if side == PLAIN and limit.measures_failures(phase):
            return None
        if not limit.kept(phase):
            return best, False
        best = phase.rate
    return best, True


def _repetitions(phases: Sequence[Phase]) -> list[int]:
    return sorted({phase.repetition for phase in phases})


def _capacity(limit: Limit, side: str, engines: tuple[str, ...], phases: Sequence[Phase]) -> Capacity:
    outcomes = [one for n in _repetitions(phases) if (one := _best_rate(limit, side, n, phases))]
    rates = [rate for rate, _ in outcomes if rate is not None]
    lowest = min((phase.rate for phase in phases if phase.side == side), default=0.0)
    died = next((phase.died for phase in phases if phase.side == side and phase.died), "")
    none = any(rate is None for rate, _ in outcomes)
    spread = _spread(rates) if rates and not none else None
    return Capacity(side, engines, spread, any(more for _, more in outcomes), none, lowest, died)


def capacities(limit: Limit, side: str, phases: Sequence[Phase]) -> tuple[float, ...]:
    """A side's capacity (requests/s) in every repetition.

    Nothing where one of them is a bound or was not measured, or where the side lost an engine.
    """
    if any(phase.died for phase in phases if phase.side == side):
        return ()
    outcomes = [_best_rate(limit, side, number, phases) for number in _repetitions(phases)]
    rates = [one[0] for one in outcomes if one and one[0] is not None and not one[1]]
    return tuple(rates) if len(rates) == len(outcomes) else ()


def _gain(limit: Limit, side: str, phases: Sequence[Phase]) -> Gain | None:
    """Paired by repetition. Where the plain side kept no rate at all, its lowest one bounds the ratio from below."""
    if any(phase.died for phase in phases if phase.side in (side, PLAIN)):
        return None
    ratios, bound = [], False
    for number in _repetitions(phases):
        rate, plain = _best_rate(limit, side, number, phases), _best_rate(limit, PLAIN, number, phases)
        if not (rate and plain and rate[0]) or (plain[1] and plain[0] is not None):
            continue
        lowest = min(phase.rate for phase in phases if (phase.side, phase.repetition) == (PLAIN, number))
        ratios.append(rate[0] / (plain[0] or lowest))
        bound |= plain[0] is None or rate[1]
    return Gain(side, _spread(ratios), bound) if ratios else None


def _spread(values: Sequence[float]) -> Spread:
    interval = stats.interval(values)
    low, high = (interval.low, interval.high) if interval else (min(values), max(values))
    return Spread(len(values), median(values), low, high)


def _problems(limit: Limit, points: Sequence[Point], phases: Sequence[Phase]) -> list[str]:
    """What keeps a point from being a proof, in words."""
    problems = []
    for one in points:
        where = f"{one.side} at {one.rate:g} requests/s"
        if one.sent and limit.share < 1 and one.sent / one.repetitions * (1 - limit.share) < 1 - 1e-9:
            number = units.count(round(one.sent / one.repetitions), "request")
            verb = "is" if number == "1 request" else "are"
            problems.append(f"{where}: {number} {verb} too few to tell {limit.share:.0%} from all; a longer --duration")
        if not one.punctual:
            problems.append(
                f"{where}: this client was late itself (p99 {one.p99_late_ms:.0f} ms): the rate is no result; lower "
                "--rate, or run the client on a quieter machine"
            )
        if one.accounted is False:
            problems.append(
                f"{where}: the engines counted other prompt tokens than were sent: somebody else used them meanwhile"
            )
        if one.failed:
            error = next(
                r.error for p in phases if (p.side, p.rate) == (one.side, one.rate) for r in p.requests if r.error
            )
            problems.append(f"{where}: {one.failed} of {one.sent} requests failed: {error}")
    return problems + [f"{phase.side}: {phase.died}" for phase in phases if phase.died]
