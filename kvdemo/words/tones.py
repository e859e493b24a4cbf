"""How a piece of text is meant. Each medium has one style for each tone; a test holds them to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from kvdemo.judge.verdict import Verdict


class Tone(StrEnum):
    """Names of meanings, not of colours."""

    PLAIN = "plain"
    DIM = "dim"
    STRONG = "strong"
    GOOD = "good"
    SHARED = "shared"
    LOCAL = "local"
    COMPUTED = "computed"
    WARN = "warn"
    BAD = "bad"


VERDICTS: Mapping[Verdict, Tone] = {
    Verdict.COLD: Tone.COMPUTED,
    Verdict.SHARED: Tone.SHARED,
    Verdict.LOCAL: Tone.LOCAL,
    Verdict.PARTIAL: Tone.WARN,
    Verdict.MISS: Tone.BAD,
    Verdict.UNPROVEN: Tone.WARN,
    Verdict.FAILED: Tone.BAD,
}


SOURCES = {Tone.COMPUTED: "computed", Tone.LOCAL: "local", Tone.SHARED: "shared"}
"""Where most of a request's prompt came from, if its verdict proves that."""

DEEDS = {Tone.COMPUTED: "computed it", Tone.LOCAL: "had it in its own cache", Tone.SHARED: "loaded the shared KV"}
"""What an engine did with a document that it was asked about."""


@dataclass(frozen=True)
class Piece:
    """Text, and how it is meant."""

    text: str
    tone: Tone = Tone.PLAIN

    def __str__(self) -> str:
        return self.text
