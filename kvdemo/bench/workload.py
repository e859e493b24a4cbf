"""What is asked, of whom, in which order: the requests of a trial. Pure.

A trial puts one document, under a salt of its own, to these arms:

    cold     a plain engine that has not seen it           (each plain engine; the last one is the baseline)
    store    a cached engine that has not seen it: the writer computes and stores
    reuse    the other cached engine, which has not seen it either: the reader loads what the writer stored
    again    the reader once more: now its own prefix cache has it

With several caches each has its own writer and reader, and all of them are asked in every trial.

Arms run in random, balanced order (reuse after store, again after reuse). The salt makes cold cold: an engine and its
cache mix it into every key, so that nothing of another trial or program can match.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvdemo.bench import foreign
from kvdemo.errors import UsageError
from kvdemo.judge.sample import Arm
from kvdemo.planning.plan import Plan, ServiceSpec


@dataclass(frozen=True)
class Pair:
    """Two engines that share a cache: one stores, the other loads."""

    writer: ServiceSpec
    reader: ServiceSpec


@dataclass(frozen=True)
class Roles:
    """Which engine plays what. ``plain`` may be empty: then the writer's cold is the baseline.

    ``others`` are pairs with caches of their own, which are measured in the same trials.
    """

    plain: tuple[ServiceSpec, ...]
    writer: ServiceSpec
    reader: ServiceSpec
    others: tuple[Pair, ...] = ()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs, that of writer and reader first."""
        return (Pair(self.writer, self.reader), *self.others)

    @property
    def baseline(self) -> ServiceSpec:
        """The engine whose cold request a reuse is compared with."""
        return self.plain[-1] if self.plain else self.writer

    @property
    def engines(self) -> tuple[ServiceSpec, ...]:
        """Everybody who takes part."""
        return (*self.plain, *(engine for pair in self.pairs for engine in (pair.writer, pair.reader)))


@dataclass(frozen=True)
class Step:
    """One request of a trial; ``writer`` and ``length`` as in ``Sample``."""

    trial: int
    arm: Arm
    engine: ServiceSpec
    salt: str
    expected: int
    writer: str = ""
    length: int = 0


def roles(plan: Plan, writer: str = "", reader: str = "", baseline: str = "") -> Roles:
    """Give out the roles: the first two engines of one cache and model write and read, the last plain one is baseline.

    Of several caches the one whose engines are named alone, else all whose engines have the model of the first. Raises
    UsageError if there are no two.
    """
    plan = foreign.with_named(plan, writer, reader)
    sharing: dict[tuple[str, str], list[ServiceSpec]] = {}
    for spec in plan.engines:
        if spec.cache:
            sharing.setdefault((spec.shared_cache, spec.model), []).append(spec)
    pairs = [group for group in sharing.values() if len(group) > 1]
    if not pairs:
        raise UsageError(
            "no two engines of this fleet share a cache",
            "give two engines of one model the same `cache:` in the profile",
        )
    groups = [{spec.name: spec for spec in pair} for pair in pairs]
    for name in (writer, reader):
        if name and not any(name in group for group in groups):
            names = "; or ".join(", ".join(group) for group in groups)
            raise UsageError(f"{name} is not one of the engines that share a cache", f"they are {names}")
    if writer and writer == reader:
        raise UsageError(f"{writer} cannot be writer and reader", "what an engine reads of its own proves no sharing")
    fits = [group for group in groups if {writer, reader} - {""} <= group.keys()]
    if not fits:
        raise UsageError(f"{writer} and {reader} do not share a cache and model", "name two engines that do")
    group = fits[0]
    engine_name = writer or reader
    writer = writer or next(name for name in group if name != reader)
    reader = reader or next(name for name in group if name != writer)
    plain = [
        spec
        for spec in plan.engines
        if not spec.cache and spec.model == group[writer].model and not foreign.is_foreign(spec)
    ]
    if baseline and baseline not in {spec.name for spec in plain}:
        names = ", ".join(spec.name for spec in plain) or "there is none"
        raise UsageError(f"--baseline: {baseline} is not a plain engine of this model", f"plain engines: {names}")
    plain.sort(key=lambda spec: spec.name == baseline)
    model = group[writer].model
    rest = [] if engine_name else [[*other.values()] for other in groups if other is not group]
    others = tuple(Pair(*other[:2]) for other in rest if other[0].model == model)
    return Roles(tuple(plain), group[writer], group[reader], others)


def messages(system: str, document: str, question: str, turns: Iterable[tuple[str, str]] = ()) -> list[dict[str, str]]:
    """The chat: instruction and document, an acknowledgement, earlier ``turns`` (question, answer), the question.

    The instruction stands in the first user message since some chat templates (Mistral-7B-Instruct-v0.2's among them)
    accept no system role.
    """
    return [
        {"role": "user", "content": f"{system}\n\n{document}"},
        {"role": "assistant", "content": "I have read the document."},
        *(
            {"role": role, "content": words}
            for turn in turns
            for role, words in zip(("user", "assistant"), turn, strict=True)
        ),
        {"role": "user", "content": question},
    ]


def text(system: str, document: str, question: str) -> str:
    """The same for the completions endpoint."""
    return f"{system}\n\n{document}\n\nQuestion: {question}\nAnswer:"


def body(
    model: str,
    prompt: Mapping[str, Any],
    *,
    max_tokens: int,
    salt: str,
    logprobs: Any = True,
    ignore_eos: bool = True,
) -> dict[str, Any]:
    """A greedy, streamed request whose tokens come back as ids with log-probabilities.

    The answer has exactly ``max_tokens`` tokens, or without ``ignore_eos`` at most so many.
    """
    return {
        "model": model,
        **prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 0,
        "ignore_eos": ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": logprobs,
        "return_tokens_as_token_ids": True,
        "cache_salt": salt,
    }


def trial_orders(count: int, roles: Roles, seed: int = 0) -> Iterator[list[tuple[Arm, ServiceSpec]]]:
    """The arms of ``count`` trials in the order in which to run them.

    Odd trials are shuffled, each even one reverses the blocks of the one before it, so that drift hits all arms alike.
    """
    generator = random.Random(seed)  # noqa: S311 (an order, not a secret)
    shared: list[list[tuple[Arm, ServiceSpec]]] = [
        [("store", pair.writer), ("reuse", pair.reader), ("again", pair.reader)] for pair in roles.pairs
    ]
    cold: list[list[tuple[Arm, ServiceSpec]]] = [[("cold", engine)] for engine in roles.plain]
    blocks = [*cold, *shared]
    for number in range(1, count + 1):
        if number % 2:
            generator.shuffle(blocks)
        else:
            blocks.reverse()
        yield [arm for block in blocks for arm in block]
