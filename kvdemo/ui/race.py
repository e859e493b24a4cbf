"""One turn: its engines are asked, its lanes filled. Everything that goes wrong is shown where the answer would be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from kvdemo import backends
from kvdemo.bench import workload
from kvdemo.bench.client import Reply
from kvdemo.bench.workload import Step
from kvdemo.errors import KvdemoError
from kvdemo.judge.sample import Arm, Sample
from kvdemo.judge.verdict import Verdict, judge
from kvdemo.planning.plan import ServiceSpec
from kvdemo.ui.conversation import Bell, Conversation, Lane, Phase, Turn
from kvdemo.ui.engines import WARM_UP_PATIENCE, EnginePool

CALM = 0.4
"""Seconds after sending in which nothing is drawn: a browser on the same machine takes an engine's processor time."""

PATH = "/v1/chat/completions"
PARTLY = "another engine was still storing it, or had been interrupted"
Messages = list[dict[str, str]]


async def ask(
    pool: EnginePool, conversation: Conversation, turn: Turn, painted: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Ask the engines of a turn, group after group.

    ``painted`` is awaited before each group: a browser that still draws takes processor time from an engine beside it.
    The engines' counters are read there, too: what one counts of a prompt is told apart from what came before.
    """
    messages = workload.messages(conversation.system, turn.document.text, turn.question, turn.earlier)
    for group in turn.groups:
        if painted is not None:
            await painted()
        await pool.do(pool.read_counters)
        lanes = (pool.do(_lane, pool, turn, lane, messages, conversation.bell) for lane in group)
        await asyncio.gather(*lanes)


def _lane(pool: EnginePool, turn: Turn, lane: Lane, messages: Messages, bell: Bell) -> None:
    """One engine, in a thread of its own."""
    try:
        spec = pool.plan.service(lane.engine)
        pool.warmed.wait(WARM_UP_PATIENCE)
        ids = pool.tokenize(spec.model, {"messages": messages})
        with pool.locks[lane.engine]:
            if pool.closed:
                return
            sample = _measure(pool, turn, lane, spec, messages, ids, bell)
    except Exception as error:
        message = str(error) or type(error).__name__
        sample = Sample(turn.number, "store" if lane.cache else "cold", lane.engine, time.time(), error=message)
    pool.end(lane)
    lane.sample, lane.judgement = sample, judge(sample)
    if lane.judgement.verdict is Verdict.COLD and not lane.beside:
        pool.note_pace(lane.engine, sample.prompt_tokens, sample)
    lane.text, lane.ttft = sample.text, sample.ttft
    lane.phase = Phase.FAILED if sample.error else Phase.DONE
    pool.history.append(sample)
    bell.ring()
    pool.bell.ring()
    if sample.error:
        with suppress(KvdemoError):
            pool.observe()


def _measure(
    pool: EnginePool, turn: Turn, lane: Lane, spec: ServiceSpec, messages: Messages, ids: list[int], bell: Bell
) -> Sample:
    """Ask, with what is known of who has read it; and remember that this engine has now."""
    salt, chunk = turn.document.salt, spec.chunk_size or pool.chunk
    own, shared = pool.holder(spec.name), pool.holder(spec.cache)
    local = pool.prompts.expected(own, salt, ids, chunk)
    expected = max(local, pool.prompts.expected(shared, salt, ids, chunk) if spec.cache else 0)
    step = Step(turn.number, _arm(spec, local, expected), spec, salt, expected)
    body = workload.body(spec.model, {"messages": messages}, max_tokens=turn.max_tokens, salt=salt)
    body |= {"ignore_eos": False}  # a chat ends where the model does
    chunks = len(ids) // chunk if step.arm == "store" else 0

    def hear(reply: Reply) -> None:
        if reply.e2el is not None or reply.error:
            lane.phase = Phase.CHECKING
            bell.ring()
        elif reply.ttft is None:
            with pool.looking:  # a look at the services in the middle of it would take processor time
                pool.begin(lane)
            bell.ring_later(CALM)
        else:
            lane.phase, lane.ttft, lane.text = Phase.ANSWERING, reply.ttft, reply.text
            pool.timed.discard(id(lane))
            bell.ring()

    sample = pool.meter.ask(step, PATH, body, chunks, Reply(on_token=hear))
    if not sample.error:
        pool.prompts.note(own, salt, [*ids, *sample.token_ids[:-1]])
        if spec.cache:
            pool.prompts.note(shared, salt, ids)
    if not expected and (sample.cached_tokens or 0) > 0:
        return replace(sample, expected=backends.of(spec.backend).reusable(len(ids), chunk), note=PARTLY)
    return sample


def _arm(spec: ServiceSpec, local: int, expected: int) -> Arm:
    """The part in a trial that this request plays."""
    if not spec.cache:
        return "control" if local else "cold"
    return "again" if local else "reuse" if expected else "store"
