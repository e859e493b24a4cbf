"""Samples -> result document: verdicts, medians, paired ratios, the answer check. Pure: same samples, same bytes.

Keys follow ``vllm bench serve``: ``median_ttft_ms`` and friends in milliseconds, per-sample arrays in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kvdemo import answers, stats
from kvdemo.sample import Sample
from kvdemo.verdict import SUPPORTS_SPEEDUP, Judgement, Verdict, judge

SCHEMA_VERSION = 1
WORST_FIRST = (
    Verdict.FAILED,
    Verdict.UNPROVEN,
    Verdict.MISS,
    Verdict.PARTIAL,
    Verdict.COLD,
    Verdict.LOCAL,
    Verdict.SHARED,
)


def summarize(conditions: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """The result document of a run, as saved and as ``--json`` prints it."""
    measured = [sample for sample in samples if sample.arm != "control"]
    judged = [(sample, judge(sample)) for sample in measured]
    rows = [_row(key, judged, conditions) for key in dict.fromkeys((s.engine, s.arm) for s in measured)]
    rows.sort(key=lambda row: list(SUPPORTS_SPEEDUP).index(row["arm"]))
    reuse = next((row for row in rows if row["arm"] == "reuse"), None)
    answer = _answer(samples, judged)
    return {
        "schema_version": SCHEMA_VERSION,
        **conditions,
        "completed": sum(judgement.verdict is not Verdict.FAILED for _, judgement in judged),
        "failed": sum(judgement.verdict is Verdict.FAILED for _, judgement in judged),
        "rows": rows,
        "speedup": reuse["speedup"] if reuse else None,
        "noise_floor": _ratio(judged, conditions, "cold", _others(rows, conditions)),
        "store_tax": _ratio(judged, conditions, "store", conditions["writer"]),
        "answer": asdict(answer),
        "valid": bool(reuse and reuse["verdict"] == Verdict.SHARED and reuse["speedup"] and answer.same is not False),
    }


def _row(
    key: tuple[str, str], judged: Sequence[tuple[Sample, Judgement]], conditions: Mapping[str, Any]
) -> dict[str, Any]:
    engine, arm = key
    mine = [(sample, judgement) for sample, judgement in judged if (sample.engine, sample.arm) == key]
    verdicts = Counter(judgement.verdict for _, judgement in mine)
    worst = next(verdict for verdict in WORST_FIRST if verdict in verdicts)
    supporting = [sample for sample, judgement in mine if judgement.verdict in SUPPORTS_SPEEDUP[arm]]
    shown = supporting or [sample for sample, _ in mine]
    first = shown[0]
    row: dict[str, Any] = {
        "engine": engine,
        "arm": arm,
        "verdict": worst,
        "verdicts": dict(sorted(verdicts.items())),
        "why": next((judgement.why for _, judgement in mine if judgement.verdict is worst), ""),
        "prompt_tokens": first.prompt_tokens,
        "expected_cached_tokens": first.expected,
        "cached_tokens": first.cached_tokens,
        "local_cached_tokens": first.sources.local if first.sources else None,
        "external_cached_tokens": first.sources.shared if first.sources else None,
        "tiers": first.tiers,
    }
    row |= _times("ttft", [sample.ttft for sample in shown if sample.ttft is not None])
    row |= _times("itl", [gap for sample in shown for gap in sample.itl])
    row |= _times("e2el", [sample.e2el for sample in shown if sample.e2el is not None])
    row["speedup"] = _ratio(judged, conditions, arm, engine, invert=True)
    return row


def _times(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Summary keys in milliseconds."""
    if not values:
        return {f"n_{name}": 0}
    summary = stats.summarize([value * 1000 for value in values])
    found = {"median": summary.median, "mean": summary.mean, "std": summary.std, "min": summary.min, "max": summary.max}
    found |= {name: value for name, value in (("p90", summary.p90), ("p99", summary.p99)) if value is not None}
    return {f"n_{name}": summary.n} | {f"{key}_{name}_ms": round(value, 3) for key, value in found.items()}


def _ratio(
    judged: Sequence[tuple[Sample, Judgement]],
    conditions: Mapping[str, Any],
    arm: str,
    engine: str,
    *,
    invert: bool = False,
) -> dict[str, Any] | None:
    """TTFT of this arm over the baseline's cold TTFT of the same trial (``invert``: how many times sooner it is).

    Only samples whose verdicts support the comparison take part; None where there is no such pair.
    """
    base = conditions["baseline"]
    if (engine, arm) in ((base, "cold"), (base, "store")) or not engine:
        return None
    sides: list[dict[int, float]] = [{}, {}]
    for sample, judgement in judged:
        if judgement.verdict not in SUPPORTS_SPEEDUP[sample.arm] or not sample.ttft:
            continue
        if sample.engine == base and sample.arm in ("cold", "store"):
            sides[0][sample.trial] = sample.ttft
        if (sample.engine, sample.arm) == (engine, arm):
            sides[1][sample.trial] = sample.ttft
    cold, other = sides
    pairs = sorted(cold.keys() & other.keys())
    if not pairs:
        return None
    ratios = [cold[trial] / other[trial] if invert else other[trial] / cold[trial] for trial in pairs]
    interval = stats.bootstrap_median(ratios)
    summary = stats.summarize(ratios)
    found = {"n": summary.n, "median": summary.median, "min": summary.min, "max": summary.max}
    if interval:
        found |= {"low": interval.low, "high": interval.high}
    return {key: round(value, 4) for key, value in found.items()}


def _others(rows: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any]) -> str:
    """A second plain engine: its cold over the baseline's is the noise of this machine."""
    return next((row["engine"] for row in rows if row["arm"] == "cold" and row["engine"] != conditions["baseline"]), "")


def _answer(samples: Sequence[Sample], judged: Sequence[tuple[Sample, Judgement]]) -> answers.Answer:
    control = next((sample for sample in samples if sample.arm == "control"), None)
    if control and judge(control).verdict is not Verdict.LOCAL:
        control = None
    reused = [sample for sample, judgement in judged if sample.arm == "reuse" and judgement.verdict is Verdict.SHARED]
    cold = [sample for sample, judgement in judged if sample.arm == "cold" and judgement.verdict is Verdict.COLD]
    same_length = control and all(sample.cached_tokens == control.cached_tokens for sample in reused)
    return answers.check(reused, control if same_length else None, cold)
