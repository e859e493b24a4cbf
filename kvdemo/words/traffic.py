"""What a run of ``kvdemo load`` says, in words and cells, made once from its result for terminal and report. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from kvdemo import units
from kvdemo.judge import stats
from kvdemo.judge.traffic import PLAIN, Capacity, Gain, Limit, Point, Spread, TrafficResult
from kvdemo.load import queueing

COLUMNS = (
    "Side",
    "Requests/s",
    "Sent",
    "Within",
    "TTFT p50",
    "p90",
    "p99",
    "ITL",
    "Computed",
    "Local",
    "Shared",
    "Waiting",
)
KEYS = COLUMNS[:2]
"""What a row is about."""

LATENCY = 8
"""The first columns are about time, the rest about where tokens came from and who waited."""


def rate(value: float) -> str:
    """Requests a second, three digits."""
    return units.digits(value)


def cells(point: Point) -> tuple[str, ...]:
    """One row of the table, in the order of ``COLUMNS``. Tokens are shares of all prompt tokens."""
    total = point.sources.total if point.sources else 0
    tokens = (
        [f"{value / total:.0%}" for value in (point.sources.computed, point.sources.local, point.sources.shared)]
        if point.sources and total
        else ["unknown"] * 3
    )
    waiting = "-" if point.mean_waiting is None else f"{point.mean_waiting:.1f} (max {point.max_waiting})"
    note = f" ({point.failed} failed)" if point.failed else f" ({point.cut} cut)" if point.cut else ""
    return (
        point.side,
        rate(point.rate),
        f"{point.sent}{note}",
        f"{point.share:.0%}" if point.sent else units.NO_VALUE,
        units.duration(point.p50_ttft_ms),
        units.duration(point.p90_ttft_ms),
        units.duration(point.p99_ttft_ms),
        units.duration(point.median_itl_ms),
        *tokens,
        waiting,
    )


def heading(result: TrafficResult) -> str:
    """What was asked, of whom."""
    about = result.conditions
    sides = "; ".join(f"{side}: {', '.join(engines)}" for side, engines in about["sides"].items())
    return (
        f"{about['model_id']}, {about['documents']} documents of {about['document_tokens']:,} tokens, "
        f"{about['reuse']:.0%} of requests about them, {about['popularity']}; {sides}; {about.get('device', 'unknown')}"
    )


def limit(result: TrafficResult) -> str:
    """The service level, and who chose it."""
    basis = "" if result.conditions.get("slo_chosen") == "asked for" else f", {result.conditions['slo_chosen']}"
    within = units.duration(1000 * result.limit.ttft)
    return f"Limit: first token within {within} for {result.limit.share:.0%} of requests{basis}"


def _spread(spread: Spread, unit: str = "") -> str:
    """``7.3x (range of 3 repetitions 6.1 to 8.8)``; one repetition has no range."""
    low, middle, high = (units.quantity(value, unit) for value in (spread.low, spread.median, spread.high))
    if spread.n < 2:
        return f"{middle} (one repetition)"
    kind = f"95 % interval of {spread.n}" if spread.n >= stats.FEWEST_FOR_INTERVAL else f"range of {spread.n}"
    return f"{middle} ({kind} repetitions {low} to {high})"


def capacity(one: Capacity) -> str:
    """What a side serves within the limit."""
    if one.died:
        return f"unknown: {one.died}"
    if one.rate is None:
        return f"less than {rate(one.lowest)} requests/s" if one.none else "unknown"
    return f"{'at least ' if one.open else ''}{rate(one.rate.median)} requests/s"


def sentence(result: TrafficResult, gain: Gain) -> str:
    """The one sentence about one cache."""
    sides = {one.side: one for one in result.capacities}
    shared, plain = sides[gain.side], sides[PLAIN]
    number = len(shared.engines)
    engines = f"{number} engine{'s' if number > 1 else ''}"
    gpus = result.conditions.get("gpus") or {}
    same = {*map(str, (gpus.get(name) for name in shared.engines))} == {*map(str, (gpus.get(n) for n in plain.engines))}
    return (
        f"With cache {gain.side} {engines} serve{'' if number > 1 else 's'} {capacity(shared)} within "
        f"{units.duration(1000 * result.limit.ttft)} ({result.limit.share:.0%} of requests), {engines} without it "
        f"{capacity(plain)}{'' if same else ' (on other GPUs)'}: {bound(result, gain)}{_spread(gain.ratio, 'x')}"
        f"{_between_rates(result, gain)}."
    )


def bound(result: TrafficResult, gain: Gain) -> str:
    """What stands before a ratio that is only known to be no smaller."""
    plain = next(one for one in result.capacities if one.side == PLAIN)
    return "more than " if plain.rate is None else "at least " if gain.at_least else ""


def outcome(point: Point, limit: Limit) -> str:
    """What the rate was to this side."""
    if not point.sent:
        return "not asked"
    if not point.punctual or point.accounted is False:
        return "no result"
    return "kept" if point.share >= limit.share else "missed"


def least(result: TrafficResult, gain: Gain) -> float | None:
    """What the ratio exceeds wherever between the rates tried capacities lie; None if it is none, or unknown."""
    sides = {one.side: one for one in result.capacities}
    shared, missed = sides[gain.side].rate, _missed(result, PLAIN)
    return shared.low / missed if gain.at_least and shared and missed else None


def factor(result: TrafficResult, gain: Gain) -> str:
    """The ratio for a headline; of a bound, what it exceeds in any case."""
    sure = least(result, gain)
    return bound(result, gain) + units.ratio(gain.ratio.median) if sure is None else f"more than {units.ratio(sure)}"


def _between_rates(result: TrafficResult, gain: Gain) -> str:
    sure = least(result, gain)
    exact = sure is None or bound(result, gain) == "more than "
    return "" if exact else f" by the rates tried, more than {units.ratio(sure or 0.0)} wherever between them it lies"


def _missed(result: TrafficResult, side: str) -> float | None:
    """The lowest rate of a side that was not kept every time."""
    return min((one.rate for one in result.points if one.side == side and one.kept < one.repetitions), default=None)


def sentences(result: TrafficResult) -> list[str]:
    """What the run has shown, most important first."""
    lines = [sentence(result, gain) for gain in result.gains]
    compared = {PLAIN, *(gain.side for gain in result.gains)}
    if lines:
        lines += [f"{one.side}: {capacity(one)}; no ratio." for one in result.capacities if one.side not in compared]
    else:
        lines = [f"{one.side}: {capacity(one)}." for one in result.capacities]
        lines.append(f"No ratio of capacities: {why_none(result)}.")
    return lines


def queueing_estimate(result: TrafficResult, side: str, rates: Sequence[float]) -> list[tuple[float, float]]:
    """The queueing estimate at these rates (requests/s, seconds); nothing where the run lacks what it needs."""
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        return queueing.curve(result.conditions, result.limit, side, rates)
    return []


def estimates(result: TrafficResult) -> str:
    """What a queue would serve, in words; empty where the run lacks what the simulation needs."""
    shares = []
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        for side in result.conditions["sides"]:
            value = queueing.estimate(result.conditions, result.limit, side)
            shares.append(f"{side} {'none' if value is None else rate(value)}")
        return (
            f"Estimate: a queue with the times of single requests would serve {', '.join(shares)} requests/s within "
            "the limit (one prefill at a time, no batching)."
        )
    return ""


def why_none(result: TrafficResult) -> str:
    """What kept the run from a ratio, and the way out."""
    if any(one.died for one in result.capacities):
        return "a side lost an engine"
    if any(one.side == PLAIN and one.failed for one in result.points):
        return "requests to the engines without a cache failed"
    if result.capacities and all(one.open for one in result.capacities):
        return "every rate that was tried kept the limit on every side; try higher rates or a shorter limit"
    if any(one.none for one in result.capacities):
        return "no rate that was tried kept the limit; try lower rates or a longer limit"
    return "no repetition has a capacity of a side with a cache beside one without"


def notes(result: TrafficResult) -> list[str]:
    """The conditions of the numbers."""
    latest = max((one.p99_late_ms for one in result.points if one.p99_late_ms is not None), default=None)
    accounted = [one for one in result.points if one.accounted]
    points = [one for one in result.points if one.accounted is not None]
    lines = [
        "Arrivals are random (Poisson) and the same for every side; TTFT counts from the scheduled arrival.",
        "Before each rate every document was read once, by the engines in turn; nothing came from an earlier rate.",
        "A capacity is the highest rate tried that was kept: the true one may be higher, up to the lowest missed.",
    ]
    if latest is not None:
        lines.append(f"This client sent its requests at most {latest:.1f} ms late (p99 of the worst phase).")
    if points:
        lines.append(
            f"Prompt tokens: the engines' counts equal the prompts in {len(accounted)} of {len(points)} rates at which "
            "every request completed."
        )
    lines += [line for line in [estimates(result)] if line]
    for side, engines in result.conditions["sides"].items():
        if side != PLAIN and len(engines) == 1:
            lines.append(f"{engines[0]} is alone on {side}: it can load only what it has stored itself.")
    return lines + [str(note) for note in result.conditions.get("notes", [])]
