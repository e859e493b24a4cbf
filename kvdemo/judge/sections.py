"""Further findings of a run, each only if its samples are there: waterfall, lengths, matrix, costs, limit. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from kvdemo import units
from kvdemo.judge import effect, stats
from kvdemo.judge.effect import Effect
from kvdemo.judge.result import (
    Cell,
    Conditions,
    Cost,
    Gain,
    Lengths,
    Limit,
    LimitLine,
    Matrix,
    Point,
    Ratio,
    Row,
    Times,
    Waterfall,
)
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import Verdict, judge
from kvdemo.planning import ceiling


def waterfall(samples: Sequence[Sample]) -> Waterfall | None:
    """Medians in ms of what a TTFT is made of, as far as the engine tells.

    ``queue`` is the time until the request is scheduled: an engine that loads KV first counts the load there.
    """
    timed = [s for s in samples if s.ttft and s.queue is not None and s.server_ttft is not None]
    if not timed:
        return None
    client = [(s.ttft or 0) - (s.queue or 0) - (s.server_ttft or 0) for s in timed]
    parts = (client, [s.queue or 0 for s in timed], [s.server_ttft or 0 for s in timed])
    return Waterfall(*(round(max(0.0, median(values)) * 1000, 3) for values in parts))


def _median(samples: Sequence[Sample], arm: str, engine: str, verdict: Verdict) -> float | None:
    """Median TTFT in seconds of this arm's samples with this verdict."""
    times = [s.ttft for s in samples if (s.arm, s.engine) == (arm, engine) and s.ttft and judge(s).verdict is verdict]
    return median(times) if times else None


def _cost(values: Ratio | None, unit: str, text: str) -> Cost | None:
    return Cost(**vars(values), unit=unit, text=text) if values else None


def costs(conditions: Conditions, samples: Sequence[Sample], store_tax: Ratio | None) -> Mapping[str, Cost] | None:
    """What caching costs those who gain nothing from it."""
    cold = _median(samples, "cold", conditions.baseline, Verdict.COLD)
    stores = [s for s in samples if s.arm == "store" and judge(s).verdict is Verdict.COLD]
    lookups = [s.lookup / cold for s in stores if s.lookup is not None and cold]
    lags = [s.stored_after * 1000 for s in stores if s.stored_after is not None]
    by_name = {
        "store_tax": _cost(store_tax, "x", "cold with storing over cold without"),
        "lookup_tax": _cost(
            stats.ratio(lookups), "of cold", "time spent asking the cache in vain, as a share of cold TTFT"
        ),
        "visibility_lag": _cost(
            stats.ratio(lags), "ms", "from the writer's last token until all of its chunks can be loaded"
        ),
        "decode_tax": _cost(
            stats.ratio(_decode_ratios(conditions, samples)),
            "x",
            "ITL while the other engine stores over ITL while one computes",
        ),
    }
    return {name: cost for name, cost in by_name.items() if cost} or None


def _decode_ratios(conditions: Conditions, samples: Sequence[Sample]) -> list[float]:
    gaps: dict[str, dict[int, float]] = {}
    for sample in samples:
        if sample.arm == "decode" and sample.itl and not sample.error:
            gaps.setdefault(sample.writer, {})[sample.trial] = median(sample.itl)
    storing = gaps.pop(conditions.writer, {})
    computing = next(iter(gaps.values()), {})  # the plain engine beside the writer, which need not be the baseline
    both = [(storing[trial], computing[trial]) for trial in sorted(storing.keys() & computing.keys())]
    return [one / other for one, other in both if other]


def limit(conditions: Conditions, rows: Sequence[Row], noise: Ratio | None) -> Limit | None:
    """How far the reuse is from what this machine could do at best; needs measured bandwidths in the conditions.

    From which bandwidth on reuse beats computing is known only where a local hit is faster beyond the ``noise``.
    """
    by_arm = {row.arm: row for row in rows}
    cold = next((row for row in rows if row.engine == conditions.baseline), None)
    proved = [
        _proved_times(by_arm.get("again"), Verdict.LOCAL),
        _proved_times(by_arm.get("reuse"), Verdict.SHARED),
        _proved_times(cold, Verdict.COLD),
    ]
    medians = [times.median / 1000 for times in proved if times and times.median]
    reuse = by_arm.get("reuse")
    if (
        len(medians) < len(proved)
        or reuse is None
        or not (conditions.kv_bytes_per_token and reuse.external_cached_tokens)
    ):
        return None
    tier = "disk" if conditions.tier == "l2" or (reuse.tiers or {}).get("l2") else "memory"
    kv_bytes = conditions.kv_bytes_per_token * reuse.external_cached_tokens
    bandwidths = {"memory": conditions.memory_bandwidth, "disk": conditions.disk_bandwidth}
    again = by_arm["again"].speedup
    if again is None:
        return None  # nothing may be compared with computing: a wrong answer, or no trial in common
    differs = effect.of(again, noise) is not Effect.NONE
    limits = {name: ceiling.limit(kv_bytes, speed, *medians) for name, speed in bandwidths.items() if speed}
    if tier not in limits:
        return None
    sentences = [ceiling.of_run(tier, limits[tier], differs=differs)]
    if differs and tier != "disk" and "disk" in limits and not limits["disk"].worthwhile:
        sentences.append(ceiling.sentence("disk", limits["disk"], differs=differs))
    own = limits[tier]
    values = [
        ("KV of the hit", kv_bytes / 1e6, "MB"),
        *((f"{name} bandwidth", one.bandwidth / 1e9, "GB/s") for name, one in limits.items()),
        ("floor", own.floor * 1000, "ms"),
        ("efficiency", own.efficiency, ""),
        *([("break-even bandwidth", own.needed / 1e9, "GB/s")] if differs and math.isfinite(own.needed) else []),
    ]
    lines = tuple(LimitLine(name, round(value, 4), unit) for name, value, unit in values)
    return Limit(tier, " ".join(sentences), round(own.efficiency, 4), lines)


def _proved_times(row: Row | None, verdict: Verdict) -> Times | None:
    """The TTFTs of a row if that is its verdict."""
    return row.ttft if row and row.verdict is verdict else None


def lengths(conditions: Conditions, samples: Sequence[Sample], speedups: Mapping[int, Ratio | None]) -> Lengths | None:
    """Cold, reuse and floor over prompt tokens, and where reuse begins to win."""
    points: list[Point] = []
    curve: list[tuple[int, float, float]] = []
    alone = conditions.baseline == conditions.writer
    for length in sorted({sample.length for sample in samples if sample.length}):
        group = [sample for sample in samples if sample.length == length]
        cold = _median(group, "store" if alone else "cold", conditions.baseline, Verdict.COLD)
        reuse = _median(group, "reuse", conditions.reader, Verdict.SHARED)
        again = _median(group, "again", conditions.reader, Verdict.LOCAL)
        if cold is None or reuse is None:
            continue
        floor = None
        hit = max((s.cached_tokens or 0) for s in group if s.arm == "reuse")
        if again is not None and conditions.kv_bytes_per_token and conditions.memory_bandwidth:
            floor = again + hit * conditions.kv_bytes_per_token / conditions.memory_bandwidth
        in_ms = [None if value is None else round(value * 1000, 3) for value in (cold, reuse, floor)]
        points.append(Point(length, in_ms[0] or 0.0, in_ms[1] or 0.0, in_ms[2], speedups.get(length)))
        curve.append((length, cold, reuse))
    return Lengths(tuple(points), ceiling.break_even(curve)) if points else None


def matrix(conditions: Conditions, samples: Sequence[Sample]) -> Matrix | None:
    """Who can reuse what whom computed; each speed-up is against that reader's own cold.

    On a cluster, what came from the reader's own node and what from another one is told apart.
    """
    groups: dict[tuple[str, str], list[Sample]] = {}
    colds: dict[str, list[float]] = {}
    writes = [s for s in samples if s.writer and s.arm in ("cold", "store")]
    failed = {sample.engine for sample in writes if judge(sample).verdict is Verdict.FAILED}
    for sample in samples:
        if not sample.writer or sample.arm == "decode":
            continue
        if sample.arm == "reuse":
            groups.setdefault((sample.writer, sample.engine), []).append(sample)
        elif sample.engine not in failed and sample.ttft and judge(sample).verdict is Verdict.COLD:
            colds.setdefault(sample.engine, []).append(sample.ttft)
    if not groups:
        return None
    cells = tuple(_cell(*key, group, colds.get(key[1], []), conditions.nodes) for key, group in groups.items())
    engines = tuple(dict.fromkeys(writer for writer, _ in groups))
    if not conditions.nodes:
        return Matrix(engines, cells)
    gains: dict[str, list[float]] = {}
    for cell in cells:
        if cell.verdict is cell.expected is Verdict.SHARED and cell.speedup:
            gains.setdefault(cell.where or "", []).append(cell.speedup)
    reuse = tuple(Gain(where, len(each), round(median(each), 4)) for where, each in sorted(gains.items(), reverse=True))
    parts = [
        f"from the {gain.where} {units.ratio(gain.median_speedup)} ({units.count(gain.pairs, 'pair')})"
        for gain in reuse
    ]
    return Matrix(engines, cells, reuse, f"Faster (TTFT) by reuse: {', '.join(parts) or 'nobody'}.")


def _cell(writer: str, reader: str, samples: Sequence[Sample], cold: Sequence[float], nodes: Mapping[str, str]) -> Cell:
    """One writer and reader."""
    expected = Verdict.COLD if not samples[0].expected else Verdict.LOCAL if writer == reader else Verdict.SHARED
    judgements = [judge(sample) for sample in samples]
    broken = {judgement.verdict: judgement.why for judgement in judgements if judgement.verdict is not expected}
    verdict = next((verdict for verdict in Verdict if verdict in broken), expected)
    times = [sample.ttft for sample in samples if sample.ttft]
    middle = median(times) if times else None
    same = "same node" if nodes.get(writer) == nodes.get(reader) else "other node"
    return Cell(
        writer=writer,
        reader=reader,
        n=len(samples),
        verdict=verdict,
        expected=expected,
        why=broken.get(verdict, ""),
        cached_tokens=samples[0].cached_tokens,
        median_ttft_ms=round(middle * 1000, 3) if middle else None,
        speedup=round(median(cold) / middle, 4) if middle and cold and verdict is expected else None,
        where=same if nodes else None,
    )
