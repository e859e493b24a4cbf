"""Which services of a fleet a benchmark uses, from the states that they are in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from conftest import Lab
from kvdemo.commands import participants
from kvdemo.config.benchmark import Bench
from kvdemo.errors import NotReadyError, UsageError
from kvdemo.fleet.watch import Event, State
from kvdemo.planning.plan import Plan
from test_workload import FOUR as ENGINES

CACHE = replace(ENGINES.engines[0], name="c", kind="cache", model="")
FOUR = replace(ENGINES, services=(CACHE, *ENGINES.services))


def events(plan: Plan, **states: State) -> list[Event]:
    """One event for each service; READY unless it is named, ``_`` stands for ``-``."""
    named = {name.replace("_", "-"): state for name, state in states.items()}
    return [Event(spec.name, named.get(spec.name, State.READY), spec.kind) for spec in plan.services]


def usable(states: list[Event], **options: str) -> tuple[Plan, str]:
    """Of FOUR, for ``kvdemo bench`` with these options."""
    bench = Bench().with_values(options)
    return participants.usable(FOUR, states, lambda plan: participants.of_bench(plan, bench))


def test_all_ready_is_all_used() -> None:
    """Nothing to say."""
    assert usable(events(FOUR)) == (FOUR, "")


@pytest.mark.parametrize("state", [State.ABSENT, State.EXITED])
def test_what_suffices_is_used_and_named(state: State) -> None:
    """Services that are down take no part if nobody needs them; an engine whose cache is down cannot either."""
    plain = next(spec.name for spec in FOUR.engines if not spec.cache)
    part, sentence = usable(events(FOUR, **{plain: state}))
    assert plain not in {spec.name for spec in part.services}
    assert sentence.endswith(f"Not up: {plain}.")
    reader = [spec.name for spec in FOUR.engines if spec.cache][-1]
    with pytest.raises(NotReadyError) as refused:
        usable(events(FOUR, **{reader: state}))
    text = f"the fleet is not ready: {reader} ({state.value}); without them: no two engines of this fleet share a cache"
    assert str(refused.value) == text
    with pytest.raises(UsageError, match="nobody is not one of the engines"):
        usable(events(FOUR, **{reader: state}), reader="nobody")
    cache = next(spec.name for spec in FOUR.services if spec.kind == "cache")
    with pytest.raises(NotReadyError):
        usable(events(FOUR, **{cache: state}))
    with pytest.raises(NotReadyError):
        usable(events(FOUR, **{plain: state}), baseline=plain)


@pytest.mark.parametrize("state", [State.UNHEALTHY, State.STARTING, State.LOST, State.STOPPING])
def test_what_would_disturb_is_refused(state: State) -> None:
    """A service that is neither ready nor down uses the machine that is measured; the cause is told if it is known."""
    plain = next(spec.name for spec in FOUR.engines if not spec.cache)
    seen = [
        replace(event, detail="asks for a key", fix="give it one") if event.service == plain else event
        for event in events(FOUR, **{plain: state})
    ]
    with pytest.raises(NotReadyError) as refused:
        usable(seen)
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
    refused = lab.run("bench", "--context", "context.txt", "--costs")
    assert refused.returncode == 2
    assert "--costs: no plain engine of this model is placed like the writer a" in refused.stderr


def test_load_measures_what_is_up(lab: Lab) -> None:
    """As many engines on each side as are up; more than that, or one side alone, is refused in words."""
    shared = {"cache": "shared"}
    path = lab.profile({"p": {}, "q": {}, "a": shared, "b": shared}, {"shared": {"l1": "16MiB"}})
    lab.up(path, ["p", "q"])
    (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(300)))
    options = ("load", "--context", "context.txt", "--documents", "2", "--rate", "9", "--duration", "1s")
    done = lab.run(*options)
    assert done.returncode == 7
    assert "(absent); without them: a comparison needs plain engines and engines with a cache" in done.stderr
    lab.up(path, ["a"])
    done = lab.run(*options, "--engines", "2")
    assert done.returncode == 7
    assert "b (absent); without them: --engines: 2 on each side are too many: plain has 2, shared has 1" in done.stderr
    done = lab.run(*options)
    assert done.returncode == 0, done.stderr
    assert "Measured with what is up: p, a. Not up: b." in done.stderr
