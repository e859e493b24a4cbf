"""One measured request, as a record that outlives the run: everything later judgement needs, nothing derived.

Times are seconds; an unknown value is None. A failed request is a sample too: its ``error`` says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

Arm = Literal["cold", "store", "reuse", "again", "evicted", "restarted", "control", "decode"]
"""The part of a request in its trial: see ``kvdemo.bench.workload``."""


def _check_resolution(value: float) -> float:
    """Refuse what is too small to have been measured: no clock here tells less than a nanosecond."""
    if 0 < value < 1e-9:
        raise ValueError("too small to have been measured")
    return value


Count = Annotated[int, Field(ge=0, le=10**15)]
Whole = Annotated[int, Field(ge=-(10**15), le=10**15)]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
Amount = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e30), AfterValidator(_check_resolution)]
Positive = Annotated[float, Field(allow_inf_nan=False, ge=1e-12, le=1e30)]
Seconds = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e9), AfterValidator(_check_resolution)]
"""What a field may hold when it is read from a file; code that makes samples is not checked again."""


@dataclass(frozen=True)
class Sources:
    """Where the prompt's tokens came from, by the engine's own counters around the request (tokens)."""

    computed: Whole
    local: Whole
    shared: Whole

    @property
    def total(self) -> int:
        """All prompt tokens that the engine accounted for."""
        return self.computed + self.local + self.shared


@dataclass(frozen=True)
class Sample:
    """One request to one engine.

    ``arm`` is its part in the trial (see ``workload``), ``expected`` the prompt tokens that should come from a cache.
    ``ttft`` ends at the first token with content, ``first_chunk`` at the first chunk of any kind; ``itl`` are the gaps
    between later tokens; ``queue`` and ``server_ttft`` are the engine's own figures. ``tiers`` are the tokens that the
    cache server found in L1 and L2, ``lookup`` the time the engine spent asking it, ``stored_after`` the time from
    the end of the answer until all of its chunks were in the cache. ``writer`` and ``length`` name the cell of a
    matrix, or the point of a sweep, that the request belongs to.

    ``server_itl`` is the engine's own mean gap between tokens, ``together`` how many token events came at once with the
    first one (see ``Reply``), ``streams`` says that an earlier answer of this engine in this run came token by token;
    ``requested_tokens`` the length of the answer that was asked for, to which an engine that
    was told to ignore the end of sequence has to keep; ``finish_reason`` is why it ended by the engine's own account.
    """

    trial: Count
    arm: Arm
    engine: str
    started: Finite
    expected: Count = 0
    writer: str = ""
    length: Count = 0
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    cached_tokens: Count | None = None
    sources: Sources | None = None
    tiers: Mapping[str, Count] | None = None
    ttft: Seconds | None = None
    first_chunk: Seconds | None = None
    itl: tuple[Seconds, ...] = ()
    e2el: Seconds | None = None
    queue: Seconds | None = None
    server_ttft: Seconds | None = None
    server_itl: Seconds | None = None
    together: Count | None = None
    streams: bool = False
    requested_tokens: Count | None = None
    finish_reason: str = ""
    lookup: Finite | None = None
    stored_after: Seconds | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    text: str = ""
    error: str = ""
    note: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)
