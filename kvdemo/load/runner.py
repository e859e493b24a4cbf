"""One phase: requests leave at their times whatever the answers do (open loop), each in a thread of its own.

Bodies are serialised and engines are idle before the clock starts; nothing is retried. A phase that can no longer keep
its limit is cut: no more is sent, and what is under way at plain engines is hung up: a hopeless rate costs no more
time than it needs. Engines with a cache finish what they have begun: vLLM ends when a request is aborted whose KV is on
its way to or from a cache (vllm-project/vllm#43226; seen with 0.32.0).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kvdemo.backends import series
from kvdemo.bench.client import Client, Reply
from kvdemo.bench.wire import without_gc
from kvdemo.errors import UsageError
from kvdemo.host import health
from kvdemo.judge.sample import Sources
from kvdemo.judge.traffic import Limit, Phase, Request
from kvdemo.load.schedule import Arrival
from kvdemo.planning.plan import ServiceSpec

PATH = "/v1/chat/completions"
TICK = 0.02
"""Seconds between two looks at whether the limit can still be kept, where there is time, ..."""

LOOK = 0.25
"""... and where requests leave so fast that there is none: a look may make one of them late."""

WAITING_POLL = 1.0
"""Seconds between two looks at the engines' queues: each costs an engine some milliseconds."""

IDLE_PATIENCE = 120.0
"""Seconds that an engine gets to end what was hung up or is still being stored."""


@dataclass
class Flight:
    """One request under way; ``due`` and ``sent`` are of ``perf_counter``."""

    arrival: Arrival
    engine: ServiceSpec
    content: bytes
    unseen: bool
    client: Client
    due: float = 0.0
    sent: float | None = None
    reply: Reply = field(default_factory=Reply)
    over: bool = False
    cut: bool = False
    waited: float | None = None

    def fly(self) -> None:
        """Send it and follow the stream to its end."""
        self.reply = Reply(on_token=self._note_first_chunk)
        try:
            if not self.cut:
                self.client.send(PATH, self.content, self.reply)
        finally:
            self.over = True
            self.client.line.close()

    def _note_first_chunk(self, _: Reply) -> None:
        if self.sent is None:
            self.sent = time.perf_counter()

    def hang_up(self) -> None:
        """End it now."""
        if not self.over:
            self.cut = True
            self.waited = None if self.sent is None else max(0.0, time.perf_counter() - self.sent)
            with suppress(OSError):
                if (sock := self.client.line.sock) is not None:
                    sock.shutdown(socket.SHUT_RDWR)

    def missed(self, limit: Limit, now: float) -> bool:
        """Whether it is too late for the limit already, or has failed."""
        if self.reply.error:
            return True
        if self.reply.ttft is None or self.sent is None:
            return now - self.due > limit.ttft
        return self.sent - self.due + self.reply.ttft > limit.ttft

    def request(self) -> Request:
        """As it is judged."""
        late = max(0.0, (self.sent or self.due) - self.due)
        reply, whole = self.reply, not (self.cut or self.reply.error)
        usage = reply.usage
        return Request(
            engine=self.engine.name,
            document=self.arrival.document,
            at=self.arrival.at,
            unseen=self.unseen,
            late=late,
            ttft=None if reply.ttft is None else late + reply.ttft,
            e2el=late + reply.e2el if whole and reply.e2el is not None else None,
            itl=tuple(reply.itl),
            prompt_tokens=usage.get("prompt_tokens"),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            error="" if self.cut else reply.error,
            cut=self.cut,
            waited=self.waited,
        )


class Watch:
    """Looks at the engines' queues while a phase runs; use it under ``with``."""

    def __init__(self, engines: Sequence[ServiceSpec], key: str) -> None:
        self.engines, self.key = engines, key
        self.waiting: list[int] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample_waiting, name="queues", daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _sample_waiting(self) -> None:
        while not self.ended.wait(WAITING_POLL):
            depths = [health.counters(one.url, self.key).get(series.WAITING.key) for one in self.engines]
            if all(depth is not None for depth in depths):
                self.waiting.append(int(sum(depth or 0 for depth in depths)))


def flights(
    arrivals: Sequence[Arrival],
    engines: Sequence[ServiceSpec],
    key: str,
    known_documents: int,
    body: Callable[[ServiceSpec, Arrival], Mapping[str, Any]],
) -> list[Flight]:
    """Every request of a phase, ready to leave; documents from ``known_documents`` on have not been read before."""
    return [
        Flight(
            arrival,
            engine := engines[arrival.engine],
            json.dumps(body(engine, arrival)).encode(),
            arrival.document >= known_documents,
            Client(engine.url, key),
        )
        for arrival in arrivals
    ]


def run(
    side: str,
    rate: float,
    repetition: int,
    duration: float,
    ready: Sequence[Flight],
    limit: Limit,
    key: str,
    finishing: Callable[[int, bool], object] = lambda *_: None,
) -> Phase:
    """Let all of them leave at their times; the phase as it went. Engines must be idle (``settle``).

    ``finishing`` is told how many requests at engines with a cache are waited for once no more are sent, and whether
    that is since KeyboardInterrupt was raised; another one then hangs up everything. Raises UsageError if this process
    may not open as many connections as it takes.
    """
    engines = list({flight.engine.name: flight.engine for flight in ready}.values())
    before = [health.counters(engine.url, key) for engine in engines]
    flights: list[Flight] = []
    pool = ThreadPoolExecutor(max_workers=max(1, len(ready)), thread_name_prefix="load")
    files = _allow_files()
    try:
        with Watch(engines, key) as watch, without_gc():
            _send(ready, flights, pool, limit)
        finishing(_unfinished(flights), False)
        _land(flights, pool)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            finishing(_unfinished(flights), True)
        _end(flights, pool)
        raise
    died = settle(engines, key)
    if any(os.strerror(errno.EMFILE) in flight.reply.error for flight in flights):
        text = f"{side} at {rate:g} requests/s: this client may open {files:,} files: too few connections for the rate"
        raise UsageError(text, "raise the limit (ulimit -n), or lower --rate")
    after = [health.counters(engine.url, key) for engine in engines]
    requests = tuple(flight.request() for flight in flights)
    return Phase(side, rate, repetition, duration, requests, _sources(before, after), tuple(watch.waiting), died)


def _allow_files() -> int:
    """Let this process open as many files as it may; how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _send(ready: Sequence[Flight], flights: list[Flight], pool: ThreadPoolExecutor, limit: Limit) -> None:
    """Add each to ``flights`` as it leaves; ends when all have ended, or as soon as the limit is lost."""
    began = looked = time.perf_counter()

    def lost() -> bool:
        now = time.perf_counter()
        return limit.out_of_reach(len(ready), sum(flight.missed(limit, now) for flight in flights))

    for flight in ready:
        flight.due = began + flight.arrival.at
        if time.perf_counter() - looked > LOOK:
            looked = time.perf_counter()
            if lost():
                return
        if _wait(flight.due, lost):
            return
        flights.append(flight)
        pool.submit(flight.fly)
    while not all(flight.over for flight in flights) and not lost():
        time.sleep(TICK)


def _unfinished(flights: Sequence[Flight]) -> int:
    return sum(not flight.over and bool(flight.engine.cache) for flight in flights)


def _land(flights: Sequence[Flight], pool: ThreadPoolExecutor) -> None:
    """Hang up what is under way at plain engines, and wait until the rest has ended."""
    for flight in flights:
        if not flight.engine.cache:
            flight.hang_up()
    pool.shutdown(wait=True, cancel_futures=True)


def _end(flights: Sequence[Flight], pool: ThreadPoolExecutor) -> None:
    """The same; another Ctrl-C hangs up everything."""
    try:
        _land(flights, pool)
    except KeyboardInterrupt:
        for flight in flights:
            flight.hang_up()
        pool.shutdown(wait=True)
        raise


def _wait(due: float, lost: Callable[[], bool]) -> bool:
    """Until the time has come; ends early, with True, once the limit is lost."""
    while (remaining := due - time.perf_counter()) > 0:
        if remaining > 2 * TICK and lost():
            return True
        time.sleep(min(remaining, TICK))
    return False


def settle(engines: Sequence[ServiceSpec], key: str) -> str:
    """Wait until these engines have nothing in hand; empty, or which of them does not answer any more."""
    deadline = time.monotonic() + IDLE_PATIENCE
    for engine in engines:
        while time.monotonic() < deadline:
            counters = health.counters(engine.url, key)
            if not counters and not health.healthy(engine):
                return f"{engine.name} no longer answers"
            if not counters.get(series.RUNNING.key, 0) + counters.get(series.WAITING.key, 0):
                break
            time.sleep(TICK)
    return ""


def _sources(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> Sources | None:
    """Prompt tokens by source over the phase, all engines together; None if a counter is missing or went back."""
    totals = []
    for source in series.SOURCES:
        name = series.BY_SOURCE.at(source)
        if not all(
            counters and any(key.startswith(series.PROMPT_TOKENS.key) for key in counters) for counters in after
        ):
            return None
        deltas = [end.get(name, 0.0) - start.get(name, 0.0) for start, end in zip(before, after, strict=True)]
        if any(delta < 0 for delta in deltas):
            return None
        totals.append(int(sum(deltas)))
    return Sources(*totals)
