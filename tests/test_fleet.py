"""Whole fleets of fake engines under real guardians: start, failure, recreation, restart, end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conftest import FAKES, PATIENCE, Lab
from guarding import gone, sigkill, until
from kvdemo.errors import NotReadyError, ServiceError, StartTimeoutError, UsageError
from kvdemo.fleet import fleet, lifecycle
from kvdemo.fleet.watch import Event, State
from kvdemo.host import health, packages
from kvdemo.host.procfs import Record


def states(events: list[Event]) -> dict[str, State]:
    """The last state of each service."""
    return {event.service: event.state for event in events}


def leaders(lab: Lab) -> dict[str, int]:
    """The pid of each service."""
    return {name: record.leader.pid for name, record in lab.project().records().items() if record.leader}


def leader(record: Record | None) -> int:
    """The pid of one service."""
    assert record is not None
    assert record.leader is not None
    return record.leader.pid


def plain(**env: str) -> dict[str, dict[str, object]]:
    """One plain engine that misbehaves as these variables say."""
    return {"one": {"env": env}}


def test_up_makes_everything_ready_caches_first(lab: Lab) -> None:
    """A cached engine starts beside its cache, not after it."""
    caches = {"shared": {"l1": "16MiB", "chunk_size": 64, "env": {"FAKE_START_S": "5"}}}
    events = lab.up(lab.profile({"plain": {}, "a": {"cache": "shared"}, "b": {"cache": "shared"}}, caches))
    assert states(events) == dict.fromkeys(("shared", "plain", "a", "b"), State.READY)
    born = {name: record.started_at for name, record in lab.project().records().items()}
    assert min(born, key=lambda name: born[name]) == "shared"
    (ready,) = (event.elapsed for event in events if (event.service, event.state) == ("shared", State.READY))
    assert max(born["a"], born["b"]) < born["shared"] + ready


def test_vllm_of_either_layout_is_started_by_its_own_module(lab: Lab) -> None:
    """The server's new module where it is there, the old one of an older vLLM."""
    assert {spec.argv[1:3] for spec in lab.plan(lab.profile()).engines} == {("-m", packages.SERVERS[0])}
    old = lab.path / "old"
    shutil.copytree(FAKES, old)
    server = old / "vllm/entrypoints/launchers/api_server/entry.py"
    server.replace(old / "vllm/entrypoints/openai/api_server.py")
    lab.python.write_text(lab.python.read_text().replace(str(FAKES), str(old)))
    plan = lab.plan(lab.profile())
    assert {spec.argv[1:3] for spec in plan.engines} == {("-m", packages.SERVERS[1])}
    assert lab.up(Path(plan.profile), ["plain"])[-1].state is State.READY


def test_an_engine_that_came_before_its_cache_is_started_again(lab: Lab) -> None:
    """Its end is no failure of the fleet; a second one is."""
    impatient = {"a": {"cache": "shared", "env": {"FAKE_CACHE_PATIENCE_S": "0"}}}
    slow = {"shared": {"l1": "16MiB", "chunk_size": 64, "env": {"FAKE_BIND_S": "1.5"}}}
    path = lab.profile(impatient, slow)
    events = lab.up(path)
    assert states(events) == {"shared": State.READY, "a": State.READY}
    assert [event.detail for event in events if event.state is State.WAITING and event.service == "a"][-1] == (
        "for its cache"
    )
    log = lab.project().log("a")
    assert "Cannot reach the LMCache MP server" in log.with_name(f"{log.name}.1").read_text()


def test_engines_share_through_the_cache(lab: Lab) -> None:
    """What one engine computed, the other one loads."""
    path = lab.profile()
    lab.up(path)
    plan = lab.plan(path)
    prompt = " ".join(f"w{n}" for n in range(640))
    for name in ("a", "b", "plain"):
        spec = plan.service(name)
        assert health.request(spec.url, "/v1/completions", body={"model": spec.model, "prompt": prompt})[0] == 200
    source = "prompt_tokens_by_source{external_kv_transfer}"
    loaded = {name: health.counters(plan.service(name).url).get(source) for name in ("a", "b", "plain")}
    assert loaded == {"a": 0, "b": 639, "plain": 0}


def test_up_again_changes_nothing(lab: Lab) -> None:
    """The same plan while all is well: the same processes, and no waiting."""
    path = lab.profile()
    lab.up(path)
    before = leaders(lab)
    assert set(states(lab.up(path)).values()) == {State.UNCHANGED}
    assert leaders(lab) == before


def test_up_replaces_what_changed_only(lab: Lab) -> None:
    """A changed engine is started anew, the others run on."""
    lab.up(lab.profile(plain() | {"two": {}}))
    before = leaders(lab)
    events = lab.up(lab.profile({"one": {"max_model_len": 1000}, "two": {}}))
    assert states(events) == {"one": State.READY, "two": State.UNCHANGED}
    after = leaders(lab)
    assert (before["one"] != after["one"], before["two"] == after["two"]) == (True, True)


def test_engines_follow_a_changed_cache(lab: Lab) -> None:
    """A new cache server knows no engine: its engines are replaced with it, a plain one is not."""
    engines: dict[str, dict[str, object]] = {"plain": {}, "a": {"cache": "shared"}}
    lab.up(lab.profile(engines, {"shared": {"l1": "16MiB"}}))
    before = leaders(lab)
    lab.up(lab.profile(engines, {"shared": {"l1": "32MiB"}}))
    after = leaders(lab)
    assert {name for name in before if before[name] != after[name]} == {"shared", "a"}


def test_up_stops_what_left_the_profile(lab: Lab) -> None:
    """An engine that is not in the profile any more is stopped."""
    lab.up(lab.profile(plain() | {"two": {}}))
    two = leaders(lab)["two"]
    lab.up(lab.profile(plain()))
    assert gone(two)
    assert set(leaders(lab)) == {"one"}


def test_a_partial_up_remembers_what_else_runs(lab: Lab) -> None:
    """``up one`` does not make a changed ``two``, which runs on as it was, look up to date."""
    lab.up(lab.profile(plain() | {"two": {}}))
    before = leaders(lab)["two"]
    changed = lab.profile({"one": {}, "two": {"max_model_len": 1000}})
    lab.up(changed, ["one"])
    assert leaders(lab)["two"] == before
    assert states(lab.up(changed))["two"] is State.READY
    assert leaders(lab)["two"] != before


def test_only_named_services_and_what_they_need(lab: Lab) -> None:
    """``up a`` starts a and its cache; an unknown name is refused before anything starts."""
    path = lab.profile()
    with pytest.raises(UsageError, match="no service nobody"):
        lab.up(path, ["nobody"])
    lab.up(path, ["a"])
    assert set(leaders(lab)) == {"shared", "a"}
    found = {event.service: event.state for event in fleet.status(lab.project(), lab.environ)}
    assert found == {"shared": State.READY, "a": State.READY, "plain": State.ABSENT, "b": State.ABSENT}
    with pytest.raises(UsageError, match="no service nobody"):
        fleet.status(lab.project(), lab.environ, ["nobody"])


def test_a_death_is_told_with_its_cause_and_undone(lab: Lab) -> None:
    """One engine dies: the cause from its log, the fix, and the other engine is stopped again."""
    cause = "ValueError: Free memory on device (1/80 GiB) is less than desired GPU memory utilization"
    said = f"ERROR 11-24 02:27:36 [core.py:1] {cause}"
    path = lab.profile(plain(FAKE_DIE=said) | {"two": {"env": {"FAKE_NEVER_HEALTHY": "1"}}})
    with pytest.raises(ServiceError, match=r"^one: ValueError: Free memory on device") as caught:
        lab.up(path)
    assert "lower it" in caught.value.hint
    assert str(lab.project().log("one")) in caught.value.hint
    assert not leaders(lab)
    assert lab.project().log("two").exists()


def test_keep_leaves_what_was_started(lab: Lab) -> None:
    """With ``keep`` a failure leaves the rest running, to be looked at."""
    path = lab.profile(plain(FAKE_DIE="no") | {"two": {"env": {"FAKE_NEVER_HEALTHY": "1"}}})
    with pytest.raises(ServiceError, match="exit code 1; its last line: no"):
        lab.up(path, keep=True)
    assert not gone(leaders(lab)["two"])


def test_a_killed_engine_is_told_as_killed(lab: Lab) -> None:
    """SIGKILL without a word in the log: the signal is the cause; its child does not survive it."""
    with pytest.raises(ServiceError, match="ended by signal 9") as caught:
        lab.up(lab.profile(plain(FAKE_KILL="1", FAKE_CHILD="1")))
    assert "memory" in caught.value.hint
    until(lambda: not lab.pids())


@pytest.mark.parametrize(
    ("fault", "doubt"),
    [
        ({"FAKE_NEVER_HEALTHY": "1"}, "health check not answered"),
        ({"FAKE_CANNOT_GENERATE": "1"}, "it cannot generate: 500"),
        ({"FAKE_MODEL_ID": "other"}, r"it offers \['other'\] instead of model"),
    ],
)
def test_a_timeout_says_what_was_missing(lab: Lab, fault: dict[str, str], doubt: str) -> None:
    """Not ready in time: which question was not answered, and nothing is left."""
    with pytest.raises(StartTimeoutError, match=doubt):
        lab.up(lab.profile(plain(**fault)), timeout=3)  # long enough to be asked the last question
    assert not leaders(lab)


def test_an_engine_must_be_known_to_its_cache(lab: Lab) -> None:
    """A healthy cached engine that its cache does not know is not ready."""
    caches = {"shared": {"l1": "16MiB", "env": {"FAKE_NOT_REGISTERED": "1"}}}
    with pytest.raises(StartTimeoutError, match="not registered with its cache"):
        lab.up(lab.profile({"a": {"cache": "shared"}}, caches), timeout=4)


def test_a_service_that_dies_after_it_was_ready_fails_up(lab: Lab) -> None:
    """While others still start, a ready one is watched on."""
    path = lab.profile(plain() | {"two": {"env": {"FAKE_NEVER_HEALTHY": "1"}}})
    plan, project = lab.plan(path), lab.project()

    def kill_the_ready_one(events: Iterator[Event]) -> None:
        for event in events:
            if (event.service, event.state) == ("one", State.READY):
                os.kill(leader(project.record("one")), signal.SIGKILL)

    with (
        project.lock("up") as lock,
        closing(fleet.up(plan, project, lab.environ, lock)) as events,
        pytest.raises(ServiceError, match="one: ended after it was ready: ended by signal 9"),
    ):
        kill_the_ready_one(events)


def test_leaving_the_stream_stops_what_was_started(lab: Lab) -> None:
    """Whoever stops listening (Ctrl-C in the terminal's part) leaves nothing running."""
    path = lab.profile()
    plan, project = lab.plan(path), lab.project()
    with project.lock("up") as lock, closing(fleet.up(plan, project, lab.environ, lock)) as events:
        assert any(event.state is State.READY for event in events)
    assert not leaders(lab)
    until(lambda: not lab.pids())


def test_no_wait_returns_once_all_are_started(lab: Lab) -> None:
    """Without waiting: engines that are not ready yet; ``status`` says so."""
    lab.up(lab.profile(plain(FAKE_NEVER_HEALTHY="1")), wait=False)
    (found,) = fleet.status(lab.project(), lab.environ)
    assert (found.state, "still starting" in found.detail) == (State.UNHEALTHY, True)


def test_a_secret_in_a_log_is_not_told(lab: Lab) -> None:
    """The cause of a death names the secret instead of showing it."""
    lab.environ |= {"MY_SECRET": "correct-horse"}
    path = lab.profile(plain(FAKE_DIE="ValueError: bad token correct-horse"), secrets=["MY_SECRET"])
    with pytest.raises(ServiceError, match=r"bad token \$\{MY_SECRET\}"):
        lab.up(path)


def test_restart_takes_the_engines_of_a_cache_along(lab: Lab) -> None:
    """A restarted cache has forgotten its engines: they follow; a plain engine does not."""
    lab.up(lab.profile())
    before = leaders(lab)
    with lab.project().lock("restart") as lock:
        events = list(fleet.restart(lab.project(), lab.environ, lock, ["shared"]))
    assert states(events)["b"] is State.READY
    after = leaders(lab)
    assert {name for name in before if before[name] != after[name]} == {"shared", "a", "b"}


def test_restart_without_a_name_takes_all_that_were_started(lab: Lab) -> None:
    """As docker compose does; what was stopped stays so, and where nothing is up it says how to start."""
    path = lab.profile()
    lab.up(path, names=["shared", "a"])
    before = leaders(lab)
    with lab.project().lock("restart") as lock:
        list(fleet.restart(lab.project(), lab.environ, lock, []))
        after = leaders(lab)
        assert set(after) == set(before) == {"shared", "a"}
        assert all(before[name] != after[name] for name in before)
        list(lifecycle.stop(lab.project(), lock, ["shared"]))
        with pytest.raises(NotReadyError, match="no service is up"):
            list(fleet.restart(lab.project(), lab.environ, lock, []))


def test_status_tells_how_a_service_ended(lab: Lab) -> None:
    """A dead engine is exited with its signal, and ``up`` starts it again."""
    path = lab.profile(plain())
    lab.up(path)
    first = leader(lab.project().record("one"))
    os.kill(first, signal.SIGKILL)
    until(lambda: (record := lab.project().record("one")) and record.exit)
    (found,) = fleet.status(lab.project(), lab.environ)
    assert (found.state, found.detail) == (State.EXITED, "exited with signal 9")
    assert states(lab.up(path)) == {"one": State.READY}
    assert leaders(lab)["one"] != first


def test_status_asks_for_the_model(lab: Lab) -> None:
    """Alive and healthy is not enough: the model must be the right one; and no engine outlives its guardian."""
    path = lab.profile(plain())
    lab.up(path)
    url = lab.plan(path).service("one").url
    health.request(url, "/fake", body={"FAKE_MODEL_ID": "other"})
    assert "does not offer model" in fleet.status(lab.project(), lab.environ)[0].detail
    health.request(url, "/fake", body={"FAKE_NOTHING": ""})
    record = lab.project().record("one")
    assert record is not None
    os.kill(record.guardian.pid, signal.SIGKILL)
    until(lambda: gone(record.guardian.pid))
    until(lambda: gone(leader(record)))  # the death signal of its parent


def test_down_proves_that_nothing_is_left(lab: Lab) -> None:
    """Engines end before caches; processes, ports and shared memory are looked for; twice is as good as once."""
    path = lab.profile()
    lab.up(path)
    segments = [Path(f"/dev/shm/lmcache_kv_{leaders(lab)[name]}_0") for name in ("a", "b")]
    assert all(segment.exists() for segment in segments)
    events, remains = lab.down()
    assert not remains
    assert remains.checked == {"services": 4, "ports": 5, "segments": 2, "gpus": 0}
    order = [event.service for event in events if event.state is State.EXITED]
    assert order[-1] == "shared"
    assert not any(segment.exists() for segment in segments)
    assert not lab.pids()
    with pytest.raises(NotReadyError):
        fleet.load_plan(lab.project())
    events, remains = lab.down()
    assert (events, bool(remains), remains.checked["services"]) == ([], False, 0)


def test_down_kills_what_does_not_listen(lab: Lab) -> None:
    """An engine that ignores SIGTERM is killed after the patience of its profile, with its child."""
    lab.up(lab.profile(plain(FAKE_IGNORE_SIGTERM="1", FAKE_CHILD="1"), stop_timeout=1))
    events, remains = lab.down()
    assert not remains
    # The guardian, which sees its leader die, may be the first at the child.
    assert re.search(r"killed: it did not stop within 1 s \([12] processes\)", events[-1].detail)
    assert not lab.pids()


def test_down_without_patience(lab: Lab) -> None:
    """A timeout of 0 kills at once."""
    lab.up(lab.profile(plain(FAKE_IGNORE_SIGTERM="1")))
    events, remains = lab.down(timeout=0)
    assert (bool(remains), "within 0 s" in events[-1].detail) == (False, True)


def test_down_tells_what_the_guardian_had_to_end(lab: Lab) -> None:
    """A child that outlives its engine is swept by the guardian, and that is told."""
    lab.up(lab.profile(plain(FAKE_CHILD="1")))
    events, remains = lab.down()
    assert (bool(remains), "end 1 left-over process" in events[-1].detail) == (False, True)


def test_down_after_everything_was_killed(lab: Lab) -> None:
    """Guardians, engines and caches all killed at once: the state, the ports and the shared memory are tidied."""
    lab.up(lab.profile())
    segments = [Path(f"/dev/shm/lmcache_kv_{leaders(lab)[name]}_0") for name in ("a", "b")]
    for record in lab.project().records().values():
        os.kill(record.guardian.pid, signal.SIGKILL)
    for pid in lab.pids():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not lab.pids())
    _, remains = lab.down()
    assert not remains
    assert not any(segment.exists() for segment in segments)
    assert not (lab.project().dir / "project.json").exists()


def test_down_ends_orphans_at_once(lab: Lab) -> None:
    """Where guardian and engine were killed, nobody is left who could stop their child in good order."""
    lab.up(lab.profile(plain(FAKE_CHILD="1"), stop_timeout=10 * PATIENCE))
    record = lab.project().records()["one"]
    for victim in (record.guardian, record.leader):
        sigkill(victim)
    (child,) = lab.pids()
    events, remains = lab.down()
    assert "killed: its guardian and its leader were gone (1 process" in events[-1].detail
    assert (bool(remains), gone(child)) == (False, True)
    assert events[-1].elapsed < PATIENCE


def test_down_survives_a_damaged_state(lab: Lab) -> None:
    """Garbage in project.json and in a record: the services still end."""
    lab.up(lab.profile(plain()))
    pid = leaders(lab)["one"]
    (lab.project().dir / "project.json").write_text("{")
    with pytest.raises(ServiceError, match="cannot use"):
        fleet.load_plan(lab.project())
    _, remains = lab.down()
    assert (bool(remains), gone(pid)) == (False, True)


def test_a_port_that_a_stranger_took_is_not_ours(lab: Lab) -> None:
    """After an engine died somebody else listens there: ``down`` is complete without that port."""
    path = lab.profile(plain())
    lab.up(path)
    (port,) = lab.plan(path).service("one").ports
    os.kill(leader(lab.project().record("one")), signal.SIGKILL)
    until(lambda: (record := lab.project().record("one")) and record.exit)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        _, remains = lab.down()
    assert remains.ports == []


def test_the_store_is_kept_unless_asked(lab: Lab) -> None:
    """``down`` keeps the KV files; with ``remove_store`` it deletes those that kvdemo made, and nothing else."""
    path = lab.profile({"a": {"cache": "shared"}}, {"shared": {"l1": "16MiB", "l2": "./kv"}})
    lab.up(path)
    store = Path(lab.plan(path).service("shared").store)
    (store / "chunk.data").write_bytes(b"kv")
    about = json.loads((store / ".kvdemo-store").read_text())
    assert list(about) == [str(lab.path / "model")]
    lab.down()
    assert (store / "chunk.data").exists()
    (lab.path / "kv" / "mine.txt").write_text("not kvdemo's")
    lab.up(path)
    lab.down(remove_store=True)
    assert [entry.name for entry in (lab.path / "kv").iterdir() if entry.name != ".kvdemo-store"] == ["mine.txt"]
