"""What every shape of a run is made of: the prepared prompt, the trials of one document, one arm of a trial.

``prepare`` refuses what cannot work before anything is generated; afterwards failures are samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx

from kvdemo.bench import cacheserver, workload
from kvdemo.bench.measure import Meter
from kvdemo.bench.workload import Roles, Step
from kvdemo.errors import NotReadyError, ServiceError, UsageError
from kvdemo.host import health
from kvdemo.host.bandwidth import drop_pages
from kvdemo.judge import results
from kvdemo.judge.sample import Arm, Doing, Sample
from kvdemo.planning.plan import Plan, ServiceSpec

TIGHT = 0.05
"""A run with --max-trials stops when the speed-up's interval is within this share of its median."""


@dataclass(frozen=True)
class Options:
    """What to measure. ``max_trials`` 0: exactly ``trials``; ``tier`` empty: wherever the cache finds it.

    ``writer``, ``reader`` and ``baseline`` are engines; empty: as ``workload.roles`` chooses them.
    """

    document: str
    question: str
    system: str
    trials: int = 3
    max_trials: int = 0
    max_tokens: int = 16
    seed: int = 0
    run_id: str = "run"
    key: str = ""
    endpoint: Literal["chat", "completions"] = "chat"
    tier: Literal["", "l1", "l2"] = ""
    drop_page_cache: bool = False
    concurrency: int = 1
    matrix: bool = False
    lengths: tuple[int, ...] = ()
    costs: bool = False
    writer: str = ""
    reader: str = ""
    baseline: str = ""


@dataclass(frozen=True)
class Prompt:
    """One document as it is sent, and its length in tokens of the model."""

    path: str
    payload: dict[str, Any]
    ids: tuple[int, ...]
    max_tokens: int

    @property
    def tokens(self) -> int:
        """Prompt tokens."""
        return len(self.ids)

    def body(self, engine: ServiceSpec, salt: str) -> dict[str, Any]:
        """The request to this engine under this salt."""
        logprobs = 1 if "prompt" in self.payload else True
        return workload.body(engine.model, self.payload, max_tokens=self.max_tokens, salt=salt, logprobs=logprobs)


class Rig:
    """A fleet that is up, what to ask it, and the connections to it; use it under ``with``."""

    def __init__(self, plan: Plan, options: Options) -> None:
        self.plan, self.options = plan, options
        self.cast: Roles = workload.roles(plan, options.writer, options.reader, options.baseline)
        self.meter = Meter(plan, options.key)
        self.chunk = self.cast.reader.chunk_size or 256
        self.prompt: Prompt

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.meter.closing.close()

    def prepare(self) -> dict[str, Any]:
        """Check readiness and length before anything is generated; the facts of the run.

        Raises NotReadyError for a fleet that does not answer, UsageError for a context that does not fit.
        """
        caches = dict.fromkeys(engine.cache for engine in (self.cast.writer, self.cast.reader))
        for spec in (*self.cast.engines, *(self.plan.service(name) for name in caches)):
            if not (self.plan.attached or health.healthy(spec.url, spec.kind)):
                raise NotReadyError(f"{spec.kind} {spec.name} is not ready", f"kvdemo ps -p {self.plan.project}")
            if spec.kind == "engine":
                self.meter.counters(spec)
        self.prompt = self.make_prompt(self.options.document)
        tokens = self.prompt.tokens
        window = min((spec.context for spec in self.cast.engines if spec.context), default=None)
        if window and tokens + self.options.max_tokens > window:
            raise UsageError(
                f"the context is too long: {tokens:,} prompt tokens and {self.options.max_tokens} of answer, "
                f"the model's window is {window:,}",
                "use a shorter context, or raise max_model_len in the profile if the model allows it",
            )
        if tokens <= self.chunk:
            raise UsageError(
                f"the context is too short to share: {tokens:,} tokens, a chunk is {self.chunk}",
                "use a longer context, or lower chunk_size in the profile",
            )
        for wanted in self.options.lengths:
            if not self.chunk < wanted <= tokens:
                raise UsageError(
                    f"--lengths: {wanted:,} tokens cannot be measured: a chunk is {self.chunk}, the context {tokens:,}",
                    "leave that length out, or give a longer --context",
                )
        if self.options.tier == "l2" and not self.plan.service(self.cast.writer.cache).store:
            raise UsageError("there is no L2 to read from", "give the cache one: caches.*.l2 in the profile")
        return {
            "prompt_tokens": tokens,
            "expected_hit_tokens": workload.reusable(tokens, self.chunk),
            "prompt_sha256": hashlib.sha256(repr(list(self.prompt.ids)).encode()).hexdigest(),
        }

    def make_prompt(self, document: str) -> Prompt:
        """The request for this document, tokenized by the reader. Raises ServiceError if it does not answer."""
        words = (self.options.system, document, self.options.question)
        chat = self.options.endpoint == "chat"
        payload = {"messages": workload.messages(*words)} if chat else {"prompt": workload.text(*words)}
        reader = self.cast.reader
        try:
            ids = self.meter.client(reader).tokenize(reader.model, payload)
        except httpx.HTTPError as error:
            raise ServiceError(f"{reader.name} cannot tokenize the prompt: {error}") from error
        path = "/v1/chat/completions" if chat else "/v1/completions"
        return Prompt(path, payload, tuple(ids), self.options.max_tokens)

    def salt(self, part: object) -> str:
        """A salt that nobody else has: this run's id and a part of it."""
        return f"kvdemo-{self.options.run_id}-{part}"

    def trials(self, prompt: Prompt, length: int = 0) -> Generator[Doing | Sample]:
        """Trials of one document, until there are enough."""
        most = max(self.options.max_trials, self.options.trials)
        seen: list[Sample] = []
        for number, steps in enumerate(workload.interleaved(most, self.cast, self.options.seed), 1):
            if number > self.options.trials and results.is_tight(
                seen, self.cast.baseline.name, self.cast.reader.name, TIGHT
            ):
                return
            for done, (arm, engine) in enumerate(steps):
                if arm == "again" and self.options.concurrency > 1:
                    continue  # the counters could not tell who hit what
                where = f" at {length:,} tokens" if length else ""
                yield Doing(f"trial {number} of {most}{where}: {engine.name} {arm}", done, len(steps))
                for sample in self.arm(prompt, number, arm, engine, length):
                    seen.append(sample)
                    yield sample
            # A document of 30,000 tokens is 4 GB of a 7B model's KV: kept for all trials they would fill the disk.
            cacheserver.forget(self.plan, self.salt(f"{length}-{number}-*"))

    def arm(self, prompt: Prompt, trial: int, arm: Arm, engine: ServiceSpec, length: int) -> Sequence[Sample]:
        """One arm of a trial: one request, or as many at once as the run's concurrency."""
        expected = workload.reusable(prompt.tokens, self.chunk) if arm in ("reuse", "again") else 0
        names = [self.salt(f"{length}-{trial}-{n}") for n in range(self.options.concurrency)]
        steps = [Step(trial, arm, engine, salt, expected, length=length) for salt in names]
        bodies = [prompt.body(engine, salt) for salt in names]
        if arm == "store":
            chunks = prompt.tokens // self.chunk
            stored = self._ask(steps, prompt.path, bodies, chunks)
            self.make_loadable(names, chunks, engine, self.cast.reader)
            return stored
        return self._ask(steps, prompt.path, bodies)

    def _ask(
        self, steps: Sequence[Step], path: str, bodies: Sequence[dict[str, Any]], chunks: int = 0
    ) -> Sequence[Sample]:
        """One request, or several at once: of every arm alike, or their times could not be compared."""
        if len(steps) > 1:
            return self.meter.ask_together(steps, path, bodies, chunks)
        return [self.meter.ask(steps[0], path, bodies[0], chunks)]

    def make_loadable(self, salts: Sequence[str], chunks: int, writer: ServiceSpec, reader: ServiceSpec) -> None:
        """A reader with another server finds chunks in L2 only: wait for them. With tier l2, clear L1 too."""
        if self.options.tier != "l2" and writer.cache == reader.cache:
            return
        for salt in salts:
            filed = cacheserver.wait_for_files(self.plan, salt, chunks)
            self.meter.stored[salt] = replace(self.meter.stored[salt], filed=filed)
        if self.options.tier != "l2":
            return
        cacheserver.clear_l1(self.meter.cache_url(reader))
        if self.options.drop_page_cache:
            for salt in salts:
                for file in cacheserver.files_of(self.plan, salt):
                    drop_pages(file)
