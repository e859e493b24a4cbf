"""What arrives when: the same for every side, made from a seed. Pure."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

ZIPF = 1.0
"""Exponent of the popularity ``zipf``: the k-th document is asked for in proportion to 1 / k."""


@dataclass(frozen=True)
class Traffic:
    """What people ask: so many ``documents`` that have been read before, and a share of new ones.

    ``reuse`` is the share of requests on documents that were read before, ``turns`` the number of questions on a
    document before its conversation begins anew, ``engines`` how many there are: they are asked in turn.
    """

    documents: int
    reuse: float = 1.0
    popularity: Literal["uniform", "zipf"] = "uniform"
    turns: int = 1
    engines: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Arrival:
    """One request: seconds since the start, which document (new ones count on from ``documents``), of which engine.

    ``turn`` is the number of earlier questions of its conversation.
    """

    at: float
    document: int
    engine: int
    turn: int = 0


def arrivals(traffic: Traffic, rate: float, duration: float, repetition: int = 0) -> list[Arrival]:
    """Poisson arrivals at ``rate`` a second for ``duration`` seconds.

    Rates of one repetition share their random numbers: a higher rate compresses the same sequence of requests, so that
    two rates differ in their pace only.
    """
    clock = random.Random(f"{traffic.seed}/{repetition}/gaps")  # noqa: S311 (a workload, not a secret)
    choice = random.Random(f"{traffic.seed}/{repetition}/documents")  # noqa: S311
    totals = _weights(traffic.documents, traffic.popularity)
    questions: dict[int, int] = {}
    schedule, at, fresh = list[Arrival](), 0.0, traffic.documents
    for number in itertools.count():
        at += clock.expovariate(1.0) / rate
        if at >= duration:
            return schedule
        if traffic.documents and choice.random() < traffic.reuse:
            document = bisect.bisect_right(totals, choice.random() * totals[-1])
            document = min(document, traffic.documents - 1)
        else:
            choice.random()  # both branches draw two numbers, so that ``reuse`` changes nothing but itself
            document, fresh = fresh, fresh + 1
        turn = questions.get(document, 0) % traffic.turns
        questions[document] = turn + 1
        schedule.append(Arrival(at, document, number % traffic.engines, turn))
    raise AssertionError  # pragma: no cover (the loop above has no other end)


@lru_cache(maxsize=2)
def _weights(documents: int, popularity: str) -> Sequence[float]:
    """How often each document is asked about, beside the first one, added up."""
    weights = (1 / (k + 1) ** ZIPF if popularity == "zipf" else 1.0 for k in range(documents))
    return list(itertools.accumulate(weights))
