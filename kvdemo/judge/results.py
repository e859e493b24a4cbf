"""Samples -> Result: verdicts, medians, paired ratios, the answer check. Pure: same samples, same result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from statistics import median

from kvdemo.judge import answers, contest, sections, stats
from kvdemo.judge.result import Answer, Conditions, Exclusion, Ratio, Result, Row, Times
from kvdemo.judge.sample import Arm, Sample, Sources
from kvdemo.judge.verdict import REUSES, SUPPORTS_SPEEDUP, Judgement, Verdict, judge

Judgements = Sequence[tuple[Sample, Judgement]]


def summarize(conditions: Conditions, samples: Sequence[Sample]) -> Result:
    """What a run means."""
    if len(conditions.contenders) < 2:
        return _of_one_cache(conditions, samples)
    parts = [
        _of_one_cache(contest.conditions_of(conditions, one), contest.samples_of(conditions, one, samples))
        for one in conditions.contenders
    ]
    return contest.merge(conditions, parts, samples)


def _of_one_cache(conditions: Conditions, samples: Sequence[Sample]) -> Result:
    longest = max((sample.length for sample in samples), default=0)
    of_length = [sample for sample in samples if sample.length == longest or sample.arm == "decode"]
    of_arms = [s for s in of_length if s.arm in SUPPORTS_SPEEDUP and not s.writer]
    judgements = [(sample, _of_tier(sample, conditions.tier)) for sample in of_arms]
    answer = _answer_of_all(conditions, samples, longest)
    mixed = conditions.history or _has_mixed_lengths(of_arms)
    # A wrong answer, however early it comes, is no speed-up; prompts that differ are no trials of one thing.
    paired = [] if mixed or answer.same is False else judgements
    keys = dict.fromkeys((sample.engine, sample.arm) for sample in of_arms)
    rows = [_row(engine, arm, judgements, paired, conditions) for engine, arm in keys]
    rows.sort(key=lambda row: list(SUPPORTS_SPEEDUP).index(row.arm))
    reuse = next((row for row in rows if row.arm == "reuse"), None)
    noise = _ratio(paired, conditions.baseline, "cold", _other_plain(rows, conditions))
    store_tax = _ratio(paired, conditions.baseline, "store", conditions.writer)
    everything = [judge(sample).verdict for sample in samples]
    matrix = sections.matrix(conditions, samples)
    proved = [row.verdict is Verdict.SHARED and row.speedup is not None for row in rows if _must_share(row)]
    cells = [cell.verdict is cell.expected for cell in matrix.cells] if matrix else []
    return Result(
        conditions=conditions,
        trials_run=max((sample.trial for sample in samples if sample.arm != "decode"), default=0),
        completed=sum(verdict is not Verdict.FAILED for verdict in everything),
        failed=sum(verdict is Verdict.FAILED for verdict in everything),
        prompt_tokens=longest or conditions.prompt_tokens,
        mixed_prompts=True if mixed else None,
        rows=tuple(rows),
        speedup=reuse.speedup if reuse else None,
        noise_floor=noise,
        answer=answer,
        costs=None if mixed else sections.costs(conditions, of_length, store_tax),
        limit=None if mixed else sections.limit(conditions, rows, noise),
        lengths=sections.lengths(conditions, samples, {} if answer.same is False else _points(conditions, samples)),
        matrix=matrix,
        valid=bool(proved + cells) and all(proved + cells) and answer.same is not False,
    )


def _has_mixed_lengths(samples: Sequence[Sample]) -> bool:
    """Whether one arm of one engine was given prompts of different lengths."""
    sizes: dict[tuple[str, str], set[int]] = {}
    for sample in samples:
        if sample.prompt_tokens is not None:
            sizes.setdefault((sample.engine, sample.arm), set()).add(sample.prompt_tokens)
    return any(len(lengths) > 1 for lengths in sizes.values())


def _points(conditions: Conditions, samples: Sequence[Sample]) -> dict[int, Ratio | None]:
    """The paired speed-up at each length of a sweep."""
    lengths = {sample.length: [s for s in samples if s.length == sample.length] for sample in samples if sample.length}
    return {
        length: _ratio(
            [(sample, judge(sample)) for sample in group], conditions.baseline, "reuse", conditions.reader, invert=True
        )
        for length, group in lengths.items()
    }


def _must_share(row: Row) -> bool:
    """Whether the row proves something only if its tokens came from the cache; a plain engine has none."""
    return row.arm == "reuse" or (row.arm in REUSES and row.expected_cached_tokens > 0)


def is_tight(samples: Sequence[Sample], baseline: str, reader: str, share: float) -> bool:
    """Whether the interval of the speed-up is within ``share`` of its median already."""
    ratios = _ratios([(sample, judge(sample)) for sample in samples], baseline, "reuse", reader, invert=True)
    interval = stats.interval(ratios)
    return interval is not None and interval.width <= share


def _row(engine: str, arm: Arm, judgements: Judgements, paired: Judgements, conditions: Conditions) -> Row:
    """One row of samples with their ``judgements``; ``paired`` are those of which ratios may be made."""
    own = [(sample, judgement) for sample, judgement in judgements if (sample.engine, sample.arm) == (engine, arm)]
    verdicts = Counter(judgement.verdict for _, judgement in own)
    worst = next(verdict for verdict in Verdict if verdict in verdicts)
    supported = worst in SUPPORTS_SPEEDUP[arm]
    supporting = [sample for sample, judgement in own if judgement.verdict in SUPPORTS_SPEEDUP[arm]]
    counting = supporting or [sample for sample, _ in own]
    first, dropped = counting[0], _exclusions(arm, own)
    why = next((judgement.why for _, judgement in own if judgement.verdict is worst), "")
    return Row(
        engine=engine,
        arm=arm,
        verdict=worst,
        verdicts=dict(sorted(verdicts.items())),
        why=why if supported or why else dropped[0].why,
        dropped=dropped,
        prompt_tokens=first.prompt_tokens,
        expected_cached_tokens=first.expected,
        cached_tokens=first.cached_tokens,
        local_cached_tokens=first.sources.local if first.sources else None,
        external_cached_tokens=first.sources.shared if first.sources else None,
        tiers=first.tiers,
        **_row_times(counting),
        waterfall=sections.waterfall(counting),
        speedup=_ratio(paired, conditions.baseline, arm, engine, invert=True) if supported else None,
    )


def _of_tier(sample: Sample, tier: str) -> Judgement:
    """The verdict; a hit in another tier than the run is about proves nothing about that one."""
    judgement, tokens = judge(sample), sample.tiers or {}
    other = {"l1": "l2", "l2": "l1"}.get(tier, "")
    if sample.arm == "reuse" and judgement.verdict is Verdict.SHARED and tokens.get(other):
        return Judgement(Verdict.UNPROVEN, f"{tokens[other]:,} tokens came from {other}, the run is about {tier}")
    return judgement


def _exclusions(arm: Arm, own: Judgements) -> tuple[Exclusion, ...]:
    """The samples that take no part in any ratio, with the reason."""
    dropped = []
    for sample, judgement in own:
        if judgement.verdict not in SUPPORTS_SPEEDUP[arm]:
            sources = sample.sources or Sources(0, 0, 0)
            why = (
                judgement.why or f"{sources.local:,} tokens came from its own cache, {sources.shared:,} from the shared"
            )
            dropped.append(Exclusion(sample.trial, judgement.verdict, why))
    return tuple(dropped)


def _row_times(samples: Sequence[Sample]) -> dict[str, Times | None]:
    """The times of a row, each as its field says."""
    metrics = {field.name: field.metadata["seconds"] for field in fields(Row) if "seconds" in field.metadata}
    return {
        name: _times([value for sample in samples for value in seconds(sample) if value is not None])
        for name, seconds in metrics.items()
    }


def _times(seconds: Sequence[float]) -> Times | None:
    """Summary in milliseconds."""
    if not seconds:
        return None
    summary = stats.summarize([value * 1000 for value in seconds])
    return Times(
        n=summary.n,
        median=round(summary.median, 3),
        mean=round(summary.mean, 3),
        std=round(summary.std, 3),
        min=round(summary.min, 3),
        max=round(summary.max, 3),
        p90=None if summary.p90 is None else round(summary.p90, 3),
        p99=None if summary.p99 is None else round(summary.p99, 3),
    )


def _ratio(judgements: Judgements, baseline: str, arm: Arm, engine: str, *, invert: bool = False) -> Ratio | None:
    """``_ratios`` summed up. None where there is no pair."""
    return stats.ratio(_ratios(judgements, baseline, arm, engine, invert=invert))


def _ratios(judgements: Judgements, baseline: str, arm: Arm, engine: str, *, invert: bool) -> list[float]:
    """TTFT of this arm over the baseline's cold TTFT, trial by trial (``invert``: how many times faster it is).

    Only samples whose verdicts support the comparison take part; of several at once the median.
    """
    if (engine, arm) in ((baseline, "cold"), (baseline, "store")) or not engine:
        return []
    cold: dict[int, list[Sample]] = {}
    other: dict[int, list[Sample]] = {}
    for sample, judgement in judgements:
        if judgement.verdict is Verdict.FAILED and sample.engine == baseline and sample.arm in ("cold", "store"):
            return []  # a baseline that fails is no baseline, whatever its other requests took
        if judgement.verdict not in SUPPORTS_SPEEDUP.get(sample.arm, ()) or not sample.ttft:
            continue
        if sample.engine == baseline and sample.arm in ("cold", "store"):
            cold.setdefault(sample.trial, []).append(sample)
        if (sample.engine, sample.arm) == (engine, arm):
            other.setdefault(sample.trial, []).append(sample)
    trials = [
        trial
        for trial in sorted(cold.keys() & other.keys())
        if arm != "store" or _same_concurrency(cold[trial], other[trial])
    ]
    pairs = [[median(s.ttft or 0.0 for s in side[trial]) for side in (cold, other)] for trial in trials]
    return [base / own if invert else own / base for base, own in pairs]


def _same_concurrency(some: Sequence[Sample], others: Sequence[Sample]) -> bool:
    """Whether both groups were asked in the same way: one after another, or several at the same time."""
    return _overlap(some) == _overlap(others)


def _overlap(samples: Sequence[Sample]) -> bool:
    """Whether any two of these requests overlap in time."""
    spans = sorted((s.started, s.started + (s.e2el or s.ttft or 0.0)) for s in samples)
    return any(later[0] < earlier[1] for earlier, later in pairwise(spans))


def _other_plain(rows: Sequence[Row], conditions: Conditions) -> str:
    """A second plain engine: its cold over the baseline's is the noise of this machine."""
    return next((row.engine for row in rows if row.arm == "cold" and row.engine != conditions.baseline), "")


def _answer_of_all(conditions: Conditions, samples: Sequence[Sample], longest: int) -> Answer:
    """The answer of the longest prompt; of a sweep a wrong one at any length, and at how many it was checked."""
    by_length: dict[int, Answer] = {}
    for length in sorted({sample.length for sample in samples if sample.arm != "decode"}):
        group = [sample for sample in samples if sample.length == length]
        arms = [s for s in group if s.arm in SUPPORTS_SPEEDUP and not s.writer]
        by_length[length] = _answer(conditions, group, [(sample, _of_tier(sample, conditions.tier)) for sample in arms])
    for length, wrong in by_length.items():
        if wrong.same is False:
            return wrong if length == longest else Answer(False, f"{wrong.text}, at {length:,} prompt tokens")
    own = by_length.get(longest, Answer(None, "not checked: there was no reuse that is proved"))
    if len(by_length) == 1 or own.same is None:
        return own
    equal = sum(one.same is True for one in by_length.values())
    return Answer(True, f"{own.text}; equal at {equal} of {len(by_length)} lengths")


def _answer(conditions: Conditions, samples: Sequence[Sample], judgements: Judgements) -> Answer:
    controls = [s for s in samples if s.arm == "control"]
    proved = [(s, judgement.verdict) for s, judgement in judgements]
    reused = [s for s, verdict in proved if s.arm in REUSES and verdict is Verdict.SHARED]
    cold = [s for s, verdict in proved if s.arm in ("cold", "store") and verdict is Verdict.COLD]
    if conditions.history or _has_mixed_lengths([sample for sample, _ in judgements]):
        return Answer(None, "not checked: the prompts differ")
    if why := answers.why_incomparable(conditions, reused, controls):
        return Answer(None, f"not checked: {why}")
    comparable = [s for s in controls if answers.equals(s, reused)]
    alike = [s for s in comparable if _rounds_alike(s.engine, cold)]
    if not alike:
        names = ", ".join(s.engine for s in comparable)
        return Answer(None, f"not checked: cold, {names} already computes other bits than the writer")
    return answers.check(reused, alike[0], [s for s in cold if s.arm == "cold"])


def _rounds_alike(engine: str, cold: Sequence[Sample]) -> bool:
    """Whether this engine's cold answers equal the writer's to the last bit.

    Two processes of one engine may choose other kernels when they start (seen on a busy machine): their KV differs in
    rounding, and an exact comparison would call the cache wrong.
    """
    own = [s for s in cold if s.engine == engine]
    others = [s for s in cold if s.arm == "store" and s.engine != engine]
    differences = [answers.compare(one, other) for one in own for other in others]
    return all(difference is None or difference.identical for difference in differences)
