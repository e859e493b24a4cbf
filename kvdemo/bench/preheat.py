"""Engines that have read little yet read a throwaway text: ``up --preheat`` and the page do it the same way.

What comes once (shapes, allocations, the connector's handshake) is then paid before anybody waits for an answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Generator, Mapping
from dataclasses import replace
from pathlib import Path

from kvdemo.backends import series
from kvdemo.bench import cacheserver, context, trials
from kvdemo.bench.client import Reply
from kvdemo.bench.measure import Meter
from kvdemo.errors import KvdemoError, ServiceError
from kvdemo.fleet import fleet
from kvdemo.fleet.watch import Event
from kvdemo.host import health
from kvdemo.host.state import Project
from kvdemo.planning.plan import Plan, ServiceSpec

PREHEAT_TOKENS = 2000
"""Prompt tokens after which an engine counts as warm."""

TOKEN = 8
"""Characters: hardly any text has longer tokens on average."""

LINE = "This line is number {} of a text that nobody will ask about.\n"


def text(plan: Plan) -> str:
    """What is read: the profile's document, else numbered lines; repeated if it is short.

    Raises UsageError for a document that cannot be read.
    """
    path = plan.bench.get("context")
    document = context.read(Path(path)) if path else "".join(map(LINE.format, range(1, 300)))
    return f"{document}\n" * (1 + trials.WARM_UP_CHARACTERS // len(document))


def warm(meter: Meter, spec: ServiceSpec, text: str, salt: str) -> Reply | None:
    """Let an engine read as much of the text as it can; None if it has read enough already."""
    tokens = min(PREHEAT_TOKENS, spec.context // TOKEN) if spec.context else PREHEAT_TOKENS
    if health.counters(spec.url, meter.key).get(series.PROMPT_TOKENS.key, 0) >= tokens:
        return None
    # A character is at most a token in nearly all texts: so many fit.
    reply = trials.warm_up(meter, spec, meter.plan.bench.get("system", ""), text[: spec.context], salt)
    if server := meter.cache(spec):
        cacheserver.settle(server)  # the next engine of this cache is to load what this one stored
    return reply


class Preheat:
    """The end of ``up --preheat``, as ``fleet.up`` calls it. Failures are kept for ``check``: they stop no fleet."""

    def __init__(self, plan: Plan, project: Project, environ: Mapping[str, str], names: Collection[str] = ()) -> None:
        self.project, self.environ, self.names = project, environ, names
        self.text = text(plan)
        self.salt = f"kvdemo-{secrets.token_hex(6)}-warm"
        self.failures: list[str] = []

    def __call__(self) -> Generator[Event]:
        """One engine after another, what it did as the detail of its state."""
        plan = fleet.load_plan(self.project)
        stored: dict[tuple[str, str], int] = {}
        with Meter(plan, fleet.key_of(plan.engines[0], self.environ)) as meter:
            try:
                for spec in plan.engines:
                    if not self.names or spec.name in self.names:
                        yield self._event(spec, "preheating")
                        reply = self._read(meter, spec)
                        yield self._event(spec, _summary(reply))
                        if reply and spec.cache and (store := plan.service(spec.cache).store):
                            chunks = (reply.usage.get("prompt_tokens") or 0) // (spec.chunk_size or 256)
                            stored[store, spec.model] = chunks
            finally:
                self._forget(plan, sum(stored.values()))

    def check(self) -> None:
        """Raises ServiceError if something went wrong."""
        if self.failures:
            raise ServiceError(
                f"not preheated: {'; '.join(self.failures)}",
                f"the fleet is up all the same (kvdemo ps -p {self.project.name}); the same command tries again",
            )

    def _event(self, spec: ServiceSpec, detail: str) -> Event:
        return replace(fleet.status(self.project, self.environ, [spec.name])[0], detail=detail)

    def _read(self, meter: Meter, spec: ServiceSpec) -> Reply | None:
        try:
            reply = warm(meter, spec, self.text, self.salt)
        except KvdemoError as error:
            reply = Reply(error=str(error))
        if reply and reply.error:
            self.failures.append(f"{spec.name}: {reply.error}")
        return reply

    def _forget(self, plan: Plan, chunks: int) -> None:
        """Delete what it left in L2, which is written after the answers."""
        try:
            cacheserver.wait_for_files(plan, self.salt, chunks)
            cacheserver.forget(plan, self.salt)
        except (KvdemoError, OSError) as error:
            self.failures.append(f"its KV is left in L2: {error}")


def _summary(reply: Reply | None) -> str:
    if reply is None:
        return "warm already"
    if reply.error:
        return f"not preheated: {reply.error}"
    return f"preheated: first token after {reply.ttft or 0:.1f} s"
