"""What a cache should have, from what it was given; and what a turn of the page says of its answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from browsing import words
from conftest import Lab
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import Verdict, judge
from kvdemo.ui import race
from kvdemo.ui.conversation import Bell, Conversation, Document, Lane, Phase, Turn
from kvdemo.ui.engines import EnginePool
from kvdemo.ui.prompts import PromptHistory, common
from runs import CALM, sample

TOKENS = st.lists(st.integers(0, 2), max_size=40)


@CALM
@given(TOKENS, TOKENS)
def test_the_common_prefix(one: list[int], other: list[int]) -> None:
    """As long as it is, no longer."""
    length = common(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


@CALM
@given(TOKENS, TOKENS, st.integers(1, 8))
def test_whole_chunks_of_what_was_seen(seen: list[int], asked: list[int], chunk: int) -> None:
    """Of the same holder under the same salt, and never the last token."""
    recall = PromptHistory()
    recall.note("a", "salt", seen)
    assert recall.expected("b", "salt", asked, chunk) == recall.expected("a", "other", asked, chunk) == 0
    expected = recall.expected("a", "salt", asked, chunk)
    assert expected <= max(0, min(common(seen, asked), len(asked) - 1))
    assert common(seen, asked) - expected <= chunk
    assert expected % chunk == 0


def lane(arm: str, engine: str, cache: str = "", **changes: object) -> Lane:
    """An engine that is done."""
    done: Sample = replace(sample(arm, engine=engine), **changes)  # type: ignore[arg-type]
    phase = Phase.FAILED if done.error else Phase.DONE
    return Lane(engine, cache, phase, ttft=done.ttft, text=done.text, sample=done, judgement=judge(done))


def turn(*lanes: Lane) -> Turn:
    """A turn of these."""
    return Turn(1, "Who?", Document("d", "text", 1, "salt"), [lanes])


def test_a_finding_compares_shared_with_a_plain_cold() -> None:
    """Not with the cold of an engine that stores; nor with a failed one; and no finding without both."""
    store, cold, reuse = lane("store", "a", "shared"), lane("cold", "plain"), lane("reuse", "b", "shared")
    found = turn(store, cold, reuse).finding
    assert found
    assert (found[0].engine, found[1].engine) == ("b", "plain")
    assert round(found[2]) == 20
    assert turn(store, cold).finding is None
    assert turn(lane("cold", "plain", error="gone"), reuse).finding is None


def test_the_conversation_goes_on_with_the_first_answer() -> None:
    """Of those that are whole."""
    slow, fast = lane("cold", "plain", text="slow"), lane("reuse", "b", "shared", text="fast")
    assert turn(slow, fast).answer == "fast"
    assert turn(slow, lane("reuse", "b", "shared", error="gone")).answer == "slow"
    assert turn(slow, fast).same_tokens is True
    assert turn(slow, lane("reuse", "b", "shared", token_ids=(9,))).same_tokens is False
    assert turn(slow).same_tokens is None


def test_every_cache_has_chunks_of_its_own(lab: Lab) -> None:
    """Of caches of unequal chunks each is waited for, and each reader expects, what it can hold."""
    sizes = {"fine": 64, "coarse": 512}
    caches = {name: {"l1": "16MiB", "chunk_size": size} for name, size in sizes.items()}
    lab.up(lab.profile({f"{name}-{one}": {"cache": name} for name in caches for one in "ab"}, caches))

    async def ask(pool: EnginePool) -> list[Lane]:
        await pool.open()
        try:
            conversation = Conversation(pool.document("text", words(600)), "", Bell(asyncio.get_running_loop()))
            groups = [[f"{name}-{one}"] for one in "ab" for name in caches]
            turn = pool.turn(conversation, "What?", groups, 4, follow=False)
            await race.ask(pool, conversation, turn)
            return turn.lanes
        finally:
            await pool.close()

    pool = EnginePool(lab.project(), lab.environ)
    with pool.meter:
        lanes = asyncio.run(ask(pool))
    tokens = [lane.sample.prompt_tokens or 0 for lane in lanes if lane.sample]
    whole = [count // sizes[lane.cache] for count, lane in zip(tokens, lanes, strict=True)]
    assert whole[0] > 8 * whole[1] == 8
    awaited = {cache: (outcome.chunks, outcome.arrived) for (cache, _), outcome in pool.meter.stored.items()}
    assert awaited == {"fine": (whole[0],) * 2, "coarse": (1, 1)}
    assert [lane.verdict for lane in lanes] == [Verdict.COLD] * 2 + [Verdict.SHARED] * 2
    assert [lane.sample.expected for lane in lanes if lane.sample] == [0, 0, whole[0] * 64, 512]
