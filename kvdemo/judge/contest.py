"""Several caches in the same trials: what each of them buys, and how they compare with each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import median

from kvdemo.judge import stats
from kvdemo.judge.result import Answer, Between, Conditions, Contender, Contest, Result, Side
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import SUPPORTS_SPEEDUP, Verdict, judge


def conditions_of(run: Conditions, one: Contender) -> Conditions:
    """The conditions of one cache alone."""
    return replace(run, writer=one.writer, reader=one.reader, chunk_size=one.chunk_size, contenders=())


def samples_of(run: Conditions, one: Contender, samples: Sequence[Sample]) -> list[Sample]:
    """The samples of one cache: all but those of the others' engines. The baseline may be one of them."""
    keep = {one.writer, one.reader, run.baseline}
    others = {name for other in run.contenders for name in (other.writer, other.reader)} - keep
    return [sample for sample in samples if sample.engine not in others]


def merge(run: Conditions, parts: Sequence[Result], samples: Sequence[Sample]) -> Result:
    """One result from that of each contender: every row once, the answers together, and each two compared."""
    first = parts[0]
    sides = tuple(
        Side(one, part.speedup, part.answer, part.valid, part.costs, part.limit)
        for one, part in zip(run.contenders, parts, strict=True)
    )
    rows = {(row.engine, row.arm): row for part in parts for row in part.rows}
    verdicts = [judge(sample).verdict for sample in samples]
    return replace(
        first,
        conditions=run,
        trials_run=max(part.trials_run for part in parts),
        completed=sum(verdict is not Verdict.FAILED for verdict in verdicts),
        failed=sum(verdict is Verdict.FAILED for verdict in verdicts),
        rows=tuple(rows.values()),
        answer=_answer(sides),
        contest=Contest(sides, tuple(_between(sides, samples))),
        valid=all(side.valid for side in sides),
    )


def _answer(sides: Sequence[Side]) -> Answer:
    """Wrong if one is, right if all are; each in its own words."""
    answers = [side.answer.same for side in sides]
    same = False if False in answers else None if None in answers else True
    return Answer(same, "; ".join(f"{side.contender.cache}: {side.answer.text}" for side in sides))


def _between(sides: Sequence[Side], samples: Sequence[Sample]) -> list[Between]:
    """Paired ratios of every two whose reuse carries a ratio at all."""
    times = {side.contender.cache: _reuses(side, samples) for side in sides if side.speedup}
    comparisons = []
    for pair in combinations(times, 2):
        trials = sorted(times[pair[0]].keys() & times[pair[1]].keys())
        ratios = [times[pair[1]][trial] / times[pair[0]][trial] for trial in trials]
        faster, slower = pair if not ratios or median(ratios) >= 1 else pair[::-1]
        if ratio := stats.ratio(ratios if faster == pair[0] else [1 / ratio for ratio in ratios]):
            comparisons.append(Between(faster, slower, ratio))
    return comparisons


def _reuses(side: Side, samples: Sequence[Sample]) -> dict[int, float]:
    """TTFT of each trial's reuse in seconds, of several at once the median."""
    longest = max((sample.length for sample in samples), default=0)
    times: dict[int, list[float]] = {}
    for sample in samples:
        of_reuse = (sample.engine, sample.arm, sample.length) == (side.contender.reader, "reuse", longest)
        if of_reuse and sample.ttft and not sample.writer and judge(sample).verdict in SUPPORTS_SPEEDUP["reuse"]:
            times.setdefault(sample.trial, []).append(sample.ttft)
    return {trial: median(each) for trial, each in times.items()}
