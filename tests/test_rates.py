"""Rates from two readings, worked by hand: sources, hit rates, quantiles, restarts, and what is missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdemo import backends
from kvdemo.judge import rates
from kvdemo.judge.frame import Cache, Engine, Frame, PromptsSeen, document
from kvdemo.judge.rates import Prompts, Quantile
from kvdemo.judge.sample import Sources
from kvdemo.judge.scrape import Scrape, parse, went_back
from kvdemo.judge.window import Break, Window

PREFIXES = ("vllm", "lmcache_mp", "process")

BEFORE = """
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
process_start_time_seconds 1.7960339e+09
vllm:num_requests_running{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 900.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 100.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="m"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 2.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.2
"""

AFTER = """
process_start_time_seconds 1.7960339e+09
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="m"} 3000.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 1400.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 400.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 1200.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 7.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="m"} 12.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 12.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 12.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 5.0
"""


def about(value: float) -> Any:
    """Equal to this number but for rounding."""
    return pytest.approx(value)


def at(seconds: float, text: str) -> Scrape:
    """A reading at this second."""
    return parse(text, PREFIXES, seconds)


def without(text: str, *words: str) -> str:
    """The same without the series that have one of these words in their name or labels."""
    return "\n".join(line for line in text.splitlines() if not any(word in line for word in words))


def test_an_engine_over_ten_seconds() -> None:
    """2,000 prompt tokens: 500 computed, 300 local, 1,200 shared; 75 % of them hit, 53.3 % of all since the start."""
    made = rates.engine(at(100, BEFORE), at(110, AFTER))
    assert made.window == 10
    assert (made.running, made.waiting, made.kv_usage) == (2, 3, 0.5)
    assert made.tokens == Sources(500, 300, 1200)
    assert made.hit_rate == 0.75
    assert (made.hit_rate_ever, made.tokens_ever) == (1600 / 3000, 3000)


def test_quantiles_by_hand() -> None:
    """Ten requests: 4 up to 0.1 s, 2 up to 0.5 s, 4 up to 1 s.

    The 5th of them is the 1st of 2 between 0.1 and 0.5: 0.1 + 0.4 * 1/2. The 9th is the 3rd of 4 between 0.5 and 1.
    """
    made = rates.engine(at(100, BEFORE), at(110, AFTER)).ttft
    assert made is not None
    assert made.n == 10
    assert made.p50 == Quantile(about(0.3))
    assert made.p90 == Quantile(about(0.875))


@pytest.mark.parametrize(
    ("q", "buckets", "found"),
    [
        (0.5, {0.0: 6, 0.5: 11, 1: 14, math.inf: 19}, Quantile(0.35)),  # the example of ClickHouse's documentation
        (0.5, {1: 1, 2: 1, math.inf: 1}, Quantile(0.5)),  # the first bucket begins at 0
        (0.9, {1: 1, 2: 1, math.inf: 4}, Quantile(2, at_least=True)),  # beyond the last bound
        (0.5, {1: 0, 2: 0, math.inf: 3}, Quantile(2, at_least=True)),
        (0.5, {1: 4, 2: 3, math.inf: 8}, Quantile(1.0)),  # a bucket that falls counts as the one before
        (0.5, {1: 0, 2: 0, math.inf: 0}, None),  # nothing was observed
        (0.5, {1: 2, 2: 2}, None),  # the last bucket is missing
        (0.5, {math.inf: 2}, None),
        (0.5, {}, None),
    ],
)
def test_quantile(q: float, buckets: dict[float, float], found: Quantile | None) -> None:
    """As histogram_quantile of Prometheus; it says "at least" where that would give the last bound."""
    made = rates.quantile(q, buckets)
    assert (made is None) == (found is None)
    if made and found:
        assert (about(made.seconds), made.at_least) == (found.seconds, found.at_least)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_its_bucket(counts: list[int], q: float) -> None:
    """Whatever was observed: as many observations lie in the buckets below it as the rank demands, and no more."""
    total, buckets, bounds = 0, {}, [float(n + 1) for n in range(len(counts) - 1)] + [math.inf]
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        buckets[bound] = float(total)
    found = rates.quantile(q, buckets)
    if not total:
        assert found is None
        return
    assert found is not None
    rank = q * total
    whole = next(bound for bound in bounds if buckets[bound] >= rank)
    if whole == math.inf:
        assert found == Quantile(bounds[-2], at_least=True)
    else:
        assert whole - 1 <= found.seconds <= whole + 1e-9


def test_of_one_request_the_time_is_known() -> None:
    """No interpolation where the histogram's sum says it: 0.3 s, not the middle of the bucket."""
    made = rates.ttft(at(0, AFTER), at(2, one_more(AFTER, computed=1, shared=0, ttft=0.3)))
    assert made is not None
    assert (made.n, made.p50, made.p90) == (1, Quantile(about(0.3)), Quantile(about(0.3)))


@pytest.mark.parametrize(
    ("missing", "unknown"),
    [
        ("by_source", {"tokens", "hit_rate", "hit_rate_ever"}),
        ("time_to_first_token", {"ttft"}),
        ("kv_cache_usage", {"kv_usage"}),
        ("running", {"running"}),
        ("waiting", {"waiting"}),
        ("external_kv_transfer", {"tokens", "hit_rate", "hit_rate_ever"}),
    ],
)
def test_what_is_not_told_is_unknown(missing: str, unknown: set[str]) -> None:
    """And nothing else is: not one number comes from another that is missing."""
    whole = rates.engine(at(0, BEFORE), at(10, AFTER))
    part = rates.engine(at(0, without(BEFORE, missing)), at(10, without(AFTER, missing)))
    assert part == replace(whole, **dict.fromkeys(unknown))


def test_nothing_happened() -> None:
    """No prompt has no hit rate and no TTFT; zero tokens are zero, not unknown."""
    made = rates.engine(at(0, AFTER), at(10, AFTER))
    assert made.tokens == Sources(0, 0, 0)
    assert made.hit_rate is None
    assert made.hit_rate_ever == 1600 / 3000
    assert made.ttft == rates.Ttft(0)
    assert rates.prompts("a", at(0, AFTER), at(10, AFTER)) is None


def test_one_reading_has_no_rates() -> None:
    """What is so now and since the start is known; what happened is not."""
    made = rates.engine(None, at(0, AFTER))
    assert (made.window, made.tokens, made.hit_rate, made.ttft) == (None, None, None, None)
    assert (made.running, made.hit_rate_ever) == (2, 1600 / 3000)


def test_an_engine_that_does_not_count_by_source() -> None:
    """Then its own cache's hits and those of the connector, over what its own cache was asked for."""
    texts = [
        f"vllm:prefix_cache_queries_total {asked}\nvllm:prefix_cache_hits_total {hits}\n"
        f"vllm:external_prefix_cache_hits_total {external}\nvllm:prompt_tokens_total {asked}\n"
        for asked, hits, external in ((1000.0, 100.0, 0.0), (2000.0, 300.0, 400.0))
    ]
    made = rates.engine(at(0, texts[0]), at(10, texts[1]))
    assert made.tokens is None
    assert (made.hit_rate, made.hit_rate_ever) == (0.6, 0.35)


def test_engines_of_several_cores() -> None:
    """Requests and tokens add up over an engine's cores (data parallel), the share of KV blocks is their mean."""
    text = "\n".join(
        f'vllm:num_requests_running{{engine="{core}"}} {core + 1}.0\n'
        f'vllm:kv_cache_usage_perc{{engine="{core}"}} {core * 0.5}\n'
        for core in (0, 1)
    )
    made = rates.engine(None, at(0, text))
    assert (made.running, made.kv_usage) == (3, 0.25)


def test_one_prompt_has_its_sources() -> None:
    """Exactly one first token between two readings: the tokens counted are its own."""
    after = one_more(AFTER, computed=16, shared=1984, ttft=0.25)
    one = rates.prompts("a", at(0, AFTER), at(2, after))
    assert one == Prompts("a", 1, 2000, Sources(16, 0, 1984), about(0.25))


def test_two_prompts_are_never_told_apart() -> None:
    """Their number and tokens are known, whose came from where is not."""
    after = one_more(one_more(AFTER, computed=16, shared=1984, ttft=0.25), computed=2000, shared=0, ttft=1)
    assert rates.prompts("a", at(0, AFTER), at(2, after)) == Prompts("a", 2, 4000)


def test_sources_that_do_not_add_up_are_unknown() -> None:
    """A reading amid an update, or an engine that counts otherwise."""
    after = one_more(AFTER, computed=16, shared=1984, ttft=0.25)
    after = after.replace('prompt_tokens_total{engine="0",model_name="m"} 5000', "prompt_tokens_total 5001")
    one = rates.prompts("a", at(0, AFTER), at(2, after))
    assert one == Prompts("a", 1, 2001, None, about(0.25))


def one_more(text: str, computed: int, shared: int, ttft: float) -> str:
    """The same after one more prompt."""
    grown = {
        "prompt_tokens_total": computed + shared,
        'source="local_compute"': computed,
        'source="external_kv_transfer"': shared,
        "seconds_count": 1,
        "seconds_sum": ttft,
    }
    lines = []
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        more = next((number for key, number in grown.items() if key in name), None)
        if 'le="' in name:
            more = float(name.split('le="')[1].split('"')[0]) >= ttft
        lines.append(line if more is None else f"{name} {float(value) + more}")
    return "\n".join(lines)


LOOKUPS = """
process_start_time_seconds 5.0
lmcache_mp_lookups_requests_total{{cache_salt="{salt}",model_name="m"}} {requests}.0
lmcache_mp_lookup_requested_tokens_total{{cache_salt="{salt}",model_name="m"}} {asked}.0
lmcache_mp_lookup_hit_tokens_total{{cache_salt="{salt}",model_name="m"}} {hit}.0
lmcache_mp_lookup_hit_l1_tokens_total{{cache_salt="{salt}",model_name="m"}} {l1}.0
lmcache_mp_lookup_hit_l2_tokens_total{{cache_salt="{salt}",model_name="m"}} {l2}.0
lmcache_mp_l2_usage_bytes{{l2_name="fs_native"}} 4194304.0
"""
CALM = LOOKUPS.format(salt="x", requests=2, asked=4000, hit=1000, l1=1000, l2=0)
ASKED = LOOKUPS.format(salt="x", requests=3, asked=6000, hit=2984, l1=1500, l2=1484)
REPORT = {
    "registered_gpu_ids": [1, 2],
    "storage_manager": {"num_l2_adapters": 1, "l1_manager": {"memory_used_bytes": 64, "memory_total_bytes": 256}},
}


def test_a_cache_server() -> None:
    """2,000 tokens asked for, 500 had in L1 and 1,484 in L2; sizes are what it reports."""
    made = rates.cache(backends.DEFAULT, at(0, CALM), at(5, ASKED), REPORT)
    assert (made.window, made.requested, made.tiers) == (5, 2000, {"l1": 500, "l2": 1484})
    assert (made.hit_rate, made.hit_rate_ever, made.requested_ever) == (0.992, 2984 / 6000, 6000)
    usage = made.usage
    assert (usage.l1, usage.l1_size, usage.l2, usage.has_l2, usage.engines) == (64, 256, 4194304, True, 2)


def test_a_cache_server_that_tells_nothing() -> None:
    """Another version, or none that answers /status: every number is unknown, not 0."""
    made = rates.cache(backends.DEFAULT, at(0, ""), at(5, ""), {})
    assert made == rates.CacheRates(window=5)


def test_tiers_of_one_prompt() -> None:
    """Known if the server looked up one request only, and unknown of two, or of none that it tells."""
    one = Prompts("a", 1, 2000, Sources(16, 0, 1984))
    backend = backends.DEFAULT
    assert rates.tiers(backend, one, at(0, CALM), at(2, ASKED)) == {"l1": 500, "l2": 1484}
    two = ASKED.replace("} 3.0", "} 4.0")
    assert rates.tiers(backend, one, at(0, CALM), at(2, two)) is None
    quiet = without(CALM, "lookups_requests"), without(ASKED, "lookups_requests")
    assert rates.tiers(backend, one, at(0, quiet[0]), at(2, quiet[1])) is None
    assert rates.tiers(backend, replace(one, sources=None), at(0, CALM), at(2, ASKED)) is None


IDLE = 'vllm:num_requests_running{engine="0"} 0.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
TIERS = """vllm:prompt_tokens_cached_by_source_total{{engine="0",source="device"}} 9.0
vllm:prompt_tokens_cached_by_source_total{{engine="0",source="host"}} {host}.0
vllm:prompt_tokens_cached_by_source_total{{engine="0",source="disk"}} {disk}.0
"""


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (IDLE + TIERS.format(host=5, disk=7), IDLE + TIERS.format(host=505, disk=1491), {"l1": 500, "l2": 1484}),
        (IDLE + TIERS.format(host=5, disk=7), IDLE + TIERS.format(host=505, disk=1490), None),  # not all of it
        (TIERS.format(host=5, disk=7), IDLE + TIERS.format(host=505, disk=1491), None),  # perhaps not idle
        (IDLE + TIERS.format(host=5, disk=7), IDLE.replace("0.0", "1.0") + TIERS.format(host=505, disk=1491), None),
        (IDLE, IDLE, None),  # it does not tell
    ],
)
def test_tiers_of_the_engine_itself(before: str, after: str, found: dict[str, int] | None) -> None:
    """One with tiers of its own counts what each gave: of one prompt while it was idle before and after, all of it."""
    one = Prompts("a", 1, 2000, Sources(16, 0, 1984))
    assert rates.own_tiers(backends.of("vllm"), one, at(0, before), at(2, after)) == found
    assert rates.own_tiers(backends.DEFAULT, one, at(0, before), at(2, after)) is None


def reading(seconds: float, birth: float | None, tokens: float = 0.0) -> Scrape:
    """A reading of a process with this start."""
    born = f"process_start_time_seconds {birth}\n" if birth is not None else ""
    return at(seconds, f"{born}vllm:prompt_tokens_total {tokens}\n")


def test_a_window_keeps_ten_seconds() -> None:
    """It begins at the newest reading that is that old; before there is one, at the first."""
    window = Window(10)
    firsts = []
    for second in range(0, 22, 2):
        assert window.add(reading(second, 1, second)) is Break.NONE
        firsts.append(window.first.at if window.first else None)
    assert firsts == [None, 0, 0, 0, 0, 0, 2, 4, 6, 8, 10]
    assert window.previous is not None
    assert (window.previous.at, window.last.at) == (18, 20)


def test_a_long_interval_is_its_own_window() -> None:
    """Readings further apart than the window: the last two."""
    window = Window(10)
    for second in (0, 30, 60):
        window.add(reading(second, 1, second))
    assert window.first is not None
    assert (window.first.at, window.last.at) == (30, 60)


def test_a_restart_begins_anew() -> None:
    """Another start, or counters that fell: told, and nothing is counted across it."""
    window = Window(10)
    window.add(reading(0, 1, 5000))
    window.add(reading(2, 1, 6000))
    assert window.add(reading(4, 2, 7000)) is Break.RESTARTED
    assert (window.first, window.previous, window.last.at) == (None, None, 4)
    assert window.add(reading(6, 2, 10)) is Break.FELL
    assert window.first is None
    assert window.add(reading(8, 2, 20)) is Break.NONE
    assert window.first is not None
    assert not window.several


def test_an_engine_without_a_start_time_restarts_too() -> None:
    """Behind several API servers vLLM does not tell its start: its counters do."""
    window = Window(10)
    window.add(reading(0, None, 50))
    assert window.add(reading(2, None, 40)) is Break.FELL


def test_a_gauge_may_fall() -> None:
    """Requests that ended are no restart."""
    assert not went_back(at(0, AFTER), at(1, AFTER.replace('running{engine="0",model_name="m"} 2', "running 0")))


def test_several_processes_in_turn() -> None:
    """One that comes back after another: a router. Forgotten once one has answered for the whole window."""
    window = Window(10)
    said = []
    for second, birth in enumerate((1, 2, 1, 2, 2)):
        window.add(reading(second, birth))
        said.append(window.several)
    assert said == [False, False, True, True, True]
    for second in range(5, 14):
        window.add(reading(second, 2))
    assert not window.several


def test_what_is_no_number_is_left_out() -> None:
    """NaN, infinities and the series of others; numbers in every way that Prometheus writes them are read."""
    text = (
        "vllm:a_total 2.1561126912e+010\nvllm:b NaN\nvllm:c +Inf\nother:d 1.0\n"
        'vllm:e{x="quoted \\" } 7",source="s"} 2\nvllm:e{x="y",source="t"} 3\n'
    )
    made = at(0, text)
    assert made.values == {"a": 21561126912.0, "e": 5.0, "e{s}": 2.0, "e{t}": 3.0}
    assert made.rising == {"a"}
    assert made.birth is None


def test_the_document_is_json() -> None:
    """Every unknown is null; of a quantile beyond the last bound it is said that this is where it begins."""
    now = datetime(2026, 11, 30, 10, 0, tzinfo=UTC)
    made = rates.engine(at(100, BEFORE), at(110, AFTER))
    assert made.ttft is not None
    ttft = replace(made.ttft, p90=Quantile(2560.0, at_least=True))
    frame = Frame(
        "demo",
        now,
        10,
        [Engine("a", rates=replace(made, ttft=ttft)), Engine("b", problem="does not answer", silent=3)],
        [Cache("shared", rates=rates.cache(backends.DEFAULT, at(0, CALM), at(5, ASKED), REPORT))],
        [PromptsSeen(now, Prompts("a", 1, 2000, Sources(16, 0, 1984), 0.25, {"l1": 1984, "l2": 0}))],
    )
    said = json.loads(json.dumps(document(frame), allow_nan=False))
    a, b = said["engines"]
    assert a["prompt_tokens_per_s"] == {"computed": 50.0, "local": 30.0, "shared": 120.0}
    assert a["ttft"]["p50_s"] == about(0.3)
    assert (a["ttft"]["p90_s"], a["ttft"]["p90_at_least"], a["ttft"]["p50_at_least"]) == (2560, True, False)
    assert (b["answers"], b["prompt_tokens"], b["ttft"], b["window_s"]) == (False, None, None, None)
    assert said["caches"][0]["hit_tokens_per_s"] == {"l1": 100.0, "l2": 296.8}
    assert said["prompts"][0]["sources"] == {"computed": 16, "local": 0, "shared": 1984}
