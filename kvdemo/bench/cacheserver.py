"""What an LMCache server and its KV store hold: chunks that arrive, tiers, files, and why tokens are missing.

Limit: the server's counters are of everybody's chunks. A run tells its own by when they came, and its files by salt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvdemo.fleet import keystore
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
class Stored:
    """What became of the chunks of one salt; ``before`` are the cache server's counters before the writer was asked."""

    chunks: int
    arrived: int
    before: Mapping[str, float]
    failed: str = ""
    filed: int | None = None


def tiers(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int] | None:
    """Tokens that the LMCache server found in each tier, where it tells (0.5.6 does, 0.5.3 does not)."""
    names = {"l1": "lookup_hit_l1_tokens", "l2": "lookup_hit_l2_tokens"}
    if not any(name in after for name in names.values()):
        return None
    return {tier: int(after.get(name, 0) - before.get(name, 0)) for tier, name in names.items()}


def objects(server: str) -> int:
    """Chunks in L1 by the server's own report."""
    return int(health.status(server).get("storage_manager", {}).get("l1_manager", {}).get("total_object_count", 0))


def settle(server: str) -> None:
    """Wait until no store is in hand, where the server tells: chunks that come late count as the next writer's."""
    deadline = time.monotonic() + STORE_PATIENCE
    while _in_hand(health.counters(server)) > 0 and time.monotonic() < deadline:
        time.sleep(POLL)


def _in_hand(counters: Mapping[str, float]) -> float:
    return counters.get("num_submitted_stores", 0) - counters.get("num_finished_stores", 0)


def wait_until_stored(server: str, stored: int, before: Mapping[str, float], chunks: int) -> int:
    """Storing goes on after the answer: wait for the chunks to be there. How many of them arrived?

    Ends early when the server is gone, or when nothing more has come for a while.
    """
    arrived, progress = 0, time.monotonic()
    while True:
        now = health.counters(server)
        seen = int(max(now.get("l1_write_chunks", 0) - before.get("l1_write_chunks", 0), objects(server) - stored))
        if seen > arrived:
            arrived, progress = seen, time.monotonic()
        patience = STORE_PATIENCE if _in_hand(now) > 0 else IDLE_PATIENCE
        if arrived >= chunks or not now or time.monotonic() - progress > patience:
            return arrived
        time.sleep(POLL)


def kv_bytes_per_token(server: str) -> int | None:
    """KV bytes a token by LMCache's own account, all ranks together; None if no engine has registered."""
    for meta in health.status(server).get("cache_context_meta", {}).values():
        if size := meta.get("kv_cache_layout", {}).get("cache_size_per_token"):
            return int(size) * int(meta.get("world_size", 1))
    return None


def files_of(plan: Plan, salts: str) -> list[Path]:
    """The KV files in L2 whose salt matches this pattern: LMCache puts a request's salt into the file's name."""
    stores = {Path(spec.directory) for spec in plan.services if spec.directory}
    return [file for store in stores for file in store.glob(f"*@{salts}.data")]


def _servers(plan: Plan) -> set[str]:
    return {spec.store for spec in plan.services if spec.store and not spec.directory}


def wait_for_files(plan: Plan, salt: str, chunks: int) -> int:
    """L2 is written in the background: wait until all chunks of this salt are there. How many are?"""
    filed, progress = 0, time.monotonic()
    while filed < chunks and time.monotonic() - progress < STORE_PATIENCE:
        time.sleep(POLL)
        now = len(files_of(plan, salt)) + sum(len(keystore.keys(one, salt, os.environ)) for one in _servers(plan))
        if now > filed:
            filed, progress = now, time.monotonic()
    return filed


def clear_l1(server: str) -> bool:
    """Make the cache server forget L1, so that the next hit comes from L2. Did it forget everything?"""
    health.request(server, "/cache/clear", body={}, timeout=30)
    return objects(server) == 0


def forget(plan: Plan, salts: str) -> None:
    """Delete what requests under these salts left in L2: they are a run's own, nobody else can ever hit them."""
    for file in files_of(plan, salts):
        file.unlink(missing_ok=True)
    for store in _servers(plan):
        keystore.forget(store, salts, os.environ)


def why_missing(
    plan: Plan,
    engine: ServiceSpec,
    sample: Sample,
    before: Mapping[str, float],
    after: Mapping[str, float],
    stored: Stored | None,
) -> str:
    """Why a sample got less from the cache than expected, from what its server says now and counted meanwhile.

    ``before`` and ``after`` are its counters around the request. Empty if that does not tell.
    """
    cache = plan.service(engine.cache)
    if not cache.url:
        return (
            "nobody can ask its cache server why (--lmcache-url): the writer's chunks came too late, were evicted, or "
            "are under another model name, chunk size (--chunk-size) or server"
        )
    report, since = health.status(cache.url), stored.before if stored else before
    registered = report.get("registered_gpu_ids")

    def counted(name: str) -> int:
        return int(after.get(name, 0) - since.get(name, 0))

    facts = CacheFacts(
        cache.name,
        bool(report),
        sample.expected,
        engines=sum(spec.cache == cache.name for spec in plan.engines),
        registered=None if registered is None else len(registered),
        strange=after.get("lookup_early_exit", 0) > before.get("lookup_early_exit", 0),
        failed=stored.failed if stored else "",
        chunks=stored.chunks if stored else 0,
        stored=stored.arrived if stored else None,
        filed=stored.filed if stored else None,
        evicted=counted("l1_evicted_chunks"),
        refused=counted("l1_allocation_failure_chunks"),
        unreadable=counted("l2_prefetch_failure_chunks"),
        matched_tokens=int(after["lookup_hit_tokens"] - before.get("lookup_hit_tokens", 0))
        if "lookup_hit_tokens" in after
        else None,
        kv_bytes=(sample.prompt_tokens or 0) * (kv_bytes_per_token(cache.url) or engine.kv_bytes_per_token or 0),
        l1_bytes=cache.l1,
    )
    why = verdict.why_missing(facts)
    return why.replace("`kvdemo restart`", "restart").replace("`kvdemo logs`", "its log") if plan.attached else why
