"""How fast this machine is, from one request that it has just answered; what follows for a run, and for a document.

Limit: the time to read a prompt is taken to grow with its length. Attention grows with its square, so a document that
is much longer than the throwaway takes longer than estimated.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kvdemo.bench.client import Reply
from kvdemo.bench.events import Estimate
from kvdemo.bench.modes.mode import Work
from kvdemo.judge.sample import Sample

WORTH_SAYING = 30.0
"""Seconds; a run that takes longer is announced."""

OTHERWISE = 0.25
"""Share by which a later estimate must differ from the first one to be told."""

COMFORT = 10.0
"""Seconds that reading a document cold may take when nobody chose the document."""

ROOM = 128
"""Tokens of the window that instruction, question and answer take."""


@dataclass(frozen=True)
class Pace:
    """Seconds to compute one prompt token, and from one token of the answer to the next."""

    prefill: float
    decode: float


def of(reply: Reply) -> Pace | None:
    """The pace that an answer shows; None if it failed, or if all of its prompt came from a cache."""
    details = reply.usage.get("prompt_tokens_details") or {}
    computed = (reply.usage.get("prompt_tokens") or 0) - (details.get("cached_tokens") or 0)
    return None if reply.error else _pace(reply.ttft, reply.itl, computed)


def of_sample(sample: Sample) -> Pace | None:
    """The same of a measured request."""
    computed = (sample.prompt_tokens or 0) - (sample.cached_tokens or 0)
    return None if sample.error else _pace(sample.ttft, sample.itl, computed)


def _pace(ttft: float | None, itl: Sequence[float], computed: int) -> Pace | None:
    """The median of the gaps: the first of a process pays for what comes once."""
    if ttft is None or computed <= 0:
        return None
    return Pace(ttft / computed, statistics.median(itl) if itl else 0.0)


def estimate(pace: Pace, work: Work, max_tokens: int, before: float = 0.0) -> Estimate:
    """How long this work takes at this pace, after ``before`` seconds of something else.

    What is loaded from a cache is counted as no time: how long that takes is what the run is to find out.
    """
    decoding = work.requests * (max_tokens - 1) * pace.decode
    seconds = before + work.tokens * pace.prefill + decoding
    each = work.tokens / work.computed * pace.prefill if work.computed else 0.0
    return Estimate(seconds, work.requests, work.computed, each)


def beginning(text: str, whole: int, tokens: int) -> str:
    """The first lines of a text of ``whole`` tokens, as many as have about the ``wanted`` ones; all if it has fewer."""
    if tokens >= whole:
        return text
    cut = text[: len(text) * tokens // whole]
    return cut[: cut.rfind("\n") + 1] or cut


def document_tokens(pace: Pace, chunk: int, window: int | None, comfort: float = COMFORT) -> int:
    """How long a document should be that nobody chose: in tokens, whole chunks.

    The longest that this machine reads cold within ``comfort`` seconds and that fits into the ``window``, but at least
    four chunks, so that there is something to share.
    """
    most = math.inf if window is None else max(0, window - ROOM)
    fitting = min(comfort / pace.prefill, most) if pace.prefill > 0 else most
    if math.isinf(fitting):
        raise ValueError("neither the pace nor the window limits the document")
    chunks = max(4, int(fitting // chunk))
    while chunks > 1 and chunks * chunk > most:
        chunks -= 1
    return chunks * chunk
