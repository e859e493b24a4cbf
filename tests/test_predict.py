"""Predictions are plain arithmetic, and come out near what was measured on an H200."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvdemo.planning import predict
from kvdemo.planning.predict import Rates, Times
from test_budget import MISTRAL, SHAPE

SAVED = Path(__file__).parent / "h200.json"
H200 = Rates(matmul=790e12, attention=500e12, tokenizing=0.1)


def measured() -> dict[str, Any]:
    """What bench saved on one H200."""
    document: dict[str, Any] = json.loads(SAVED.read_text())
    return document


def test_work_of_a_prefill() -> None:
    """2 FLOPs a parameter and token; attention grows with the square; parts add up to the whole."""
    assert SHAPE is not None
    assert SHAPE.linear_flops(1000) == 2 * (7_241_732_096 - 2 * 32000 * 4096) * 1000
    assert SHAPE.attention_flops(2000) == 4 * SHAPE.attention_flops(1000)
    whole = predict.prefill(SHAPE, H200, 3000, 3000)
    parts = predict.prefill(SHAPE, H200, 1000, 1000) + predict.prefill(SHAPE, H200, 2000, 3000)
    assert whole == pytest.approx(parts)


def test_near_what_an_h200_did() -> None:
    """Within 15 % of 1,243 ms cold, 150 ms local and 245 ms reuse that bench measured on an H200 (31,722 tokens).

    Its tokenizer took 51 ms there; the rates are those that its 1,137 ms of prefill come to.
    """
    assert SHAPE is not None
    rates = Rates(matmul=660e12, attention=590e12, tokenizing=0.051)
    times = predict.from_rates(SHAPE, rates, 31722, 256)
    (memory,) = predict.predict(31722, 256, 131072, times, {"memory": 55.3e9}).tiers
    assert times.cold == pytest.approx(1.243, rel=0.15)
    assert times.local == pytest.approx(0.150, rel=0.15)
    assert memory.reuse == pytest.approx(0.245, rel=0.15)
    assert times.basis == (
        "660 TFLOP/s in matrix products and 590 in attention, measured with torch; API server and scheduler take "
        "145 ms of each"
    )


@pytest.mark.parametrize(
    ("tokens", "local", "reuse"), [(4067, 0.0411, 0.074), (8018, 0.0685, 0.116), (15889, 0.0969, 0.151)]
)
def test_near_at_other_lengths(tokens: int, local: float, reuse: float) -> None:
    """The same constants, at the lengths of another run on an H200: within a fifth, of tens of milliseconds."""
    assert SHAPE is not None
    rates = Rates(matmul=660e12, attention=590e12, tokenizing=0.051 * tokens / 31722)
    times = predict.from_rates(SHAPE, rates, tokens, 256)
    (memory,) = predict.predict(tokens, 256, 131072, times, {"memory": 54.8e9}).tiers
    assert times.local == pytest.approx(local, rel=0.2)
    assert memory.reuse == pytest.approx(reuse, rel=0.2)


def test_from_a_saved_result() -> None:
    """The newest of that model on that device; another length is scaled by its work."""
    assert SHAPE is not None
    saved = measured()
    older = saved | {"date": "2020", "rows": []}
    args = (saved["model_digest"], "NVIDIA H200", SHAPE)
    times = predict.from_results([("old.json", older), ("new.json", saved)], *args, 30556)
    assert times is not None
    assert (round(times.cold, 3), times.basis) == (1.194, "measured in new.json")
    half = predict.from_results([("new.json", saved)], *args, 15278)
    assert half is not None
    assert half.local < half.cold < times.cold / 2
    assert half.basis == "measured in new.json, scaled from 30,556 tokens"
    assert predict.from_results([("new.json", saved)], saved["model_digest"], "A6000", SHAPE, 1) is None
    assert predict.from_results([("new.json", saved)], "other", "NVIDIA H200", SHAPE, 1) is None
    assert predict.from_results([], "", "", SHAPE, 1) is None


def test_the_tiers_of_the_h200() -> None:
    """Memory wins within a tenth of the 5.5x that was measured; that disk cannot, and what could, is told."""
    saved = measured()
    rates = {"memory": saved["memory_bandwidth"], "disk": saved["disk_bandwidth"]}
    found = predict.predict(30556, 256, 131072, Times(1.194, 0.137, "measured"), rates)
    memory, disk = found.tiers
    assert (found.hit, found.kv_bytes) == (30464, 30464 * 131072)
    assert (memory.wins, disk.wins) == (True, False)
    assert memory.speedup == pytest.approx(5.5, rel=0.1)
    assert "reuse cannot beat computing (1.19 s); 3.9 GB/s would" in predict.sentence(disk, found.times.cold)
    assert "first token after 232 ms, 5.2x faster (TTFT)" in predict.sentence(memory, found.times.cold)
    assert json.loads(json.dumps(found.to_json()))["tiers"][1]["wins"] is False


def test_whole_chunks() -> None:
    """A prompt that is a whole number of chunks keeps one chunk to compute: its last token must be."""
    assert predict.predict(512, 256, 1, Times(1, 0.1, ""), {}).hit == 256
    assert predict.predict(513, 256, 1, Times(1, 0.1, ""), {}).hit == 512


def test_kv_of_a_latent_cache() -> None:
    """MLA keeps one vector a layer."""
    from kvdemo.planning import shape

    config = MISTRAL | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert shape.kv_bytes_per_token(config) == 32 * 576 * 2
    assert shape.of(config) is None
