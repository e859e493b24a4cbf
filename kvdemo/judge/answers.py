"""Did reuse give the same answer? Compared as token ids and log-probabilities, not as prose. Pure.

Loaded KV is judged against a *local* prefix hit of the same length, on a plain engine where there is one: the same
arithmetic on the same shapes, so anything but equality to the last bit is wrong KV. Cold prefill rounds differently
(bf16, other shapes) and may flip a near tie, with or without a shared cache; so does the local hit, and by as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvdemo.judge.result import Answer, Conditions
from kvdemo.judge.sample import Sample
from kvdemo.judge.verdict import Verdict, judge

FLAT = 1e-4
"""Log-probabilities of a whole answer closer than this are those of a model that does not look at its input."""

SURE = -1.0
"""... unless they say that the model is sure of every token: then they are close for that reason."""


@dataclass(frozen=True)
class Difference:
    """Two greedy answers compared: ``diverges`` is the index of the first other token (None: the same tokens).

    ``gap`` is the largest difference in log-probability up to there.
    """

    diverges: int | None
    gap: float

    @property
    def identical(self) -> bool:
        """Equal to the last bit."""
        return self.diverges is None and self.gap == 0.0


def compare(one: Sample, other: Sample) -> Difference | None:
    """How two answers differ; None if one holds no tokens, or the same tokens but not each with its log-probability."""
    if not (one.token_ids and other.token_ids):
        return None
    diverges = _first_difference(one.token_ids, other.token_ids)
    if diverges is None and not len(one.token_ids) == len(one.logprobs) == len(other.logprobs):
        return None
    end = len(one.token_ids) if diverges is None else diverges + 1
    pairs = zip(one.logprobs[:end], other.logprobs[:end], strict=False)
    # NaN compares false with everything: corrupted KV shows as NaN, and must not pass as "no gap".
    gaps = [abs(a - b) if a == a and b == b else float("inf") for a, b in pairs]  # noqa: PLR0124
    return Difference(diverges, max(gaps, default=0.0))


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def equals(control: Sample, reused: Sequence[Sample]) -> bool:
    """Whether the control is a local hit of exactly the tokens that every reuse had from the shared cache."""
    local = judge(control).verdict is Verdict.LOCAL
    return local and all(control.cached_tokens == sample.cached_tokens for sample in reused)


def why_incomparable(conditions: Conditions, reused: Sequence[Sample], controls: Sequence[Sample]) -> str:
    """Why there is nothing to compare the reuse with; empty if there is."""
    if not reused:
        return "there was no reuse that is proved"
    if any(equals(control, reused) for control in controls):
        return ""
    if conditions.max_concurrency > 1:
        return "requests that share a batch round differently, so none is the equal of another"
    if not controls:
        end = "the run ended before a" if conditions.interrupted else "the run holds no"
        return f"{end} local hit of the same length, which it would have to equal"
    return _why_control_fails(controls[0], reused[0], conditions.chunk_size or 0)


def _why_control_fails(control: Sample, reuse: Sample, chunk: int) -> str:
    """Why a control is no local hit of the reused tokens."""
    if chunk and (reuse.prompt_tokens or 0) % chunk == 0:
        return (
            "the prompt is exactly whole chunks, of which no engine's own prefix cache has all but the last token; "
            "one word more in the question, and it can be"
        )
    judgement = judge(control)
    if judgement.verdict is not Verdict.LOCAL:
        return f"the control on {control.engine} is no local hit: {judgement.verdict} {judgement.why}".rstrip()
    tokens = f"{control.cached_tokens:,} tokens, the reuse of {reuse.cached_tokens:,}"
    return f"the local hit on {control.engine} is of {tokens}"


def check(reused: Sequence[Sample], control: Sample, cold: Sequence[Sample]) -> Answer:
    """Judge every reuse against the control: equal to the last bit, or wrong."""
    pairs = [(sample, compare(sample, control)) for sample in reused]
    wrong = [(sample, difference) for sample, difference in pairs if difference and not difference.identical]
    if not wrong and any(difference is None for _, difference in pairs):
        return Answer(None, "not checked: the engine returned no token ids, or no log-probabilities")
    if not wrong and _flat(control):
        return Answer(None, "equal, which proves nothing: every token has the same probability (dummy weights?)")
    if not wrong:
        same = f"Yes: {len(pairs)} of {len(pairs)} reuses equal a local prefix hit of the same length to the last bit"
        return Answer(True, same + _against_cold(reused, control, cold))
    sample, difference = wrong[0]
    where = "log-probabilities" if difference.diverges is None else f"token {difference.diverges + 1}"
    return Answer(
        False,
        f"NO: {len(wrong)} of {len(pairs)} reuses differ from a local prefix hit of the same length; first in trial "
        f"{sample.trial}, in {where} (largest log-probability gap {difference.gap:.3g})",
    )


def _flat(sample: Sample) -> bool:
    """Whether the model says the same of every token: such an answer would not change with wrong KV either."""
    low, high = min(sample.logprobs, default=0.0), max(sample.logprobs, default=0.0)
    return len(sample.logprobs) > 1 and high - low < FLAT and high < SURE


def _against_cold(reused: Sequence[Sample], control: Sample, cold: Sequence[Sample]) -> str:
    """How far reuse and the plain engine's own local hit are from cold."""
    if not cold:
        return ""
    own, loaded = compare(control, cold[0]), compare(reused[0], cold[0])
    if own is None or loaded is None:
        return ""
    if loaded.diverges is None:
        same = "the same tokens as cold, log-probabilities within"
        return f"; {same} {loaded.gap:.2g} (the local hit: {own.gap:.2g})"
    return f"; both part from cold at token {loaded.diverges + 1} (a near tie, rounded differently)"
