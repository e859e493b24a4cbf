"""One measured request, as a record that outlives the run: everything later judgement needs, nothing derived.

Times are seconds; an unknown value is None. A failed request is a sample too: its ``error`` says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Doing:
    """What a run is about to do, for whoever watches it."""

    text: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Sources:
    """Where the prompt's tokens came from, by the engine's own counters around the request (tokens)."""

    computed: int
    local: int
    shared: int

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
    LMCache server found in L1 and L2, ``lookup`` the time the engine spent asking it, ``stored_after`` the time from
    the end of the answer until all of its chunks were in the cache. ``writer`` and ``length`` name the cell of a
    matrix, or the point of a sweep, that the request belongs to.

    ``server_itl`` is the engine's own mean gap between tokens, ``together`` how many token events came at once with the
    first one (see ``Reply``), ``requested_tokens`` the length of the answer that was asked for, to which an engine that
    was told to ignore the end of sequence has to keep; ``finish_reason`` is why it ended by the engine's own account.
    """

    trial: int
    arm: str
    engine: str
    started: float
    expected: int = 0
    writer: str = ""
    length: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    sources: Sources | None = None
    tiers: Mapping[str, int] | None = None
    ttft: float | None = None
    first_chunk: float | None = None
    itl: tuple[float, ...] = ()
    e2el: float | None = None
    queue: float | None = None
    server_ttft: float | None = None
    server_itl: float | None = None
    together: int | None = None
    requested_tokens: int | None = None
    finish_reason: str = ""
    lookup: float | None = None
    stored_after: float | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    text: str = ""
    error: str = ""
    note: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Sample:
        """Read a decoded line; TypeError or KeyError if it is none. Unknown keys are ignored."""
        known = {f.name: document[f.name] for f in fields(cls) if f.name in document}
        if known.get("sources"):
            known["sources"] = Sources(**known["sources"])
        for name in ("itl", "token_ids", "logprobs"):
            known[name] = tuple(known.get(name) or ())
        return cls(**known)
