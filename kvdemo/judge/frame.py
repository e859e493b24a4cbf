"""What `kvdemo top` and the page's strip show of a fleet at one moment, and the same as a JSON document. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from kvdemo.backends.series import TTFT
from kvdemo.judge.rates import CacheRates, EngineRates, Prompts
from kvdemo.planning.facts import GpuLoad


@dataclass(frozen=True)
class Service:
    """What is so of an engine and of a cache alike.

    ``problem`` says why its counters cannot be read now, ``silent`` for how many seconds that has been so. They began
    anew at ``restarted``, while we looked; ``broken`` is how that showed. ``memory`` are bytes of its processes.
    """

    name: str
    problem: str = ""
    silent: float = 0.0
    broken: str = ""
    restarted: datetime | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Engine(Service):
    """An engine; of its GPUs all processes are counted, not only its own."""

    rates: EngineRates = field(default_factory=EngineRates)
    gpus: tuple[GpuLoad, ...] = ()


@dataclass(frozen=True)
class Cache(Service):
    """A cache server."""

    rates: CacheRates = field(default_factory=CacheRates)


@dataclass(frozen=True)
class PromptsSeen:
    """Prompts, and when they were seen."""

    at: datetime
    prompts: Prompts


@dataclass(frozen=True)
class Frame:
    """A fleet at one moment. ``fresh`` are the prompts since the frame before, ``recent`` the last ones, newest first.

    ``length`` are the seconds that rates are to be of; each service says of how many they are so far.
    """

    title: str
    at: datetime
    length: float
    engines: Sequence[Engine] = ()
    caches: Sequence[Cache] = ()
    fresh: Sequence[PromptsSeen] = ()
    recent: Sequence[PromptsSeen] = ()

    @property
    def services(self) -> list[Engine | Cache]:
        """All of them."""
        return [*self.engines, *self.caches]

    @property
    def covered(self) -> float | None:
        """The shortest of the times that the rates are of so far; None before there is any."""
        windows = [one.rates.window for one in self.services if not one.problem and one.rates.window is not None]
        return min(windows, default=None)


def document(frame: Frame) -> dict[str, Any]:
    """A frame as one JSON object: what is unknown is null, times are seconds, sizes bytes, shares between 0 and 1."""
    return {
        "time": frame.at.isoformat(timespec="milliseconds"),
        "project": frame.title,
        "engines": [_engine(one) for one in frame.engines],
        "caches": [_cache(one) for one in frame.caches],
        "prompts": [_prompts(one) for one in frame.fresh],
    }


def _service(one: Service, window: float | None) -> dict[str, Any]:
    return {
        "service": one.name,
        "answers": not one.problem,
        "problem": one.problem,
        "silent_s": round(one.silent, 1),
        "restarted_at": one.restarted.isoformat(timespec="milliseconds") if one.restarted else None,
        "window_s": None if window is None else round(window, 3),
        "memory_bytes": one.memory,
    }


def _engine(one: Engine) -> dict[str, Any]:
    rates = one.rates
    return {
        **_service(one, rates.window),
        "requests_running": rates.running,
        "requests_waiting": rates.waiting,
        "prompt_tokens": asdict(rates.tokens) if rates.tokens else None,
        "prompt_tokens_per_s": _per_second(asdict(rates.tokens) if rates.tokens else None, rates.window),
        "hit_rate": rates.hit_rate,
        "hit_rate_since_start": rates.hit_rate_ever,
        "prompt_tokens_since_start": rates.tokens_ever,
        "ttft": _ttft(rates),
        "kv_cache_usage": rates.kv_usage,
        "gpus": [asdict(gpu) for gpu in one.gpus],
    }


def _ttft(rates: EngineRates) -> dict[str, Any] | None:
    """``at_least``: the quantile lies beyond the last bound of the histogram's buckets, which stands for it."""
    if rates.ttft is None:
        return None
    row: dict[str, Any] = {"n": rates.ttft.n}
    for name, quantile in (("p50", rates.ttft.p50), ("p90", rates.ttft.p90)):
        row[f"{name}_s"] = quantile.seconds if quantile else None
        row[f"{name}_at_least"] = quantile.at_least if quantile else None
    return {**row, "source": TTFT.name}


def _cache(one: Cache) -> dict[str, Any]:
    rates = one.rates
    return {
        **_service(one, rates.window),
        "lookup_tokens": rates.requested,
        "hit_tokens": rates.tiers and dict(rates.tiers),
        "hit_tokens_per_s": _per_second(rates.tiers, rates.window),
        "hit_rate": rates.hit_rate,
        "hit_rate_since_start": rates.hit_rate_ever,
        "lookup_tokens_since_start": rates.requested_ever,
        "l1_used_bytes": rates.usage.l1,
        "l1_size_bytes": rates.usage.l1_size,
        "l2_used_bytes": rates.usage.l2,
        "engines_registered": rates.usage.engines,
    }


def _prompts(prompts: PromptsSeen) -> dict[str, Any]:
    one = prompts.prompts
    return {
        "time": prompts.at.isoformat(timespec="milliseconds"),
        "engine": one.engine,
        "n": one.n,
        "tokens": one.tokens,
        "sources": asdict(one.sources) if one.sources else None,
        "hit_tokens": one.tiers and dict(one.tiers),
        "ttft_s": one.ttft,
    }


def _per_second(tokens: Mapping[str, int] | None, window: float | None) -> dict[str, float] | None:
    if tokens is None or not window:
        return None
    return {name: round(count / window, 1) for name, count in tokens.items()}
