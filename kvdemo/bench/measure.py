"""Measure one request with its attribution: counters before and after, tiers, and the wait for what it stored.

The engine's counters are read around the request, so requests of others show as tokens too many: such a sample proves
nothing and is said to. Everything here talks to a fleet that is up; nothing is judged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from kvdemo import backends
from kvdemo.backends import series
from kvdemo.backends.series import BY_SOURCE, SOURCES
from kvdemo.bench import cacheserver
from kvdemo.bench.cacheserver import StoreOutcome
from kvdemo.bench.client import Client, Reply
from kvdemo.bench.workload import Step
from kvdemo.errors import ServiceError
from kvdemo.host import health
from kvdemo.judge.sample import Sample, Sources
from kvdemo.judge.scrape import BIRTH
from kvdemo.judge.verdict import FEW, held_back
from kvdemo.planning.plan import Plan, ServiceSpec

COUNTER_PATIENCE = 2.0
"""Seconds to wait for an engine's counters to include a request that has ended."""

UNSEEN_STORE = 2.0
"""Seconds that a writer's chunks get to arrive in a cache server that nobody can ask."""

POLL = 0.005


class ReplacedError(ServiceError):
    """An engine is another process than when it was first asked."""

    def __init__(self, engine: str) -> None:
        super().__init__(
            f"{engine} is another process than when the run began: it was restarted or replaced meanwhile",
            "what came before is saved; measure again, and leave the fleet as it is until the end",
        )


class Meter:
    """Keeps a connection to every engine of a plan, and what was stored in which cache under which salt.

    Use it under ``with``.

    In ``one_run`` every method that asks an engine raises ReplacedError once that is another process than when it was
    first asked; a page, which outlives its engines, is no run.
    """

    def __init__(self, plan: Plan, key: str = "", *, one_run: bool = True) -> None:
        self.plan, self.key, self.one_run = plan, key, one_run
        self.began = time.time()
        self.births: dict[str, tuple[float | None, ...]] = {}
        self.closing = ExitStack()
        self.clients: dict[str, Client] = {}
        self.stored: dict[tuple[str, str], StoreOutcome] = {}
        self.streaming: set[str] = set()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.close()

    def client(self, engine: ServiceSpec) -> Client:
        """The connection to this engine, opened when first asked for."""
        if engine.name not in self.clients:
            self.clients[engine.name] = self.closing.enter_context(Client(engine.url, self.key))
        return self.clients[engine.name]

    def forget(self, engine: ServiceSpec) -> None:
        """It was restarted on purpose: the process that answers next is the one that it is."""
        self.births.pop(engine.name, None)
        self.clients.pop(engine.name, None)

    def cache(self, engine: ServiceSpec) -> ServiceSpec | None:
        """The engine's cache server; None for a plain engine, and for a server that nobody can ask."""
        cache = self.plan.service(engine.cache) if engine.cache else None
        return cache if cache and cache.url else None

    def counters(self, engine: ServiceSpec) -> dict[str, float]:
        """The engine's counters now; empty if they cannot be read."""
        now = health.counters(engine.url, self.key)
        birth = tuple(now.get(name) for name in BIRTH)
        if not any(birth) or not self.one_run:
            return now
        first = self.births.setdefault(engine.name, birth)
        # Behind a router several processes answer in turn: that is no replacement, and said of each sample.
        since = max(filter(None, birth)) > self.began
        if birth != first and (since or not self.plan.attached):
            raise ReplacedError(engine.name)
        return now

    def ask(
        self, step: Step, path: str, body: Mapping[str, Any], chunks: int = 0, reply: Reply | None = None
    ) -> Sample:
        """One request as a sample; with ``chunks`` also waits until that many have arrived in the cache server.

        A ``reply`` to fill lets its ``on_token`` follow the stream; it is called once more when that has ended.
        """
        server = self.cache(step.engine)
        if chunks and server:
            cacheserver.settle(server)
        before = self.counters(step.engine)
        cache_before = cacheserver.counters(server)
        stored_before = cacheserver.objects(server) if chunks and server else 0
        files_before = self._chunk_files(step.engine) if chunks else None
        reply = self.client(step.engine).stream(path, body, reply)
        end = time.monotonic()
        reply.on_token(reply)
        sample = replace(_sample(step, reply, body), streams=step.engine.name in self.streaming)
        self.notice(step.engine, reply)
        if chunks and not server and files_before is None:
            time.sleep(0 if reply.error else UNSEEN_STORE)
        elif chunks:
            arrived = 0
            if not reply.error:
                arrived = self._wait(step.engine, chunks, cache_before, stored_before, files_before)
            outcome = StoreOutcome(chunks, arrived, cache_before, failed=reply.error)
            self.stored[step.engine.shared_cache, step.salt] = outcome
            if arrived >= chunks:
                sample = replace(sample, stored_after=time.monotonic() - end)
        after = self._counters_after(step.engine, before, reply.usage.get("prompt_tokens"))
        cache_after = cacheserver.counters(server) if step.expected else {}
        sample = replace(
            sample,
            sources=_sources(before, after),
            lookup=_lookup(step.engine, before, after),
            tiers=cacheserver.tiers(server, cache_before, cache_after)
            or backends.of(step.engine.backend).engine_tiers(before, after),
        )
        note = _blind(before, after) or self._why(step, sample, cache_before, cache_after)
        return replace(sample, note="" if sample.error else note)

    def _chunk_files(self, engine: ServiceSpec) -> int | None:
        return cacheserver.chunks_in_files(self.plan.service(engine.cache)) if engine.cache else None

    def _wait(
        self, engine: ServiceSpec, chunks: int, before: Mapping[str, float], stored: int, files: int | None
    ) -> int:
        """Wait for what an engine has stored since ``before``, ``stored`` and ``files`` were read. How much came?"""
        if server := self.cache(engine):
            return cacheserver.wait_until_stored(server, stored, before, chunks)
        return cacheserver.wait_for_chunk_files(self.plan.service(engine.cache), files or 0, chunks)

    def notice(self, engine: ServiceSpec, reply: Reply) -> None:
        """Remember an answer that came token by token: nothing on the way holds streams of this engine back."""
        tokens = reply.usage.get("completion_tokens") or 1 + len(reply.itl)
        came = not reply.error and reply.ttft is not None and tokens >= FEW
        if came and not held_back(tokens, reply.itl, reply.together or None, _seconds(reply, "mean_itl_ms")):
            self.streaming.add(engine.name)

    def _why(self, step: Step, sample: Sample, before: Mapping[str, float], after: Mapping[str, float]) -> str:
        """Why less came from a cache than expected; empty if nothing is missing, or nobody knows."""
        if sample.error or (sample.cached_tokens or 0) >= step.expected:
            return ""
        if not step.engine.cache:
            return "the engine's own prefix cache no longer had it: its kv_cache is too small"
        stored = self.stored.get((step.engine.shared_cache, step.salt))
        return cacheserver.why_missing(self.plan, step.engine, sample, before, after, stored)

    def _counters_after(
        self, engine: ServiceSpec, before: Mapping[str, float], prompt_tokens: int | None
    ) -> dict[str, float]:
        """The engine's counters once they include the request: they lag by an engine step."""
        deadline = time.monotonic() + COUNTER_PATIENCE
        while True:
            after = self.counters(engine)
            sources = _sources(before, after)
            if (
                sources is None
                or prompt_tokens is None
                or sources.total >= prompt_tokens
                or time.monotonic() > deadline
            ):
                return after
            time.sleep(POLL)

    def ask_all(
        self, steps: Sequence[Step], path: str, bodies: Sequence[Mapping[str, Any]], chunks: int = 0
    ) -> Sequence[Sample]:
        """One request, or several to one engine at the same time."""
        if len(steps) > 1:
            return self.ask_together(steps, path, bodies, chunks)
        return [self.ask(steps[0], path, bodies[0], chunks)]

    def ask_together(
        self, steps: Sequence[Step], path: str, bodies: Sequence[Mapping[str, Any]], chunks: int = 0
    ) -> list[Sample]:
        """Several requests to one engine at the same time, each over a connection of its own; ``chunks`` as in ``ask``.

        Counters tell their sum only: each sample gets sources of its own if the engine's usage agrees with that sum.
        """
        engine, server = steps[0].engine, self.cache(steps[0].engine)
        if chunks and server:
            cacheserver.settle(server)
        before = self.counters(engine)
        cache_before = cacheserver.counters(server)
        stored_before = cacheserver.objects(server) if chunks and server else 0
        files_before = self._chunk_files(engine) if chunks else None
        with ExitStack() as closing, ThreadPoolExecutor(max_workers=len(steps)) as pool:
            clients = [closing.enter_context(Client(engine.url, self.key)) for _ in steps]
            replies = list(pool.map(lambda pair: pair[0].stream(path, pair[1]), zip(clients, bodies, strict=True)))
        streams = engine.name in self.streaming
        samples = [replace(_sample(*each), streams=streams) for each in zip(steps, replies, bodies, strict=True)]
        if chunks:
            self._wait_for_all(steps, samples, chunks, cache_before, stored_before, files_before)
        total = sum(sample.prompt_tokens or 0 for sample in samples)
        after = self._counters_after(engine, before, total)
        together = _sources(before, after)
        hits = sum(sample.cached_tokens or 0 for sample in samples)
        if together is None:
            return [replace(sample, note=_blind(before, after)) for sample in samples]
        if together.total != total or together.local or together.shared != hits:
            return samples
        cache_after = cacheserver.counters(server)
        return [
            replace(
                sample,
                sources=Sources(
                    (sample.prompt_tokens or 0) - (sample.cached_tokens or 0), 0, sample.cached_tokens or 0
                ),
                note=self._why(step, sample, cache_before, cache_after),
            )
            for step, sample in zip(steps, samples, strict=True)
        ]

    def _wait_for_all(
        self,
        steps: Sequence[Step],
        samples: Sequence[Sample],
        chunks: int,
        before: Mapping[str, float],
        stored_before: int,
        files_before: int | None,
    ) -> None:
        """Wait for the chunks of several writes; which of them came can be told only if all of them did."""
        engine, whole = steps[0].engine, sum(not sample.error for sample in samples)
        if files_before is None and not self.cache(engine):
            time.sleep(UNSEEN_STORE)
            return
        arrived = self._wait(engine, chunks * whole, before, stored_before, files_before) if whole else 0
        each = chunks if arrived >= chunks * whole else arrived // len(steps)
        for step, sample in zip(steps, samples, strict=True):
            outcome = StoreOutcome(chunks, 0 if sample.error else each, before, failed=sample.error)
            self.stored[engine.shared_cache, step.salt] = outcome


def _sample(step: Step, reply: Reply, body: Mapping[str, Any]) -> Sample:
    details = reply.usage.get("prompt_tokens_details") or {}
    requested = int(body["max_tokens"]) if body.get("ignore_eos") else None
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
        queue=_seconds(reply, "queue_time_ms"),
        server_ttft=_seconds(reply, "time_to_first_token_ms"),
        server_itl=_seconds(reply, "mean_itl_ms"),
        together=reply.together or None,
        requested_tokens=requested,
        finish_reason=reply.finish_reason,
        token_ids=tuple(reply.token_ids),
        logprobs=tuple(reply.logprobs),
        text=_without_surrogates(reply.text),
        error=_without_surrogates(reply.error or _cut_short(reply, requested)),
    )


def _seconds(reply: Reply, name: str) -> float | None:
    """One of the engine's own figures, which are in milliseconds."""
    value = reply.metrics.get(name)
    return value / 1000 if isinstance(value, int | float) else None


def _cut_short(reply: Reply, requested: int | None) -> str:
    """What is wrong with an answer that is shorter than requested and was not ended by the engine; empty if nothing."""
    tokens = reply.usage.get("completion_tokens") or len(reply.token_ids) or 1 + len(reply.itl)
    if requested is None or reply.error or reply.finish_reason or tokens >= requested:
        return ""
    return f"the stream ended after {tokens:,} of {requested:,} tokens, and no finish_reason says why"


def _without_surrogates(text: str) -> str:
    """Without half characters (lone surrogates), which JSON can carry and no file can."""
    return text.encode(errors="replace").decode()


def _sources(before: Mapping[str, float], after: Mapping[str, float]) -> Sources | None:
    if _blind(before, after):
        return None
    return Sources(*(int(after[name] - before.get(name, 0)) for name in map(BY_SOURCE.at, SOURCES)))


def _blind(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Why these counters do not tell where the tokens of a request came from; empty if they do."""
    if not after:
        return "the engine's /metrics cannot be read"
    if not all(BY_SOURCE.at(source) in after for source in SOURCES):
        return "the engine's counters do not tell where prompt tokens come from (or they are those of a router)"
    if any(name in before and before[name] != after.get(name) for name in BIRTH):
        return "the counters are of several processes: give the address of one engine, not of a router before several"
    return ""


def _lookup(engine: ServiceSpec, before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Seconds that the engine spent on asking its cache; None if it does not tell."""
    series_of_lookup = backends.of(engine.backend).lookup
    name = series_of_lookup.seconds if series_of_lookup else ""
    return after[name] - before.get(name, 0) if name in after else None


def own_tokens(engine: ServiceSpec, key: str) -> int | None:
    """The size of the engine's own KV cache in tokens, by its own account; None if it does not tell."""
    status, metrics = health.request(engine.url, "/metrics", key=key)
    info = re.search(rb"^%s\{(.*)\} " % series.CACHE_CONFIG.name.encode(), metrics, re.MULTILINE)
    if status != HTTPStatus.OK or not info:
        return None
    blocks, size = (re.search(rb'(?:^|,)%s="(\d+)"' % name, info[1]) for name in (b"num_gpu_blocks", b"block_size"))
    return int(blocks[1]) * int(size[1]) if blocks and size else None
