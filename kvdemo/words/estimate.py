"""What an estimate says, in words and cells. Pure."""

from __future__ import annotations

from kvdemo import units
from kvdemo.estimate.formats import TITLES
from kvdemo.estimate.result import Estimate, Size

SOURCES = ("Prompt tokens", "Tokens", "Share")
SIZES = ("Shared cache", "Local", "Only by sharing", "Computed")
UNLIMITED = "no limit"

LIMITS = (
    "Counted, not measured: requests come one after another, each finds the KV of all before it, and nothing but these "
    "requests uses the caches."
)


def cache(tokens: int | None, size: int | None) -> str:
    """A size of a cache: 32,752 tokens (4.00 GiB)."""
    if tokens is None:
        return UNLIMITED
    return f"{tokens:,} tokens" + (f" ({units.size(size)})" if size is not None else "")


def heading(estimate: Estimate) -> str:
    """What was read."""
    span = f" in {units.approximate_duration(estimate.seconds)}" if estimate.seconds else ""
    mean = units.digits(estimate.prompt_tokens / estimate.requests)
    return (
        f"{estimate.file}, {TITLES[estimate.format]}: {units.count(estimate.requests, 'request')}{span}, "
        f"{estimate.prompt_tokens:,} prompt tokens (mean {mean})"
    )


def against(estimate: Estimate) -> str:
    """What it was replayed against."""
    how = "in turn" if estimate.routing == "round-robin" else "a session on one engine"
    own = cache(estimate.own_cache_tokens, estimate.own_cache_bytes)
    shared = cache(estimate.shared_cache_tokens, estimate.shared_cache_bytes)
    return (
        f"{units.count(estimate.engines, 'engine')} ({how}), each with a prefix cache of {own} in blocks of "
        f"{estimate.block_size}; one shared cache of {shared} in chunks of {estimate.chunk_size}"
    )


def share(part: int, whole: int) -> str:
    """A share: 12.3 %."""
    return f"{100 * part / whole:.1f} %" if whole else units.NO_VALUE


def sources(estimate: Estimate) -> list[tuple[str, ...]]:
    """Rows: where the prompt tokens would come from."""
    new = estimate.computed_tokens - estimate.evicted_tokens
    parts = [
        ("from the engine's own cache", estimate.local_tokens),
        ("only by sharing", estimate.shared_tokens),
        ("computed: there before, but evicted", estimate.evicted_tokens),
        ("computed: new, or no whole chunk", new),
    ]
    return [(name, f"{tokens:,}", share(tokens, estimate.prompt_tokens)) for name, tokens in parts]


def size(row: Size, estimate: Estimate) -> tuple[str, ...]:
    """A row of the table of sizes, in the order of ``SIZES``."""
    name = cache(row.cache_tokens, row.cache_bytes)
    is_shared = row.cache_tokens == estimate.shared_cache_tokens
    tokens = (estimate.local_tokens, row.shared_tokens, row.computed_tokens)
    return (f"{name}{' (as above)' * is_shared}", *(share(each, estimate.prompt_tokens) for each in tokens))


def sentences(estimate: Estimate) -> list[str]:
    """What it comes to."""
    shared = share(estimate.shared_tokens, estimate.prompt_tokens)
    before = estimate.prompt_tokens - estimate.local_tokens
    lines = [
        f"Sharing would save computing {estimate.shared_tokens:,} of {before:,} prompt tokens that an engine's own "
        f"cache does not have ({share(estimate.shared_tokens, before)}; {shared} of all)."
    ]
    if estimate.shared_bytes is not None and estimate.distinct_bytes is not None:
        lines.append(
            f"KV at {estimate.kv_bytes_per_token:,} bytes a token: {units.size(estimate.shared_bytes)} would be "
            f"loaded; all different chunks together are {units.size(estimate.distinct_bytes)}."
        )
    else:
        lines.append(
            "KV bytes: unknown, since the bytes of a token are: say --kv-bytes-per-token N, or name PROFILE or a "
            "--model whose config.json is here."
        )
    return [*lines, *_time(estimate)]


def _time(estimate: Estimate) -> list[str]:
    saved = estimate.savings
    if saved is None:
        return ["Time saved: unknown without measured times (--from a saved run of bench or load, or doctor --json)."]
    without, with_it = (units.duration(1000 * each) for each in (saved.mean_ttft_without, saved.mean_ttft_with))
    ratio = _ratio(saved.mean_ttft_without, saved.mean_ttft_with)
    faster = units.count(saved.faster, "request")
    computing, loading = (units.duration(1000 * each) for each in (saved.engine_seconds, saved.load_seconds))
    gpus = "" if saved.gpu_seconds is None else f" ({units.digits(saved.gpu_seconds)} GPU seconds)"
    return [
        f"Mean TTFT of single requests, without queueing: {without} without sharing, {with_it} with it ({ratio}); "
        f"{faster} would be faster, {saved.slower:,} slower (loading takes longer than computing).",
        f"Computing saved: {computing} of engines{gpus}; loading takes {loading}. Times: {saved.basis}, on "
        f"{saved.device}; elsewhere they differ.",
    ]


def _ratio(without: float, with_it: float) -> str:
    """By what factor one time is shorter or longer than another, both in seconds."""
    if min(without, with_it) <= 0:
        return "no ratio"
    factor = units.ratio(max(without, with_it) / min(without, with_it))
    if factor == units.ratio(1):
        return "no difference"
    return f"{factor} {'faster' if with_it < without else 'slower'}"
