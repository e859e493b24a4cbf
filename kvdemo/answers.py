"""Did reuse give the same answer? Compared as token ids and log-probabilities, not as prose. Pure.

Loaded KV is judged against a plain engine's *local* prefix hit of the same length: the same arithmetic on the same
shapes, so anything but equality to the last bit is wrong KV. Cold prefill rounds differently (bf16, other shapes), and
may flip a near tie, with or without LMCache; so reuse may differ from cold by as much as the plain engine's own local
hit does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvdemo.sample import Sample

ROUNDING = 1e-2
"""Log-probability by which bf16 prefills of other shapes may differ without the plain engine having shown it
(8e-3 was measured between cold and local hits of plain engines)."""


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
    """How two answers differ; None if one of them holds no tokens to compare."""
    if not one.token_ids or not other.token_ids:
        return None
    diverges = _first_difference(one.token_ids, other.token_ids)
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


@dataclass(frozen=True)
class Answer:
    """The finding for a run. ``same`` is None where nothing could be compared."""

    same: bool | None
    text: str


def check(reused: Sequence[Sample], control: Sample | None, cold: Sequence[Sample]) -> Answer:
    """Judge every reuse against the control, or, without one, against cold with the known rounding."""
    if not reused:
        return Answer(None, "not checked: there was no reuse")
    if control is not None:
        differences = [compare(sample, control) for sample in reused]
        known = [difference for difference in differences if difference]
        wrong = [(s, d) for s, d in zip(reused, differences, strict=True) if d and not d.identical]
        if len(known) < len(differences) or not known:
            return Answer(None, "not checked: the engine returned no token ids")
        if wrong:
            sample, difference = wrong[0]
            where = "log-probabilities" if difference.diverges is None else f"token {difference.diverges + 1}"
            return Answer(
                False,
                f"NO: {len(wrong)} of {len(known)} reuses differ from a plain engine's local hit of the same length; "
                f"first in trial {sample.trial}, in {where} (largest log-probability gap {difference.gap:.3g})",
            )
        return Answer(
            True,
            f"Yes: {len(known)} of {len(known)} reuses equal a plain engine's local hit of the same length "
            "to the last bit" + _against_cold(reused, control, cold),
        )
    return _by_rounding(reused, cold)


def _against_cold(reused: Sequence[Sample], control: Sample, cold: Sequence[Sample]) -> str:
    """How far reuse and the plain engine's own local hit are from cold."""
    if not cold:
        return ""
    own, loaded = compare(control, cold[0]), compare(reused[0], cold[0])
    if own is None or loaded is None:
        return ""
    if loaded.diverges is None:
        same = "the same tokens as cold, log-probabilities within"
        return f"; {same} {loaded.gap:.2g} (the plain engine's own hit: {own.gap:.2g})"
    return f"; both part from cold at token {loaded.diverges + 1} (a near tie, rounded differently)"


def _by_rounding(reused: Sequence[Sample], cold: Sequence[Sample]) -> Answer:
    differences = [difference for sample in reused for other in cold[:1] if (difference := compare(sample, other))]
    if not differences:
        return Answer(None, "not checked: no plain engine and no cold answer to compare with")
    worst = max(difference.gap for difference in differences)
    if worst <= ROUNDING:
        return Answer(
            True,
            f"Yes, within rounding of cold (log-probabilities within {worst:.2g}; no plain engine to compare exactly)",
        )
    return Answer(
        False, f"NO: reuse is {worst:.2g} away from cold in log-probability, more than rounding ({ROUNDING:g})"
    )
