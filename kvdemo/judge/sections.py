"""Further findings of a run, each only if its samples are there: waterfall, lengths, matrix, costs, limit. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from kvdemo.judge import stats
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import WORST_FIRST, Verdict, judge
from kvdemo.planning import ceiling


def of(
    conditions: Mapping[str, Any],
    samples: Sequence[Sample],
    rows: Sequence[Mapping[str, Any]],
    store_tax: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All sections that this run has."""
    found = {
        "costs": _costs(conditions, samples, store_tax),
        "limit": _limit(conditions, rows),
        "lengths": _lengths(conditions, samples),
        "matrix": _matrix(conditions, samples),
    }
    return {name: section for name, section in found.items() if section}


def waterfall(samples: Sequence[Sample]) -> dict[str, float] | None:
    """Medians in ms of what a TTFT is made of, as far as the engine tells.

    ``queue`` is the time until the request is scheduled: an engine that loads KV first counts the load there.
    """
    known = [s for s in samples if s.ttft and s.queue is not None and s.server_ttft is not None]
    if not known:
        return None
    parts = {
        "client_http": [(s.ttft or 0) - (s.queue or 0) - (s.server_ttft or 0) for s in known],
        "queue_and_load": [s.queue or 0 for s in known],
        "prefill": [s.server_ttft or 0 for s in known],
    }
    return {f"{name}_ms": round(max(0.0, median(values)) * 1000, 3) for name, values in parts.items()}


def _median(samples: Sequence[Sample], arm: str, engine: str, verdict: Verdict) -> float | None:
    """Median TTFT in seconds of this arm's samples with this verdict."""
    times = [s.ttft for s in samples if (s.arm, s.engine) == (arm, engine) and s.ttft and judge(s).verdict is verdict]
    return median(times) if times else None


def _cost(values: Sequence[float], unit: str, text: str) -> dict[str, Any] | None:
    if not values:
        return None
    interval = stats.bootstrap_median(values)
    low, high = (interval.low, interval.high) if interval else (min(values), max(values))
    found = {"n": len(values), "median": round(median(values), 4), "low": round(low, 4), "high": round(high, 4)}
    return {**found, "unit": unit, "text": text}


def _costs(
    conditions: Mapping[str, Any], samples: Sequence[Sample], store_tax: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What caching costs those who gain nothing from it."""
    base = conditions["baseline"]
    cold = _median(samples, "cold", base, Verdict.COLD)
    stored = [s for s in samples if s.arm == "store" and judge(s).verdict is Verdict.COLD]
    lookups = [s.lookup / cold for s in stored if s.lookup is not None and cold]
    found = {
        "store_tax": {**store_tax, "unit": "x", "text": "cold with storing over cold without"} if store_tax else None,
        "lookup_tax": _cost(lookups, "of cold", "time spent asking the cache in vain, as a share of cold TTFT"),
        "visibility_lag": _cost(
            [s.stored_after * 1000 for s in stored if s.stored_after is not None],
            "ms",
            "from the writer's last token until all of its chunks can be loaded",
        ),
        "decode_tax": _cost(
            _decode_ratios(conditions, samples), "x", "ITL while the other engine stores over ITL while one computes"
        ),
    }
    return {name: cost for name, cost in found.items() if cost}


def _decode_ratios(conditions: Mapping[str, Any], samples: Sequence[Sample]) -> list[float]:
    gaps: dict[str, dict[int, float]] = {}
    for sample in samples:
        if sample.arm == "decode" and sample.itl and not sample.error:
            gaps.setdefault(sample.writer, {})[sample.trial] = median(sample.itl)
    storing, computing = gaps.get(conditions["writer"], {}), gaps.get(conditions["baseline"], {})
    return [storing[trial] / computing[trial] for trial in sorted(storing.keys() & computing.keys())]


def _limit(conditions: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How far the reuse is from what this machine could do at best; needs measured bandwidths in the conditions."""
    times = {(row["arm"]): row for row in rows}
    per_token = conditions.get("kv_bytes_per_token")
    reuse, again = times.get("reuse"), times.get("again")
    cold = next((row for row in rows if row["engine"] == conditions["baseline"]), None)
    if not (per_token and reuse and again and cold):
        return None
    if (reuse["verdict"], again["verdict"], cold["verdict"]) != (Verdict.SHARED, Verdict.LOCAL, Verdict.COLD):
        return None
    tier = "disk" if conditions.get("tier") == "l2" or (reuse["tiers"] or {}).get("l2") else "memory"
    kv_bytes = per_token * reuse["external_cached_tokens"]
    seconds = [row["median_ttft_ms"] / 1000 for row in (again, reuse, cold)]
    limits = {
        name: ceiling.limit(kv_bytes, bandwidth, *seconds)
        for name in ("memory", "disk")
        if (bandwidth := conditions.get(f"{name}_bandwidth"))
    }
    if tier not in limits:
        return None
    sentences = [ceiling.sentence(tier, limits[tier])]
    if tier != "disk" and "disk" in limits and not limits["disk"].worthwhile:
        sentences.append(ceiling.sentence("disk", limits["disk"]))
    found = limits[tier]
    values = [
        ("KV of the hit", kv_bytes / 1e6, "MB"),
        *((f"{name} bandwidth", one.bandwidth / 1e9, "GB/s") for name, one in limits.items()),
        ("floor", found.floor * 1000, "ms"),
        ("efficiency", found.efficiency, ""),
        *([("break-even bandwidth", found.needed / 1e9, "GB/s")] if math.isfinite(found.needed) else []),
    ]
    table = [{"name": name, "value": round(value, 4), "unit": unit} for name, value, unit in values]
    return {"tier": tier, "text": " ".join(sentences), "efficiency": round(found.efficiency, 4), "rows": table}


def _lengths(conditions: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Cold, reuse and floor over prompt tokens, and where reuse begins to win."""
    points: list[dict[str, Any]] = []
    curve: list[tuple[int, float, float]] = []
    for length in sorted({sample.length for sample in samples if sample.length}):
        here = [sample for sample in samples if sample.length == length]
        cold = _median(
            here,
            "cold" if conditions["baseline"] != conditions["writer"] else "store",
            conditions["baseline"],
            Verdict.COLD,
        )
        reuse = _median(here, "reuse", conditions["reader"], Verdict.SHARED)
        again = _median(here, "again", conditions["reader"], Verdict.LOCAL)
        if cold is None or reuse is None:
            continue
        floor = None
        hit = max((s.cached_tokens or 0) for s in here if s.arm == "reuse")
        if again is not None and conditions.get("kv_bytes_per_token") and conditions.get("memory_bandwidth"):
            floor = again + hit * conditions["kv_bytes_per_token"] / conditions["memory_bandwidth"]
        in_ms = {"cold_ms": cold, "reuse_ms": reuse, "floor_ms": floor}
        point = {name: None if value is None else round(value * 1000, 3) for name, value in in_ms.items()}
        points.append({"prompt_tokens": length, **point})
        curve.append((length, cold, reuse))
    if not points:
        return None
    return {"points": points, "break_even_tokens": ceiling.break_even(curve)}


def _matrix(conditions: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Who can reuse what whom computed; each speed-up is against that reader's own cold.

    On a cluster, what came from the reader's own node and what from another one is told apart.
    """
    cells: dict[tuple[str, str], list[Sample]] = {}
    colds: dict[str, list[float]] = {}
    for sample in samples:
        if not sample.writer or sample.arm == "decode":
            continue
        if sample.arm == "reuse":
            cells.setdefault((sample.writer, sample.engine), []).append(sample)
        elif sample.ttft and judge(sample).verdict is Verdict.COLD:
            colds.setdefault(sample.engine, []).append(sample.ttft)
    if not cells:
        return None
    rows = [_cell(*key, group, colds.get(key[1], [])) for key, group in cells.items()]
    found: dict[str, Any] = {"engines": list(dict.fromkeys(writer for writer, _ in cells)), "cells": rows}
    if nodes := conditions.get("nodes"):
        gains: dict[str, list[float]] = {}
        for row in rows:
            row["where"] = "same node" if nodes[row["writer"]] == nodes[row["reader"]] else "other node"
            if row["verdict"] == row["expected"] == Verdict.SHARED and row["speedup"]:
                gains.setdefault(row["where"], []).append(row["speedup"])
        found["reuse"] = [
            {"where": where, "pairs": len(each), "median_speedup": round(median(each), 4)}
            for where, each in sorted(gains.items(), reverse=True)
        ]
        told = [
            f"from the {row['where']} {row['median_speedup']:.3g}x ({row['pairs']} pairs)" for row in found["reuse"]
        ]
        found["text"] = f"Sooner by reuse: {', '.join(told) or 'nobody'}."
    return found


def _cell(writer: str, reader: str, samples: Sequence[Sample], cold: Sequence[float]) -> dict[str, Any]:
    """One writer and reader. ``expected`` is the verdict that the fleet's wiring promises."""
    promised = Verdict.COLD if not samples[0].expected else Verdict.LOCAL if writer == reader else Verdict.SHARED
    judgements = [judge(sample) for sample in samples]
    broken = {judgement.verdict: judgement.why for judgement in judgements if judgement.verdict is not promised}
    verdict = next((verdict for verdict in WORST_FIRST if verdict in broken), promised)
    times = [sample.ttft for sample in samples if sample.ttft]
    middle = median(times) if times else None
    return {
        "writer": writer,
        "reader": reader,
        "n": len(samples),
        "verdict": verdict,
        "expected": promised,
        "why": broken.get(verdict, ""),
        "cached_tokens": samples[0].cached_tokens,
        "median_ttft_ms": round(middle * 1000, 3) if middle else None,
        "speedup": round(median(cold) / middle, 4) if middle and cold and verdict is promised else None,
    }
