"""What every mode of a run works with: the prepared prompt, the roles of the engines, the connections to them.

``prepare`` refuses what cannot work before anything is generated; afterwards failures are samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from kvdemo import backends
from kvdemo.bench import foreign, workload
from kvdemo.bench.measure import Meter
from kvdemo.bench.workload import Roles
from kvdemo.config.benchmark import Bench
from kvdemo.errors import NotReadyError, ServiceError, UsageError
from kvdemo.host import health, machine
from kvdemo.planning.plan import Plan, ServiceSpec


@dataclass(frozen=True)
class Prompt:
    """One document as it is sent, and its length in tokens of the model."""

    path: str
    payload: dict[str, Any]
    ids: tuple[int, ...]
    max_tokens: int
    ignore_eos: bool

    @property
    def tokens(self) -> int:
        """Prompt tokens."""
        return len(self.ids)

    def body(self, engine: ServiceSpec, salt: str) -> dict[str, Any]:
        """The request to this engine under this salt."""
        logprobs = 1 if "prompt" in self.payload else True
        return workload.body(
            engine.model,
            self.payload,
            max_tokens=self.max_tokens,
            salt=salt,
            logprobs=logprobs,
            ignore_eos=self.ignore_eos,
        )


def check_tier(options: Bench, cache: ServiceSpec) -> None:
    """Raises UsageError if this cache cannot be read from as these options say."""
    if options.tier == "l2" and not cache.store:
        hint = "give the cache one: caches.*.l2 in the profile; or measure another alone: --writer, --reader"
        raise UsageError(f"{cache.name}: there is no L2 to read from", hint)
    if options.drop_page_cache and not cache.directory:
        raise UsageError(f"--drop-page-cache: L2 of {cache.name} is {cache.store}", "leave it out: no files are here")
    if options.drop_page_cache and machine.is_in_memory(cache.directory):
        text = f"--drop-page-cache: L2 of {cache.name} is in memory ({cache.directory}, a tmpfs)"
        raise UsageError(text, "leave it out, or give the cache an l2 on a disk")


class Session:
    """A fleet that is up, what to ask it, and the connections to it; use it under ``with``.

    ``run_id`` is a part of every salt, so that no request of this run meets the KV of another. ``chunk`` are the tokens
    of the largest chunk. ``restart`` restarts engines by name and waits until they are ready, where somebody can.
    Raises UsageError if the fleet has no two engines that share a cache.
    """

    def __init__(
        self,
        plan: Plan,
        options: Bench,
        document: str,
        *,
        run_id: str = "run",
        key: str = "",
        restart: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self.restart = restart
        plan = foreign.with_named(plan, options.writer, options.reader)
        self.plan, self.options, self.document, self.run_id = plan, options, document, run_id
        self.roles: Roles = workload.roles(plan, options.writer, options.reader, options.baseline)
        self.meter = Meter(plan, key)
        self.chunk = max(pair.reader.chunk_size or 256 for pair in self.roles.pairs)
        self.prompt: Prompt

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.meter.closing.close()

    def prepare(self) -> dict[str, Any]:
        """Check the length of the prompt before anything of the run is generated; the facts of it.

        Raises UsageError for a context that does not fit.
        """
        self.prompt = self.make_prompt(self.document)
        tokens = self.prompt.tokens
        window = self.window
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
        for pair in self.roles.pairs:
            check_tier(self.options, self.plan.service(pair.writer.cache))
        return {
            "prompt_tokens": tokens,
            "expected_hit_tokens": self.reusable(tokens),
            "prompt_sha256": hashlib.sha256(repr(list(self.prompt.ids)).encode()).hexdigest(),
        }

    def reusable(self, tokens: int, engine: ServiceSpec | None = None) -> int:
        """How many tokens of a stored prompt this engine can load; if none is named, the reader."""
        engine = engine or self.roles.reader
        return backends.of(engine.backend).reusable(tokens, engine.chunk_size or self.chunk)

    @property
    def window(self) -> int | None:
        """The longest sequence in tokens that every engine of this run takes; None if nobody knows."""
        return min((spec.context for spec in self.roles.engines if spec.context), default=None)

    def connect(self) -> None:
        """Look at every service that is a process once, and remember which process each engine is.

        Raises NotReadyError for one that does not answer.
        """
        caches = dict.fromkeys(engine.cache for engine in self.roles.engines if engine.cache)
        for spec in (*self.roles.engines, *(self.plan.service(name) for name in caches)):
            if spec.url and not (self.plan.attached or health.healthy(spec)):
                raise NotReadyError(f"{spec.kind} {spec.name} is not ready", f"kvdemo ps -p {self.plan.project}")
            if spec.kind == "engine":
                self.meter.counters(spec)

    def make_prompt(self, document: str) -> Prompt:
        """The request for this document, tokenized by the reader. Raises ServiceError if it does not answer."""
        words = (self.options.system, document, self.options.asked_question)
        chat = self.options.endpoint == "chat"
        payload = {"messages": workload.messages(*words)} if chat else {"prompt": workload.text(*words)}
        reader = self.roles.reader
        try:
            ids = self.meter.client(reader).tokenize(reader.model, payload)
        except httpx.HTTPError as error:
            raise ServiceError(f"{reader.name} cannot tokenize the prompt: {error}") from error
        path = "/v1/chat/completions" if chat else "/v1/completions"
        return Prompt(path, payload, tuple(ids), self.options.max_tokens, self.options.ignore_eos)

    def salt(self, part: object) -> str:
        """A salt that nobody else has: this run's id and a part of it."""
        return f"kvdemo-{self.run_id}-{part}"
