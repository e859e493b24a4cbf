"""What sharing would save in time, from the times of single requests that were measured before. Pure.

    u            = (cold - local) / work of the tokens that the local hit had
    saved        = u x work of the tokens that only sharing has - load
    load(tokens) = fixed + (reuse - local - fixed) / tokens of the measured reuse x tokens

Work counts matrix products and causal attention (``planning.shape``), so that late tokens of a long prompt are worth
more than early ones. ``fixed`` is what a load takes however short it is (``predict.CONNECT``), as far as the measured
load was longer than that.

Not in it: queueing, batching, whatever else happens at the same time; another host, model or version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from kvdemo.estimate.replay import Replay
from kvdemo.estimate.trace import Trace
from kvdemo.planning.predict import CONNECT
from kvdemo.planning.shape import Shape


@dataclass(frozen=True)
class Times:
    """Seconds to the first token of one prompt of ``tokens`` tokens, asked alone.

    ``cold`` computes it all; ``local`` has ``local_hit`` tokens in the engine's own cache; ``reuse`` loads ``loaded``
    tokens. ``basis`` is where the times come from, ``device`` where they were measured.
    """

    tokens: int
    local_hit: int
    loaded: int
    cold: float
    local: float
    reuse: float
    basis: str
    device: str = "unknown"


@dataclass(frozen=True)
class Savings:
    """Seconds of all requests together, and means. ``slower`` requests load more slowly than they would compute.

    ``engine_seconds`` are those of computing, ``gpu_seconds`` the same for all GPUs of an engine (None: it has none).

    ``mean_ttft_without`` and ``mean_ttft_with`` are of single requests: nobody waits for anybody.
    """

    basis: str
    device: str
    engine_seconds: float
    gpu_seconds: float | None
    load_seconds: float
    ttft_seconds: float
    mean_ttft_without: float
    mean_ttft_with: float
    faster: int
    slower: int


def savings(trace: Trace, replay: Replay, shape: Shape, times: Times, gpus: int = 0) -> Savings:
    """What the replay's first size saves, with ``gpus`` GPUs an engine.

    Raises ValueError if the times cannot be: nothing is faster than computing.
    """
    work = _work(shape)
    if not (times.cold > times.local > 0 and 0 < times.local_hit <= times.tokens and times.loaded > 0):
        raise ValueError("its local hit is not faster than computing")
    per_work = (times.cold - times.local) / work(times.local_hit)
    fixed = max(0.0, min(CONNECT, times.reuse - times.local))
    per_token = max(0.0, times.reuse - times.local - fixed) / times.loaded
    base = max(0.0, times.cold - per_work * work(times.tokens))
    computing = loading = 0.0
    without: list[float] = []
    faster = slower = 0
    for at, i in enumerate(replay.order):
        local, shared = replay.local[at], replay.shared[at]
        before = work(local)
        without.append(base + per_work * (work(trace.tokens[i]) - before))
        if not shared:
            continue
        computed, load = per_work * (work(local + shared) - before), fixed + per_token * shared
        computing += computed
        loading += load
        if computed > load:
            faster += 1
        else:
            slower += 1
    mean = fmean(without)
    return Savings(
        times.basis,
        times.device,
        engine_seconds=computing,
        gpu_seconds=computing * gpus if gpus else None,
        load_seconds=loading,
        ttft_seconds=computing - loading,
        mean_ttft_without=mean,
        mean_ttft_with=mean - (computing - loading) / len(without),
        faster=faster,
        slower=slower,
    )


def _work(shape: Shape) -> Callable[[int], float]:
    """FLOPs of the first so many tokens of a prompt."""

    @cache
    def work(tokens: int) -> float:
        return shape.linear_flops(tokens) + shape.attention_flops(tokens)

    return work
