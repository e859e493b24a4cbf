"""Several caches in one run: who is asked what, what is found of each, and the sentence that compares them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from kvdemo.bench import workload
from kvdemo.errors import UsageError
from kvdemo.judge import document, results
from kvdemo.judge.result import Conditions, Result
from kvdemo.judge.sample import Arm, Sample, Sources
from kvdemo.planning.plan import Plan, ServiceSpec
from kvdemo.words import findings

PROMPT, HIT = 1000, 896
CONTENDERS = [
    {"cache": "pool-a", "title": "LMCache", "writer": "a1", "reader": "a2", "chunk_size": 128},
    {"cache": "pool-b", "title": "Mooncake", "writer": "b1", "reader": "b2", "chunk_size": 128},
]


def spec(name: str, cache: str = "", model: str = "m") -> ServiceSpec:
    """An engine of a plan."""
    return ServiceSpec(name, "engine", (), {}, "", 0, (), 0.0, 0.0, cache=cache, model=model)


def plan(*engines: ServiceSpec) -> Plan:
    """A plan of these engines."""
    return Plan("p", "", engines)


FLEET = plan(spec("v"), spec("a1", "x"), spec("a2", "x"), spec("b1", "y"), spec("b2", "y"))


def test_every_cache_has_a_pair() -> None:
    """All caches of one model take part; whoever names an engine measures its cache alone."""
    roles = workload.roles(FLEET)
    assert [(pair.writer.name, pair.reader.name) for pair in roles.pairs] == [("a1", "a2"), ("b1", "b2")]
    assert [engine.name for engine in roles.engines] == ["v", "a1", "a2", "b1", "b2"]
    alone = workload.roles(FLEET, reader="b1")
    assert [(pair.writer.name, pair.reader.name) for pair in alone.pairs] == [("b2", "b1")]
    other = plan(*FLEET.engines[:3], spec("b1", "y", "n"), spec("b2", "y", "n"))
    assert len(workload.roles(other).pairs) == 1, "another model is another document in tokens"
    with pytest.raises(UsageError, match="do not share"):
        workload.roles(FLEET, writer="a1", reader="b2")


def test_the_order_is_balanced() -> None:
    """Each trial asks every pair once, its reader after its writer; each second trial the other way round."""
    order = [*workload.trial_orders(40, workload.roles(FLEET))]
    first = Counter(steps[0][1].name for steps in order)
    assert first["v"] + first["a1"] + first["b1"] == 40
    assert min(first.values()) > 5
    for odd, even in zip(order[::2], order[1::2], strict=True):
        blocks = [
            [steps.index((arm, engine)) for arm, engine in steps if arm in ("cold", "store")] for steps in (odd, even)
        ]
        names = [[steps[at][1].name for at in block] for steps, block in zip((odd, even), blocks, strict=True)]
        assert names[0] == names[1][::-1]
    for steps in order:
        arms: list[tuple[str, str]] = [(arm, engine.name) for arm, engine in steps]
        for pair in ("a", "b"):
            places = [arms.index((arm, f"{pair}{n}")) for arm, n in (("store", 1), ("reuse", 2), ("again", 2))]
            assert places == [*range(places[0], places[0] + 3)]


def sample(trial: int, arm: Arm, engine: str, ttft: float, **given: object) -> Sample:
    """A request whose engine tells where its tokens came from; the answer depends on nothing."""
    shared, local = (HIT if arm == "reuse" else 0), (HIT if arm in ("again", "control") else 0)
    made = Sample(
        trial,
        arm,
        engine,
        float(trial),
        expected=shared + local,
        prompt_tokens=PROMPT,
        completion_tokens=2,
        cached_tokens=shared + local,
        sources=Sources(PROMPT - shared - local, local, shared),
        ttft=ttft,
        token_ids=(1, 2),
        logprobs=(-0.5, -2.0),
    )
    return replace(made, **given)  # type: ignore[arg-type]


def run(trials: int = 6, slower: float = 2.0, jitter: float = 0.01) -> list[Sample]:
    """Trials in which b's reader takes ``slower`` times as long as a's."""
    made = [sample(0, "control", "v", 0.1)]
    for trial in range(1, trials + 1):
        wobble = 1 + jitter * (trial % 3)
        made += [sample(trial, "cold", "v", 1.0)]
        for side, factor in (("a", 1.0), ("b", slower)):
            made += [sample(trial, "store", f"{side}1", 1.0), sample(trial, "again", f"{side}2", 0.1)]
            made.append(sample(trial, "reuse", f"{side}2", 0.2 * (factor * wobble if side == "b" else 1.0)))
    return made


def conditions() -> Conditions:
    """Those of a run of two caches."""
    facts = {"model_id": "m", "prompt_tokens": PROMPT, "num_trials": 6, "device": "d", "baseline": "v", "writer": "a1"}
    return document.of_mapping({**facts, "reader": "a2", "chunk_size": 128, "contenders": CONTENDERS})


def result(samples: list[Sample]) -> Result:
    """What such a run means."""
    return results.summarize(conditions(), samples)


def test_the_sentence_compares_trial_by_trial() -> None:
    """Each against the plain engine, then the two with an interval of the paired ratio."""
    found = result(run())
    assert found.contest
    (between,) = found.contest.between
    assert (between.cache, between.other, between.ratio.n) == ("pool-a", "pool-b", 6)
    assert between.ratio.low
    assert between.ratio.high
    assert 2.0 <= between.ratio.low <= between.ratio.median <= between.ratio.high <= 2.05
    line = findings.headline(found)
    assert line.hero == "LMCache 5.0x, Mooncake 2.5x"
    assert "LMCache is 2.0x faster (TTFT) than Mooncake here (95 % interval 2.0x to 2.0x, 6 trials)." in line.sentence
    assert found.valid


def test_an_interval_that_holds_one_is_noise() -> None:
    """The two differ by less than they vary: no winner is named."""
    mixed = [
        replace(one, ttft=0.2 * (0.8 if one.trial % 2 else 1.2)) if (one.arm, one.engine) == ("reuse", "b2") else one
        for one in run()
    ]
    assert "no difference within noise" in findings.headline(result(mixed)).sentence
    alone = findings.headline(result(run(1)))
    assert alone.hero == "LMCache 5.0x, Mooncake 2.5x in 1 trial"
    assert "1 trial: its noise is unknown" in alone.sentence


def test_the_rows_stand_by_cache() -> None:
    """The plain engines first, then each cache's writer, reuse and again; and every row once."""
    rows = [(row.engine, row.arm) for row in result(run()).rows]
    of = {side: [(f"{side}1", "store"), (f"{side}2", "reuse"), (f"{side}2", "again")] for side in "ab"}
    assert rows == [("v", "cold"), *of["a"], *of["b"]]


def test_what_is_wrong_with_one_is_not_said_of_the_other() -> None:
    """One gives another answer: it has no speed-up, the run is not valid, and the other keeps its own."""
    wrong = [replace(one, token_ids=(1, 3)) if (one.arm, one.engine) == ("reuse", "b2") else one for one in run()]
    found = result(wrong)
    assert found.contest
    speedups = [side.speedup.median if side.speedup else None for side in found.contest.sides]
    assert speedups == [5.0, None]
    assert [side.answer.same for side in found.contest.sides] == [True, False]
    assert (found.answer.same, found.valid, found.contest.between) == (False, False, ())
    missed = [
        replace(one, sources=Sources(PROMPT, 0, 0), cached_tokens=0)
        if one.engine == "b2" and one.arm == "reuse"
        else one
        for one in run()
    ]
    found = result(missed)
    assert "Mooncake nothing proved" in findings.headline(found).hero
    assert not found.valid


def test_it_is_read_back_as_it_was_written() -> None:
    """As JSON and again: the same result."""
    found = result(run())
    assert document.from_json_text(json.dumps(document.to_json(found))) == found


def test_a_run_of_one_cache_has_none() -> None:
    """Nothing of a contest in its document."""
    alone = results.summarize(replace(conditions(), contenders=()), [one for one in run() if one.engine[0] != "b"])
    assert alone.contest is None
    assert "contest" not in document.to_json(alone)
