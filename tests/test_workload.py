"""What is asked of whom, in which order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdemo.bench import session, workload
from kvdemo.bench.modes import decode
from kvdemo.config.benchmark import Bench
from kvdemo.errors import UsageError
from kvdemo.planning.plan import Plan, ServiceSpec
from runs import CALM


def engine(name: str, cache: str = "", model: str = "m") -> ServiceSpec:
    """An engine."""
    return ServiceSpec(
        name=name,
        kind="engine",
        argv=("python",),
        env={},
        host="127.0.0.1",
        port=1,
        ports=(1,),
        start_timeout=1,
        stop_timeout=1,
        cache=cache,
        model=model,
    )


def fleet(*engines: ServiceSpec) -> Plan:
    """A plan of these engines."""
    return Plan(project="t", profile="t.yaml", services=engines)


FOUR = fleet(engine("p"), engine("q"), engine("a", "c"), engine("b", "c"))


def test_the_first_two_of_a_cache_write_and_read() -> None:
    """The plain engines are cold, the last of them is the baseline."""
    cast = workload.roles(FOUR)
    assert [spec.name for spec in cast.plain] == ["p", "q"]
    assert (cast.writer.name, cast.reader.name, cast.baseline.name) == ("a", "b", "q")
    assert [spec.name for spec in cast.engines] == ["p", "q", "a", "b"]


def test_roles_can_be_swapped() -> None:
    """By name; only among those that share."""
    cast = workload.roles(FOUR, writer="b", reader="a")
    assert (cast.writer.name, cast.reader.name) == ("b", "a")
    with pytest.raises(UsageError, match="p is not one of"):
        workload.roles(FOUR, writer="p")


def test_of_several_caches_the_named_engines_decide() -> None:
    """One name is enough; two of different caches are refused."""
    two = fleet(*FOUR.engines, engine("x", "d"), engine("y", "d"))
    assert workload.roles(two).writer.name == "a"
    for named in ({"writer": "x"}, {"reader": "y"}, {"writer": "x", "reader": "y"}):
        cast = workload.roles(two, **named)
        assert (cast.writer.name, cast.reader.name, cast.baseline.name) == ("x", "y", "q")
    with pytest.raises(UsageError, match="a and y do not share a cache"):
        workload.roles(two, writer="a", reader="y")
    with pytest.raises(UsageError, match="p is not one of") as refused:
        workload.roles(two, reader="p")
    assert refused.value.hint == "they are a, b; or x, y"


def test_what_an_l2_cannot_do_is_refused() -> None:
    """There is none, it is a server that has no files here, or it has no disk below it."""
    disk = Bench().with_values({"tier": "l2", "drop_page_cache": True})
    cache = replace(FOUR.engines[0], name="c", kind="cache", store="/kv")
    session.check_tier(disk, cache)
    with pytest.raises(UsageError, match="c: there is no L2 to read from"):
        session.check_tier(disk, replace(cache, store=""))
    server = replace(cache, store="redis://kv:6379")
    with pytest.raises(UsageError, match="--drop-page-cache: L2 of c is redis://kv:6379"):
        session.check_tier(disk, server)
    session.check_tier(Bench().with_values({"tier": "l2"}), server)
    with pytest.raises(UsageError, match=r"--drop-page-cache: L2 of c is in memory \(/dev/shm, a tmpfs\)"):
        session.check_tier(disk, replace(cache, store="/dev/shm"))


def test_without_a_plain_engine_the_writer_is_the_baseline() -> None:
    """There is a cold request in any case."""
    assert workload.roles(fleet(engine("a", "c"), engine("b", "c"))).baseline.name == "a"


def test_decoding_is_compared_beside_the_writer() -> None:
    """The engine that only computes is placed like the writer: beside the reader it would slow it as storing cannot."""
    first, second = (0,), (1,)
    one = [replace(spec, gpus=first) for spec in FOUR.engines]
    assert [spec.name for spec in decode.busy(workload.roles(fleet(*one)))] == ["q", "a"]
    two = [replace(spec, gpus=gpus) for spec, gpus in zip(FOUR.engines, (first, second) * 2, strict=True)]
    assert [spec.name for spec in decode.busy(workload.roles(fleet(*two)))] == ["p", "a"]
    four = [replace(spec, gpus=(number,)) for number, spec in enumerate(FOUR.engines)]
    assert [spec.name for spec in decode.busy(workload.roles(fleet(*four)))] == ["q", "a"], "neither with the reader"
    wider = [replace(spec, gpus=(4, 5)) if spec.name in "pq" else spec for spec in four]
    assert decode.busy(workload.roles(fleet(*wider))) == (), "two GPUs compute otherwise than one"
    beside_reader = [replace(spec, gpus=first if spec.name == "a" else second) for spec in FOUR.engines]
    assert decode.busy(workload.roles(fleet(*beside_reader))) == ()
    assert decode.busy(workload.roles(fleet(engine("a", "c"), engine("b", "c")))) == ()


def test_only_engines_of_one_model_share() -> None:
    """KV of another model is of no use; a plain engine of another model is no baseline."""
    cast = workload.roles(fleet(engine("p", model="x"), engine("x", "c", "x"), engine("a", "c"), engine("b", "c")))
    assert (cast.plain, cast.writer.name, cast.reader.name) == ((), "a", "b")


@pytest.mark.parametrize(
    "engines",
    [
        (engine("p"), engine("q")),
        (engine("a", "c"),),
        (engine("a", "c"), engine("b", "d")),
        (engine("a", "c", "x"), engine("b", "c", "y")),
    ],
    ids=["plain", "one", "two caches", "two models"],
)
def test_nobody_to_share_with(engines: tuple[ServiceSpec, ...]) -> None:
    """Is said before anything is asked."""
    with pytest.raises(UsageError, match="no two engines of this fleet share a cache"):
        workload.roles(fleet(*engines))


@CALM
@given(st.integers(1, 40), st.integers(0, 1000))
def test_the_order_of_arms_is_balanced(count: int, seed: int) -> None:
    """Every arm once a trial; reuse right after store, again after reuse; an even trial reverses the one before."""
    trials = list(workload.trial_orders(count, workload.roles(FOUR), seed))
    assert len(trials) == count
    for steps in trials:
        names = [(arm, spec.name) for arm, spec in steps]
        assert Counter(names) == Counter([("cold", "p"), ("cold", "q"), ("store", "a"), ("reuse", "b"), ("again", "b")])
        first = names.index(("store", "a"))
        assert names[first + 1 : first + 3] == [("reuse", "b"), ("again", "b")]
    first_arms = [[step for step in steps if step[0] in {"cold", "store"}] for steps in trials]
    for odd, even in zip(first_arms[::2], first_arms[1::2], strict=False):
        assert even == odd[::-1]


def test_the_order_depends_on_the_seed_alone() -> None:
    """Two runs of one seed ask in the same order."""
    cast = workload.roles(FOUR)
    assert list(workload.trial_orders(9, cast, 1)) == list(workload.trial_orders(9, cast, 1))
    assert list(workload.trial_orders(9, cast, 1)) != list(workload.trial_orders(9, cast, 2))


def test_bodies_are_greedy_and_salted() -> None:
    """The same question twice gives the same tokens, each named; the salt keeps trials apart."""
    body = workload.body("m", {"prompt": "x"}, max_tokens=5, salt="s")
    wanted = {"temperature": 0, "max_tokens": 5, "ignore_eos": True, "cache_salt": "s", "stream": True}
    assert {key: body[key] for key in wanted} == wanted
    assert body["return_tokens_as_token_ids"] is True


def test_the_document_comes_before_the_question() -> None:
    """Two questions about one document share its prefix, in chat and in completions."""
    one, other = workload.messages("s", "d", "one?"), workload.messages("s", "d", "other?")
    assert one[:-1] == other[:-1]
    assert workload.text("s", "d", "x").startswith("s\n\nd\n\n")
