"""Measure one request with its attribution: counters before and after, tiers, and the wait for what it stored.

The engine's counters are read around the request, so requests of others show as tokens too many: such a sample proves
nothing and is said to. Everything here talks to a fleet that is up; nothing is judged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvdemo import health
from kvdemo.client import Client, Reply
from kvdemo.plan import Plan, ServiceSpec
from kvdemo.sample import Sample, Sources
from kvdemo.workload import Step

STORE_PATIENCE = 60.0
"""Seconds to wait for the writer's chunks to arrive in the cache server before asking the reader anyway."""

COUNTER_PATIENCE = 2.0
"""Seconds to wait for an engine's counters to include a request that has ended."""

POLL = 0.005
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")


class Meter:
    """Keeps a connection to every engine of a plan; use it under ``with``."""

    def __init__(self, plan: Plan, key: str = "") -> None:
        self.plan, self.key = plan, key
        self.closing = ExitStack()
        self.clients: dict[str, Client] = {}

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.close()

    def client(self, engine: ServiceSpec) -> Client:
        """The connection to this engine, opened when first asked for."""
        if engine.name not in self.clients:
            self.clients[engine.name] = self.closing.enter_context(Client(engine.url, self.key))
        return self.clients[engine.name]

    def cache_url(self, engine: ServiceSpec) -> str:
        """Base URL of the engine's cache server; empty for a plain engine."""
        return self.plan.service(engine.cache).url if engine.cache else ""

    def ask(self, step: Step, path: str, body: Mapping[str, Any], chunks: int = 0) -> Sample:
        """One request as a sample; with ``chunks`` also waits until that many have arrived in the cache server."""
        server = self.cache_url(step.engine)
        before = health.counters(step.engine.url)
        cache_before = health.counters(server) if server else {}
        stored_before = _objects(server) if chunks else 0
        reply = self.client(step.engine).stream(path, body)
        ended = time.monotonic()
        sample = _sample(step, reply)
        if chunks and not reply.error:
            if _wait_until_stored(server, stored_before, cache_before, chunks):
                sample = replace(sample, stored_after=time.monotonic() - ended)
            else:
                sample = replace(sample, note="the writer's chunks did not all arrive in the cache in time")
        after = _counters_after(step.engine, before, reply.usage.get("prompt_tokens"))
        return replace(
            sample,
            sources=_sources(before, after),
            lookup=_delta("lmcache_mp_lookup_duration_seconds_sum", before, after),
            tiers=_tiers(cache_before, health.counters(server)) if server and step.expected else None,
        )

    def ask_together(self, steps: Sequence[Step], path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Sample]:
        """Several requests to one engine at the same time, each over a connection of its own.

        Counters tell their sum only: each sample gets sources of its own if the engine's usage agrees with that sum.
        """
        engine = steps[0].engine
        before = health.counters(engine.url)
        with ExitStack() as closing, ThreadPoolExecutor(max_workers=len(steps)) as pool:
            clients = [closing.enter_context(Client(engine.url, self.key)) for _ in steps]
            replies = list(pool.map(lambda pair: pair[0].stream(path, pair[1]), zip(clients, bodies, strict=True)))
        samples = [_sample(step, reply) for step, reply in zip(steps, replies, strict=True)]
        total = sum(sample.prompt_tokens or 0 for sample in samples)
        together = _sources(before, _counters_after(engine, before, total))
        hits = sum(sample.cached_tokens or 0 for sample in samples)
        if together is None or together.total != total or together.local or together.shared != hits:
            return samples
        return [
            replace(s, sources=Sources((s.prompt_tokens or 0) - (s.cached_tokens or 0), 0, s.cached_tokens or 0))
            for s in samples
        ]


def _sample(step: Step, reply: Reply) -> Sample:
    details = reply.usage.get("prompt_tokens_details") or {}
    queue, server = (reply.metrics.get(name) for name in ("queue_time_ms", "time_to_first_token_ms"))
    return Sample(
        trial=step.trial,
        arm=step.arm,
        engine=step.engine.name,
        writer=step.writer,
        length=step.length,
        started=reply.started,
        expected=step.expected,
        prompt_tokens=reply.usage.get("prompt_tokens"),
        completion_tokens=reply.usage.get("completion_tokens"),
        cached_tokens=details.get("cached_tokens"),
        ttft=reply.ttft,
        first_chunk=reply.first_chunk,
        itl=tuple(reply.itl),
        e2el=reply.e2el,
        queue=queue / 1000 if queue is not None else None,
        server_ttft=server / 1000 if server is not None else None,
        token_ids=tuple(reply.token_ids),
        logprobs=tuple(reply.logprobs),
        text=reply.text,
        error=reply.error,
    )


def _counters_after(engine: ServiceSpec, before: Mapping[str, float], prompt_tokens: int | None) -> dict[str, float]:
    """The engine's counters once they include the request: they lag by an engine step."""
    deadline = time.monotonic() + COUNTER_PATIENCE
    while True:
        after = health.counters(engine.url)
        found = _sources(before, after)
        if found is None or prompt_tokens is None or found.total >= prompt_tokens or time.monotonic() > deadline:
            return after
        time.sleep(POLL)


def _sources(before: Mapping[str, float], after: Mapping[str, float]) -> Sources | None:
    names = [f"prompt_tokens_by_source{{{source}}}" for source in SOURCES]
    if not all(name in after for name in names):
        return None
    return Sources(*(int(after[name] - before.get(name, 0)) for name in names))


def _delta(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    return after[name] - before.get(name, 0) if name in after else None


def _tiers(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int] | None:
    """Tokens that the LMCache server found in each tier, where it tells (0.5.6 does, 0.5.3 does not)."""
    names = {"l1": "lookup_hit_l1_tokens", "l2": "lookup_hit_l2_tokens"}
    if not any(name in after for name in names.values()):
        return None
    return {tier: int(after.get(name, 0) - before.get(name, 0)) for tier, name in names.items()}


def _objects(server: str) -> int:
    """Chunks in L1 by the server's own report."""
    return int(health.status(server).get("storage_manager", {}).get("l1_manager", {}).get("total_object_count", 0))


def _wait_until_stored(server: str, stored: int, before: Mapping[str, float], chunks: int) -> bool:
    """Storing goes on after the answer: wait for the chunks to be there. Did they all arrive?"""
    deadline = time.monotonic() + STORE_PATIENCE
    while time.monotonic() < deadline:
        written = health.counters(server).get("l1_write_chunks", 0) - before.get("l1_write_chunks", 0)
        if max(written, _objects(server) - stored) >= chunks:
            return True
        time.sleep(POLL)
    return False


def files_of(plan: Plan, salts: str) -> list[Path]:
    """The KV files in L2 whose salt matches this pattern: LMCache puts a request's salt into the file's name."""
    stores = [Path(spec.store) for spec in plan.services if spec.store]
    return [file for store in stores for file in store.glob(f"*@{salts}.data")]


def wait_for_files(plan: Plan, salt: str, chunks: int) -> bool:
    """L2 is written in the background: wait until all chunks of this salt are files. Did they all arrive?"""
    deadline = time.monotonic() + STORE_PATIENCE
    while len(files_of(plan, salt)) < chunks:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def clear_l1(server: str) -> bool:
    """Make the cache server forget L1, so that the next hit comes from L2. Did it forget everything?"""
    health.request(server, "/cache/clear", body={}, timeout=30)
    return _objects(server) == 0


def forget(plan: Plan, salts: str) -> None:
    """Delete what requests under these salts left in L2: they are a run's own, nobody else can ever hit them."""
    for file in files_of(plan, salts):
        file.unlink(missing_ok=True)
