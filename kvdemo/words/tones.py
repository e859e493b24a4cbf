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


@dataclass(frozen=True)
class Piece:
    """Text, and how it is meant."""

    text: str
    tone: Tone = Tone.PLAIN

    def __str__(self) -> str:
        return self.text
