"""A trace replayed in time order: what each engine's own prefix cache and a shared cache would have. Pure.

A request goes to one engine. What that engine's cache has of the prompt, in whole blocks, is *local*; what the shared
cache has beyond that, in whole chunks, is *shared*; the rest is computed. vLLM computes at least the last token, and of
its own cache it takes whole blocks only, so that a prompt of whole blocks computes its last block again. Both caches
have a request's KV as soon as it was asked. An engine keeps the KV of its answers too, the shared cache is
taken not to, and nobody asks for it under a name that the trace would tell.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kvdemo import backends
from kvdemo.estimate import stack
from kvdemo.estimate.stack import Stack
from kvdemo.estimate.trace import Trace

Routing = Literal["round-robin", "session"]

UNLIMITED = 2**62
"""Blocks of a cache that holds everything."""


@dataclass(frozen=True)
class Setup:
    """What the trace is replayed against.

    ``block`` and ``chunk`` are tokens of an engine's blocks and of the shared cache's chunks. ``own`` is how many
    tokens one engine's cache holds, ``sizes`` how many the shared cache does, one for each answer wanted; None is a
    cache that holds everything. ``backend`` is the kind of the shared cache, which says what of a prompt it can give.
    """

    engines: int
    routing: Routing
    block: int
    chunk: int
    own: int | None
    sizes: tuple[int | None, ...]
    backend: str = backends.DEFAULT.kind


@dataclass(frozen=True)
class Reuse:
    """Prompt tokens of all requests: ``local``, only by sharing, and computed, with a shared cache of one size."""

    tokens: int
    local: int
    shared: int

    @property
    def computed(self) -> int:
        """Those that no cache had."""
        return self.tokens - self.local - self.shared


@dataclass(frozen=True)
class Replay:
    """What came of it: ``reuse`` for each of the setup's sizes, and of each request for the first one.

    ``order`` are the requests as they came, and ``local`` and ``shared`` their tokens in that order. ``distinct`` are
    the tokens of all different chunks together.
    """

    reuse: tuple[Reuse, ...]
    order: Sequence[int]
    local: array[int]
    shared: array[int]
    distinct: int
    engines: array[int]


def steps(block: int, unit: int) -> int | None:
    """How many of a trace's blocks of ``unit`` tokens are one of ``block`` tokens; 1 if several fit into one of them.

    None if neither is a multiple of the other: then nobody can tell.
    """
    if block % unit == 0:
        return block // unit
    return 1 if unit % block == 0 else None


def routed(trace: Trace, order: Sequence[int], engines: int, routing: Routing) -> Iterator[int]:
    """The engine of each request: in turn, or a session's next requests where its first one went."""
    homes: dict[int, int] = {}
    turn = 0
    for i in order:
        session = trace.sessions[i]
        if routing == "session" and session in homes:
            yield homes[session]
            continue
        if session >= 0:
            homes[session] = turn
        yield turn
        turn = (turn + 1) % engines


def replay(trace: Trace, setup: Setup) -> Replay:
    """Replay it. Raises ValueError if the trace's blocks cannot be made into the setup's."""
    widths = [steps(setup.block, trace.block), steps(setup.chunk, trace.block)]
    if None in widths:
        raise ValueError(f"blocks of {trace.block} tokens are neither parts nor multiples of the caches' own")
    blocks, chunks = (trace.every(width or 1) for width in widths)
    order = trace.order()
    engines = array("q", routed(trace, order, setup.engines, setup.routing))
    tokens = array("q", (trace.tokens[i] for i in order))
    (own,), _ = _hits(blocks, order, engines, (setup.own,))
    for at, hit in enumerate(own):
        if hit:
            own[at] = min(hit, (tokens[at] - 1) // setup.block * setup.block)
    reusable = backends.of(setup.backend).reusable
    hits_at_once, distinct = _hits(chunks, order, None, setup.sizes)
    for hits in hits_at_once:
        for at, hit in enumerate(hits):
            if hit:
                hits[at] = max(0, min(hit, reusable(tokens[at], setup.chunk)) - own[at])
    totals = tuple(Reuse(sum(tokens), sum(own), sum(hits)) for hits in hits_at_once)
    return Replay(totals, order, own, hits_at_once[0], distinct, engines)


def _hits(
    trace: Trace, order: Sequence[int], engines: array[int] | None, sizes: Sequence[int | None]
) -> tuple[list[array[int]], int]:
    """The tokens that each request finds, for caches of each size; and the tokens of all different blocks together.

    With ``engines`` each has a cache of its own, which keeps answers too; without, all share one.
    """
    unit = trace.block
    arrays = [array("q", bytes(8 * len(order))) for _ in sizes]
    limits = [(UNLIMITED if size is None else size // unit, hits) for size, hits in zip(sizes, arrays, strict=True)]
    shares = Counter(engines) if engines else {0: len(order)}
    stacks = {engine: Stack(trace.names, share) for engine, share in shares.items()}
    begins, tokens, answers = trace.begins, trace.tokens, trace.answers
    distinct = 0
    for at, i in enumerate(order):
        begin, length = begins[i], begins[i + 1] - begins[i]
        unnamed = (tokens[i] + answers[i]) // unit - length if engines and answers[i] else 0
        runs = stacks[engines[at] if engines else 0].touch(begin, length, unnamed)
        distinct += length
        if runs:
            distinct -= runs[-1].end
            for limit, hits in limits:
                hits[at] = stack.held_tokens(runs, limit) * unit
    return arrays, distinct * unit
