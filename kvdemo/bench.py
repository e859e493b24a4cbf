"""The story ``bench``: ask plain and cached engines about one document, trial by trial; yield every sample as it comes.

Nothing is judged here beyond what is needed to go on: verdicts, medians and ratios are made from the saved samples.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from kvdemo import health, workload
from kvdemo.client import Client, Reply
from kvdemo.errors import NotReadyError, ServiceError, UsageError
from kvdemo.plan import Plan, ServiceSpec
from kvdemo.sample import Sample, Sources
from kvdemo.workload import Roles, Step

STORE_PATIENCE = 30.0
"""Seconds to wait for the writer's chunks to arrive in the cache server before asking the reader anyway."""

COUNTER_PATIENCE = 2.0
"""Seconds to wait for an engine's counters to include a request that has ended."""

WARM_UP_CHARACTERS = 16000


@dataclass(frozen=True)
class Options:
    """What to measure."""

    document: str
    question: str
    system: str
    trials: int = 3
    max_tokens: int = 16
    seed: int = 0
    run_id: str = "run"
    key: str = ""


@dataclass(frozen=True)
class Doing:
    """What the bench is about to do, for whoever watches."""

    text: str
    done: int = 0
    total: int = 0


class Bench:
    """One run against a fleet that is up: ``prepare`` refuses what cannot work, ``run`` measures."""

    def __init__(self, plan: Plan, options: Options) -> None:
        self.plan, self.options = plan, options
        self.cast: Roles = workload.roles(plan)
        self.prompt = {"messages": workload.messages(options.system, options.document, options.question)}
        self.clients: dict[str, Client] = {}
        self.tokens: list[int] = []
        self.closing = ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.close()

    def prepare(self) -> dict[str, Any]:
        """Check readiness and length before anything is generated; the facts of the run.

        Raises NotReadyError for a fleet that does not answer, UsageError for a context that does not fit.
        """
        for spec in self.cast.engines:
            if not health.healthy(spec.url, "engine"):
                raise NotReadyError(f"engine {spec.name} is not ready", f"kvdemo ps -p {self.plan.project}")
            self.clients[spec.name] = self.closing.enter_context(Client(spec.url, self.options.key))
        if cache := self.cast.writer.cache:
            server = self.plan.service(cache)
            if not health.healthy(server.url, "cache"):
                raise NotReadyError(f"cache {cache} is not ready", f"kvdemo ps -p {self.plan.project}")
        reader = self.cast.reader
        try:
            self.tokens = self.clients[reader.name].tokenize(reader.model, self.prompt)
        except httpx.HTTPError as error:
            raise ServiceError(f"{reader.name} cannot tokenize the prompt: {error}") from error
        window = min((spec.context for spec in self.cast.engines if spec.context), default=None)
        if window and len(self.tokens) + self.options.max_tokens > window:
            raise UsageError(
                f"the context is too long: {len(self.tokens):,} prompt tokens and {self.options.max_tokens} of answer, "
                f"the model's window is {window:,}",
                "use a shorter context, or raise max_model_len in the profile if the model allows it",
            )
        chunk = reader.chunk_size or 0
        if len(self.tokens) <= chunk:
            raise UsageError(
                f"the context is too short to share: {len(self.tokens):,} tokens, a chunk is {chunk}",
                "use a longer context, or lower chunk_size in the profile",
            )
        return {
            "prompt_tokens": len(self.tokens),
            "expected_hit_tokens": workload.reusable(len(self.tokens), chunk),
            "prompt_sha256": hashlib.sha256(repr(self.tokens).encode()).hexdigest(),
        }

    def run(self) -> Generator[Doing | Sample]:
        """All requests in order. Failures are samples too; the run goes on."""
        for engine in self.cast.engines:
            yield Doing(f"warming up {engine.name}")
            self._warm_up(engine)
        total = self.options.trials * (len(self.cast.plain) + 3) + bool(self.cast.plain)
        done = 0
        for steps in workload.interleaved(
            self.options.trials, self.cast, self.options.run_id, len(self.tokens), self.options.seed
        ):
            for step in steps:
                yield Doing(f"trial {step.trial}: {step.engine.name} {step.arm}", done, total)
                yield self._measure(step)
                done += 1
        if self.cast.plain:
            yield Doing(f"control: a local hit of the same length on {self.cast.baseline.name}", done, total)
            yield self._control()

    def _warm_up(self, engine: ServiceSpec) -> None:
        """A throwaway on other text: first requests pay for shapes, allocations and the connector's handshake."""
        text = self.options.document[:WARM_UP_CHARACTERS][::-1]
        prompt = {"messages": workload.messages(self.options.system, text, self.options.question)}
        salt = f"kvdemo-{self.options.run_id}-warm"
        self.clients[engine.name].stream("/v1/chat/completions", self._body(engine, prompt, salt))

    def _body(self, engine: ServiceSpec, prompt: Mapping[str, Any], salt: str) -> dict[str, Any]:
        return workload.body(engine.model, prompt, max_tokens=self.options.max_tokens, salt=salt)

    def _measure(self, step: Step) -> Sample:
        engine = step.engine
        server = self.plan.service(engine.cache).url if engine.cache else ""
        before, cache_before = health.counters(engine.url), health.counters(server) if server else {}
        stored_before = _stored(server) if server else 0
        reply = self.clients[engine.name].stream("/v1/chat/completions", self._body(engine, self.prompt, step.salt))
        sources = _sources(engine, before, reply.usage.get("prompt_tokens"))
        note = ""
        if step.arm == "store" and not reply.error:
            chunks = len(self.tokens) // (engine.chunk_size or 256)
            if not _wait_until_stored(server, stored_before, cache_before, chunks):
                note = f"the writer's chunks did not all arrive in the cache within {STORE_PATIENCE:.0f} s"
        tiers = _tiers(cache_before, health.counters(server)) if server and step.arm == "reuse" else None
        return replace(_sample(step, reply), sources=sources, tiers=tiers, note=note)

    def _control(self) -> Sample:
        """The same prompt on a plain engine that has exactly the reused tokens in its own prefix cache.

        It gets them from a prompt of the same length and the same first tokens whose next token differs: the same
        prefill shapes, hence the same bits.
        """
        engine = self.cast.baseline
        hit = workload.reusable(len(self.tokens), self.cast.reader.chunk_size or 256)
        salt = f"kvdemo-{self.options.run_id}-control"
        other = [*self.tokens[:hit], *reversed(self.tokens[hit:])]
        if other[hit] == self.tokens[hit]:
            other[hit] = self.tokens[0]
        primer = {"prompt": other}
        body = workload.body(engine.model, primer, max_tokens=1, salt=salt, logprobs=1)
        self.clients[engine.name].stream("/v1/completions", body)
        return self._measure(Step(0, "control", engine, salt, hit))


def _sample(step: Step, reply: Reply) -> Sample:
    details = reply.usage.get("prompt_tokens_details") or {}
    queue, server = (reply.metrics.get(name) for name in ("queue_time_ms", "time_to_first_token_ms"))
    return Sample(
        trial=step.trial,
        arm=step.arm,
        engine=step.engine.name,
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


def _sources(engine: ServiceSpec, before: Mapping[str, float], prompt_tokens: int | None) -> Sources | None:
    """Counter differences over the request; asked again until they include it (they lag by an engine step)."""
    series = "prompt_tokens_by_source{%s}"
    names = [series % source for source in ("local_compute", "local_cache_hit", "external_kv_transfer")]
    deadline = time.monotonic() + COUNTER_PATIENCE
    while True:
        after = health.counters(engine.url)
        if not all(name in after for name in names):
            return None
        found = Sources(*(int(after[name] - before.get(name, 0)) for name in names))
        if prompt_tokens is None or found.total >= prompt_tokens or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def _tiers(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int] | None:
    """Tokens that the LMCache server found in each tier, where it tells (0.5.6 does, 0.5.3 does not)."""
    names = {"l1": "lookup_hit_l1_tokens", "l2": "lookup_hit_l2_tokens"}
    if not any(name in after for name in names.values()):
        return None
    return {tier: int(after.get(name, 0) - before.get(name, 0)) for tier, name in names.items()}


def _stored(server: str) -> int:
    """Chunks in L1 by the server's own report."""
    return int(health.status(server).get("storage_manager", {}).get("l1_manager", {}).get("total_object_count", 0))


def _wait_until_stored(server: str, stored: int, before: Mapping[str, float], chunks: int) -> bool:
    """Storing goes on after the answer: wait for the chunks instead of sleeping. Did they all arrive?"""
    deadline = time.monotonic() + STORE_PATIENCE
    while time.monotonic() < deadline:
        written = health.counters(server).get("l1_write_chunks", 0) - before.get("l1_write_chunks", 0)
        if max(written, _stored(server) - stored) >= chunks:
            return True
        time.sleep(0.02)
    return False


def forget(plan: Plan, run_id: str) -> int:
    """Delete the KV files that a run left in L2: its salts are its own, nobody else can ever hit them. Bytes freed."""
    freed = 0
    for spec in plan.services:
        for file in Path(spec.store).glob(f"*@kvdemo-{run_id}-*.data") if spec.store else ():
            freed += file.stat().st_size
            file.unlink(missing_ok=True)
    return freed
