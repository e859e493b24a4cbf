"""From samples to findings: every verdict provoked, statistics, answers, and files judged again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdemo.errors import UsageError
from kvdemo.judge import answers, document, record, stats
from kvdemo.judge.sample import Sample, Sources
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, Verdict, judge
from kvdemo.report import savedrun
from runs import CALM, CONDITIONS, HIT, PROMPT, edit, run, sample, samples, save, summarize

tokens = st.integers(0, 5000)
times = st.floats(0.001, 1000)


@pytest.mark.parametrize(
    ("made", "verdict", "why"),
    [
        (sample("cold"), Verdict.COLD, ""),
        (sample("store"), Verdict.COLD, ""),
        (sample("reuse"), Verdict.SHARED, ""),
        (sample("again"), Verdict.LOCAL, ""),
        (sample(cached_tokens=128, sources=Sources(PROMPT - 128, 0, 128)), Verdict.PARTIAL, "128 of 896"),
        (sample(cached_tokens=0, sources=Sources(PROMPT, 0, 0)), Verdict.MISS, "evicted"),
        (sample(cached_tokens=0, sources=Sources(PROMPT, 0, 0), note="not stored in time"), Verdict.MISS, "in time"),
        (sample(sources=None), Verdict.UNPROVEN, "counters do not tell"),
        (sample(prompt_tokens=None), Verdict.UNPROVEN, "no usage"),
        (sample(sources=Sources(PROMPT, 0, HIT)), Verdict.UNPROVEN, "another client"),
        (sample(sources=Sources(0, 0, HIT)), Verdict.UNPROVEN, "late or incomplete"),
        (sample(cached_tokens=None), Verdict.UNPROVEN, "--enable-prompt-tokens-details"),
        (sample(cached_tokens=0), Verdict.UNPROVEN, "usage says 0"),
        (sample(error="the stream ended early"), Verdict.FAILED, "ended early"),
        (sample("cold", cached_tokens=HIT, sources=Sources(PROMPT - HIT, HIT, 0)), Verdict.LOCAL, ""),
    ],
)
def test_every_verdict(made: Sample, verdict: Verdict, why: str) -> None:
    """Each verdict follows from the engine's counts, and says why unless it speaks for itself."""
    judgement = judge(made)
    assert judgement.verdict is verdict
    assert why in judgement.why
    assert bool(judgement.why) == (verdict not in {Verdict.COLD, Verdict.SHARED, Verdict.LOCAL})


@pytest.mark.parametrize(
    ("arrival", "held"),
    [
        ({"itl": (0.02,) * 15, "server_itl": 0.02, "together": 1}, False),
        ({"itl": (0.02,) * 15, "server_itl": None, "together": 1}, False),
        ({"itl": (0.001,) * 15, "server_itl": 0.0011, "together": 2}, False),
        ({"itl": (0.001,) * 5, "completion_tokens": 16, "server_itl": 0.0004, "together": 1}, False),
        ({"itl": (0.0, 0.0), "completion_tokens": 3, "server_itl": 0.02, "together": 3}, False),
        ({"itl": (0.00001,) * 15, "server_itl": 0.02, "together": 1}, True),
        ({"itl": (0.00001,) * 15, "server_itl": None, "together": 1}, True),
        ({"itl": (0.001,) * 15, "server_itl": None, "together": 16}, True),
        ({"itl": (), "completion_tokens": 16, "server_itl": None, "together": 1}, True),
        ({"itl": (0.0,) * 10 + (0.02,) * 5, "server_itl": 0.02, "together": 1}, True),
    ],
)
def test_a_stream_in_one_piece_proves_no_ttft(arrival: dict[str, Any], held: bool) -> None:
    """Tokens that all arrive at once, or far faster than the engine made them, were held back: UNPROVEN, and why."""
    judgement = judge(replace(sample("reuse"), **{"completion_tokens": 16, "ttft": 0.3, **arrival}))
    assert (judgement.verdict is Verdict.UNPROVEN) is held
    assert ("buffers it; measure at the engine's own address" in judgement.why) is held
    once = replace(sample("reuse"), **{"completion_tokens": 16, "ttft": 0.3, **arrival}, streams=True)
    assert (
        judge(once).verdict is Verdict.SHARED
    )  # another answer of that engine came token by token: no buffer is there


@CALM
@given(tokens, tokens, tokens, st.none() | tokens, st.none() | tokens, tokens)
def test_no_hit_without_proof(
    computed: int, local: int, shared: int, prompt: int | None, cached: int | None, expected: int
) -> None:
    """Whatever the counts: SHARED and LOCAL need sources that add up, agree with usage and reach what was expected."""
    made = sample(
        prompt_tokens=prompt, cached_tokens=cached, expected=expected, sources=Sources(computed, local, shared)
    )
    verdict = judge(made).verdict
    consistent = computed + local + shared == prompt and local + shared == cached
    assert (verdict is Verdict.UNPROVEN) == (not consistent)
    if verdict in {Verdict.SHARED, Verdict.LOCAL}:
        assert cached
        assert cached >= expected
    if verdict is Verdict.COLD:
        assert cached == 0 == expected


def test_a_good_run() -> None:
    """A run whose samples prove everything is valid, and its speed-up is cold over reuse of the same trials."""
    document = summarize(CONDITIONS, samples())
    assert document["valid"]
    assert [row["verdict"] for row in document["rows"]] == ["COLD", "COLD", "SHARED", "LOCAL"]
    assert document["speedup"]["median"] == 20.0
    assert document["speedup"]["n"] == 3
    assert document["answer"]["same"] is True
    assert (document["completed"], document["failed"]) == (13, 0)


@pytest.mark.parametrize("trial", [1, 2, 3])
def test_a_contaminated_trial_does_not_count(trial: int) -> None:
    """A cold request that hit a cache is not cold: its trial takes no part in the ratio, and the row says so."""
    warm = [
        replace(s, cached_tokens=HIT, sources=Sources(PROMPT - HIT, HIT, 0), ttft=0.1)
        if (s.arm, s.trial) == ("cold", trial)
        else s
        for s in samples()
    ]
    document = summarize(CONDITIONS, warm)
    assert document["speedup"]["n"] == 2
    assert document["speedup"]["median"] == 20.0
    assert document["rows"][0]["verdicts"] == {"COLD": 2, "LOCAL": 1}


@pytest.mark.parametrize("arm", ["cold", "reuse"])
def test_no_speedup_without_proof(arm: str) -> None:
    """If no sample of one side supports the comparison there is no speed-up, and the run is not valid."""
    document = summarize(CONDITIONS, [replace(s, sources=None) if s.arm == arm else s for s in samples()])
    assert document["speedup"] is None
    assert not document["valid"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_ids": (1, 2, 9, 4)}, "token 3"),
        ({"logprobs": (-0.5, -0.25, -1.0, -2.0000001)}, "log-probabilities"),
        ({"logprobs": (math.nan,) * 4}, "inf"),
        ({"token_ids": (1, 2)}, "token 3"),
    ],
)
def test_wrong_kv_is_caught(changes: dict[str, Any], said: str) -> None:
    """One differing bit of one reuse makes the whole run's answer NO, and the run invalid."""
    made = [replace(s, **changes) if (s.arm, s.trial) == ("reuse", 2) else s for s in samples()]
    document = summarize(CONDITIONS, made)
    assert document["answer"]["same"] is False
    assert said in document["answer"]["text"]
    assert "trial 2" in document["answer"]["text"]
    assert not document["valid"]


def test_without_token_ids_nothing_is_claimed() -> None:
    """Answers without token ids are not called the same."""
    cold, control = sample("cold"), sample("control")
    assert answers.check([sample()], control, [cold]).same is True
    assert answers.check([sample(token_ids=(), logprobs=())], control, [cold]).same is None


@pytest.mark.parametrize(
    ("logprobs", "same"),
    [((-10.373476, -10.373475, -10.373473), None), ((-1e-6, -3e-6, -2e-6), True), ((-0.5, -2.0, -1.0), True)],
)
def test_equal_answers_of_a_model_that_ignores_its_input_prove_nothing(
    logprobs: tuple[float, ...], same: bool | None
) -> None:
    """Dummy weights give every token the same small probability; a model that is sure of every token is no such one."""
    one = sample(token_ids=(1, 2, 3), logprobs=logprobs)
    assert answers.check([one], replace(one, arm="control"), []).same is same


@CALM
@given(st.lists(times, min_size=6, max_size=25))
def test_intervals_hold_their_median(values: list[float]) -> None:
    """An interval lies within the values, holds their median, and is the same every time."""
    interval = stats.interval(values)
    assert interval is not None
    assert min(values) <= interval.low <= interval.median <= interval.high <= max(values)
    assert interval == stats.interval(values)


@pytest.mark.parametrize(
    ("n", "p90", "p99"), [(1, False, False), (99, False, False), (100, True, False), (1000, True, True)]
)
def test_percentiles_need_values(n: int, p90: bool, p99: bool) -> None:
    """p90 and p99 are given only where n carries them."""
    summary = stats.summarize(list(range(1, n + 1)))
    assert (summary.p90 is not None, summary.p99 is not None) == (p90, p99)
    assert stats.interval([1.0] * 5) is None


anything = st.builds(
    Sample,
    trial=st.integers(1, 3),
    arm=st.sampled_from(sorted(SUPPORTS_SPEEDUP)),
    engine=st.sampled_from(["plain", "a", "b"]),
    started=times,
    expected=st.sampled_from([0, HIT]),
    prompt_tokens=st.none() | st.just(PROMPT),
    cached_tokens=st.none() | st.sampled_from([0, HIT]),
    sources=st.none() | st.sampled_from([Sources(PROMPT, 0, 0), Sources(PROMPT - HIT, 0, HIT), Sources(104, HIT, 0)]),
    ttft=st.none() | times,
    itl=st.lists(times, max_size=3).map(tuple),
    token_ids=st.lists(tokens, max_size=3).map(tuple),
    logprobs=st.lists(st.floats(-9, 0), max_size=3).map(tuple),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    error=st.sampled_from(["", "", "", "broke"]),
)


@CALM
@given(st.lists(anything, max_size=8))
def test_any_samples_can_be_judged(made: list[Sample]) -> None:
    """Whatever came back: a document, JSON, without a speed-up that nothing proves, and repeatable."""
    judged = summarize(CONDITIONS, made)
    lines = [json.dumps({"kind": "sample", **json.loads(one.to_json())}) for one in made]
    again = summarize(CONDITIONS, [one for line in lines if isinstance(one := document.line(line), Sample)])
    assert json.dumps(judged) == json.dumps(again)
    if judged["valid"]:
        assert any(judge(one).verdict is Verdict.SHARED for one in made)


def test_the_same_run_judged_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """A saved run judged again by the command gives the summary that was saved with it, byte for byte."""
    path = save(tmp_path, "run", samples())
    done = [run("report", path, "--json", "--html", tmp_path / f"{n}.html") for n in (1, 2)]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    printed = json.dumps(json.loads(done[0].stdout), indent=2, ensure_ascii=False) + "\n"
    assert printed == path.with_suffix(".json").read_text()


def test_samples_survive_their_file(tmp_path: Path) -> None:
    """Conditions and samples come back from disk as they were, NaN and every kind of text among them."""
    made = [sample(logprobs=(math.inf, -1.0), text='né\n\t"</script>"', tiers={"l1": 3}), sample("cold")]
    held = record.read(save(tmp_path, "run", made, question="¿qué?"))
    assert list(held.samples) == made
    assert held.conditions.everything == {**CONDITIONS, "question": "¿qué?"}


@pytest.mark.parametrize(
    ("line", "changes", "said"),
    [
        (1, {"baseline": None}, "1: not a line of a kvdemo run: baseline is 'None'"),
        (1, {"prompt_tokens": "many"}, "1: not a line of a kvdemo run: prompt_tokens is 'many'"),
        (3, {"ttft": "quick"}, "3: not a line of a kvdemo run: ttft is 'quick'"),
        (3, {"ttft": -1}, "3: not a line of a kvdemo run: ttft is '-1'"),
        (2, {"arm": "leg"}, "2: not a line of a kvdemo run: arm is 'leg'"),
        (2, {"token_ids": [None]}, "2: not a line of a kvdemo run: token_ids"),
        (2, {"sources": {"computed": 1}}, "2: not a"),
        (2, {"sources": {"computed": "x", "local": 0, "shared": 0}}, "2: not a line of a kvdemo run: sources"),
        (2, {"kind": "run"}, "2: not a line of a kvdemo run: model_id is missing"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, line: int, changes: dict[str, Any], said: str) -> None:
    """An edited or damaged file is refused with its line, before anything is judged."""
    path = edit(save(tmp_path, "run", samples()), line, **changes)
    with pytest.raises(UsageError, match=f"{path.name}.*") as error:
        savedrun.run(path)
    assert said in str(error.value)


@CALM
@given(st.binary(max_size=60))
def test_any_bytes_are_a_run_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No content of a file leads to a traceback."""
    path = tmp_path_factory.getbasetemp() / "noise.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        savedrun.run(path)


@pytest.mark.parametrize("content", ['{"kind": "run"}\n', "", "[" * 100_000, '{"kind": "run", "a": "\\ud800"}\n', "{}"])
def test_what_is_no_run(tmp_path: Path, content: str) -> None:
    """Empty, endless, half-encoded and foreign files are refused in words."""
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"x\.jsonl"):
        savedrun.run(path)


def test_a_summary_is_no_run(tmp_path: Path) -> None:
    """`report` given the .json says that it needs the samples, and where they are."""
    path = save(tmp_path, "run", samples())
    done = run("report", path.with_suffix(".json"))
    assert done.returncode == 2
    assert "a summary" in done.stderr
    assert "run.jsonl" in done.stderr.replace("\n", "")
    assert "holds no samples" in run("report", save(tmp_path, "empty", [])).stderr.replace("\n", " ")
