"""What was asked of the engines, and what they answered. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kvdemo.judge.result import Result
from kvdemo.judge.sample import Sample
from kvdemo.words.table import PHASES
from kvdemo.words.tones import Piece, Tone

MEANINGLESS = "The model's weights are random: its words mean nothing."
ARMS = ("cold", "store", "reuse", "again", "evicted", "restarted")
LONGEST, OTHERS = 240, 3
"""Characters of an answer, and different answers, that are shown."""


def lines(result: Result, samples: Sequence[Sample]) -> Sequence[Piece]:
    """The question and the answers: one line if all are alike, else the most frequent first, each with its engines.

    Of a sweep over lengths those of its longest prompt, which the headline is about: shorter ones are other questions.
    Nothing for a history of a page, whose requests have questions of their own, and without a question.
    """
    question = " ".join(result.conditions.question.split())
    texts: dict[str, list[str]] = {}
    longest = max((sample.length for sample in samples), default=0)
    for sample in samples:
        if sample.arm in ARMS and sample.length == longest and sample.text.strip():
            texts.setdefault(" ".join(sample.text.split()), []).append(
                f"{sample.engine} {PHASES.get(sample.arm, sample.arm)}"
            )
    if result.conditions.history or not question or not texts:
        return ()
    total = sum(map(len, texts.values()))
    lines = [Piece(f"Question: {question}")]
    for text, engines in sorted(texts.items(), key=lambda one: -len(one[1]))[:OTHERS]:
        short = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
        alike = len(texts) == 1
        whose = f"all {total} alike" if alike else f"{len(engines)} of {total}: {', '.join(dict.fromkeys(engines))}"
        lines.append(Piece(f"Answer ({whose}): {short}", Tone.STRONG if alike else Tone.PLAIN))
    if len(texts) > OTHERS:
        lines.append(Piece(f"and {len(texts) - OTHERS} other answers; the report shows them", Tone.DIM))
    if result.conditions.random_weights:
        lines.append(Piece(MEANINGLESS, Tone.WARN))
    return lines
