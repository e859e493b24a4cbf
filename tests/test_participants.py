"""Which services of a fleet a benchmark uses, from the states that they are in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from conftest import Lab
from kvdemo.commands import participants
from kvdemo.config.benchmark import Bench
from kvdemo.errors import NotReadyError
from kvdemo.fleet.watch import Event, State
from kvdemo.planning.plan import Plan
from test_workload import FOUR as ENGINES

CACHE = replace(ENGINES.engines[0], name="c", kind="cache", model="")
FOUR = replace(ENGINES, services=(CACHE, *ENGINES.services))


def events(plan: Plan, **states: State) -> list[Event]:
    """One event for each service; READY unless it is named, ``_`` stands for ``-``."""
    named = {name.replace("_", "-"): state for name, state in states.items()}
    return [Event(spec.name, named.get(spec.name, State.READY), spec.kind) for spec in plan.services]


def test_all_ready_is_all_used() -> None:
    """Nothing to say."""
    assert participants.usable(FOUR, Bench(), events(FOUR)) == (FOUR, "")


@pytest.mark.parametrize("state", [State.ABSENT, State.EXITED])
def test_what_suffices_is_used_and_named(state: State) -> None:
    """Services that are down take no part if nobody needs them; an engine whose cache is down cannot either."""
    plain = next(spec.name for spec in FOUR.engines if not spec.cache)
    part, sentence = participants.usable(FOUR, Bench(), events(FOUR, **{plain: state}))
    assert plain not in {spec.name for spec in part.services}
    assert sentence.endswith(f"Not up: {plain}.")
    reader = [spec.name for spec in FOUR.engines if spec.cache][-1]
    with pytest.raises(NotReadyError) as refused:
        participants.usable(FOUR, Bench(), events(FOUR, **{reader: state}))
    assert f"{reader} ({state.value})" in str(refused.value)
    cache = next(spec.name for spec in FOUR.services if spec.kind == "cache")
    with pytest.raises(NotReadyError):
        participants.usable(FOUR, Bench(), events(FOUR, **{cache: state}))
    with pytest.raises(NotReadyError):
        participants.usable(FOUR, Bench().with_values({"baseline": plain}), events(FOUR, **{plain: state}))


@pytest.mark.parametrize("state", [State.UNHEALTHY, State.STARTING, State.LOST, State.STOPPING])
def test_what_would_disturb_is_refused(state: State) -> None:
    """A service that is neither ready nor down uses the machine that is measured; the cause is told if it is known."""
    plain = next(spec.name for spec in FOUR.engines if not spec.cache)
    seen = [
        replace(event, detail="asks for a key", fix="give it one") if event.service == plain else event
        for event in events(FOUR, **{plain: state})
    ]
    with pytest.raises(NotReadyError) as refused:
        participants.usable(FOUR, Bench(), seen)
    assert f"{plain} (asks for a key)" in str(refused.value)
    assert "give it one" in refused.value.hint


def test_a_part_of_a_profile_that_is_up_is_measured(lab: Lab) -> None:
    """`up` of some services, then `bench`: those, without a word about the profile being incomplete."""
    lab.up(lab.profile(), names=["a", "b"])
    (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(900)))
    done = lab.run("bench", "--context", "context.txt", "--trials", "1", "--no-limit", "--json")
    assert done.returncode == 0, done.stderr
    assert "Measured with what is up: a, b. Not up: plain." in done.stderr
    assert json.loads(done.stdout)["baseline"] == "a"
