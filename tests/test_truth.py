"""What kvdemo may say of a measurement: each test is a rule that no sentence, cell or headline may break."""

from __future__ import annotations

import html
import io
import random
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from kvdemo.commands import benchmark
from kvdemo.errors import GateError
from kvdemo.judge import effect, stats
from kvdemo.judge.result import Ratio, Result
from kvdemo.judge.sample import Arm, Sample, Sources
from kvdemo.report import compare, page, tables
from kvdemo.words import findings, markdown, sections, table
from kvdemo.words.table import COLUMNS
from runs import CONDITIONS, HIT, PROMPT, result, sample, samples

DRAWS: dict[str, tuple[Callable[[random.Random], float], float]] = {
    "lognormal": (lambda r: r.lognormvariate(0, 1), 1.0),
    "exponential": (lambda r: r.expovariate(1), 0.6931471805599453),
    "normal": (lambda r: r.gauss(10, 1), 10.0),
}


@pytest.mark.parametrize("shape", DRAWS)
@pytest.mark.parametrize("n", [6, 8, 10, 20])
def test_a_95_percent_interval_encloses_the_median_in_95_percent_of_runs(n: int, shape: str) -> None:
    """Simulated at n = 6, 8, 10 and 20, on skewed data too: what is called a 95 % interval covers at least 93 %."""
    draw, true = DRAWS[shape]
    generator = random.Random(7)  # noqa: S311 (statistics, not secrets)
    covered = 0
    for _ in range(2000):
        sure = stats.interval([draw(generator) for _ in range(n)])
        assert sure is not None
        covered += sure.low <= true <= sure.high
    assert covered / 2000 >= 0.93


@pytest.mark.parametrize(
    ("n", "rank"), [(6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (15, 4), (20, 6), (25, 8), (30, 10), (50, 18)]
)
def test_the_interval_is_that_of_the_tables(n: int, rank: int) -> None:
    """Its ends are the ranks that tables of the sign test's 95 % interval print (Conover, Practical Nonparametrics)."""
    sure = stats.interval([float(value) for value in range(1, n + 1)])
    assert sure == stats.Interval((n + 1) / 2, rank, n + 1 - rank)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_fewer_than_six_trials_have_no_interval(n: int) -> None:
    """The whole range of five values encloses the median in 93.75 % of cases only."""
    values = [float(value) for value in range(1, n + 1)]
    assert stats.interval(values) is None
    ratio = stats.ratio(values)
    assert ratio is not None
    assert (ratio.low, ratio.high, ratio.min, ratio.max) == (None, None, 1.0, n)


@pytest.mark.parametrize("n", [6, 10])
def test_the_interval_of_two_runs_encloses_their_ratio(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `compare` calls a 95 % interval covers at least 93 % on skewed data; fewer trials have a range instead."""
    monkeypatch.setattr(compare, "RESAMPLES", 200)
    generator = random.Random(3)  # noqa: S311 (statistics, not secrets)
    covered = 0
    for _ in range(400):
        ratio, _ = compare.change(*([generator.lognormvariate(0, 1) for _ in range(n)] for _ in range(2)))
        assert ratio is not None
        assert ratio.kind == compare.INTERVAL
        covered += ratio.low <= 1 <= ratio.high
    assert covered / 400 >= 0.93
    few, _ = compare.change([1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0])
    assert few is not None
    assert (few.kind, few.low, few.high) == (compare.RANGE, 4 / 3, 8.0)
    assert few.median == statistics.median([4, 5, 6, 7, 8]) / 2


def noisy(arm: Arm, trial: int, ttft: float, **changes: Any) -> Sample:
    """A sample of this arm that took so many seconds."""
    return sample(arm, trial, **{"ttft": ttft, **changes})


def run_of(cold: list[float], reuse: list[float], other: list[float] | None = None, **conditions: Any) -> Result:
    """A run with these TTFTs, trial by trial; ``other`` is a second plain engine's."""
    made = []
    for trial, (computed, loaded) in enumerate(zip(cold, reuse, strict=True), 1):
        made += [noisy("cold", trial, computed), noisy("store", trial, computed), noisy("reuse", trial, loaded)]
    for trial, computed in enumerate(other or (), 1):
        made.append(noisy("cold", trial, computed, engine="second"))
    return result({**CONDITIONS, **conditions}, [*made, sample("control", 0)])


def media(one: Result) -> dict[str, str]:
    """All that each medium says of a result."""
    console = Console(width=200, color_system=None, record=True, file=io.StringIO())
    console.print(tables.result(one, verbose=True))
    return {
        "terminal": " ".join(console.export_text().split()),
        "html": html.unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", "", page.render(one, []))),
        "summary": markdown.summary(one),
    }


def cell(one: Result, arm: Arm) -> str:
    """What the column of ratios shows of the first row of this arm."""
    row = one.row(arm)
    assert row
    column = next(column for column in COLUMNS if column.heading == "Faster")
    return "".join(piece.text for piece in column.cell(one, row))


def test_below_six_trials_a_range_and_from_six_an_interval() -> None:
    """Every medium names n and which of the two it is."""
    few = run_of([10.0] * 5, [1.0, 1.1, 1.2, 1.3, 1.4])
    many = run_of([10.0] * 6, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    assert all("range of 5 trials" in said and "95 %" not in said for said in media(few).values())
    assert all("95 % interval 6.7x to 10.0x, 6 trials" in said for said in media(many).values())


def test_one_trial_has_no_spread() -> None:
    """No range of a single value stands anywhere; that its noise is unknown does."""
    one = run_of([10.0], [1.0])
    assert findings.headline(one).hero == "10.0x faster (TTFT) in 1 trial"
    for said in media(one).values():
        assert "1 trial: its noise is unknown" in said
        assert "1 trial: the noise of b reuse is unknown." in said
        assert not re.search(r"(\d\S*) to \1", said)
    assert not any("unknown" in said for said in media(run_of([10.0] * 2, [1.0, 1.1])).values())


@pytest.mark.parametrize("times", [(8075.465, 5258.941), (5258.941, 8075.465), (5.0, 0.5), (1.0, 1.01)])
def test_two_plain_engines_differ_by_their_own_noise(times: tuple[float, float]) -> None:
    """Whichever is slower: the run's noise is that very ratio, kept rounded, the other way round."""
    noise, own = (Ratio(1, *[round(value, 4)] * 3) for value in (times[0] / times[1], times[1] / times[0]))
    assert effect.of(own, noise) is effect.Effect.NONE
    assert effect.of(Ratio(1, *[1.01 * max(own.median, noise.median)] * 3), noise) is effect.Effect.FASTER


def test_the_headline_of_engines_that_lost_their_cache_says_one_trial() -> None:
    """As the other headlines do; of several trials the sentence has the range."""

    def pair(trial: int) -> tuple[Sample, Sample]:
        return noisy("cold", trial, 10), replace(noisy("reuse", trial, 1), arm="evicted")

    for trials, few in ((1, " in 1 trial"), (2, "")):
        made = [one for trial in range(1, trials + 1) for one in pair(trial)]
        assert findings.headline(result(CONDITIONS, made)).hero == f"After it was evicted: b 10.0x{few}"


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ({}, ""),
        ({"a": 2, "b": 3}, ""),
        ({"a": 1, "b": 3}, "1 trial: the noise of a is unknown."),
        ({"a": 1, "b": 1}, "1 trial: the noise of these factors is unknown."),
    ],
)
def test_factors_of_one_trial_are_named(trials: dict[str, int], said: str) -> None:
    """Those of several have a range."""
    assert table.unknown_noise(trials) == said


@pytest.mark.parametrize(
    ("cold", "reuse", "other"),
    [
        ([1.0, 1.0, 1.0], [0.95, 1.02, 0.90], None),  # the range holds 1
        ([1.0] * 6, [0.9, 0.92, 0.95, 0.97, 1.05, 0.99], None),  # the interval does
        ([1.0, 1.0, 1.0], [0.9, 0.9, 0.9], [0.85, 1.0, 1.15]),  # two plain engines differ by more
        ([1.0, 1.0, 1.0], [1.1, 1.1, 1.1], [0.85, 1.0, 1.0]),  # nor is it slower
        ([1.0], [0.9], [0.8]),
    ],
)
def test_an_effect_within_noise_is_told_as_none(
    cold: list[float], reuse: list[float], other: list[float] | None
) -> None:
    """Headline, sentence and cell say so in every medium, and nobody is faster or slower."""
    one = run_of(cold, reuse, other)
    assert cell(one, "reuse") == "within noise"
    assert findings.headline(one).hero == "No difference within noise"
    for said in media(one).values():
        assert "answers no faster than a plain engine" in said
        assert "faster (TTFT)" not in said
        assert "slower" not in said


def test_an_effect_beyond_noise_is_told() -> None:
    """More than two plain engines differ by, and a range without 1: it is one, and slower is said alike."""
    assert findings.headline(run_of([1.0] * 3, [0.5, 0.51, 0.5], [0.9, 1.0, 1.1])).hero == "2.0x faster (TTFT)"
    slower = run_of([1.0] * 3, [2.0, 2.1, 2.0], [0.9, 1.0, 1.1])
    assert findings.headline(slower).hero == "2.0x slower (TTFT)"
    assert cell(slower, "reuse") == "2.0x slower"


def test_who_has_read_it_is_said_only_where_it_is_known() -> None:
    """A writer that loads (a connector that knows no salt) is not the only one that has read the document."""
    whole, hit = samples(), Sources(PROMPT - HIT, 0, HIT)
    loading = [
        replace(one, cached_tokens=HIT, sources=hit) if (one.arm, one.trial) == ("store", 2) else one for one in whole
    ]
    assert "about what only a has read" in findings.headline(result(CONDITIONS, whole)).sentence
    assert "about what had been stored before" in findings.headline(result(CONDITIONS, loading)).sentence


def test_a_wrong_answer_has_no_ratio() -> None:
    """The headline follows the answer: no row, headline or JSON key claims a speed-up of wrong KV."""
    wrong = result(CONDITIONS, [replace(s, token_ids=(9, 9)) if s.arm == "reuse" else s for s in samples()])
    assert wrong.answer.same is False
    assert wrong.speedup is None
    assert all(row.speedup is None for row in wrong.rows)
    for said in media(wrong).values():
        assert "What was loaded from the cache gives another answer" in said
        assert not re.search(r"\d+x (faster|slower)|answers \d", said)


@pytest.mark.parametrize("trial", [1, 3])
def test_a_baseline_that_failed_has_no_ratio(trial: int) -> None:
    """One failed request of the baseline, and nothing is compared with it: neither reuse nor the store tax."""
    made = [replace(s, error="broke") if (s.arm, s.trial) == ("cold", trial) else s for s in samples()]
    broken = result(CONDITIONS, made)
    assert not broken.valid
    assert all(row.speedup is None for row in broken.rows)
    assert "store_tax" not in (broken.costs or {})
    for said in media(broken).values():
        assert "plain cold: FAILED: broke" in said
        assert "a cold request of the baseline plain failed" in said
        assert "faster (TTFT)" not in said


def test_a_plain_engine_is_named_only_where_one_was_the_baseline() -> None:
    """Without one, reuse is compared with the writer computing it."""
    made = [s for s in samples() if s.arm != "cold"]
    alone = result({**CONDITIONS, "baseline": "a"}, made)
    for said in media(alone).values():
        assert "faster (TTFT) than a computing it" in said
        assert "plain engine" not in said


def test_nothing_is_better_than_the_limit() -> None:
    """A measured efficiency above 1 is the limit, within noise: no medium prints more than 100 %."""
    fast = run_of([10.0] * 3, [0.2] * 3, memory_bandwidth=1e8)
    again = [sample("again", trial, ttft=0.19) for trial in (1, 2, 3)]
    fast = result({**CONDITIONS, "memory_bandwidth": 1e9}, [*samples(reuse=0.3, again=0.99), *again])
    assert fast.limit
    assert fast.limit.efficiency > 1
    for said in media(fast).values():
        assert "at the limit of this machine, within noise" in said
        assert not re.search(r"1\d\d ?% of what", said)


def test_a_store_tax_needs_requests_that_were_asked_alike() -> None:
    """A writer asked one at a time is not compared with cold engines that were asked several documents at once."""
    made = []
    for trial in (1, 2, 3):
        for n in range(2):
            made.append(noisy("cold", trial, 2.0, started=100.0 * trial, e2el=2.5))
            made.append(noisy("store", trial, 1.0, started=100.0 * trial + 10 * n, e2el=1.5))
            made.append(noisy("reuse", trial, 0.2, started=100.0 * trial + 50, e2el=0.5))
    one = result({**CONDITIONS, "max_concurrency": 2}, made)
    assert cell(one, "store") == "-"
    assert "store_tax" not in (one.costs or {})
    assert cell(one, "reuse") == "10.0x"
    assert "not compared" in media(one)["terminal"]
    apart = [replace(s, started=s.started + 20 * i) if s.arm == "cold" else s for i, s in enumerate(made)]
    assert "store_tax" in (result(CONDITIONS, apart).costs or {})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"max_concurrency": 2, "control": False}, "requests that share a batch round differently"),
        ({"interrupted": True, "control": False}, "the run ended before a local hit"),
        ({"control": False}, "the run holds no local hit of the same length"),
        ({"control": sample("control", 0, error="HTTP 500")}, "the control on plain is no local hit: FAILED HTTP 500"),
        (
            {"control": sample("control", 0, cached_tokens=HIT - 1, sources=Sources(105, HIT - 1, 0), expected=1)},
            "the local hit on plain is of 895 tokens, the reuse of 896",
        ),
    ],
)
def test_an_answer_that_was_not_checked_says_the_true_reason(changes: dict[str, Any], why: str) -> None:
    """Whole chunks are blamed only where the prompt is exactly whole chunks."""
    control = changes.pop("control")
    made = [s for s in samples() if s.arm != "control"] + ([control] if control else [])
    answer = result({**CONDITIONS, **changes}, made).answer
    assert answer.same is None
    assert why in answer.text


@pytest.mark.parametrize(("tokens", "blamed"), [(1024, True), (1025, False)])
def test_whole_chunks_are_blamed_only_if_they_are(tokens: int, blamed: bool) -> None:
    """8 x 128 tokens are whole chunks; one more, and 1,024 can be loaded from either cache."""
    hit = 1023 if blamed else 1024
    reuse = sample("reuse", 1, prompt_tokens=tokens, cached_tokens=hit, sources=Sources(1, 0, hit), expected=hit)
    local = sample(
        "control", 0, prompt_tokens=tokens, cached_tokens=1008, sources=Sources(tokens - 1008, 1008, 0), expected=1
    )
    answer = result(CONDITIONS, [reuse, local]).answer
    assert ("exactly whole chunks" in answer.text) == blamed


def test_prompts_of_their_own_are_no_trials() -> None:
    """What people asked a page, or arms whose prompts differ: no trials, no ratio, no costs, no limit."""
    history = result({**CONDITIONS, "history": True, "num_trials": 4}, samples())
    lengths = [replace(s, prompt_tokens=(s.prompt_tokens or 0) + s.trial, sources=None) for s in samples()]
    for one in (history, result(CONDITIONS, lengths)):
        assert one.mixed_prompts
        assert (one.speedup, one.costs, one.limit) == (None, None, None)
        for said in media(one).values():
            assert "13 requests" in said
            assert not re.search(r"\d trials?\b|\dx|prompt tokens, ", said)


@pytest.mark.parametrize("arm", ["cold", "reuse"])
def test_a_length_within_noise_is_no_gain(arm: Arm) -> None:
    """In a sweep too: where reuse and cold overlap there is none, and reuse is not said to be faster at all lengths."""
    made = []
    for length, gain in ((200, 1.0), (400, 5.0)):
        for trial, jitter in enumerate((0.9, 1.0, 1.1), 1):
            made += [noisy("cold", trial, 1.0 * jitter if arm == "cold" else 1.0, length=length)]
            made += [noisy("reuse", trial, (jitter if arm == "reuse" else 1.0) / gain, length=length)]
    one = result(CONDITIONS, made)
    assert one.lengths
    cells = [sections.point(one, point)[-1] for point in one.lengths.points]
    assert cells[0] == "within noise"
    assert cells[1].endswith("x")
    assert "at all of these lengths" not in sections.break_even(one, one.lengths)


def test_a_gate_is_not_passed_by_noise() -> None:
    """--expected-ttft-gain above 1 wants an effect: a median that is large enough but within noise misses it."""
    noise = run_of([1.0, 1.0, 1.0], [0.5, 0.8, 1.1])
    assert noise.speedup
    with pytest.raises(GateError, match="within noise"):
        benchmark.gate(noise, 1.2)
    benchmark.gate(run_of([1.0, 1.0, 1.0], [0.5, 0.8, 0.9]), 1.2)
    with pytest.raises(GateError, match=r"1\.2x faster \(TTFT\), 2x was expected|1\.25x faster"):
        benchmark.gate(run_of([1.0, 1.0, 1.0], [0.5, 0.8, 0.9]), 2)


def sweep(wrong: int = 0) -> list[Sample]:
    """Two lengths, each with its own control; at the length ``wrong`` the reuse gives another answer."""
    made = [replace(one, length=length) for length in (200, 400) for one in samples()]
    return [replace(s, token_ids=(9, 9, 9, 9)) if (s.arm, s.length) == ("reuse", wrong) else s for s in made]


@pytest.mark.parametrize("wrong", [200, 400])
def test_a_wrong_answer_at_any_length_is_a_wrong_answer(wrong: int) -> None:
    """A sweep is checked at each of its lengths; one wrong answer, and no length shows a ratio, no limit either."""
    one = result({**CONDITIONS, "kv_bytes_per_token": 8192, "memory_bandwidth": 1e9}, sweep(wrong))
    assert one.answer.same is False
    assert one.speedup is None
    assert one.limit is None
    assert not one.valid
    assert one.lengths
    assert {sections.point(one, point)[-1] for point in one.lengths.points} == {"-"}
    assert "faster" not in sections.break_even(one, one.lengths)
    assert "equal at 2 of 2 lengths" in result(CONDITIONS, sweep()).answer.text


def test_an_answer_without_tokens_hides_no_wrong_one() -> None:
    """Where one reuse returned no token ids and another one is wrong, the answer is wrong."""
    made = [replace(s, token_ids=()) if (s.arm, s.trial) == ("reuse", 1) else s for s in samples()]
    assert result(CONDITIONS, made).answer.same is None
    made = [replace(s, token_ids=(9, 9, 9, 9)) if (s.arm, s.trial) == ("reuse", 2) else s for s in made]
    assert result(CONDITIONS, made).answer.same is False


def test_a_length_whose_baseline_failed_has_no_ratio() -> None:
    """Nor may the medians of the other requests stand in for it."""
    made = [
        replace(s, ttft=None, error="HTTP 500") if s.length == 200 and s.arm == "cold" and s.trial == 2 else s
        for s in sweep()
    ]
    one = result(CONDITIONS, made)
    assert one.lengths
    assert [sections.point(one, point)[-1] for point in one.lengths.points] == ["-", "20x"]
    assert "at all of these lengths" not in sections.break_even(one, one.lengths)
    assert "1 request failed; no ratio is made with it." in findings.complaints(one)


def test_no_break_even_is_claimed_within_noise() -> None:
    """Where a local hit is no faster than computing within noise, no bandwidth is named that would beat computing."""
    bandwidths = {"kv_bytes_per_token": 8192, "memory_bandwidth": 5e7, "disk_bandwidth": 1e6}
    made = [
        replace(s, ttft=s.ttft * (0.8, 1.2, 1.0)[s.trial - 1]) if s.arm == "again" and s.ttft else s
        for s in samples(again=40.0, reuse=20.0)
    ]
    limit = result({**CONDITIONS, **bandwidths}, made).limit
    assert limit
    assert "a local hit is no faster than computing, within noise" in limit.text
    assert not re.search(r"beat|would need", limit.text)
    assert "break-even bandwidth" not in {line.name for line in limit.rows}
    assert "beat" in getattr(result({**CONDITIONS, **bandwidths}, samples()).limit, "text", "")


@pytest.mark.parametrize("factor", [0.998, 1.002])
def test_what_is_printed_as_one_is_no_effect(factor: float) -> None:
    """However narrow its range: nothing is "1.00x faster", or slower."""
    one = run_of([1.0, 1.0, 1.0], [factor, factor, factor])
    assert "1.00x faster" not in media(one)["terminal"]
    assert "1.00x slower" not in media(one)["terminal"]


def test_priorities_are_told_for_what_they_are() -> None:
    """A nice value above zero lowers a priority, one below zero raises it."""
    assert findings._priorities({"a": 5, "b": -5}) == [
        "Lowered priority (nice a 5): others on the machine come first.",
        "Raised priority (nice b -5): others on the machine come second.",
    ]
    assert findings._priorities({}) == []
