"""What an estimate says: one typed document, of which words and JSON are made. Pure.

Tokens are prompt tokens of all requests together, sizes of caches are tokens and bytes; None is a size without a limit,
or a value that is not known.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from kvdemo.estimate.formats import Format
from kvdemo.estimate.reading import Reading
from kvdemo.estimate.replay import Replay, Routing, Setup
from kvdemo.estimate.savings import Savings

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Size:
    """What a shared cache of this size would give: tokens that only sharing reuses, and those computed."""

    cache_tokens: int | None
    cache_bytes: int | None
    shared_tokens: int
    computed_tokens: int


@dataclass(frozen=True)
class Estimate:
    """See the module. ``own`` and ``shared`` caches are those replayed, ``sizes`` the shared cache's other sizes.

    ``evicted_tokens`` are computed although somebody had them before: a cache without a limit would hold them.
    ``distinct_tokens`` are those of all different chunks together. ``seconds`` is the time from the first request to
    the last, None if the requests have no times.
    """

    file: str
    format: Format
    requests: int
    skipped_lines: int
    sessions: int
    seconds: float | None
    engines: int
    routing: Routing
    trace_block_size: int
    block_size: int
    chunk_size: int
    backend: str
    own_cache_tokens: int | None
    own_cache_bytes: int | None
    shared_cache_tokens: int | None
    shared_cache_bytes: int | None
    kv_bytes_per_token: int | None
    model_digest: str
    prompt_tokens: int
    local_tokens: int
    shared_tokens: int
    computed_tokens: int
    evicted_tokens: int
    distinct_tokens: int
    shared_bytes: int | None
    distinct_bytes: int | None
    sizes: tuple[Size, ...]
    savings: Savings | None
    notes: tuple[str, ...]
    """What a reader of the numbers should know about this file and these caches."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return {"schema_version": SCHEMA_VERSION, "mode": "estimate", **asdict(self)}


def sizes(size: int | None, own: int | None, engines: int) -> tuple[int | None, ...]:
    """The sizes of a shared cache in tokens to try: the given one, parts and multiples of it, and no limit at all.

    Beside one without a limit stand multiples of what all engines hold themselves.
    """
    middle = size or (own or 0) * engines
    around = [middle // 4, middle // 2, middle, middle * 2, middle * 4] if middle else []
    return tuple(dict.fromkeys((size, *around, None)))


def build(
    file: str,
    reading: Reading,
    setup: Setup,
    replay: Replay,
    *,
    per_token: int | None,
    digest: str = "",
    savings: Savings | None = None,
) -> Estimate:
    """The document of a replay whose first size is the given one and which has tried one without a limit."""
    trace, first = reading.trace, replay.reuse[0]
    rows = _rows(setup, replay, per_token)
    return Estimate(
        file=file,
        format=reading.format,
        requests=len(trace),
        skipped_lines=reading.skipped,
        sessions=len(trace.numbers),
        seconds=max(trace.times) - min(trace.times) if reading.timed else None,
        engines=setup.engines,
        routing=setup.routing,
        trace_block_size=trace.block,
        block_size=setup.block,
        chunk_size=setup.chunk,
        backend=setup.backend,
        own_cache_tokens=setup.own,
        own_cache_bytes=_bytes(setup.own, per_token),
        shared_cache_tokens=setup.sizes[0],
        shared_cache_bytes=_bytes(setup.sizes[0], per_token),
        kv_bytes_per_token=per_token,
        model_digest=digest,
        prompt_tokens=first.tokens,
        local_tokens=first.local,
        shared_tokens=first.shared,
        computed_tokens=first.computed,
        evicted_tokens=first.computed - rows[-1].computed_tokens,
        distinct_tokens=replay.distinct,
        shared_bytes=_bytes(first.shared, per_token),
        distinct_bytes=_bytes(replay.distinct, per_token),
        sizes=rows,
        savings=savings,
        notes=tuple(notes(reading, setup)),
    )


def _bytes(tokens: int | None, per_token: int | None) -> int | None:
    return None if tokens is None or per_token is None else tokens * per_token


def _rows(setup: Setup, replay: Replay, per_token: int | None) -> tuple[Size, ...]:
    """A row for each size, the one without a limit last."""
    pairs = zip(setup.sizes, replay.reuse, strict=True)
    rows = [Size(size, _bytes(size, per_token), reuse.shared, reuse.computed) for size, reuse in pairs]
    return tuple(sorted(rows, key=lambda one: math.inf if one.cache_tokens is None else one.cache_tokens))


def notes(reading: Reading, setup: Setup) -> list[str]:
    """What a reader of the numbers should know about this file."""
    trace = reading.trace
    parts: list[str] = []
    if reading.skipped:
        lines = "1 line holds" if reading.skipped == 1 else f"{reading.skipped:,} lines hold"
        parts.append(f"{lines} no request that can be used: left out.")
    if not reading.timed:
        parts.append("The requests have no times: they are replayed as they stand in the file.")
    elif not trace.sorted:
        parts.append("The requests do not stand in the order of their times; they are replayed in that order.")
    if trace.block > setup.block:
        parts.append(
            f"The trace tells prompts apart in blocks of {trace.block} tokens: of a block that is not whole nothing "
            f"counts as reused, up to {trace.block - 1} tokens a request."
        )
    if reading.cut:
        parts.append(
            f"Many prompts end at {reading.cut:,} tokens: was the log cut (--max-log-len)? What was behind is missing."
        )
    without = trace.sessions.count(-1)
    if setup.routing == "session" and without:
        parts.append(f"{without:,} requests have no session; they went to the engines in turn.")
    return parts
