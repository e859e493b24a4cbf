"""Traffic: what arrives, what a rate proves, which rate comes next, and whole runs with fake engines."""

from __future__ import annotations

import html
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from conftest import Lab
from kvdemo.commands.load import _gate as gate
from kvdemo.commands.load import _show_finishing as show_finishing
from kvdemo.errors import GateError, ServiceError, UsageError
from kvdemo.host import health, survey
from kvdemo.judge import traffic, trafficfile
from kvdemo.judge.sample import Sources
from kvdemo.judge.traffic import Limit, Phase, Request, judge
from kvdemo.load import queueing, schedule, search
from kvdemo.load.queueing import Caches, Service
from kvdemo.load.schedule import Traffic
from kvdemo.report import traffic as media
from kvdemo.words import traffic as words

SINGLE = {"cold": 0.5, "local": 0.02, "shared": 0.05}
ABOUT: dict[str, Any] = {
    "mode": "load",
    "run_id": "abc",
    "model_id": "m",
    "device": "2 processor cores",
    "slo_ttft": 1.0,
    "slo_share": 0.9,
    "slo_chosen": "asked for",
    "documents": 4,
    "document_tokens": 1000,
    "reuse": 1.0,
    "popularity": "uniform",
    "turns": 1,
    "seed": 0,
    "sides": {"plain": ["p", "q"], "shared": ["a", "b"]},
    "single_ttft": {"plain": SINGLE, "shared": SINGLE},
}


def request(ttft: float | None = 0.1, **changes: Any) -> Request:
    """One request of engine "p"; completed unless the changes say otherwise."""
    return Request(**{"engine": "p", "document": 0, "at": 0.0, "ttft": ttft, "prompt_tokens": 10, **changes})


def phase(side: str, rate: float, ttfts: Sequence[float], repetition: int = 1, **changes: Any) -> Phase:
    """A phase of requests with these TTFTs in seconds."""
    requests = tuple(map(request, ttfts))
    values = {"duration": 10.0, "requests": requests, "sources": Sources(10 * len(requests), 0, 0), **changes}
    return Phase(side, rate, repetition, **values)


KEPT, MISSED = [0.1] * 10, [0.1] * 8 + [2.0] * 2


def test_arrivals_are_poisson_and_the_same_for_every_side() -> None:
    """The mean gap is 1 / rate; a seed makes the same requests again, a higher rate the same ones in a shorter time."""
    wanted = Traffic(5, engines=2, seed=7)
    slow, fast = schedule.arrivals(wanted, 2.0, 500.0), schedule.arrivals(wanted, 4.0, 250.0)
    assert slow == schedule.arrivals(wanted, 2.0, 500.0)
    assert [(one.document, one.engine) for one in slow] == [(one.document, one.engine) for one in fast]
    assert [one.at for one in slow] == pytest.approx([2 * one.at for one in fast])
    assert len(slow) == pytest.approx(1000, abs=4 * math.sqrt(1000))
    assert [one.engine for one in slow[:4]] == [0, 1, 0, 1]
    assert schedule.arrivals(wanted, 2.0, 500.0, repetition=1) != slow


@pytest.mark.parametrize("reuse", [0.0, 0.3, 1.0])
def test_new_documents_are_new(reuse: float) -> None:
    """The share of requests on documents that were read before is ``reuse``; every other one has one of its own."""
    arrivals = schedule.arrivals(Traffic(4, reuse=reuse), 10.0, 400.0)
    new = [one.document for one in arrivals if one.document >= 4]
    assert len(new) == len(set(new))
    assert 1 - len(new) / len(arrivals) == pytest.approx(reuse, abs=0.03)


def test_popular_documents_and_conversations() -> None:
    """With zipf the documents are asked about as 1 : 1/2 : 1/3; a conversation begins anew after its last turn."""
    arrivals = schedule.arrivals(Traffic(3, popularity="zipf", turns=2), 10.0, 600.0)
    counts = [sum(one.document == number for one in arrivals) / len(arrivals) for number in range(3)]
    assert counts == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.03)
    assert [one.turn for one in arrivals if one.document == 0][:4] == [0, 1, 0, 1]


@given(true=st.floats(0.01, 1000), start=st.floats(0.01, 1000))
def test_the_search_brackets_the_capacity(true: float, start: float) -> None:
    """Wherever it starts: the highest rate kept and the lowest one missed enclose it, close together."""
    finder = search.rates(start, most=60)
    rate, kept, missed = next(finder), [0.0], [math.inf]
    while True:
        (kept if rate <= true else missed).append(rate)
        try:
            rate = finder.send(rate <= true)
        except StopIteration:
            break
    assert max(kept) <= true < min(missed)
    assert min(missed) / max(kept) <= search.FINEST * 1.01


def test_a_queue_waits() -> None:
    """One engine, one second a request: two that arrive together take one second and two."""
    arrivals = [schedule.Arrival(0.0, 0, 0), schedule.Arrival(0.0, 1, 0), schedule.Arrival(5.0, 2, 0)]
    times = queueing.ttfts(arrivals, Traffic(0), Service(1.0, 0.1, 0.2), Caches(own=0))
    assert times == pytest.approx([1.0, 2.0, 1.0])


def test_a_queue_is_that_of_the_textbook() -> None:
    """M/D/1: the mean wait is rho / (2 (1 - rho)) service times (Pollaczek-Khinchine)."""
    arrivals = schedule.arrivals(Traffic(0, seed=3), 0.5, 200_000.0)
    times = queueing.ttfts(arrivals, Traffic(0), Service(1.0, 1.0, 1.0), Caches(own=0))
    assert fmean(times) == pytest.approx(1 + 0.5 / (2 * 0.5), rel=0.03)


def test_a_queue_that_only_grows_serves_nothing() -> None:
    """However long a limit is, two engines compute no more than they can: 2 / 0.01 requests a second."""
    assert queueing.capacity(Limit(1000.0, 0.9), Traffic(0, engines=2), Service(0.01, 0.01, 0.01), Caches(0)) == (
        pytest.approx(200, rel=0.1)
    )


def test_a_document_leaves_the_cache_that_is_full() -> None:
    """Least recently used first; what the engine lost, the shared cache may still hold."""
    service, arrivals = Service(1.0, 0.1, 0.2), [schedule.Arrival(10.0 * n, n % 3, 0) for n in range(6)]
    assert queueing.ttfts(arrivals, Traffic(3), service, Caches(own=3)) == pytest.approx([0.1] * 6)
    assert queueing.ttfts(arrivals, Traffic(3), service, Caches(own=2)) == pytest.approx([1.0] * 6)
    assert queueing.ttfts(arrivals, Traffic(3), service, Caches(own=2, shared=3)) == pytest.approx([0.2] * 6)


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 45), st.integers(1, 4), st.lists(st.integers(0, 60)))
def test_what_has_left_every_cache_need_not_be_read(
    documents: int, own: int, shared: int, engines: int, asked: list[int]
) -> None:
    """The simulation reads the last documents only, and finds what it would have found after all of them."""
    names, times = ["local", "shared", "cold"], Service(cold=3.0, local=1.0, shared=2.0)
    shelves, store = [queueing.Shelf(own) for _ in range(engines)], queueing.Shelf(shared)
    arrivals = [schedule.Arrival(float(n), document, n % engines) for n, document in enumerate(asked)]
    for document in range(documents):
        shelves[document % engines].put(document)
        store.put(document)
    found = []
    for one in arrivals:
        at = [shelves[one.engine].holds(one.document), store.holds(one.document), True].index(True)
        found.append(getattr(times, names[at]))
        shelves[one.engine].put(one.document)
        store.put(one.document)
    assert queueing.prefills(arrivals, Traffic(documents, engines=engines), times, Caches(own, shared)) == found


def test_sharing_does_not_pay_without_reuse() -> None:
    """The simulated capacities are equal when every document is new, and far apart when none is."""
    service, limit = Service(1.0, 0.05, 0.1), Limit(2.0, 0.9)

    def gain(reuse: float) -> float:
        asked = Traffic(50, reuse=reuse, engines=2)
        shared, alone = (queueing.capacity(limit, asked, service, Caches(1, size)) or 0.0 for size in (50, 0))
        return shared / alone

    assert gain(0.0) == pytest.approx(1.0, abs=0.05)
    assert gain(1.0) > 5


def test_what_counts_as_kept() -> None:
    """Failed, cut and late requests are misses, all requests sent count, and nothing sent proves nothing."""
    limit = Limit(1.0, 0.9)
    assert limit.kept(phase("plain", 1, KEPT))
    assert not limit.kept(phase("plain", 1, MISSED))
    for change in ({"error": "HTTP 503"}, {"cut": True}, {"ttft": None}):
        assert not limit.kept(phase("plain", 1, [], requests=(*map(request, KEPT[:8]), *[request(**change)] * 2)))
    assert not limit.kept(phase("plain", 1, []))


def test_a_ratio_is_paired_by_repetition() -> None:
    """Capacity is the highest rate below the first one missed; the ratio's range is over repetitions."""
    phases = [
        *(phase("plain", rate, KEPT if rate <= 1 else MISSED, n) for n in (1, 2) for rate in (0.5, 1, 2)),
        *(phase("shared", rate, KEPT if rate <= 4 * n else MISSED, n) for n in (1, 2) for rate in (2, 4, 8, 16)),
    ]
    result = judge(ABOUT, phases)
    assert [one.rate.median for one in result.capacities if one.rate] == [1, 6]
    assert result.gains[0].ratio == traffic.Spread(2, 6.0, 4.0, 8.0)
    (sentence,) = words.sentences(result)
    assert sentence == (
        "With cache shared 2 engines serve 6.00 requests/s within 1.00 s (90% of requests), 2 engines without it "
        "1.00 requests/s: 6.0x (range of 2 repetitions 4.0x to 8.0x)."
    )


def test_a_baseline_that_fails_or_dies_gives_no_ratio() -> None:
    """What failures alone kept from the limit measures no capacity; requests that were too late anyway still do."""
    failed = tuple(request(None, error="HTTP 500") for _ in KEPT)
    shared = phase("shared", 4, KEPT)
    for broken, why in (
        (phase("plain", 1, KEPT, requests=failed), "requests to the engines without a cache failed"),
        (phase("plain", 1, MISSED, died="p no longer answers"), "a side lost an engine"),
    ):
        result = judge(ABOUT, [broken, shared, phase("shared", 8, MISSED)])
        assert not result.gains
        assert why in " ".join(words.sentences(result))
    late = (*map(request, [2.0] * 5), *failed[:1], *map(request, KEPT[:4]))
    (gain,) = judge(ABOUT, [phase("plain", 1, KEPT), phase("plain", 2, KEPT, requests=late), shared]).gains
    assert gain.ratio.median == 4


def test_a_rate_beyond_a_miss_does_not_count() -> None:
    """A lucky phase above the first missed rate is luck."""
    phases = [phase("plain", rate, KEPT if rate != 2 else MISSED) for rate in (1, 2, 4)]
    assert judge(ABOUT, phases).capacities[0].rate == traffic.Spread(1, 1, 1, 1)


def test_an_engine_alone_on_its_cache_is_told() -> None:
    """Its side shows what storing costs, not what sharing buys."""
    alone = "a is alone on shared: it can load only what it has stored itself."
    assert alone in words.notes(judge({**ABOUT, "sides": {"plain": ["p"], "shared": ["a"]}}, []))
    assert not any("alone" in note for note in words.notes(judge(ABOUT, [])))


def test_bounds_are_told_as_bounds() -> None:
    """No rate kept, none missed, nothing tried: "less than", "at least", "unknown"; a ratio only where it is one."""
    result = judge(ABOUT, [phase("plain", 2, MISSED), phase("shared", 2, KEPT), phase("shared", 4, KEPT)])
    texts = [words.capacity(one) for one in result.capacities]
    assert texts == ["less than 2.00 requests/s", "at least 4.00 requests/s"]
    assert "more than 2.0x" in words.sentences(result)[0]
    result = judge(ABOUT, [phase("plain", 2, MISSED), phase("shared", 2, MISSED)])
    assert "try lower rates" in words.sentences(result)[-1]
    result = judge(ABOUT, [phase("plain", 2, KEPT), phase("shared", 2, KEPT)])
    assert "try higher rates" in words.sentences(result)[-1]
    assert result.gains == ()
    assert "No ratio" in words.sentences(result)[-1]
    assert words.capacity(judge(ABOUT, []).capacities[0]) == "unknown"
    assert not re.search("this client|counts equal", " ".join(words.notes(judge(ABOUT, []))))


def test_a_side_that_misses_the_lowest_rate_is_told_too() -> None:
    """Less than that rate over less than it is no ratio; over what kept it, the ratio is more than one."""
    misses = [phase(side, 4, MISSED) for side in ("plain", "slow")]
    told = words.sentences(
        judge(ABOUT | {"sides": {"plain": ["p"], "shared": ["a"], "slow": ["b"]}}, [*misses, phase("shared", 4, KEPT)])
    )
    assert "it less than 4.00 requests/s" in told[0]
    assert ": more than 1.00x" in told[0]
    assert told[1] == "slow: less than 4.00 requests/s; no ratio."


def test_a_late_client_proves_nothing() -> None:
    """A phase that this client could not keep up with is no result, and is said to be none."""
    late = phase("plain", 8, [], requests=tuple(request(0.1, late=0.5) for _ in range(10)))
    result = judge(ABOUT, [phase("plain", 4, KEPT), late])
    assert result.capacities[0].rate == traffic.Spread(1, 4, 4, 4)
    assert "this client was late itself" in result.problems[0]
    assert [words.outcome(one, result.limit) for one in result.points] == ["kept", "no result"]


def test_a_rate_that_is_missed_without_the_late_client_is_missed() -> None:
    """What counts is the time after a request was sent; of one that was cut, how long it had been under way."""
    late = {"late": 0.5}
    beyond = tuple(request(2.5, **late) for _ in range(10))
    within = tuple(request(1.2, **late) for _ in range(10))
    cut = (*(request(None, cut=True, waited=2.0, **late) for _ in range(3)), *(request(**late) for _ in range(7)))
    unknown = tuple(request(None, cut=True, **late) for _ in range(10))
    for requests, kept_up in ((beyond, True), (within, False), (cut, True), (unknown, False)):
        assert Limit(1.0, 0.9).client_kept_up(phase("plain", 1, (), requests=requests)) is kept_up


def test_few_requests_are_told() -> None:
    """A share of 90 % is that of ten requests at least: of fewer each repetition keeps it only if all do."""
    few = [phase("plain", 1, KEPT[:4]), phase("plain", 1, KEPT[:5], 2), phase("plain", 2, KEPT)]
    assert judge(ABOUT, few).problems == (
        "plain at 1 requests/s: 4 requests are too few to tell 90% from all; a longer --duration",
    )
    assert judge({**ABOUT, "slo_share": 1.0}, few).problems == ()


def test_tokens_that_do_not_add_up_are_told() -> None:
    """The engines counted other prompts than those that were sent; unknown where requests failed."""
    foreign = phase("plain", 1, KEPT, sources=Sources(999, 0, 0))
    failed = phase("shared", 1, [], requests=(request(), request(error="HTTP 500: boom")))
    result = judge(ABOUT, [foreign, failed])
    assert [one.accounted for one in result.points] == [False, None]
    assert any("other prompt tokens than were sent" in problem for problem in result.problems)
    assert any("1 of 2 requests failed: HTTP 500: boom" in problem for problem in result.problems)


def test_a_phase_that_others_disturbed_gives_no_capacity() -> None:
    """Where the engines counted prompts that were not ours, the rate is no result."""
    foreign = phase("shared", 8, KEPT, sources=Sources(999, 0, 0))
    phases = [phase("plain", 1, KEPT), phase("plain", 2, MISSED), phase("shared", 4, KEPT), foreign]
    result = judge(ABOUT, phases)
    assert result.capacities[1].rate == traffic.Spread(1, 4, 4, 4)
    assert result.gains[0].ratio.median == 4


def test_percentiles_that_n_does_not_carry_are_left_out() -> None:
    """p90 needs ten values, p99 a hundred."""
    few, many = judge(ABOUT, [phase("plain", 1, KEPT[:9])]), judge(ABOUT, [phase("plain", 1, KEPT * 10)])
    assert few.points[0].p90_ttft_ms is None
    assert many.points[0].p99_ttft_ms == pytest.approx(100)


def test_a_bound_holds_between_the_rates_tried_too() -> None:
    """Plain engines kept 1 and missed 3: with everything kept up to 12, 12x are certain of no capacity, 4x are."""
    phases = [phase("plain", 1, KEPT), phase("plain", 3, MISSED), phase("shared", 1, KEPT), phase("shared", 12, KEPT)]
    result = judge(ABOUT, phases)
    assert "at least 12.0x (one repetition) by the rates tried, more than 4.0x wherever" in words.sentences(result)[0]
    assert '<h1 class="">More than 4.0x</h1>' in media.page(result)
    exact = judge(ABOUT, [*phases, phase("shared", 13, MISSED)])
    assert words.factor(exact, exact.gains[0]) == "12.0x"


def test_requests_that_were_hung_up_are_no_fast_ones() -> None:
    """Two quick ones of ten say nothing of the median; with six of them it is known, and p90 is not."""
    for quick, median in ((2, None), (6, pytest.approx(100))):
        requests = (*map(request, [0.1] * quick), *(request(None, cut=True, waited=0.2) for _ in range(10 - quick)))
        (found,) = judge(ABOUT, [phase("plain", 1, KEPT, requests=requests)]).points
        assert (found.p50_ttft_ms, found.p90_ttft_ms, found.cut) == (median, None, 10 - quick)


RUN = {"kind": "run", **ABOUT}
GOOD = phase("plain", 1, KEPT).to_json()


def save(path: Path, *documents: dict[str, Any]) -> Path:
    """A file of these lines."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def test_a_saved_run_is_judged_again(tmp_path: Path) -> None:
    """The same result; a last line that was cut off is left out."""
    phases = [phase("plain", 1, KEPT), phase("shared", 4, KEPT)]
    path = save(tmp_path / "run.jsonl", RUN, *(one.to_json() for one in phases))
    assert trafficfile.is_traffic(path)
    assert trafficfile.read(path).points == judge(ABOUT, phases).points
    path.write_text(path.read_text()[:-30])
    assert len(trafficfile.read(path).points) == 1


def saved(path: Path, *rates: float, **changes: Any) -> Path:
    """A run in which the sides that share keep these rates, one a repetition, and twice of each is too much."""
    phases = [
        phase(side, factor * base, KEPT if factor == 1 else MISSED, number)
        for number, rate in enumerate(rates, 1)
        for side, base in (("plain", 1.0), ("shared", rate))
        for factor in (1, 2)
    ]
    return save(path, {**RUN, "run_id": path.stem, **changes}, *(one.to_json() for one in phases))


def test_two_runs_are_compared(lab: Lab) -> None:
    """Capacities with the range of their repetitions; a loss beyond the limit has exit code 3, a gain has 0."""
    old, new = saved(lab.path / "old.jsonl", 8, 8.2, 7.9), saved(lab.path / "new.jsonl", 4, 4.1, 3.9)
    done = lab.run("compare", old, new, "--max-regress", "10%")
    assert done.returncode == 3
    assert "capacity shared is 50 % smaller (8.00 requests/s to 4.00 requests/s; new/old: range" in done.stderr
    assert re.search(r"capacity shared +8.00 requests/s +4.00 requests/s +0.50x +range 0.48 to 0.52 +3, 3", done.stdout)
    assert re.search(r"gain shared +8.0x +4.0x +0.50x", done.stdout)
    assert lab.run("compare", new, old, "--max-regress", "10%").returncode == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slo_ttft": 2.0}, "slo_ttft: 1.0 and 2.0"),
        ({"sides": {"plain": ["p"], "shared": ["a"]}}, "engines: plain: 2 and 1"),
        ({"versions": {"vllm": "9"}}, "--across versions"),
        ({"model_digest": "b"}, "model_digest: a and b"),
    ],
)
def test_runs_under_other_conditions_are_not_compared(lab: Lab, changes: dict[str, Any], said: str) -> None:
    """What differs is named; versions may differ if that is asked for."""
    old = saved(lab.path / "old.jsonl", 8, model_digest="a")
    new = saved(lab.path / "new.jsonl", 8, **{"model_digest": "a", **changes})
    done = lab.run("compare", old, new)
    assert done.returncode == 2
    assert said in done.stderr
    across = lab.run("compare", old, new, "--across", "versions")
    assert across.returncode == (0 if "versions" in changes else 2)


def test_a_bound_is_not_compared(lab: Lab) -> None:
    """A rate that was kept, and no higher one tried, is no capacity; nor is bench's latency one."""
    old = saved(lab.path / "old.jsonl", 8)
    new = save(lab.path / "new.jsonl", {**RUN, "run_id": "new"}, phase("shared", 4, KEPT).to_json())
    done = lab.run("compare", old, new)
    assert "Lost: the capacity of shared is no longer found" in done.stdout
    assert f"Note: {new}: capacity of shared: at least 4.00 requests/s." in done.stdout
    summary = lab.path / "run.json"
    summary.write_text(json.dumps(trafficfile.read(old).to_json(), indent=1))
    assert "give the .jsonl file" in lab.run("compare", summary, summary).stderr
    assert "give the .jsonl file" in lab.run("compare", old, summary).stderr
    assert "cannot read none.jsonl" in lab.run("compare", old, "none.jsonl").stderr
    bench = Path(__file__).parent / "golden" / "memory.jsonl"
    assert "the other is not" in lab.run("compare", bench, old).stderr


def test_a_bound_above_is_no_loss(lab: Lab) -> None:
    """A side that kept every rate that was tried became no slower; one that lost an engine has no capacity."""
    old = saved(lab.path / "old.jsonl", 8, 8, 8)
    better = [
        one
        for number in (1, 2, 3)
        for one in (
            phase("plain", 1, KEPT, number),
            phase("plain", 2, MISSED, number),
            phase("shared", 9, KEPT, number),
        )
    ]
    new = save(lab.path / "new.jsonl", {**RUN, "run_id": "new"}, *(one.to_json() for one in better))
    done = lab.run("compare", old, new, "--max-regress", "10%")
    assert done.returncode == 0, done.stderr
    assert "Lost:" not in done.stdout
    assert f"Note: {new}: capacity of shared: at least 9.00 requests/s." in done.stdout
    died = [*better, phase("shared", 18, [], 3, requests=(), died="a no longer answers")]
    save(new, {**RUN, "run_id": "new"}, *(one.to_json() for one in died))
    done = lab.run("compare", old, new, "--max-regress", "10%")
    assert done.returncode == 3
    assert f"Note: {new}: capacity of shared: unknown: a no longer answers." in done.stdout
    assert "neither file is of vllm bench serve" in lab.run("compare", old, new, "--arm", "cold").stderr


@pytest.mark.parametrize(
    "lines",
    [
        [RUN, {**GOOD, "rate": 0}, GOOD],
        [RUN, {**GOOD, "rate": "fast"}, GOOD],
        [RUN, {**GOOD, "requests": [{"engine": 1}]}, GOOD],
        [RUN, {**GOOD, "sources": {"computed": 1}}, GOOD],
        [RUN, {**GOOD, "side": "elsewhere"}],
        [RUN, GOOD, {**RUN, "run_id": "another"}, GOOD],
        [RUN, {"kind": "sample"}, GOOD],
        [{**RUN, "sides": 3}, GOOD],
        [{key: value for key, value in RUN.items() if key != "slo_ttft"}, GOOD],
        [{key: value for key, value in RUN.items() if key != "model_id"}, GOOD],
        *([{**RUN, key: value}, GOOD] for key in sorted({*RUN} - {"mode", "run_id"}) for value in ([1], math.nan)),
        *([{**RUN, key: None}, GOOD] for key in ("model_id", "device", "documents", "popularity", "reuse", "seed")),
        *([RUN, {**GOOD, key: value}, GOOD] for key in GOOD if key != "sources" for value in (1e400, {"a": 1}, -1)),
        [RUN, {**GOOD, "requests": [{**GOOD["requests"][0], "ttft": math.nan}]}, GOOD],
        [RUN, {**GOOD, "requests": [{**GOOD["requests"][0], "ttft": -1}]}, GOOD],
        [RUN],
    ],
)
def test_a_damaged_run_is_refused_with_its_place(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Whatever is wrong, never a traceback."""
    path = save(tmp_path / "run.jsonl", *lines)
    with pytest.raises(UsageError, match=str(path)):
        trafficfile.read(path)


def test_the_tables_fit_80_columns() -> None:
    """No cell is cut, whatever the terminal."""
    result = judge(ABOUT, [phase("plain", 0.3, [20.0] * 10), phase("shared", 12.5, KEPT * 10, waiting=(3, 11))])
    console = Console(width=80)
    with console.capture() as seen:
        console.print(media.terminal(result))
    assert "…" not in seen.get()


def test_every_medium_says_the_same() -> None:
    """Terminal and page only set the words."""
    result = judge(ABOUT, [phase("plain", 1, KEPT), phase("plain", 2, MISSED), phase("shared", 4, KEPT * 10)])
    console = Console(width=300)
    with console.capture() as seen:
        console.print(media.terminal(result))
    shown, page = seen.get(), html.unescape(media.page(result))
    for text in (*words.sentences(result), words.limit(result), *words.notes(result)):
        assert text in shown
        assert text in page
    for point in result.points:
        for cell in words.cells(point):
            assert cell in shown
            assert cell in page


Load = Callable[..., Any]


@pytest.fixture
def load(lab: Lab) -> Load:
    """``kvdemo load`` on two plain engines and two that share; each takes a second to compute the document."""
    (lab.path / "context.txt").write_text(" ".join(f"w{number}" for number in range(500)))
    path = lab.profile(
        {"p": {}, "q": {}, "a": {"cache": "shared"}, "b": {"cache": "shared"}},
        {"shared": {"l1": "64MiB", "chunk_size": 64}},
        bench={"context": "context.txt", "questions": ["Who?", "What?"]},
    )
    lab.up(path)
    lab.patience = 120
    planned = survey.saved_plan(lab.project())
    assert planned is not None
    for spec in planned.engines:
        # Weights that mean nothing may answer with special tokens only, which have no text.
        body = {"FAKE_TOKEN_US": "2000", "FAKE_DECODE_MS": "1", "FAKE_WORDLESS": "1"}
        assert health.request(spec.url, "/fake", body=body)[0] == 200
    return lambda *arguments: lab.run("load", "--documents", "4", "--duration", "3s", *arguments)


@pytest.mark.timeout(300)
def test_a_run_from_arrivals_to_report(lab: Lab, load: Load) -> None:
    """Engines that share keep a limit that lies between computing and loading; every token is accounted for."""
    # A plain engine needs a second for what it has not read, however idle; the rest is for a busy machine.
    done = load("--rate", "2,4", "--slo-ttft", "950ms", "--expected-capacity-gain", "1.5")
    assert done.returncode == 0, done.stderr
    assert "With cache shared 2 engines serve at least 4.00 requests/s within 950 ms" in done.stdout
    (saved,) = (lab.path / "results").glob("*.jsonl")
    result = trafficfile.read(saved)
    assert result.conditions["model_digest"]
    assert all(point.accounted in {True, None} for point in result.points)
    assert {(point.side, point.kept) for point in result.points} == {("plain", 0), ("shared", 1)}
    assert all(point.sources and point.sources.shared > 0 for point in result.points if point.side == "shared")
    again = lab.run("report", saved)
    assert again.returncode == 0
    assert words.sentences(result)[0] in " ".join(again.stdout.split())
    what_if = lab.run("load", "--what-if", saved, "--engines", "1000", "--documents", "100000")
    assert "Simulated, not measured: 1,000 engines" in what_if.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "fast"), "'fast' is no rate"),
        (("--rate", "0"), "'0' is no rate"),
        (("--slo-ttft", "soon"), "'soon' is no time"),
        (("--duration", "999999999s"), "'999999999s' is no time"),
        (("--documents", "1000001"), "'--documents': Input should be less than or equal to 1000000"),
        (("--engines", "100001"), "'--engines': Input should be less than or equal to 100000"),
        (("--slo-share", "0"), "is no share"),
        (("--reuse", "120%"), "'120%' is no share"),
        (("--l1", "4GiB"), "--l1 needs --what-if"),
        *((("--expected-capacity-gain", text), f"{text} is not a factor") for text in ("nan", "inf", "0", "-1")),
    ],
)
def test_bad_options_are_refused(lab: Lab, arguments: tuple[str, ...], said: str) -> None:
    """Each with the option's name, before anything is looked for."""
    done = lab.run("load", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_what_does_not_fit_the_fleet_is_refused(load: Load) -> None:
    """More engines than a side has, documents, turns or answers longer than the window; before anything is asked."""
    for arguments, said in {
        ("--engines", "3"): "3 on each side are too many",
        ("--document-tokens", "999999"): "do not fit",
        ("--turns", "999"): "no room for a document",
        ("--max-tokens", "999999"): "no room for a document",
        ("--result-dir", "context.txt"): "cannot write to context.txt: File exists",
        ("--rate", "1,50000"): "50000 requests/s for 3 s are 150,000 requests, more than this client can send",
    }.items():
        done = load(*arguments)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())
        assert "single requests" not in done.stderr


def test_engines_with_a_cache_are_not_hung_up(lab: Lab, load: Load) -> None:
    """Under a rate that nobody can keep, what they have begun comes to its end, and every token is accounted for."""
    assert load("--rate", "4", "--slo-ttft", "1ms", "--documents", "1").returncode == 0
    (saved,) = (lab.path / "results").glob("*.jsonl")
    (shared,) = (one for one in trafficfile.read(saved).points if one.side == "shared")
    assert (shared.kept, shared.cut, shared.accounted) == (0, 0, True)
    assert shared.completed == shared.sent > 1


def test_a_lost_rate_is_cut_while_it_is_sent(lab: Lab, load: Load) -> None:
    """However fast requests leave: the plain side gets but a part of the some 1,200 that were planned."""
    assert load("--rate", "400", "--slo-ttft", "300ms", "--duration", "3s").returncode == 0
    (saved,) = (lab.path / "results").glob("*.jsonl")
    (plain,) = (one for one in trafficfile.read(saved).points if one.side == "plain")
    assert plain.kept == 0
    assert plain.cut > 0
    assert plain.sent < 900


def test_what_nobody_waits_for_is_not_told() -> None:
    """Ctrl-C while a plain side works: no engine with a cache has anything to finish."""
    told: list[Any] = []
    follow: Any = told.append
    for number in (0, 1):
        for interrupted in (False, True):
            show_finishing(follow, number, interrupted)
    assert [event.text.split(" at ")[0] for event in told] == ["no more are sent; 1 request", "interrupted: 1 request"]


def slow_down(lab: Lab, *engines: str) -> None:
    """Let these engines take more than a second for an answer, though not for its first token."""
    planned = survey.saved_plan(lab.project())
    assert planned is not None
    for name in engines:
        assert health.request(planned.service(name).url, "/fake", body={"FAKE_DECODE_MS": "60"})[0] == 200


@pytest.mark.usefixtures("load")  # the fleet is up
def test_ctrl_c_lets_engines_with_a_cache_finish(lab: Lab) -> None:
    """Also when a lost rate is being ended already: it is told, and nothing of theirs is hung up."""
    slow_down(lab, "a", "b")
    options = ("--rate", "4", "--slo-ttft", "1ms", "--documents", "1", "--duration", "3s", "--max-tokens", "30")
    running = lab.start("load", *options)
    assert running.stderr
    lines = iter(running.stderr)
    assert any("no more are sent" in line for line in lines)
    running.send_signal(signal.SIGINT)
    rest = "".join(lines)
    assert running.wait(lab.patience) == 130
    assert "at engines with a cache: finished first (Ctrl-C again hangs up)" in rest
    assert "what was measured is in" in rest
    assert "no longer answers" not in rest


@pytest.mark.usefixtures("load")  # the fleet is up
def test_a_client_without_connections_blames_no_engine(lab: Lab) -> None:
    """A limit on open files below what the rate takes is an error of its own, with what helps; the rest is saved."""
    slow_down(lab, "p", "q")
    options = ("--rate", "1,100", "--duration", "2s", "--documents", "1", "--slo-ttft", "9s")
    argv = ["bash", "-c", 'ulimit -n 64 && exec "$@"', "load", sys.executable, "-m", "kvdemo", "load", *options]
    environ = {**lab.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(argv, cwd=lab.path, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done
    assert "this client may open 64 files" in " ".join(done.stderr.split())
    assert "ulimit -n" in done.stderr
    (saved,) = (lab.path / "results").glob("*.jsonl")
    assert {(one.side, one.rate) for one in trafficfile.read(saved).points} >= {("plain", 1), ("shared", 1)}
    assert f"what was measured is in {saved.relative_to(lab.path)}" in done.stderr
    assert "Saved:" in done.stdout


def test_an_engine_that_dies_is_told(lab: Lab, load: Load) -> None:
    """Exit 1 and its name; what was measured until then is saved."""
    planned = survey.saved_plan(lab.project())
    assert planned is not None
    assert health.request(planned.service("a").url, "/fake", body={"FAKE_DIE_AFTER": "2"})[0] == 200
    done = load("--rate", "3")
    assert done.returncode == 1
    assert "a: " in done.stderr


@pytest.mark.parametrize(
    ("phases", "gain", "error", "said"),
    [
        ([phase("plain", 1, KEPT), phase("plain", 2, MISSED), phase("shared", 4, KEPT)], 5, ServiceError, "at least 4"),
        ([phase("plain", 1, KEPT), phase("plain", 2, MISSED), phase("shared", 4, KEPT)], 4, None, ""),
        (
            [phase("plain", 1, KEPT), phase("plain", 2, MISSED), phase("shared", 4, KEPT), phase("shared", 8, MISSED)],
            5,
            GateError,
            "4.00x the rate, 5x was expected",
        ),
        ([phase("plain", 1, KEPT), phase("shared", 1, KEPT)], 2, ServiceError, "try higher rates"),
    ],
)
def test_a_gate_knows_a_bound(phases: list[Phase], gain: float, error: type[Exception] | None, said: str) -> None:
    """A lower bound above the gate passes it; below it nobody knows."""
    with pytest.raises(error, match=said) if error else nullcontext():
        gate(judge(ABOUT, phases), gain)


def test_a_gate_is_for_every_cache() -> None:
    """One cache that gains enough does not hide another one of which nothing was found out."""
    about = {**ABOUT, "sides": {**ABOUT["sides"], "pool": ["c", "d"]}}
    phases = [phase("plain", 1, KEPT), phase("plain", 2, MISSED), phase("shared", 8, KEPT), phase("pool", 1, MISSED)]
    with pytest.raises(ServiceError, match="of cache pool"):
        gate(judge(about, phases), 2)


@pytest.mark.usefixtures("load")
def test_a_side_that_dies_while_it_reads_is_marked(lab: Lab) -> None:
    """The others go on, there is a result, and it says who died."""
    planned = survey.saved_plan(lab.project())
    assert planned is not None
    running = lab.start("load", "--documents", "2", "--duration", "2s", "--rate", "3,4", "--slo-ttft", "5s")
    assert running.stderr
    next(line for line in running.stderr if line.startswith("shared: reads 2 documents"))
    # It reads the second one, after engine a has computed the first for a second.
    assert health.request(planned.service("b").url, "/fake", body={"FAKE_DIE_AFTER": "1"})[0] == 200
    output, errors = running.communicate(timeout=lab.patience)
    assert running.returncode == 1
    assert "b no longer answers" in errors
    assert "shared: b: " in output
    (saved,) = (lab.path / "results").glob("*.jsonl")
    result = trafficfile.read(saved)
    assert {one.side: bool(one.died) for one in result.capacities} == {"plain": False, "shared": True}
    assert [(one.side, one.rate, bool(one.sent)) for one in result.points] == [
        ("plain", 3, True),
        ("plain", 4, True),
        ("shared", 3, False),
    ]


def test_what_a_simulation_cannot_use_is_refused(lab: Lab) -> None:
    """Options of a measurement, and sizes that are none; an L1 whose size nobody tells is said to be taken for all."""
    run = saved(lab.path / "run.jsonl", 8)
    for arguments, said in {
        ("--rate", "3", "--duration", "2s", "--expected-capacity-gain", "50"): "--rate, --duration, --expected-capac",
        ("--document-tokens", "5"): "--document-tokens cannot be combined with --what-if",
        ("--result-dir", "r", "--progress", "json", "-p", "x"): "--project-name, --result-dir, --progress cannot be",
        ("--l1", "foo"): "--l1: expected a size such as 8GiB",
        ("--l1", "8GiB"): "--l1: how many bytes of KV a token has is not known",
    }.items():
        done = lab.run("load", "--what-if", run, *arguments)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())
    single: tuple[Any, ...] = (None, {}, {"plain": SINGLE}, {"plain": SINGLE, "shared": {"cold": 1.0, "shared": None}})
    alone: dict[str, Any] = {"sides": {"plain": ["p"], "shared": ["a"]}}  # it loads nothing: it has what it stored
    for changes in (*({"single_ttft": one} for one in single), alone):
        done = lab.run("load", "--what-if", saved(lab.path / "bare.jsonl", 8, **changes))
        assert (done.returncode, "holds no times of single requests" in done.stderr) == (2, True)
    assert "L1 is taken to hold all of them" in lab.run("load", "--what-if", run).stdout
    assert "L1 holds 2 of them" in lab.run("load", "--what-if", run, "--l1", "2500tokens", "--documents", "9").stdout
    assert "1 engine, 1 document, L1" in lab.run("load", "--what-if", run, "--engines", "1", "--documents", "1").stdout
    document = json.loads(lab.run("load", "--what-if", run, "--l1", "2500tokens", "--json").stdout)
    assert (document["engines"], document["documents"], document["l1_documents"]) == (2, 10, 2)
