"""After an engine lost its own prefix cache: who still had the tokens, and how fast the answer came. Pure."""

from __future__ import annotations

from kvdemo.judge.result import Result, Row
from kvdemo.words.table import factor, few, spread, token_sources

LOST = {"evicted": "its own prefix cache was emptied", "restarted": "it was restarted"}
"""What happened to an engine before it was asked again, by arm."""


def rows(result: Result) -> list[Row]:
    """The rows of engines that were asked again."""
    return [row for row in result.rows if row.arm in LOST]


def hero(result: Result) -> str:
    """Each with its speed-up: ``lmcache-b 5.0x, vllm-a within noise``."""
    gains = ", ".join(f"{row.engine} {_gain(result, row)}" for row in rows(result))
    return f"After it was {rows(result)[0].arm}: {gains}{few([row.speedup for row in rows(result) if row.speedup])}"


def sentence(result: Result) -> str:
    """The same, with the tokens' sources and how sure it is."""
    after = LOST[rows(result)[0].arm]
    ratios = [
        f"{row.engine} {_gain(result, row)} ({_sure(row)}; cached tokens: {token_sources(row)})" for row in rows(result)
    ]
    return f"Asked again after {after}, TTFT of computing over that: {', '.join(ratios)}."


def _gain(result: Result, row: Row) -> str:
    return factor(row.speedup, result.noise_floor) if row.speedup else "nothing proved"


def _sure(row: Row) -> str:
    return spread(row.speedup, "x") if row.speedup else str(row.verdict)
