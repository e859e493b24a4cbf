"""Several caches side by side: who is how much faster than a plain engine, and than each other. Pure."""

from __future__ import annotations

from kvdemo import units
from kvdemo.judge import effect
from kvdemo.judge.effect import Effect
from kvdemo.judge.result import Between, Contest, Result, Side
from kvdemo.words.table import factor, few, spread


def names(contest: Contest) -> dict[str, str]:
    """What each cache is called: its backend's name, and its own where two have the same backend."""
    titles = [side.contender.title for side in contest.sides]
    return {
        side.contender.cache: title if titles.count(title) == 1 else f"{title} ({side.contender.cache})"
        for side, title in zip(contest.sides, titles, strict=True)
    }


def hero(result: Result, contest: Contest) -> str:
    """Each with its speed-up: ``ONE 5.2x, OTHER 3.1x``."""
    called = names(contest)
    ratios = [side.speedup for side in contest.sides if side.speedup and side.answer.same is not False]
    return ", ".join(f"{called[side.contender.cache]} {_speedup(result, side)}" for side in contest.sides) + few(ratios)


def sentence(result: Result, contest: Contest) -> str:
    """The same, and how the caches compare."""
    called = names(contest)
    compared = [_compared(called, one) for one in contest.between]
    alone = result.conditions.baseline in {side.contender.writer for side in contest.sides}
    than = f"{result.conditions.baseline} computing it" if alone else "a plain engine"
    about = f"{hero(result, contest)}, as TTFT of {than} over that of the reader"
    return f"{about}: {'; '.join(compared)}." if compared else f"{about}; they cannot be compared with each other."


def _compared(called: dict[str, str], one: Between) -> str:
    names = called[one.cache], called[one.other]
    certainty = spread(one.ratio, "x") if one.ratio.n > 1 else "1 trial: its noise is unknown"
    if effect.of(one.ratio, None) is Effect.NONE:
        factor = units.ratio(one.ratio.median)
        return f"between {names[0]} and {names[1]} no difference within noise here, {factor} ({certainty})"
    return f"{names[0]} is {units.ratio(one.ratio.median)} faster (TTFT) than {names[1]} here ({certainty})"


def _speedup(result: Result, side: Side) -> str:
    if side.answer.same is False:
        return "a wrong answer"
    if side.speedup is None:
        return "nothing proved"
    return factor(side.speedup, result.noise_floor)
