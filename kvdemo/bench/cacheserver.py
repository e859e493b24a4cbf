"""What a cache server and its KV store hold: chunks that arrive, tiers, files, and why tokens are missing.

Limit: the server's counters are of everybody's chunks. A run tells its own by when they came, and its files by salt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvdemo import backends
from kvdemo.backends.backend import Backend
from kvdemo.fleet import stores
from kvdemo.host import health
from kvdemo.judge import verdict
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import CacheFacts
from kvdemo.planning.plan import Plan, ServiceSpec

STORE_PATIENCE = 20.0
"""Seconds without another of the writer's chunks in the cache server before the reader is asked anyway."""

IDLE_PATIENCE = 3.0
"""The same while the server says that it has no store in hand."""

POLL = 0.005


@dataclass(frozen=True)
class StoreOutcome:
    """What became of the chunks of one salt; ``before`` are the cache server's counters before the writer was asked."""

    chunks: int
    arrived: int
    before: Mapping[str, float]
    failed: str = ""
    files_in_l2: int | None = None


def _backend(cache: ServiceSpec) -> Backend:
    return backends.of(cache.backend)


def counters(cache: ServiceSpec | None) -> dict[str, float]:
    """The server's counters now; empty if it does not answer, or if there is none to ask."""
    return health.counters(cache.url) if cache else {}


def tiers(cache: ServiceSpec | None, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int] | None:
    """Tokens that the server found in each tier, where it tells."""
    return _backend(cache).tiers(before, after) if cache else None


def objects(cache: ServiceSpec) -> int:
    """Chunks in L1 by the server's own report."""
    return _backend(cache).objects(health.report(cache))


def settle(cache: ServiceSpec) -> None:
    """Wait until no store is in hand, where the server tells: chunks that come late count as the next writer's."""
    deadline, pending = time.monotonic() + STORE_PATIENCE, _backend(cache).pending
    while pending(counters(cache)) > 0 and time.monotonic() < deadline:
        time.sleep(POLL)


def wait_until_stored(cache: ServiceSpec, stored: int, before: Mapping[str, float], chunks: int) -> int:
    """Storing goes on after the answer: wait for the chunks to be there. How many of them arrived?

    Ends early when the server is gone, or when nothing more has come for a while.
    """
    backend = _backend(cache)
    arrived, progress = 0, time.monotonic()
    while True:
        now = counters(cache)
        arrived_now = max(backend.chunks_written(before, now), objects(cache) - stored)
        if arrived_now > arrived:
            arrived, progress = arrived_now, time.monotonic()
        patience = STORE_PATIENCE if backend.pending(now) > 0 else IDLE_PATIENCE
        if arrived >= chunks or not now or time.monotonic() - progress > patience:
            return arrived
        time.sleep(POLL)


def _chunk_files(cache: ServiceSpec) -> Iterator[Path]:
    return Path(cache.directory).glob(_backend(cache).chunk_files)


def _without_servers(plan: Plan) -> list[ServiceSpec]:
    """One engine for each directory in which engines find each other's KV without a server."""
    engines = [spec for spec in plan.engines if spec.directory and _backend(spec).chunk_files]
    return list({spec.directory: spec for spec in engines}.values())


def chunks_in_files(cache: ServiceSpec | None) -> int | None:
    """Chunks in the directory of a cache that has no server; None where nobody can count them."""
    if not cache or cache.url or not cache.directory or not _backend(cache).chunk_files:
        return None
    return sum(1 for _ in _chunk_files(cache))


def wait_for_chunk_files(cache: ServiceSpec, before: int, chunks: int) -> int:
    """Wait until that many more chunks lie in the directory of a cache that has no server. How many do?

    Ends early when no more have come for a while. Files are what a reader looks for. vLLM 0.32 also counts what it has
    written (kv_offload_tiering_write_bytes), but by engine, in bytes of which no series tells how many a chunk has, not
    before the step after the last file of a job, and each look at /metrics would take time from the writer's process.
    """
    arrived, progress = 0, time.monotonic()
    while arrived < chunks and time.monotonic() - progress < IDLE_PATIENCE:
        time.sleep(POLL)
        now = (chunks_in_files(cache) or 0) - before
        if now > arrived:
            arrived, progress = now, time.monotonic()
    return arrived


def kv_bytes_per_token(cache: ServiceSpec | None) -> int | None:
    """KV bytes a token by the server's own account, all ranks together; None if it does not tell, or nobody can ask."""
    return _backend(cache).kv_bytes_per_token(health.report(cache)) if cache and cache.url else None


def files_of(plan: Plan, salts: str) -> list[Path]:
    """The KV files in L2 whose salt matches this pattern."""
    stores = {(Path(spec.directory), _backend(spec).files(salts)) for spec in plan.services if spec.directory}
    return [file for store, pattern in stores if pattern for file in store.glob(pattern)]


def _with_servers(plan: Plan) -> list[ServiceSpec]:
    """One cache for each L2 that is a server."""
    return list({spec.store: spec for spec in plan.services if spec.store and not spec.directory}.values())


def wait_for_files(plan: Plan, salt: str, chunks: int) -> int:
    """L2 is written in the background: wait until all chunks of this salt are there. How many are?"""
    files, progress = 0, time.monotonic()
    while files < chunks and time.monotonic() - progress < STORE_PATIENCE:
        time.sleep(POLL)
        now = len(files_of(plan, salt)) + sum(len(stores.keys(one, salt, os.environ)) for one in _with_servers(plan))
        if now > files:
            files, progress = now, time.monotonic()
    return files


def clear_l1(cache: ServiceSpec) -> bool:
    """Make the cache server forget L1, so that the next hit comes from L2. Did it forget everything?"""
    if path := _backend(cache).clear_path:
        health.request(cache.url, path, body={}, timeout=30)
    return objects(cache) == 0


def forget(plan: Plan, salts: str, since: float | None = None) -> None:
    """Delete what requests under these salts left in L2: they are a run's own, nobody else can ever hit them.

    Where no name of a file tells its salt, those go that came after ``since`` (of ``time.time()``), if it is given.
    """
    for file in files_of(plan, salts):
        file.unlink(missing_ok=True)
    if since is not None:
        for file in (file for cache in _without_servers(plan) for file in _chunk_files(cache)):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime >= since:
                    file.unlink()
    for cache in _with_servers(plan):
        stores.forget(cache, salts, os.environ)


def why_missing(
    plan: Plan,
    engine: ServiceSpec,
    sample: Sample,
    before: Mapping[str, float],
    after: Mapping[str, float],
    stored: StoreOutcome | None,
) -> str:
    """Why a sample got less from the cache than expected, from what its server says now and counted meanwhile.

    ``before`` and ``after`` are its counters around the request. Empty if that does not tell.
    """
    cache = plan.service(engine.cache)
    if not cache.url and stored and stored.arrived < stored.chunks:
        return f"only {stored.arrived} of the writer's {stored.chunks} chunks had become files when the reader asked"
    if not cache.url and not _backend(cache).serves:
        return "why is unknown: there is no server that could be asked"
    if not cache.url:
        return (
            "nobody can ask its cache server why (--cache-url): the writer's chunks came too late, were evicted, or "
            "are under another model name, chunk size (--chunk-size) or server"
        )
    backend, report = _backend(cache), health.report(cache)
    losses = backend.losses(stored.before if stored else before, before, after)
    facts = CacheFacts(
        cache.name,
        bool(report),
        sample.expected,
        engines=sum(spec.cache == cache.name for spec in plan.engines),
        registered_engines=backend.registered(report),
        strange=losses.strange,
        failed=stored.failed if stored else "",
        chunks=stored.chunks if stored else 0,
        stored=stored.arrived if stored else None,
        files_in_l2=stored.files_in_l2 if stored else None,
        evictions=losses.evictions,
        refusals=losses.refusals,
        unreadable=losses.unreadable,
        matched_tokens=losses.matched,
        kv_bytes=(sample.prompt_tokens or 0) * (backend.kv_bytes_per_token(report) or engine.kv_bytes_per_token or 0),
        l1_bytes=cache.l1,
    )
    why = verdict.why_missing(facts)
    return why.replace("`kvdemo restart`", "restart").replace("`kvdemo logs`", "its log") if plan.attached else why
