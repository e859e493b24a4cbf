"""Predictions are plain arithmetic, and come out near what was measured on an H200."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvdemo.planning import predict
from kvdemo.planning.predict import Rates, Times
from test_budget import MISTRAL, SHAPE

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "h200"
H200 = Rates(matmul=790e12, attention=500e12, tokenizing=0.1)


def measured() -> dict[str, Any]:
    """What bench saved on one H200."""
    document: dict[str, Any] = json.loads((RESULTS / "memory-other-host.json").read_text())
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
    """From 790 TFLOP/s in matrix products: within a tenth of the 1,194 ms that were measured."""
    assert SHAPE is not None
    times = predict.from_rates(SHAPE, H200, 30556, 256)
    assert times.cold == pytest.approx(1.194, rel=0.1)
    assert 0.1 < times.local < 0.137
    assert times.basis.startswith("790 TFLOP/s in matrix products and 500 in attention")


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
    """Memory wins near the 5.5x that was measured; that disk cannot, and the bandwidth that could is told."""
    saved = measured()
    rates = {"memory": saved["memory_bandwidth"], "disk": saved["disk_bandwidth"]}
    found = predict.predict(30556, 256, 131072, Times(1.194, 0.137, "measured"), rates)
    memory, disk = found.tiers
    assert (found.hit, found.kv_bytes) == (30464, 30464 * 131072)
    assert (memory.wins, disk.wins) == (True, False)
    assert 5.5 <= memory.speedup < 6
    assert "reuse cannot beat computing (1.19 s); 3.8 GB/s would" in predict.sentence(disk, found.times.cold)
    assert "first token after 210 ms at best, 5.7x faster (TTFT)" in predict.sentence(memory, found.times.cold)
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
