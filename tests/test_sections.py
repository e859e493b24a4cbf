"""Waterfall, lengths, matrix, costs and limit: each only if its samples are there, and never more than they prove."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kvdemo.judge import sections
from kvdemo.judge.sample import Sample, Sources
from kvdemo.judge.verdict import CacheFacts, Verdict, judge, why_missing
from kvdemo.words import findings
from kvdemo.words import sections as wording
from runs import CONDITIONS, HIT, PROMPT, result, sample, samples, summarize

LIMIT = {**CONDITIONS, "memory_bandwidth": 10e9, "disk_bandwidth": 1e5}


def cell(writer: str, reader: str, hit: str, **changes: Any) -> Sample:
    """A request of the matrix whose tokens came from ``local``, ``shared`` or nowhere."""
    sources = Sources(PROMPT - (HIT if hit else 0), HIT if hit == "local" else 0, HIT if hit == "shared" else 0)
    made = sample(engine=reader, writer=writer, cached_tokens=HIT if hit else 0, sources=sources, expected=HIT)
    return replace(made, **changes)


def test_a_run_has_the_sections_that_it_measured() -> None:
    """Nothing is said about lengths, matrix and limits that were not measured."""
    document = summarize(CONDITIONS, samples())
    assert not {"lengths", "matrix", "limit"} & set(document)
    assert set(document["costs"]) == {"store_tax"}


def test_the_waterfall_adds_up() -> None:
    """Client, queue and prefill make the TTFT; without the engine's own figures there is none."""
    parts = sections.waterfall([sample("cold", 0)])
    assert parts
    assert parts.client_http_ms + parts.queue_and_load_ms + parts.prefill_ms == pytest.approx(10_000)
    assert sections.waterfall([sample("cold", queue=None)]) is None


def test_the_limit() -> None:
    """Bytes of the hit over the bandwidth, plus a local hit; the disk that cannot win is said to."""
    limit = summarize(LIMIT, samples())["limit"]
    values = {entry["name"]: entry["value"] for entry in limit["rows"]}
    assert limit["tier"] == "memory"
    assert values["KV of the hit"] == pytest.approx(HIT * 8192 / 1e6, abs=1e-4)
    assert "Reuse from disk cannot beat computing here" in limit["text"]


def test_no_limit_without_proof() -> None:
    """Of a run whose reuse is not proved."""
    made = [replace(s, cached_tokens=0, sources=Sources(PROMPT, 0, 0)) if s.arm == "reuse" else s for s in samples()]
    assert "limit" not in summarize(LIMIT, made)


def test_a_limit_without_gain_is_json() -> None:
    """Where a local hit takes as long as computing there is no infinite number in the document."""
    document = summarize(LIMIT, samples(again=100.0))
    assert "nothing to gain" in document["limit"]["text"]
    json.dumps(document, allow_nan=False)


def lengths(*points: tuple[int, float, float]) -> list[Sample]:
    """Trials at these lengths: tokens, cold and reuse TTFT."""
    made = []
    for tokens, cold, reuse in points:
        for trial in (1, 2, 3):
            made += [sample("cold", trial, length=tokens, ttft=cold), sample("reuse", trial, length=tokens, ttft=reuse)]
    return made


def test_lengths() -> None:
    """A point for each, the break-even between those around it, and rows of the longest alone."""
    document = summarize(CONDITIONS, lengths((100, 1.0, 2.0), (300, 3.0, 2.0)))
    assert [point["prompt_tokens"] for point in document["lengths"]["points"]] == [100, 300]
    assert document["lengths"]["break_even_tokens"] == 200
    assert document["speedup"]["median"] == 1.5


@pytest.mark.parametrize(
    ("points", "caption"),
    [
        (((100, 2.0, 1.0), (300, 3.0, 1.0)), "Reuse is faster at all of these lengths."),
        (((100, 1.0, 2.0), (300, 2.0, 3.0)), "Reuse is not faster at these lengths."),
        (((100, 1.0, 2.0), (300, 3.0, 2.0)), "Reuse is faster from about 200 tokens on."),
        (((100, 2.0, 1.0), (300, 2.0, 3.0)), "Reuse is faster from about 100 tokens on."),
    ],
)
def test_the_caption_of_lengths(points: tuple[tuple[int, float, float], ...], caption: str) -> None:
    """It claims all lengths only if reuse won at all of them."""
    swept = result(CONDITIONS, lengths(*points))
    assert swept.lengths
    assert wording.break_even(swept, swept.lengths) == caption


def test_a_length_without_proof_is_no_point() -> None:
    """A MISS at one length leaves that length out."""
    made = lengths((100, 1.0, 0.5), (300, 3.0, 0.5))
    made = [
        replace(s, cached_tokens=0, sources=Sources(PROMPT, 0, 0)) if (s.arm, s.length) == ("reuse", 100) else s
        for s in made
    ]
    assert [point["prompt_tokens"] for point in summarize(CONDITIONS, made)["lengths"]["points"]] == [300]


def matrix(*made: Sample) -> dict[tuple[str, str], dict[str, Any]]:
    """The cells of these samples."""
    document = summarize(CONDITIONS, [*made])
    return {(c["writer"], c["reader"]): c for c in document["matrix"]["cells"]}


def test_the_matrix() -> None:
    """LOCAL on the diagonal, SHARED beside it, each against the reader's own cold."""
    cold = replace(sample("store"), writer="b", engine="b", ttft=10.0)
    cells = matrix(cold, cell("a", "b", "shared", ttft=0.5), cell("b", "b", "local", ttft=0.1))
    assert {key: c["verdict"] for key, c in cells.items()} == {("a", "b"): "SHARED", ("b", "b"): "LOCAL"}
    assert cells["a", "b"]["speedup"] == 20


def test_a_reader_whose_cold_request_failed_has_no_speed_up_in_the_matrix() -> None:
    """The cold requests that went well are no baseline either; the failure is said."""
    cold = replace(sample("store"), writer="b", engine="b", ttft=10.0)
    made = [cold, replace(cold, trial=2, ttft=None, error="HTTP 500"), cell("a", "b", "shared", ttft=0.5)]
    assert matrix(*made)["a", "b"]["speedup"] is None
    assert findings.complaints(result(CONDITIONS, made)) == ["1 request failed; no ratio is made with it."]


@pytest.mark.parametrize("order", [1, -1])
def test_one_broken_trial_breaks_the_cell(order: int) -> None:
    """A cell that kept its promise in some trials only shows what broke it, whatever the order; it has no speed-up."""
    made = [cell("a", "b", "shared"), cell("a", "b", "", note="because")][::order]
    found = matrix(*made)["a", "b"]
    assert (found["verdict"], found["why"], found["speedup"]) == ("MISS", "because", None)
    document = summarize(CONDITIONS, made)
    assert not document["valid"]
    assert findings.complaints(result(CONDITIONS, made)) == ["a to b: MISS instead of SHARED: because"]


def test_a_warm_cold_cell_is_not_cold() -> None:
    """LOCAL where COLD was promised breaks the cell too."""
    made = [cell("p", "b", "", expected=0), cell("p", "b", "local", expected=0)]
    assert matrix(*made)["p", "b"]["verdict"] == "LOCAL"


def test_decode_tax_is_paired() -> None:
    """ITL while the writer stores over ITL while a plain engine beside it computes, baseline or not, trial by trial."""
    made = samples()
    for trial, gap in ((1, 0.02), (2, 0.04)):
        for writer, factor in (("a", 1.5), ("another", 1.0)):
            made.append(replace(sample("store", trial), arm="decode", engine="b", writer=writer, itl=(gap * factor,)))
    tax = summarize(CONDITIONS, made)["costs"]["decode_tax"]
    assert (tax["n"], tax["median"]) == (2, 1.5)


def test_a_hit_of_another_tier_proves_nothing() -> None:
    """A run about L2 whose tokens came from L1 is UNPROVEN, without a speed-up."""
    made = [replace(s, tiers={"l1": 128, "l2": HIT - 128}) if s.arm == "reuse" else s for s in samples()]
    for tier, verdict in (("l2", "UNPROVEN"), ("l1", "UNPROVEN"), ("any", "SHARED")):
        document = summarize({**CONDITIONS, "tier": tier}, made)
        reuse = next(row for row in document["rows"] if row["arm"] == "reuse")
        assert reuse["verdict"] == verdict
        assert bool(document["speedup"]) == (tier == "any")


def test_a_row_that_is_not_proved_has_no_speedup() -> None:
    """Not even from its other trials: those that missed may be the slow ones."""
    made = [replace(s, error="HTTP 503") if (s.arm, s.trial) == ("reuse", 1) else s for s in samples()]
    document = summarize(CONDITIONS, made)
    reuse = next(row for row in document["rows"] if row["arm"] == "reuse")
    assert (reuse["verdict"], reuse["speedup"], document["speedup"]) == ("FAILED", None, None)
    assert reuse["dropped"] == [{"trial": 1, "verdict": "FAILED", "why": "HTTP 503"}]


@pytest.mark.parametrize(
    ("local", "shared", "verdict"),
    [
        (0, HIT, Verdict.SHARED),
        (HIT, 0, Verdict.LOCAL),
        (HIT - 128, 128, Verdict.LOCAL),
        (128, HIT - 128, Verdict.PARTIAL),
        (32, HIT, Verdict.SHARED),
    ],
)
def test_mixed_sources(local: int, shared: int, verdict: Verdict) -> None:
    """SHARED only if the whole expected prefix came from the shared cache."""
    assert (
        judge(sample(cached_tokens=local + shared, sources=Sources(PROMPT - local - shared, local, shared))).verdict
        is verdict
    )


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"answers": False}, "does not answer any more"),
        ({"registered_engines": 1}, "only 1 of 2 engines"),
        ({"strange": True}, "does not know the engine's KV cache"),
        ({"failed": "HTTP 503"}, "the writer's request failed (HTTP 503)"),
        ({"kv_bytes": 2 * 10**9, "l1_bytes": 10**9}, "KV (2,000 MB) does not fit into L1 (1,000 MB)"),
        ({"stored": 3, "refusals": 4}, "L1 of shared was full: 4 chunks"),
        ({"stored": 3}, "only 3 of the writer's 7 chunks had been stored"),
        ({"stored": 7, "files_in_l2": 5}, "only 5 of the writer's 7 chunks had become files"),
        ({"stored": 7, "evictions": 2}, "2 chunks were evicted"),
        ({"stored": 7, "files_in_l2": 7, "unreadable": 6}, "of the 7 chunks in L2 some could not be read"),
        (
            {"stored": 7, "files_in_l2": 7, "evictions": 7, "matched_tokens": 0},
            "of the 7 chunks in L2 some could not be read",
        ),
        ({"stored": 7, "matched_tokens": HIT}, "found 896 tokens, the engine did not load them"),
        ({"stored": 7, "matched_tokens": 128}, "found only 128 tokens"),
        ({}, ""),
    ],
)
def test_reasons_follow_from_facts(facts: dict[str, Any], why: str) -> None:
    """A MISS names the first thing that explains it, and nothing if nothing is known."""
    given = {"answers": True, "engines": 2, "registered_engines": 2, "chunks": 7, **facts}
    said = why_missing(CacheFacts("shared", expected=HIT, **given))
    assert why in said
    assert bool(said) == bool(why)


def test_an_engine_that_rounds_otherwise_is_no_control() -> None:
    """Its cold answer differs from the writer's already: exactness is judged by the other one, or not at all."""
    odd = (-0.5, -0.25, -1.0, -2.1)
    made = [replace(s, logprobs=odd) if s.engine == "plain" else s for s in samples()]
    found = summarize(CONDITIONS, made)["answer"]
    assert found["same"] is None
    assert "plain already computes other bits than the writer" in found["text"]
    second = [sample("cold", 1, engine="other"), sample("control", 0, engine="other")]
    assert summarize(CONDITIONS, [*made, *second])["answer"]["same"] is True
    wrong = [replace(s, logprobs=odd) if s.arm == "reuse" else s for s in [*made, *second]]
    assert summarize(CONDITIONS, wrong)["answer"]["same"] is False
