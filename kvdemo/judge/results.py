"""Samples -> result document: verdicts, medians, paired ratios, the answer check. Pure: same samples, same bytes.

Keys follow ``vllm bench serve``: ``median_ttft_ms`` and friends in milliseconds, per-sample arrays in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from kvdemo.judge import answers, sections, stats
from kvdemo.judge.sample import Sample, Sources
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, WORST_FIRST, Judgement, Verdict, judge

SCHEMA_VERSION = 1


def summarize(conditions: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """The result document of a run, as saved and as ``--json`` prints it."""
    longest = max((sample.length for sample in samples), default=0)
    ofarms = [s for s in samples if s.arm in SUPPORTS_SPEEDUP and not s.writer and s.length == longest]
    judged = [(sample, _of_tier(sample, conditions.get("tier", ""))) for sample in ofarms]
    rows = [_row(key, judged, conditions) for key in dict.fromkeys((s.engine, s.arm) for s in ofarms)]
    rows.sort(key=lambda row: list(SUPPORTS_SPEEDUP).index(row["arm"]))
    reuse = next((row for row in rows if row["arm"] == "reuse"), None)
    answer = _answer([sample for sample in samples if sample.length == longest], judged)
    everything = [judge(sample).verdict for sample in samples]
    document = {
        "schema_version": SCHEMA_VERSION,
        **conditions,
        "trials_run": max((sample.trial for sample in samples if sample.arm != "decode"), default=0),
        "completed": sum(verdict is not Verdict.FAILED for verdict in everything),
        "failed": sum(verdict is Verdict.FAILED for verdict in everything),
        "prompt_tokens": longest or conditions["prompt_tokens"],
        "rows": rows,
        "speedup": reuse["speedup"] if reuse else None,
        "noise_floor": _ratio(judged, conditions["baseline"], "cold", _others(rows, conditions)),
        "answer": asdict(answer),
    }
    document |= sections.of(
        conditions, samples, rows, _ratio(judged, conditions["baseline"], "store", conditions["writer"])
    )
    proved = [row["verdict"] == Verdict.SHARED and row["speedup"] for row in rows if row["arm"] == "reuse"]
    cells = [cell["verdict"] == cell["expected"] for cell in document.get("matrix", {}).get("cells", [])]
    document["valid"] = bool(proved + cells) and all(proved + cells) and answer.same is not False
    return document


def is_tight(samples: Sequence[Sample], baseline: str, reader: str, share: float) -> bool:
    """Whether the interval of the speed-up is within ``share`` of its median already."""
    ratios = _ratios([(sample, judge(sample)) for sample in samples], baseline, "reuse", reader, invert=True)
    interval = stats.bootstrap_median(ratios)
    return interval is not None and interval.width <= share


def _row(
    key: tuple[str, str], judged: Sequence[tuple[Sample, Judgement]], conditions: Mapping[str, Any]
) -> dict[str, Any]:
    engine, arm = key
    mine = [(sample, judgement) for sample, judgement in judged if (sample.engine, sample.arm) == key]
    verdicts = Counter(judgement.verdict for _, judgement in mine)
    worst = next(verdict for verdict in WORST_FIRST if verdict in verdicts)
    supported = worst in SUPPORTS_SPEEDUP[arm]
    supporting = [sample for sample, judgement in mine if judgement.verdict in SUPPORTS_SPEEDUP[arm]]
    shown = supporting or [sample for sample, _ in mine]
    first, dropped = shown[0], _dropped(arm, mine)
    why = next((judgement.why for _, judgement in mine if judgement.verdict is worst), "")
    row: dict[str, Any] = {
        "engine": engine,
        "arm": arm,
        "verdict": worst,
        "verdicts": dict(sorted(verdicts.items())),
        "why": why if supported or why else dropped[0]["why"],
        "dropped": dropped,
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
    row["waterfall"] = sections.waterfall(shown)
    row["speedup"] = _ratio(judged, conditions["baseline"], arm, engine, invert=True) if supported else None
    return row


def _of_tier(sample: Sample, tier: str) -> Judgement:
    """The verdict; a hit in another tier than the run is about proves nothing about that one."""
    judgement, found = judge(sample), sample.tiers or {}
    other = {"l1": "l2", "l2": "l1"}.get(tier, "")
    if sample.arm == "reuse" and judgement.verdict is Verdict.SHARED and found.get(other):
        return Judgement(Verdict.UNPROVEN, f"{found[other]:,} tokens came from {other}, the run is about {tier}")
    return judgement


def _dropped(arm: str, mine: Sequence[tuple[Sample, Judgement]]) -> list[dict[str, Any]]:
    """The samples that take no part in any ratio, with the reason."""
    found = []
    for sample, judgement in mine:
        if judgement.verdict not in SUPPORTS_SPEEDUP[arm]:
            sources = sample.sources or Sources(0, 0, 0)
            why = (
                judgement.why or f"{sources.local:,} tokens came from its own cache, {sources.shared:,} from the shared"
            )
            found.append({"trial": sample.trial, "verdict": judgement.verdict, "why": why})
    return found


def _times(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Summary keys in milliseconds."""
    if not values:
        return {f"n_{name}": 0}
    summary = stats.summarize([value * 1000 for value in values])
    found = {"median": summary.median, "mean": summary.mean, "std": summary.std, "min": summary.min, "max": summary.max}
    found |= {name: value for name, value in (("p90", summary.p90), ("p99", summary.p99)) if value is not None}
    return {f"n_{name}": summary.n} | {f"{key}_{name}_ms": round(value, 3) for key, value in found.items()}


def _ratio(
    judged: Sequence[tuple[Sample, Judgement]], baseline: str, arm: str, engine: str, *, invert: bool = False
) -> dict[str, Any] | None:
    """``_ratios`` summed up: n, median, range and, from three trials on, the interval. None where there is no pair."""
    ratios = _ratios(judged, baseline, arm, engine, invert=invert)
    if not ratios:
        return None
    summary, interval = stats.summarize(ratios), stats.bootstrap_median(ratios)
    found = {"n": summary.n, "median": summary.median, "min": summary.min, "max": summary.max}
    if interval:
        found |= {"low": interval.low, "high": interval.high}
    return {key: round(value, 4) for key, value in found.items()}


def _ratios(
    judged: Sequence[tuple[Sample, Judgement]], baseline: str, arm: str, engine: str, *, invert: bool
) -> list[float]:
    """TTFT of this arm over the baseline's cold TTFT, trial by trial (``invert``: how many times sooner it is).

    Only samples whose verdicts support the comparison take part; of several at once the median.
    """
    if (engine, arm) in ((baseline, "cold"), (baseline, "store")) or not engine:
        return []
    cold: dict[int, list[float]] = {}
    other: dict[int, list[float]] = {}
    for sample, judgement in judged:
        if judgement.verdict is Verdict.FAILED and sample.engine == baseline and sample.arm in ("cold", "store"):
            return []  # a baseline that fails is no baseline, whatever its other requests took
        if judgement.verdict not in SUPPORTS_SPEEDUP.get(sample.arm, ()) or not sample.ttft:
            continue
        if sample.engine == baseline and sample.arm in ("cold", "store"):
            cold.setdefault(sample.trial, []).append(sample.ttft)
        if (sample.engine, sample.arm) == (engine, arm):
            other.setdefault(sample.trial, []).append(sample.ttft)
    pairs = [(median(cold[trial]), median(other[trial])) for trial in sorted(cold.keys() & other.keys())]
    return [base / mine if invert else mine / base for base, mine in pairs]


def _others(rows: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any]) -> str:
    """A second plain engine: its cold over the baseline's is the noise of this machine."""
    return next((row["engine"] for row in rows if row["arm"] == "cold" and row["engine"] != conditions["baseline"]), "")


def _answer(samples: Sequence[Sample], judged: Sequence[tuple[Sample, Judgement]]) -> answers.Answer:
    controls = [s for s in samples if s.arm == "control" and judge(s).verdict is Verdict.LOCAL]
    proved = [(s, judgement.verdict) for s, judgement in judged]
    reused = [s for s, verdict in proved if s.arm == "reuse" and verdict is Verdict.SHARED]
    cold = [s for s, verdict in proved if s.arm in ("cold", "store") and verdict is Verdict.COLD]
    comparable = [s for s in controls if all(s.cached_tokens == one.cached_tokens for one in reused)]
    alike = [s for s in comparable if _rounds_alike(s.engine, cold)]
    if reused and comparable and not alike:
        names = ", ".join(s.engine for s in comparable)
        return answers.Answer(None, f"not checked: cold, {names} already computes other bits than the writer")
    return answers.check(reused, alike[0] if alike else None, [s for s in cold if s.arm == "cold"])


def _rounds_alike(engine: str, cold: Sequence[Sample]) -> bool:
    """Whether this engine's cold answers equal the writer's to the last bit.

    Two processes of one engine may choose other kernels when they start (seen on a busy machine): their KV differs in
    rounding, and an exact comparison would call the cache wrong.
    """
    mine = [s for s in cold if s.engine == engine]
    others = [s for s in cold if s.arm == "store" and s.engine != engine]
    found = [answers.compare(one, other) for one in mine for other in others]
    return all(difference is None or difference.identical for difference in found)
