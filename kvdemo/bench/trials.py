"""Trials of one document: each puts it, under a salt of its own, to every arm once; and the control for the answers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from kvdemo.bench import cacheserver, workload
from kvdemo.bench.client import Reply
from kvdemo.bench.events import Doing
from kvdemo.bench.measure import Meter
from kvdemo.bench.session import Prompt, Session
from kvdemo.bench.workload import Step
from kvdemo.host.bandwidth import drop_pages
from kvdemo.judge import results
from kvdemo.judge.sample import Arm, Sample
from kvdemo.judge.verdict import FEW
from kvdemo.planning.plan import ServiceSpec

WARM_UP_CHARACTERS = 16000

TIGHT = 0.05
"""A run with --max-trials stops when the speed-up's interval is within this share of its median."""


def run(session: Session, prompt: Prompt, length: int = 0, part: tuple[int, int] = (0, 1)) -> Generator[Doing | Sample]:
    """Yield the requests of the trials of one document, until there are enough.

    ``part`` is (index, count) of this document among those of the run, for the share that is done.
    """
    options, roles = session.options, session.roles
    most = max(options.max_trials, options.trials)
    samples: list[Sample] = []
    for number, steps in enumerate(workload.trial_orders(most, roles, options.seed), 1):
        if number > options.trials and all(
            results.is_tight(samples, roles.baseline.name, pair.reader.name, TIGHT) for pair in roles.pairs
        ):
            return
        for behind, (arm, engine) in enumerate(steps):
            if arm == "again" and options.concurrency > 1:
                continue  # the counters could not tell who hit what
            where = f" at {length:,} tokens" if length else ""
            share = (part[0] + (number - 1 + behind / len(steps)) / most) / part[1]
            text = f"trial {number} of {most}{where}: {engine.name} {arm}"
            yield Doing(text, share, number, most, engine.name, arm)
            for sample in ask(session, prompt, number, arm, engine, length):
                samples.append(sample)
                yield sample
        # A document of 30,000 tokens is 4 GB of a 7B model's KV: kept for all trials they would fill the disk.
        cacheserver.forget(session.plan, session.salt(f"{length}-{number}-*"), session.meter.began)


def ask(
    session: Session, prompt: Prompt, trial: int, arm: Arm, engine: ServiceSpec, length: int = 0
) -> Sequence[Sample]:
    """One arm of a trial: one request, or as many at once as the run's concurrency.

    Every arm is asked alike: the time of a request among others cannot be compared with that of one alone.
    """
    expected = session.reusable(prompt.tokens, engine) if arm in ("reuse", "again") else 0
    salts = [session.salt(f"{length}-{trial}-{n}") for n in range(session.options.concurrency)]
    steps = [Step(trial, arm, engine, salt, expected, length=length) for salt in salts]
    bodies: list[dict[str, Any]] = [prompt.body(engine, salt) for salt in salts]
    chunks = prompt.tokens // (engine.chunk_size or session.chunk) if arm == "store" else 0
    samples = session.meter.ask_all(steps, prompt.path, bodies, chunks)
    if arm == "store":
        reader = next(pair.reader for pair in session.roles.pairs if pair.writer is engine)
        make_loadable(session, salts, chunks, engine, reader)
    return samples


def make_loadable(
    session: Session, salts: Sequence[str], chunks: int, writer: ServiceSpec, reader: ServiceSpec
) -> None:
    """A reader with another server finds chunks in L2 only: wait for them. With tier l2, clear L1 too."""
    tier, meter = session.options.tier, session.meter
    if tier != "l2" and writer.cache == reader.cache:
        return
    for salt in salts:
        files = cacheserver.wait_for_files(session.plan, salt, chunks)
        key = writer.shared_cache, salt
        meter.stored[key] = replace(meter.stored[key], files_in_l2=files)
    if tier != "l2":
        return
    if cache := meter.cache(reader):
        cacheserver.clear_l1(cache)
    if session.options.drop_page_cache:
        for salt in salts:
            for file in cacheserver.files_of(session.plan, salt):
                drop_pages(file)


def control(session: Session, prompt: Prompt, length: int = 0, share: float = 1.0) -> Generator[Doing | Sample]:
    """The same prompt on each plain engine that has exactly the reused tokens in its own prefix cache.

    Without a plain engine, on the writer. It gets them from a prompt of the same length and the same first tokens whose
    next token differs: the same prefill shapes, hence the same bits. Requests that share a batch round differently, so
    there is none for them.
    """
    if session.options.concurrency > 1:
        return
    ids = list(prompt.ids)
    hits = dict.fromkeys(session.reusable(len(ids), pair.reader) for pair in session.roles.pairs)
    for hit, engine in ((hit, engine) for hit in hits for engine in controls(session)):
        other = [*ids[:hit], *reversed(ids[hit:])]
        if other[hit] == ids[hit]:
            other[hit] = ids[0]
        text = f"control: a local hit of the same length on {engine.name}"
        yield Doing(text, share, engine=engine.name, arm="control")
        salt = session.salt(f"{length}-control-{hit}")
        body = workload.body(engine.model, {"prompt": other}, max_tokens=1, salt=salt, logprobs=1)
        step = Step(0, "control", engine, salt, hit, length=length)
        # Measured too, so that its tokens are counted before the next.
        session.meter.ask(replace(step, expected=0), "/v1/completions", body)
        yield session.meter.ask(step, prompt.path, prompt.body(engine, salt))


def controls(session: Session) -> Sequence[ServiceSpec]:
    """The engines that give a control."""
    return session.roles.plain[::-1] or (session.roles.writer,)


def warm_up(
    meter: Meter, engine: ServiceSpec, system: str, document: str, salt: str, question: str = "Ready?"
) -> Reply:
    """A throwaway on other text: first requests pay for shapes, allocations and the connector's handshake."""
    text = " ".join(reversed(document[:WARM_UP_CHARACTERS].split()))
    prompt = {"messages": workload.messages(system, text, question)}
    body = workload.body(engine.model, prompt, max_tokens=FEW, salt=salt)
    reply = meter.client(engine).stream("/v1/chat/completions", body)
    meter.notice(engine, reply)
    return reply
