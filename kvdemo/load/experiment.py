"""The verb ``load``: warm every side up, run phases in balanced order, yield each. Nothing is judged here."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Literal

from kvdemo import units
from kvdemo.bench import cacheserver, foreign, measure, workload
from kvdemo.bench.client import Client, Reply, Unreachable
from kvdemo.bench.events import Doing
from kvdemo.errors import ServiceError, UsageError
from kvdemo.judge.traffic import PLAIN, Limit, Phase
from kvdemo.load import runner, schedule, search
from kvdemo.load.queueing import Service
from kvdemo.planning.plan import Plan, ServiceSpec

ANSWER = "I have answered that."
"""What the earlier turns of a conversation hold as answers: of equal length on every side."""

SINGLES = 3
"""Documents that single requests are timed with before the traffic, on each side."""

FEWEST, SHORTEST = 30, 15.0
"""A phase lasts as long as so many requests take to arrive on average, and at least so many seconds."""


MOST_REQUESTS = 10_000
"""Requests of one phase at most: each has a thread of its own, and its body is made before the first one leaves."""


@dataclass(frozen=True)
class Options:
    """What to ask. ``slo_ttft`` 0: twice the cold TTFT measured here; ``rates`` empty: search; ``duration`` 0: by rate.

    Times are seconds.
    """

    document: str = ""
    questions: tuple[str, ...] = ("What is this document about?",)
    system: str = ""
    slo_ttft: float = 0.0
    slo_share: float = 0.9
    rates: tuple[float, ...] = ()
    documents: int = 10
    document_tokens: int = 0
    reuse: float = 1.0
    popularity: Literal["uniform", "zipf"] = "uniform"
    turns: int = 1
    duration: float = 0.0
    engines: int = 0
    repetitions: int = 1
    max_tokens: int = 24
    seed: int = 0
    run_id: str = "run"
    key: str = ""


@dataclass
class WarmUp:
    """What warming up has found: the limit (s), prompt tokens of a document, and unloaded TTFTs of each side (s).

    ``own`` is the size of one engine's own KV cache in tokens, by side; None where the engine does not tell.
    """

    limit: Limit
    tokens: int
    own: dict[str, int | None] = field(default_factory=dict)
    service: dict[str, Service] = field(default_factory=dict)


def sides(plan: Plan, engines: int = 0) -> dict[str, list[ServiceSpec]]:
    """The engines under comparison, equally many on each side: the plain ones, and those of each cache.

    All are of one model, that of the first cache. Raises UsageError if there is nothing to compare.
    """
    pools: dict[str, list[ServiceSpec]] = {}
    for spec in plan.engines:
        if foreign.is_foreign(spec):
            continue  # it may share with anybody: neither plain nor of a cache
        pools.setdefault(spec.shared_cache or PLAIN, []).append(spec)
    cached = [group for name, group in pools.items() if name != PLAIN]
    if not cached or PLAIN not in pools:
        raise UsageError(
            "a comparison needs plain engines and engines with a cache",
            "the profile must have both (profiles/cpu.yaml has two of each)",
        )
    model = cached[0][0].model
    sides = {name: [spec for spec in group if spec.model == model] for name, group in pools.items()}
    sides = {name: sides[name] for name in sorted(sides, key=lambda name: name != PLAIN) if sides[name]}
    fewest = min(map(len, sides.values()))
    if engines > fewest:
        short = ", ".join(f"{name} has {len(group)}" for name, group in sides.items())
        raise UsageError(f"--engines: {engines} on each side are too many: {short}", f"at most {fewest}")
    return {name: group[: engines or fewest] for name, group in sides.items()}


class Traffic:
    """A fleet that is up and what it is asked. ``prepare`` first; then ``run``.

    ``finishing`` is told how many requests are waited for after a phase, and whether that is after Ctrl-C.
    """

    def __init__(self, plan: Plan, options: Options) -> None:
        self.plan, self.options = plan, options
        self.sides = sides(plan, options.engines)
        for rate in options.rates:
            if (requests := rate * self._duration(rate)) > MOST_REQUESTS:
                text = f"{rate:g} requests/s for {self._duration(rate):g} s are {requests:,.0f} requests"
                raise UsageError(
                    f"--rate: {text}, more than this client can send", "a lower --rate, a shorter --duration"
                )
        self.text = options.document
        self.questions = options.questions
        self.dead: set[str] = set()
        self.late: set[str] = set()
        self.began = time.time()
        self.finishing: Callable[[int, bool], object] = lambda *_: None

    def prepare(self) -> Generator[Doing, None, WarmUp]:
        """Cut the document to its length, let each side read every document once, and time single requests.

        Raises UsageError if it does not fit the model's window, ServiceError for an engine that does not answer.
        """
        tokens = self._cut()
        singles: dict[str, Service] = {}
        for side, engines in self.sides.items():
            cold, local, shared = [], [], []
            # Three times around: the first requests pay for what comes once, and the median does not.
            for number in range(max(SINGLES, len(engines))):
                writer, reader = engines[number % len(engines)], engines[(number + 1) % len(engines)]
                names = " and ".join(dict.fromkeys([writer.name, reader.name]))
                yield Doing(f"{side}: single requests to {names}")
                cold.append(self._single(writer, number, "single"))
                self._settle(side)
                shared.append(self._single(reader, number, "single"))
                local.append(self._single(reader, number, "single"))
            singles[side] = Service(median(cold), median(local), median(shared))
        ttft = self.options.slo_ttft or float(f"{2 * singles[PLAIN].cold:.2g}")
        own = {side: measure.own_tokens(engines[0], self.options.key) for side, engines in self.sides.items()}
        return WarmUp(Limit(ttft, self.options.slo_share), tokens, own, singles)

    def _settle(self, side: str) -> None:
        """Wait until what the side's engines have stored can be loaded."""
        for name in dict.fromkeys(engine.cache for engine in self.sides[side] if engine.cache):
            cache = self.plan.service(name)
            if cache.url:
                cacheserver.settle(cache)

    def _read(self, side: str, name: str) -> None:
        """Let the side's engines read every document once, in turn: as every phase begins."""
        engines = self.sides[side]
        for number in range(self.options.documents):
            self._single(engines[number % len(engines)], number, name)
        self._settle(side)

    def _cut(self) -> int:
        engine = self.sides[PLAIN][0]
        length = len(self._tokens(engine, self.text))
        window = min((spec.context for group in self.sides.values() for spec in group if spec.context), default=0)
        room = window - self.options.max_tokens - 256 * self.options.turns if window else length
        target = self.options.document_tokens or min(length, max(1, room))
        if window and target > room:
            limits = f"the model's window is {window:,}, of which question and answer take some {window - room:,}"
            if room < 1:
                raise UsageError(f"--turns, --max-tokens: {limits} tokens: no room for a document", "ask for fewer")
            raise UsageError(f"--document-tokens: {target:,} tokens do not fit: {limits}", f"at most {room:,}")
        text = self.text
        while length < target:
            text, length = f"{text}\n{text}", 2 * length
        self.text = text[: int(len(text) * target / length)]
        return len(self._tokens(engine, self.text))

    def _tokens(self, engine: ServiceSpec, text: str) -> list[int]:
        try:
            with Client(engine.url, self.options.key) as client:
                return client.tokenize(engine.model, {"prompt": text})
        except Unreachable as error:
            raise ServiceError(f"{engine.name} cannot tokenize the document: {error}") from error

    def body(self, engine: ServiceSpec, arrival: schedule.Arrival, phase: str) -> dict[str, Any]:
        """A request about a document of this phase, after so many earlier questions."""
        questions = self.questions
        earlier = [(questions[n % len(questions)], ANSWER) for n in range(arrival.turn)]
        words = workload.messages(
            self.options.system,
            f"Document {arrival.document + 1}.\n{self.text}",
            questions[(arrival.turn + arrival.document) % len(questions)],
            earlier,
        )
        salt = f"kvdemo-{self.options.run_id}-{phase}-{arrival.document}"
        return workload.body(engine.model, {"messages": words}, max_tokens=self.options.max_tokens, salt=salt)

    def _single(self, engine: ServiceSpec, document: int, phase: str) -> float:
        """TTFT of one request while nothing else runs, in seconds."""
        with Client(engine.url, self.options.key) as client:
            reply: Reply = client.stream(runner.PATH, self.body(engine, schedule.Arrival(0.0, document, 0), phase))
        if reply.error or reply.ttft is None:
            raise ServiceError(f"{engine.name}: {reply.error or 'no token came'}", "kvdemo logs shows what it says")
        return reply.ttft

    def run(self, warm_up: WarmUp) -> Generator[Doing | Phase]:
        """Every repetition: one side after the other, in an order that alternates, each at its rates."""
        for repetition in range(1, self.options.repetitions + 1):
            order = list(self.sides)[:: 1 if repetition % 2 else -1]
            if self.options.rates:
                for rate in self.options.rates:
                    for side in order:
                        yield from self._phase(warm_up, side, rate, repetition)
                    order.reverse()
            else:
                for side in order:
                    yield from self._search(warm_up, side, repetition)

    def _search(self, warm_up: WarmUp, side: str, repetition: int) -> Generator[Doing | Phase]:
        start = float(f"{len(self.sides[side]) / warm_up.service[PLAIN].cold / 2:.2g}")
        finder = search.rates(start)
        rate = next(finder)
        with suppress(StopIteration):
            while side not in self.dead:
                met = False
                for event in self._phase(warm_up, side, rate, repetition):
                    if isinstance(event, Phase):
                        met = warm_up.limit.kept(event)
                        if not warm_up.limit.client_kept_up(event):
                            self.late.add(side)
                    yield event
                if side in self.late:
                    return  # a higher rate would only show this client's limits
                rate = finder.send(met)

    def _phase(self, warm_up: WarmUp, side: str, rate: float, repetition: int) -> Generator[Doing | Phase]:
        if side in self.dead:
            return
        options, engines = self.options, self.sides[side]
        duration = self._duration(rate)
        name = f"{side}-{rate:g}-{repetition}"
        documents = units.count(options.documents, "document")
        yield Doing(f"{side}: reads {documents}, then {rate:g} requests/s for {duration:.0f} s")
        traffic = schedule.Traffic(
            options.documents, options.reuse, options.popularity, options.turns, len(engines), options.seed
        )
        arrivals = schedule.arrivals(traffic, rate, duration, repetition)
        # Under salts of its own: what an earlier phase left in any cache is of no use to this one.
        try:
            self._read(side, name)
        except ServiceError as error:
            self.dead.add(side)
            yield Phase(side, rate, repetition, duration, (), died=str(error))
            return
        ready = runner.flights(arrivals, engines, options.key, options.documents, partial(self.body, phase=name))
        phase = runner.run(side, rate, repetition, duration, ready, warm_up.limit, options.key, self.finishing)
        cacheserver.forget(self.plan, f"kvdemo-{options.run_id}-{name}-*", self.began)
        if phase.died:
            self.dead.add(side)
        yield phase

    def forget(self) -> None:
        """Delete what the run left in L2."""
        if any(spec.cache for engines in self.sides.values() for spec in engines):
            cacheserver.forget(self.plan, f"kvdemo-{self.options.run_id}-*", self.began)

    def _duration(self, rate: float) -> float:
        return self.options.duration or max(SHORTEST, FEWEST / rate)

    def conditions(self, warm_up: WarmUp) -> Mapping[str, Any]:
        """What the result needs beside the phases."""
        options = self.options
        caches = {
            spec.cache: self.plan.service(spec.cache) for group in self.sides.values() for spec in group if spec.cache
        }
        l1 = {cache.name: cache.l1 for cache in caches.values()}
        sizes = [cacheserver.kv_bytes_per_token(cache) for cache in caches.values()]
        return {
            "sides": {side: [spec.name for spec in engines] for side, engines in self.sides.items()},
            "gpus": {spec.name: list(spec.gpus) for engines in self.sides.values() for spec in engines},
            "model_id": self.sides[PLAIN][0].model,
            "model_digest": self.sides[PLAIN][0].weights,
            "slo_ttft": warm_up.limit.ttft,
            "slo_share": warm_up.limit.share,
            "slo_chosen": "asked for" if options.slo_ttft else "twice the cold TTFT measured here",
            "documents": options.documents,
            "document_tokens": warm_up.tokens,
            "reuse": options.reuse,
            "popularity": options.popularity,
            "turns": options.turns,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
            "repetitions": options.repetitions,
            "run_id": options.run_id,
            "kv_bytes_per_token": next((size for size in sizes if size), None),
            "own_tokens": warm_up.own,
            "l1_bytes": {pool: size for pool, size in l1.items() if size},
            "notes": _notes(l1, (options.documents, warm_up.tokens), sizes),
            "single_ttft": {
                side: {"cold": one.cold, "local": one.local, "shared": one.shared}
                for side, one in warm_up.service.items()
            },
        }


def _notes(l1: Mapping[str, int | None], sizes_asked: tuple[int, int], sizes: Sequence[int | None]) -> list[str]:
    """What is said when the documents do not fit into a cache: that is a result, too."""
    documents, tokens = sizes_asked
    per_token = next((size for size in sizes if size), None)
    if not per_token:
        return []
    need = documents * tokens * per_token
    return [
        f"The {documents} documents are {units.size(need)} of KV; L1 of {name} holds {units.size(size)}: "
        "some must be computed again, or come from L2 if it has one."
        for name, size in l1.items()
        if size and size < need
    ]
