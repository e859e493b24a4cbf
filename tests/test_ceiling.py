"""The physical limit is plain arithmetic, and says what it means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdemo.planning import ceiling
from runs import CALM

seconds = st.floats(1e-3, 1e3)


def test_the_floor() -> None:
    """1 GB at 10 GB/s after a local hit of 50 ms: 150 ms; needed is the bandwidth that makes reuse as slow as cold."""
    found = ceiling.limit(10**9, 10e9, local=0.05, reuse=0.2, cold=2.05)
    assert found.floor == pytest.approx(0.15)
    assert found.efficiency == pytest.approx(0.75)
    assert found.needed == pytest.approx(0.5e9)
    assert found.worthwhile
    assert ceiling.sentence("memory", found).startswith("Reuse from memory is 75% of what this machine can do")


def test_a_tier_too_slow() -> None:
    """It cannot beat computing, and the sentence says what it would need."""
    found = ceiling.limit(10**9, 1e9, local=0.1, reuse=1.5, cold=0.35)
    assert not found.worthwhile
    assert ceiling.sentence("disk", found) == (
        "Reuse from disk cannot beat computing here: it moves 1.00 GB/s, and would need 4.00 GB/s."
    )


def test_a_disk_is_no_limit_of_what_lay_in_memory() -> None:
    """A reuse that was faster than the disk is not told that the disk cannot; within noise it is."""
    kept = ceiling.limit(4e9, 2e9, local=0.2, reuse=0.4, cold=1.2)
    assert ceiling.of_run("disk", kept) == (
        "Loading moved 20.0 GB/s, more than the 2.00 GB/s that the disk was measured at: the files' pages were in "
        "memory, or the disk's rate changes. Beating computing takes 4.00 GB/s here."
    )
    assert ceiling.of_run("disk", ceiling.limit(4e9, 2e9, local=0.2, reuse=2.1, cold=1.2)).startswith(
        "Reuse from disk cannot beat computing here"
    )
    assert ceiling.of_run("memory", kept) == ceiling.sentence("memory", kept)
    assert ceiling.of_run("disk", ceiling.limit(4e9, 2e9, local=0.5, reuse=0.4, cold=1.2))  # no rate out of nothing


def test_nothing_to_gain() -> None:
    """Where computing takes no longer than a local hit no bandwidth helps, and no number is made up."""
    found = ceiling.limit(10**9, 10e9, local=0.3, reuse=0.4, cold=0.2)
    assert not found.worthwhile
    said = ceiling.sentence("memory", found)
    assert "nothing to gain" in said
    assert "inf" not in said


@CALM
@given(st.integers(1, 10**12), st.floats(1e6, 1e12), seconds, seconds, seconds)
def test_worthwhile_is_a_floor_below_cold(kv: int, bandwidth: float, local: float, reuse: float, cold: float) -> None:
    """The tier pays exactly if its floor is faster than computing."""
    found = ceiling.limit(kv, bandwidth, local, reuse, cold)
    if abs(found.floor - cold) > 1e-9 * (found.floor + cold):
        assert found.worthwhile == (found.floor < cold)


@pytest.mark.parametrize(
    ("points", "even"),
    [
        ([(100, 1.0, 2.0), (300, 3.0, 2.0)], 200),
        ([(300, 3.0, 2.0), (100, 1.0, 2.0)], 200),
        ([(100, 2.0, 1.0), (200, 3.0, 1.0)], 100),
        ([(100, 1.0, 2.0), (200, 2.0, 3.0)], None),
        ([(100, 1.0, 1.0)], 100),
        ([], None),
    ],
    ids=["between", "any order", "everywhere", "nowhere", "equal", "nothing measured"],
)
def test_break_even(points: list[tuple[int, float, float]], even: int | None) -> None:
    """Interpolated where the curves cross."""
    assert ceiling.break_even(points) == even
