"""The fleet as the page uses it: one connection to each engine, one question at a time to each, for all browsers.

An engine's counters cannot tell two requests apart, so requests of this page to one engine wait for each other; another
program's request in between shows as UNPROVEN, as in ``bench``. Every request becomes a sample of the history.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from kvdemo import __version__, shipped
from kvdemo.backends import series
from kvdemo.bench import bench, cacheserver, conditions, context, pace, preheat, workload
from kvdemo.bench.client import Reply
from kvdemo.bench.measure import Meter
from kvdemo.errors import KvdemoError, NotReadyError, UsageError
from kvdemo.fleet import fleet, gauges
from kvdemo.fleet.watch import Event, State
from kvdemo.host import gpus as host_gpus
from kvdemo.host import health
from kvdemo.host.state import Project
from kvdemo.judge.frame import Frame
from kvdemo.judge.sample import Sample
from kvdemo.planning.plan import Plan
from kvdemo.ui import download
from kvdemo.ui.conversation import Bell, Conversation, Document, Lane, Phase, Turn
from kvdemo.ui.prompts import PromptHistory

STATUS_POLL = 2.0
"""Seconds between two looks at the services."""

LONG_TOKEN = 40
"""No text has as many characters a token as this."""

ROOM = 64
"""Tokens that instruction, question and answer take at least."""

WARM_UP_PATIENCE = 60.0
"""Seconds that a question waits for all engines to be warm: one that hangs must not keep the others from answering."""

NOTHING = Document("", "", 0, "")


class EnginePool:
    """Everything that all browsers share. Raises NotReadyError if the project is not up."""

    def __init__(self, project: Project, environ: Mapping[str, str]) -> None:
        self.project, self.environ = project, environ
        self.run_id = secrets.token_hex(6)
        self.prompts, self.history = PromptHistory(), list[Sample]()
        self.events: list[Event] = []
        self.problem = ""
        self.first: Document | None = None
        self.reserved = self.closed = False
        self.tasks = set[asyncio.Task[None]]()
        self.warmed = threading.Event()
        self.looking, self.timed = threading.Lock(), set[int]()
        self.active: dict[int, Lane] = {}
        self.paces: dict[str, float] = {}
        self.locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.numbers, self.salts = itertools.count(1), itertools.count(1)
        self.pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="ask")
        self.bell: Bell
        self.gauges = gauges.of_project(project, environ)
        self.frame: Frame | None = None
        self.reading = threading.Lock()
        self.frame_bell: Bell
        self.adopt(fleet.load_plan(project))

    def adopt(self, plan: Plan) -> None:
        """Use this plan from now on; requests under way end with the connections they have."""
        self.plan = plan
        self.meter = Meter(plan, fleet.key_of(plan.engines[0], self.environ), one_run=False)
        self.chunk = max((spec.chunk_size for spec in plan.engines if spec.chunk_size), default=256)
        self.meaningless = conditions.has_random_weights(plan, plan.engines)

    async def open(self) -> None:
        """On the event loop: begin to watch the services."""
        self.bell = Bell(asyncio.get_running_loop())
        self.frame_bell = Bell(asyncio.get_running_loop())
        self.watcher = asyncio.create_task(self._watch())
        self.pool.submit(self.preheat)

    async def close(self) -> None:
        """End: hang up, so that no thread waits for an engine, and delete what this page's requests left in L2."""
        self.closed = True
        self.warmed.set()
        self.watcher.cancel()
        for client in self.meter.clients.values():
            with suppress(OSError):
                if client.line.sock is not None:
                    client.line.sock.shutdown(socket.SHUT_RDWR)
        self.pool.shutdown(wait=False, cancel_futures=True)
        cacheserver.forget(self.plan, f"kvdemo-{self.run_id}-*")

    async def _watch(self) -> None:
        while True:
            if self.bell.listeners and not self.timed:
                await self.do(self.observe)
            if self.frame_bell.listeners:
                await self.do(self.read_counters)
            await asyncio.sleep(STATUS_POLL)

    def read_counters(self) -> None:
        """What the engines have counted until now, unless something is timed at this moment."""
        with self.reading:
            if not self.paused:
                self.frame = self.gauges.look()
                self.frame_bell.ring()

    @property
    def paused(self) -> bool:
        """Whether nobody reads the engines' counters: their answers would take processor time from what is timed."""
        return bool(self.timed) or self.reserved

    async def do(self, work: Any, *arguments: Any) -> Any:
        """Something that blocks, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)

    def observe(self) -> None:
        """What every service is doing at this moment; a plan that has changed is taken over."""
        events: list[Event] = []
        problem = ""
        try:
            with self.looking:
                plan = fleet.load_plan(self.project)
                if plan != self.plan:
                    self.adopt(plan)
                events = fleet.status(self.project, self.environ)
        except (KvdemoError, OSError) as error:
            problem = ": ".join(filter(None, [str(error), getattr(error, "hint", "")]))
        states = [(event.service, event.state, event.detail) for event in events]
        if problem != self.problem or states != [(event.service, event.state, event.detail) for event in self.events]:
            self.events, self.problem = events, problem
            self.bell.ring()

    def state(self, service: str) -> State:
        """The latest known state of a service."""
        return next((event.state for event in self.events if event.service == service), State.ABSENT)

    def tokenize(self, model: str, prompt: Mapping[str, Any]) -> list[int]:
        """Token ids by whichever engine of this model answers. Raises NotReadyError if none does."""
        message = "no engine has it"
        engines = [spec for spec in self.plan.engines if spec.model == model]
        for spec in sorted(engines, key=lambda one: self.state(one.name) is not State.READY):
            try:
                return self.meter.client(spec).tokenize(model, prompt)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                message = f"{spec.name}: {str(error) or type(error).__name__}"
        raise NotReadyError(f"no engine of {model} tokenizes ({message})", f"kvdemo ps -p {self.project.name}")

    def document(self, name: str, data: bytes | str) -> Document:
        """A document to ask about. Raises UsageError if it is empty, binary, not UTF-8 or too long for the engines."""
        text = context.decode(data.encode(errors="replace") if isinstance(data, str) else data, name)
        window = min((spec.context for spec in self.plan.engines if spec.context), default=None)
        hint = "use a shorter document, or raise max_model_len in the profile if the model allows it"
        # What is much too long is not for the tokenizer of an engine that others wait for.
        if window and len(text) > window * LONG_TOKEN:
            most = f"the engines read at most {window:,} tokens"
            raise UsageError(f"{name}: is too long: {len(text):,} characters; {most}", hint)
        tokens = len(self.tokenize(self.plan.engines[0].model, {"prompt": text}))
        if window and tokens + ROOM > window:
            most = f"the engines read at most {window:,}, the question and the answer included"
            raise UsageError(f"{name}: is too long: {tokens:,} tokens; {most}", hint)
        return Document(name, text, tokens, self.salt())

    def preheat(self) -> None:
        """Let engines that have read little yet read something, as ``up --preheat`` does.

        Questions wait until all are warm, the reader of what another stored included.
        """
        try:
            if self.plan.bench.get("context"):
                self.first_document()  # a tab needs it first: while the engines are not busy yet
            text = preheat.text(self.plan)
            for spec in self.plan.engines:
                with self.locks[spec.name]:
                    if not self.closed:
                        reply = preheat.warm(self.meter, spec, text, f"kvdemo-{self.run_id}-warm")
                        self.note_pace(spec.name, reply.usage.get("prompt_tokens") if reply else None, reply)
        except KvdemoError:
            return  # whoever asks is told
        finally:
            self.warmed.set()
            self.bell.ring()

    def note_pace(self, engine: str, tokens: int | None, answer: Reply | Sample | None) -> None:
        """Keep how fast an engine computed a prompt of which nothing was cached; without one, by its own counters."""
        if answer and tokens and answer.ttft:
            self.paces[engine] = tokens / answer.ttft
        elif engine not in self.paces:
            counters = health.counters(self.plan.service(engine).url, self.meter.key)
            seconds = counters.get(f"{series.PREFILL_SECONDS.key}_sum", 0.0)
            computed = counters.get(series.BY_SOURCE.at(series.COMPUTED), 0.0)
            if seconds > 0 and computed > 0:
                self.paces[engine] = computed / seconds

    def seconds_cold(self, engine: str, tokens: int) -> float | None:
        """How long the engine should take to compute so many tokens, at the pace of the prompt that it computed last.

        Attention makes long prompts slower per token: for one longer than that, it is a lower bound. None if unknown.
        """
        pace = self.paces.get(engine)
        return tokens / pace if pace else None

    def begin(self, lane: Lane) -> None:
        """This lane's clock runs from now on: note what else computes on the same hardware, on both sides."""
        lane.phase, lane.since = Phase.SENT, time.monotonic()
        for other in self.active.values():
            if self.share_hardware(lane.engine, other.engine):
                lane.beside.add(other.engine)
                if other.ttft is None:
                    other.beside.add(lane.engine)
        self.active[id(lane)] = lane
        self.timed.add(id(lane))

    def end(self, lane: Lane) -> None:
        """Its engine is done with it."""
        self.active.pop(id(lane), None)
        self.timed.discard(id(lane))

    def share_hardware(self, one: str, other: str) -> bool:
        """Whether two engines compute on the same GPU, or both on the processors of one machine."""
        first, second = self.plan.service(one), self.plan.service(other)
        if first.node != second.node:
            return False
        return bool({*first.gpus} & {*second.gpus}) or not (first.gpus or second.gpus)

    def salt(self) -> str:
        """A salt that no cache has seen."""
        return f"kvdemo-{self.run_id}-{next(self.salts)}"

    def first_document(self) -> Document:
        """The profile's document. Without one the beginning of the shipped handbook, once the engines are warm.

        Of that as much as the baseline reads cold in comfort, as far as that is known.
        """
        with self.locks["document"]:
            if self.first is None:
                path = self.plan.bench.get("context")
                self.first = self.document(Path(path).name, context.read(Path(path))) if path else self._handbook()
        return replace(self.first, salt=self.salt())

    def _handbook(self) -> Document:
        try:
            text = context.read(shipped.directory() / shipped.HANDBOOK)
        except FileNotFoundError:
            return NOTHING  # whoever looks chooses another
        self.warmed.wait(WARM_UP_PATIENCE)
        baseline, room = self.plan.engines[0], None
        with suppress(UsageError):
            roles = workload.roles(self.plan)
            baseline, room = roles.baseline, bench.room_in_cache(self.meter, roles.reader)
        rate = pace.Pace(self.seconds_cold(baseline.name, 1) or math.inf, 0.0)
        whole = len(self.tokenize(baseline.model, {"prompt": text}))
        window = min((spec.context for spec in self.plan.engines if spec.context), default=None)
        target = pace.document_tokens(rate, self.chunk, min(filter(None, [whole + pace.ROOM, window, room])))
        return self.document(shipped.HANDBOOK, pace.beginning(text, whole, target))

    def cool(self, conversation: Conversation) -> None:
        """Make the document cold again; its old KV is of no use to anybody."""
        old = conversation.document
        conversation.document = replace(old, salt=self.salt())
        if not conversation.busy:
            cacheserver.forget(self.plan, old.salt)
        conversation.bell.ring()

    def turn(
        self, conversation: Conversation, question: str, groups: Sequence[Sequence[str]], max_tokens: int, follow: bool
    ) -> Turn:
        """Put a question on the page. Raises UsageError if there is nothing to ask, or nobody."""
        if not question.strip():
            raise UsageError("there is no question", "type one, or choose one below the line")
        if not conversation.document.text:
            raise UsageError("there is no document", "choose one first")
        if self.reserved:
            raise UsageError("a benchmark is measuring", "wait for its end, or stop it")
        if not any(groups):
            raise UsageError("no engine is chosen", "choose at least one")
        names = {spec.name for spec in self.plan.engines}
        if strange := {name for group in groups for name in group} - names:
            raise UsageError(f"no longer part of the fleet: {', '.join(sorted(strange))}", "load the page again")
        lanes = [[Lane(name, self.plan.service(name).cache) for name in group] for group in groups if group]
        earlier = conversation.earlier if follow else []
        turn = Turn(next(self.numbers), question.strip(), conversation.document, lanes, earlier, max_tokens)
        conversation.turns.append(turn)
        conversation.bell.ring()
        return turn

    def holder(self, service: str) -> str:
        """A name for a service's memory: another one after every start."""
        record = self.project.record(service) if service else None
        return f"{service} {record.leader if record else ''}"

    def readers(self, document: Document) -> list[str]:
        """The engines and caches that should have this document's KV now."""
        by_holder, salt = self.prompts.by_holder, document.salt
        return [spec.name for spec in self.plan.services if by_holder.get((self.holder(spec.name), salt))]

    def jsonl(self) -> str:
        """The history as a file that ``kvdemo report`` reads."""
        names = sorted(
            {gpu.name for gpu in host_gpus.detect(self.environ) for e in self.plan.engines if gpu.index in e.gpus}
        )
        about: dict[str, Any] = {
            "kvdemo_version": __version__,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "run_id": self.run_id,
            "device": ", ".join(names) or f"{os.cpu_count()} processor cores",
        }
        if self.meaningless:
            about["random_weights"] = True
        return download.jsonl(self.plan, self.history, about)

    def reserve(self) -> None:
        """Keep questions out while a benchmark measures. Raises UsageError while somebody is being answered."""
        if self.reserved or self.tasks or any(lock.locked() for lock in self.locks.values()):
            raise UsageError("the engines are busy", "wait for the answers")
        self.reserved = True

    def release(self) -> None:
        """Let questions in again."""
        self.reserved = False
        self.bell.ring()
