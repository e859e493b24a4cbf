"""What an engine and a cache server do, from two readings of their counters. Pure.

A number that a source does not tell is None. Nothing is shared out by guessing: the tokens of one prompt are those that
were counted while exactly one prompt was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kvdemo.backends import series
from kvdemo.backends.backend import Backend, Lookups, Usage
from kvdemo.backends.series import BY_SOURCE, PROMPT_TOKENS, TTFT
from kvdemo.judge.sample import Sources
from kvdemo.judge.scrape import Scrape


@dataclass(frozen=True)
class Quantile:
    """A quantile of a histogram; ``at_least`` if it lies in the last bucket, which has no upper end."""

    seconds: float
    at_least: bool = False


@dataclass(frozen=True)
class Ttft:
    """The times to first token of ``n`` requests by the engine's histogram; no quantiles if it has no buckets.

    Of one request they are its time, which the histogram's sum gives; of several they are interpolated (``quantile``).
    """

    n: int
    p50: Quantile | None = None
    p90: Quantile | None = None


@dataclass(frozen=True)
class EngineRates:
    """An engine over ``window`` seconds, None where it does not tell; without a window only what is so at the moment.

    ``tokens`` are the window's prompt tokens by source, ``hit_rate`` the share of them that was not computed,
    ``hit_rate_ever`` the same of the ``tokens_ever`` since the engine's start; ``kv_usage`` the share of its KV blocks
    in use.
    """

    window: float | None = None
    running: int | None = None
    waiting: int | None = None
    tokens: Sources | None = None
    hit_rate: float | None = None
    hit_rate_ever: float | None = None
    tokens_ever: int | None = None
    ttft: Ttft | None = None
    kv_usage: float | None = None


@dataclass(frozen=True)
class CacheRates:
    """A cache server over ``window`` seconds, None where it does not tell.

    ``tiers`` are the tokens that its lookups hit in each tier (``l1``, ``l2``); ``hit_rate`` is the share of the
    ``requested`` tokens that it had, ``hit_rate_ever`` the same of the ``requested_ever`` since its start. Its lookups
    are also of tokens that an engine then had itself.
    """

    window: float | None = None
    requested: int | None = None
    tiers: Mapping[str, int] | None = None
    hit_rate: float | None = None
    hit_rate_ever: float | None = None
    requested_ever: int | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Prompts:
    """The ``n`` prompts that an engine began to answer between two readings, and their tokens together.

    Of exactly one prompt also where its tokens came from and its time to first token (seconds). ``tiers`` are the
    tokens that the cache server hit for it, if that looked up nothing else meanwhile.
    """

    engine: str
    n: int
    tokens: int | None = None
    sources: Sources | None = None
    ttft: float | None = None
    tiers: Mapping[str, int] | None = None


def engine(before: Scrape | None, after: Scrape) -> EngineRates:
    """What an engine did between two readings of one process, and what it is doing at the second."""
    now = EngineRates(
        running=_whole(after.values.get(series.RUNNING.key)),
        waiting=_whole(after.values.get(series.WAITING.key)),
        hit_rate_ever=_hit_rate(Scrape(0), after),
        tokens_ever=_whole(after.values.get(PROMPT_TOKENS.key)),
        kv_usage=after.mean(series.KV_USE.key),
    )
    if before is None:
        return now
    return replace(
        now,
        window=after.at - before.at,
        tokens=sources(before, after),
        hit_rate=_hit_rate(before, after),
        ttft=ttft(before, after),
    )


def cache(backend: Backend, before: Scrape | None, after: Scrape, report: Mapping[str, object]) -> CacheRates:
    """The same of a cache server, whose report is a JSON document."""
    ever = backend.lookups(after.values)
    now = CacheRates(usage=backend.usage(after.values, report))
    if ever:
        now = replace(now, hit_rate_ever=_ratio(ever.hit, ever.requested), requested_ever=round(ever.requested))
    if before is None:
        return now
    now = replace(now, window=after.at - before.at, tiers=backend.tiers(before.values, after.values))
    if ever:
        first = backend.lookups(before.values) or Lookups(0, 0)
        requested = ever.requested - first.requested
        now = replace(now, requested=round(requested), hit_rate=_ratio(ever.hit - first.hit, requested))
    return now


def sources(before: Scrape, after: Scrape) -> Sources | None:
    """Where the prompt tokens came from that were counted between two readings."""
    names = [BY_SOURCE.at(source) for source in series.SOURCES]
    if not all(name in after.values for name in names):
        return None
    return Sources(*(round(_since(name, before, after)) for name in names))


def _hit_rate(before: Scrape, after: Scrape) -> float | None:
    """The share of prompt tokens that was not computed.

    Engines that do not count prompt tokens by source (vLLM before February 2026, vllm#33290) count what their own cache
    was asked for and had, and what another had of the rest.
    """
    if (counts := sources(before, after)) is not None:
        return _ratio(counts.local + counts.shared, counts.total)
    if series.OWN_QUERIES.key not in after.values:
        return None
    queries = _since(series.OWN_QUERIES.key, before, after)
    hits = sum(_since(hit.key, before, after) for hit in (series.OWN_HITS, series.OTHERS_HITS))
    return _ratio(hits, queries)


def ttft(before: Scrape, after: Scrape) -> Ttft | None:
    """The times to first token that were observed between two readings; None without that histogram.

    vLLM observes one a request, when its first token comes; it counts the tokens of its prompt then.
    """
    if f"{TTFT.key}_count" not in after.values:
        return None
    first, last = before.buckets.get(TTFT.key, {}), after.buckets.get(TTFT.key, {})
    buckets = {bound: count - first.get(bound, 0.0) for bound, count in last.items()}
    n = round(_since(f"{TTFT.key}_count", before, after))
    if n == 1 and f"{TTFT.key}_sum" in after.values:
        only = Quantile(_since(f"{TTFT.key}_sum", before, after))
        return Ttft(1, only, only)
    return Ttft(n, quantile(0.5, buckets), quantile(0.9, buckets)) if n > 0 else Ttft(0)


def quantile(q: float, buckets: Mapping[float, float]) -> Quantile | None:
    """The q-quantile of a histogram (upper bound: cumulative count), as ``histogram_quantile`` of Prometheus has it.

    Observations are taken to lie evenly between the bounds of their bucket, the first of which begins at 0; a quantile
    in the last bucket, up to infinity, is where that begins. None if nothing was observed, or that bucket is missing.
    Source: prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile, classic histograms.
    """
    bounds = sorted(buckets)
    if len(bounds) < 2 or bounds[-1] != math.inf or buckets[math.inf] <= 0:
        return None
    rank, below, low = q * buckets[math.inf], 0.0, 0.0
    for bound in bounds[:-1]:
        count = max(below, buckets[bound])  # a reading amid an update may not rise
        if count >= rank:
            return Quantile(low + (bound - low) * (rank - below) / (count - below))
        below, low = count, bound
    return Quantile(low, at_least=True)


def prompts(name: str, before: Scrape, after: Scrape) -> Prompts | None:
    """The prompts that an engine began to answer between two readings; None if none, or if it does not say how many."""
    observed = ttft(before, after)
    if observed is None or observed.n < 1:
        return None
    tokens = round(_since(PROMPT_TOKENS.key, before, after)) if PROMPT_TOKENS.key in after.values else None
    counts = sources(before, after)
    if observed.n > 1:
        return Prompts(name, observed.n, tokens)
    return Prompts(
        name,
        1,
        tokens,
        counts if counts and counts.total == tokens else None,
        _since(f"{TTFT.key}_sum", before, after) if f"{TTFT.key}_sum" in after.values else None,
    )


def tiers(backend: Backend, one: Prompts, before: Scrape, after: Scrape) -> Mapping[str, int] | None:
    """Where in the cache server the shared tokens of this prompt were, if it looked up no other between two readings.

    Its engine has to have been idle at the first one: a lookup comes before the first token.
    """
    if one.sources is None or not one.sources.shared or backend.lookup_requests(before.values, after.values) != 1:
        return None
    return backend.tiers(before.values, after.values)


def own_tiers(backend: Backend, one: Prompts, before: Scrape, after: Scrape) -> Mapping[str, int] | None:
    """The same where the engine itself tells, as one with tiers of its own does, and its tiers make up what is shared.

    It counts them when it schedules a prompt, before the first token: so it has to be idle at both readings.
    """
    if one.sources is None or not one.sources.shared or not (idle(before) and idle(after)):
        return None
    tokens = backend.engine_tiers(before.values, after.values)
    return tokens if tokens and sum(tokens.values()) == one.sources.shared else None


def idle(reading: Scrape) -> bool:
    """Whether an engine says that no request was running or waiting."""
    return all(reading.values.get(gauge.key) == 0 for gauge in (series.RUNNING, series.WAITING))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _since(name: str, before: Scrape, after: Scrape) -> float:
    return after.values.get(name, 0.0) - before.values.get(name, 0.0)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
