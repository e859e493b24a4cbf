"""What a sample proves, judged from the engine's own counts alone; pure.

COLD      every prompt token was computed          SHARED    the expected prefix came from the shared cache
LOCAL     it came from the engine's own cache      PARTIAL   less came from either than the chunks that were there
MISS      nothing came although it was there       UNPROVEN  the counts are missing or contradict each other
FAILED    the request failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from kvdemo.judge.sample import Sample


class Verdict(StrEnum):
    """See the module's table. The worst comes first: of several verdicts a row shows that one."""

    FAILED = "FAILED"
    UNPROVEN = "UNPROVEN"
    MISS = "MISS"
    PARTIAL = "PARTIAL"
    COLD = "COLD"
    LOCAL = "LOCAL"
    SHARED = "SHARED"


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
    hit, expected = sources.local + sources.shared, sample.expected
    if hit < expected:
        came = f"{hit:,} of {expected:,} expected tokens; " if hit else ""
        return Judgement(Verdict.PARTIAL if hit else Verdict.MISS, came + _missing(sample))
    if hit == 0:
        return Judgement(Verdict.COLD)
    if 0 < sources.local < sources.shared < expected:
        why = f"{sources.shared:,} of {expected:,} expected tokens; {sources.local:,} were in the engine's own cache"
        return Judgement(Verdict.PARTIAL, why)
    return Judgement(Verdict.SHARED if sources.shared > sources.local else Verdict.LOCAL)


def _unproven(sample: Sample) -> str:
    if sample.sources is None:
        return sample.note or "the engine's counters do not tell where prompt tokens come from"
    if sample.prompt_tokens is None:
        return "the engine sent no usage"
    if sample.sources.total != sample.prompt_tokens:
        more = sample.sources.total > sample.prompt_tokens
        why = "another client used the engine meanwhile" if more else "the counters are late or incomplete"
        return f"the engine accounts for {sample.sources.total:,} of {sample.prompt_tokens:,} prompt tokens: {why}"
    if sample.cached_tokens is None:
        return "usage has no cached_tokens: start the engine with --enable-prompt-tokens-details"
    hit = sample.sources.local + sample.sources.shared
    if sample.cached_tokens != hit:
        return f"usage says {sample.cached_tokens:,} cached tokens, the counters say {hit:,}"
    return _in_one_piece(sample)


def _in_one_piece(sample: Sample) -> str:
    """Why the arrival of the tokens shows that the first one had been held back; empty if it does not.

    A proxy that buffers a stream delivers the first token together with later ones: then the TTFT is the proxy's. It
    does so with every stream of an engine: where another one of the same run came token by token, this one was late
    because a busy machine was, as any request may be.
    """
    tokens = sample.completion_tokens or 1 + len(sample.itl)
    if sample.streams or sample.ttft is None:
        return ""
    if not held_back(tokens, sample.itl, sample.together, sample.server_itl):
        return ""
    span, needed = sum(sample.itl), (sample.server_itl or 0.0) * (tokens - 1)
    took = f"; the engine took {needed * 1000:,.0f} ms for them" if needed else ""
    return (
        f"the stream arrives in one piece ({tokens:,} tokens within {span * 1000:.1f} ms{took}): something between "
        "buffers it; measure at the engine's own address"
    )


def held_back(tokens: int, itl: Sequence[float], together: int | None, server_itl: float | None) -> bool:
    """Whether the first of ``tokens`` came together with later ones; the rest is as in ``Sample``.

    Either all came at once, or the engine took far longer from its first token to its last than they were apart here.
    """
    if tokens < FEW:
        return False
    span, needed = sum(itl), (server_itl or 0.0) * (tokens - 1)
    at_once = together == 1 + len(itl) or span < NO_TIME * len(itl) or not itl
    return at_once or (span < needed / 2 and needed - span > HELD_BACK)


def _missing(sample: Sample) -> str:
    """The likeliest reason for missing tokens, from what is known about the request."""
    if sample.note:
        return sample.note
    return "evicted (L1 or L2 too small), not stored yet, or stored under another model name, chunk size or salt"


FEW = 4
"""Tokens; fewer may arrive together by chance."""

NO_TIME = 0.0002
"""Seconds a token on average: no engine generates 5,000 tokens a second for one request."""

HELD_BACK = 0.02
"""Seconds by which the first token must have been late at least: a busy client may be late by less."""


@dataclass(frozen=True)
class CacheFacts:
    """What is known of a cache server when a request got less than expected; an unknown number is None.

    ``engines`` should have registered with it, ``registered`` have; not who asked, if it is ``strange``. Of the
    prompt's ``chunks`` ``stored`` arrived and ``filed`` are in L2; ``evicted``, ``refused`` (L1 was full) and
    ``unreadable`` (in L2) are the chunks it counted since. Its lookup hit ``matched_tokens``. ``kv_bytes`` are the
    prompt's, ``l1_bytes`` L1's size.
    """

    server: str
    answers: bool
    expected: int
    engines: int = 0
    registered_engines: int | None = None
    strange: bool = False
    failed: str = ""
    chunks: int = 0
    stored: int | None = None
    files_in_l2: int | None = None
    evictions: int = 0
    refusals: int = 0
    unreadable: int = 0
    matched_tokens: int | None = None
    kv_bytes: int | None = None
    l1_bytes: int | None = None


def why_missing(facts: CacheFacts) -> str:
    """Why tokens did not come from the cache; empty if the facts do not tell."""
    server, stored, files, matched = facts.server, facts.stored, facts.files_in_l2, facts.matched_tokens
    kv, l1 = (facts.kv_bytes or 0) / 1e6, (facts.l1_bytes or 0) / 1e6
    registered = facts.engines if facts.registered_engines is None else facts.registered_engines
    incomplete = stored is not None and stored < facts.chunks
    reasons = [
        (not facts.answers, f"the cache server {server} does not answer any more"),
        (
            registered < facts.engines,
            f"only {registered} of {facts.engines} engines have their KV cache registered with {server}: "
            "`kvdemo restart` those that lost it",
        ),
        (facts.strange, f"{server} does not know the engine's KV cache: `kvdemo restart` the engine"),
        (bool(facts.failed), f"the writer's request failed ({facts.failed})"),
        (
            facts.l1_bytes is not None and kv > l1,
            f"the prompt's KV ({kv:,.0f} MB) does not fit into L1 ({l1:,.0f} MB): raise `l1` of {server}",
        ),
        (incomplete and facts.refusals > 0, f"L1 of {server} was full: {facts.refusals:,} chunks found no room"),
        (incomplete, f"only {stored} of the writer's {facts.chunks} chunks had been stored when the reader asked"),
        (
            files is not None and files < facts.chunks,
            f"only {files} of the writer's {facts.chunks} chunks had become files in L2 when the reader asked",
        ),
        (
            facts.unreadable > 0 or bool(files and matched is not None and matched < facts.expected),
            f"of the {facts.chunks} chunks in L2 some could not be read: files are missing, cut short or damaged",
        ),
        # Clearing L1, as a run about L2 does, counts as eviction too.
        (
            facts.evictions > 0 and files is None,
            f"{facts.evictions:,} chunks were evicted from L1 meanwhile: raise `l1` of {server}",
        ),
        (
            matched is not None and matched >= facts.expected,
            f"{server} found {matched or 0:,} tokens, the engine did not load them: `kvdemo logs` says why",
        ),
        (matched is not None, f"{server} found only {matched or 0:,} tokens of this model, chunk size and salt"),
    ]
    return next((text for holds, text in reasons if holds), "")


REUSES = ("reuse", "evicted", "restarted")
"""Arms in which an engine with a cache has to load from it."""

SUPPORTS_SPEEDUP = {
    "cold": {Verdict.COLD},
    "store": {Verdict.COLD},
    "reuse": {Verdict.SHARED},
    "again": {Verdict.LOCAL},
    "evicted": {Verdict.COLD, Verdict.SHARED},
    "restarted": {Verdict.COLD, Verdict.SHARED},
}
"""Which verdict a row's samples need before a speed-up may be printed for its arm."""
