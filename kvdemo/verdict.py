"""What a sample proves, judged from the engine's own counts alone; pure.

COLD      every prompt token was computed          SHARED    the expected prefix came from the shared cache
LOCAL     it came from the engine's own cache      PARTIAL   less came than the whole chunks that were there
MISS      nothing came although it was there       UNPROVEN  the counts are missing or contradict each other
FAILED    the request failed
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kvdemo.sample import Sample


class Verdict(StrEnum):
    """See the module's table."""

    COLD = "COLD"
    SHARED = "SHARED"
    LOCAL = "LOCAL"
    PARTIAL = "PARTIAL"
    MISS = "MISS"
    UNPROVEN = "UNPROVEN"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Judgement:
    """A verdict and, unless it speaks for itself, why."""

    verdict: Verdict
    why: str = ""


def judge(sample: Sample) -> Judgement:
    """The verdict on one sample; ``sample.expected`` are the tokens that a cache should have provided."""
    if sample.error:
        return Judgement(Verdict.FAILED, sample.error)
    if why := _unproven(sample):
        return Judgement(Verdict.UNPROVEN, why)
    sources = sample.sources
    assert sources is not None  # noqa: S101 (what _unproven has just checked)
    hit = sources.local + sources.shared
    if hit == 0:
        if sample.expected:
            return Judgement(Verdict.MISS, _missing(sample))
        return Judgement(Verdict.COLD)
    if hit < sample.expected:
        return Judgement(Verdict.PARTIAL, f"{hit:,} of {sample.expected:,} expected tokens; {_missing(sample)}")
    return Judgement(Verdict.SHARED if sources.shared > sources.local else Verdict.LOCAL)


def _unproven(sample: Sample) -> str:
    if sample.sources is None:
        return "the engine's counters do not tell where prompt tokens come from"
    if sample.prompt_tokens is None:
        return "the engine sent no usage"
    if sample.sources.total != sample.prompt_tokens:
        more = sample.sources.total > sample.prompt_tokens
        why = "another client used the engine meanwhile" if more else "the counters are late or incomplete"
        return f"the engine accounts for {sample.sources.total:,} of {sample.prompt_tokens:,} prompt tokens: {why}"
    if sample.cached_tokens is None:
        return "usage has no cached_tokens: start the engine with --enable-prompt-tokens-details"
    if sample.cached_tokens != sample.sources.local + sample.sources.shared:
        hit = sample.sources.local + sample.sources.shared
        return f"usage says {sample.cached_tokens:,} cached tokens, the counters say {hit:,}"
    return ""


def _missing(sample: Sample) -> str:
    """The likeliest reason for missing tokens, from what is known about the request."""
    if sample.note:
        return sample.note
    return "evicted (L1 or L2 too small), not stored yet, or stored under another model name, chunk size or salt"


SUPPORTS_SPEEDUP = {
    "cold": {Verdict.COLD},
    "store": {Verdict.COLD},
    "reuse": {Verdict.SHARED},
    "again": {Verdict.LOCAL},
}
"""Which verdict a row's samples need before a speed-up may be printed for its arm."""
