"""The verbs that people know from docker compose: ls, stop, start, wait, events, logs --since, down SERVICE."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE, Lab
from guarding import until
from kvdemo.errors import UsageError
from kvdemo.fleet import excerpts, fleet, logbook, logtime, teardown
from kvdemo.host import survey
from kvdemo.planning.plan import Plan

NOW = datetime(2026, 11, 30, 7, 15)
TWO = {"plain": {}, "a": {"cache": "shared"}}
CACHES = {"shared": {"l1": "16MiB", "chunk_size": 64}}


def states(lab: Lab, name: str = "") -> dict[str, str]:
    """The state of each service."""
    return {event.service: event.state.value for event in fleet.status(lab.project(name), lab.environ)}


def test_start_brings_back_exactly_what_was_stopped(lab: Lab) -> None:
    """Engines end before their cache, and come after it; a service that never ran stays away; ports stay the same."""
    lab.up(lab.profile(), names=["a", "b"])
    ports = {event.service: event.port for event in fleet.status(lab.project(), lab.environ)}
    done = lab.run("stop")
    assert done.returncode == 0, done.stderr
    ended = [line.split()[0] for line in done.stdout.splitlines() if " exited" in line]
    assert ended[-1] == "shared"
    assert set(ended) == {"a", "b", "shared"}
    assert set(states(lab).values()) == {"absent"}
    assert not [pid for pid, line in lab.pids().items() if "vllm" in line or "lmcache" in line]
    done = lab.run("start")
    assert done.returncode == 0, done.stderr
    assert states(lab) == {"shared": "ready", "plain": "absent", "a": "ready", "b": "ready"}
    assert {event.service: event.port for event in fleet.status(lab.project(), lab.environ)} == ports


def test_a_cache_takes_its_engines_along_and_an_engine_nobody(lab: Lab) -> None:
    """`stop` and `down` of a cache end the engines that use it, first; `start` of an engine starts its cache too."""
    lab.up(lab.profile(TWO, CACHES))
    assert lab.run("stop", "shared").returncode == 0
    assert states(lab) == {"shared": "absent", "plain": "ready", "a": "absent"}
    assert lab.run("start", "a").returncode == 0
    assert set(states(lab).values()) == {"ready"}
    done = lab.run("down", "a")
    assert done.returncode == 0, done.stderr
    assert "Nothing is left: 1 service ended, no process of theirs lives, 1 port is free." in done.stdout
    assert states(lab) == {"shared": "ready", "plain": "ready", "a": "absent"}
    assert lab.run("start").returncode == 0  # what `down` took away is not what was stopped
    assert states(lab)["a"] == "absent"
    assert lab.run("down", "shared").returncode == 0
    done = lab.run("down", "plain")
    assert done.returncode == 0, done.stderr
    assert lab.run("ps").returncode == 7  # the last service takes the project along


def test_a_start_that_fails_keeps_the_plan(lab: Lab) -> None:
    """A taken port is named before anything starts; when it is free, `start` works, after a failed `restart` too."""
    lab.up(lab.profile({"plain": {}}))
    (event,) = fleet.status(lab.project(), lab.environ)
    assert lab.run("stop").returncode == 0
    with socket.create_server((event.host, event.port)):
        done = lab.run("start")
        assert done.returncode == 5
        assert f"port {event.port} is taken" in done.stderr
        assert "nothing was started" in done.stderr
    python = lab.python.read_text()
    for verb in ("start", "restart"):
        lab.python.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n")
        assert lab.run(verb).returncode == 1
        lab.python.write_text(python)
        assert lab.run("start").returncode == 0
        assert states(lab) == {"plain": "ready"}


@pytest.mark.parametrize("verb", ["stop", "start", "wait", "down", "events"])
def test_unknown_services_are_named(lab: Lab, verb: str) -> None:
    """The same word for all verbs: which services there are; nothing is touched."""
    lab.up(lab.profile({"plain": {}}))
    done = lab.run(verb, "plian")
    assert done.returncode == 2
    assert "no service plian" in done.stderr
    assert "plain" in done.stderr.split("it has:")[1]
    assert states(lab) == {"plain": "ready"}


def test_down_of_services_keeps_the_stores(lab: Lab) -> None:
    """--volumes and --all are about whole projects."""
    for flag in ("--volumes", "--all"):
        assert lab.run("down", "plain", flag).returncode == 2


def test_wait_ends_with_the_fleet(lab: Lab) -> None:
    """0 when all are ready, 7 for what nobody starts, 6 when time is over, 1 with the cause when one has ended."""
    assert lab.run("wait").returncode == 7
    engines = {"plain": {}, "never": {"env": {"FAKE_NEVER_HEALTHY": "1"}}}
    assert lab.run("up", "--no-wait", lab.profile(engines)).returncode == 0
    assert lab.run("wait", "plain").returncode == 0
    done = lab.run("wait", "--timeout", "1")
    assert done.returncode == 6
    assert "never: not ready in time" in done.stderr
    assert states(lab)["never"] == "unhealthy"  # nobody stops what could not be awaited
    waiting = lab.start("wait")
    record = lab.project().records()["never"]
    assert record.leader is not None
    os.kill(record.leader.pid, signal.SIGKILL)
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 1
    assert "never: " in err
    assert "signal 9" in err
    assert lab.run("down", "never").returncode == 0
    done = lab.run("wait")
    assert done.returncode == 7
    assert "not started: never" in done.stderr


def test_events_tell_each_change_once(lab: Lab) -> None:
    """First the state now, then changes only, each one JSON object; `down` makes everything absent; Ctrl-C ends it."""
    lab.up(lab.profile({"plain": {}, "other": {}}))
    process = lab.start("events", "--json")
    rows: list[dict[str, object]] = []
    assert process.stdout is not None
    stream = process.stdout
    reader = threading.Thread(target=lambda: rows.extend(map(json.loads, stream)))
    reader.start()

    def seen(service: str, state: str) -> bool:
        return (service, state) in {(row["service"], row["state"]) for row in rows}

    until(lambda: seen("plain", "ready") and seen("other", "ready"), PATIENCE)
    record = lab.project().records()["other"]
    assert record.leader is not None
    os.kill(record.leader.pid, signal.SIGKILL)
    until(lambda: seen("other", "exited"), PATIENCE)
    lab.down()
    until(lambda: seen("plain", "absent") and seen("other", "absent"), PATIENCE)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    reader.join(PATIENCE)
    assert next(row["state"] for row in rows if row["service"] == "plain") == "ready"
    signs = [(row["service"], row["state"], row["detail"], row["started_at"]) for row in rows]
    assert len(signs) == len(set(signs))
    assert all(datetime.fromisoformat(str(row["time"])).tzinfo and row["project"] == lab.name for row in rows)


def test_ls_lists_all_projects(lab: Lab) -> None:
    """Name, how many services are in which state, profile, since; a stopped project is listed too."""
    assert "Nothing is up" in lab.run("ls").stdout
    profile = lab.profile({"plain": {}, "other": {}})
    lab.up(profile)
    lab.up(lab.profile({"plain": {}}, name="second"))
    assert lab.run("stop", "other", "-p", lab.name).returncode == 0
    assert lab.run("stop", "-p", "second").returncode == 0
    rows = {row["name"]: row for row in json.loads(lab.run("ls", "--json").stdout)["projects"]}
    assert rows[lab.name]["states"] == {"ready": 1, "absent": 1}
    assert rows[lab.name]["profile"] == str(profile)
    assert datetime.fromisoformat(rows[lab.name]["since"]).tzinfo
    assert rows["second"]["since"] is None
    text = lab.run("ls").stdout
    assert "ready(1), absent(1)" in text
    assert "second" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5m", NOW - timedelta(minutes=5)),
        ("1h30m", NOW - timedelta(minutes=90)),
        ("1.5s", NOW - timedelta(seconds=1.5)),
        ("200ms", NOW - timedelta(seconds=0.2)),
        ("2d", NOW - timedelta(days=2)),
        ("2026-11-30", datetime(2026, 11, 30)),
        ("2026-11-30T07:01:02", datetime(2026, 11, 30, 7, 1, 2)),
        ("1780000000", datetime.fromtimestamp(1780000000)),
    ],
)
def test_since_is_an_age_or_a_time(text: str, expected: datetime) -> None:
    """Ages as in Go, times as in ISO 8601 or Unix; a time without a zone is the machine's."""
    assert logtime.moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "5 m", "m", "-5m", "2026-13-01", "9" * 300, "9" * 30 + "d"])
def test_since_refuses_what_is_neither(text: str) -> None:
    """A word about what it takes, never a traceback."""
    with pytest.raises(UsageError, match="--since"):
        logtime.moment(text, NOW)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("(APIServer pid=13430) INFO 11-24 02:27:36 [api_utils.py:1] up", datetime(2026, 11, 24, 2, 27, 36)),
        ("INFO 12-31 23:59:59 [x.py:1] of the year before", datetime(2025, 12, 31, 23, 59, 59)),
        ("[2026-11-24 02:39:26,568] LMCache INFO: up", datetime(2026, 11, 24, 2, 39, 26, 568000)),
        ("[2026-11-24T02:39:26.5] zoned", datetime(2026, 11, 24, 2, 39, 26, 500000)),
        ("INFO:     127.0.0.1:1234 - GET /health", None),
        ("INFO 13-45 99:99:99 [no.py:1] date", None),
    ],
)
def test_a_line_says_when_it_was_written(line: str, expected: datetime | None) -> None:
    """The stamps of vLLM and of LMCache; what looks like one and is none dates nothing."""
    assert logtime.stamp(line, NOW) == expected


def test_lines_without_a_stamp_are_as_old_as_the_one_before() -> None:
    """A traceback goes with its error; what is undated at the beginning goes with the first stamp."""
    log = ["banner", "INFO 11-30 07:00:00 old", "  its traceback", "INFO 11-30 07:10:00 new", "  its traceback"]
    assert list(logtime.since(log, datetime(2026, 11, 30, 7, 5), NOW)) == log[3:]
    assert list(logtime.since(log, datetime(2026, 11, 30, 6), NOW)) == log
    part = datetime(2026, 11, 30, 7, 10, 0, 900000)  # the stamp may have been made later in its second
    assert list(logtime.since(log, part, NOW)) == log[3:]
    assert list(logtime.since(["no stamp at all"], NOW, NOW)) == ["no stamp at all"]


def test_real_logs_are_dated() -> None:
    """Lines of real vLLM and LMCache logs: the last ones are later than the first, and --since cuts between."""
    for path in sorted((Path(__file__).parent / "logs").glob("*-start.log")):
        rows = path.read_text().splitlines()
        stamps = [made for row in rows if (made := logtime.stamp(excerpts.redact(row, {}), NOW))]
        seconds = [made.replace(microsecond=0) for made in stamps]
        assert seconds == sorted(seconds), path
        kept = list(logtime.since(rows, stamps[-1], NOW))
        assert 0 < len(kept) < len(rows)


def test_logs_since(lab: Lab) -> None:
    """`logs --since 5m` leaves out what is older; together with --tail it counts what is left."""
    lab.up(lab.profile({"plain": {}}))
    old, new = (f"{datetime.now() - timedelta(minutes=n):%m-%d %H:%M:%S}" for n in (60, 1))
    with lab.project().log("plain").open("a") as log:
        log.write(f"INFO {old} [x.py:1] ancient\nINFO {new} [x.py:1] recent\n  goes with it\n")
    shown = lab.run("logs", "--since", "5m").stdout
    assert "ancient" not in shown
    assert "recent" in shown
    assert "goes with it" in shown
    assert "recent" not in lab.run("logs", "--since", "5m", "--tail", "1").stdout
    assert lab.run("logs", "--since", "soon").returncode == 2


def complete(lab: Lab, *words: str) -> set[str]:
    """What bash would offer for the last of these words."""
    line = " ".join(["kvdemo", *words])
    done = lab.run(
        _KVDEMO_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words)), _TYPER_COMPLETE_ARGS=line
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_shell_completes_services_projects_and_profiles(lab: Lab) -> None:
    """Services of the project that is up, or of the profile that is typed; nothing, and no word, where none can be."""
    assert complete(lab, "logs", "a") == set()
    profile = lab.profile(TWO, CACHES)
    (lab.path / "broken.yaml").write_text("engines: [")
    assert {profile.name, "broken.yaml", "model/"} <= complete(lab, "up", "")
    assert complete(lab, "up", profile.name, "pl") == {"plain"}
    assert complete(lab, "up", "broken.yaml", "") == set()
    lab.up(profile, names=["plain"])
    for verb in ("logs", "stop", "start", "wait", "events", "ps", "down", "restart"):
        assert complete(lab, verb, "") == {"plain", "a", "shared"}, verb
    assert complete(lab, "logs", "plain", "") == {"a", "shared"}
    assert complete(lab, "ps", "-p", lab.name[:3]) == {lab.name}
    assert complete(lab, "logs", "-p", "another", "") == set()


@pytest.mark.parametrize("verb", ["ls", "stop", "start", "wait", "events", "logs", "down", "up", "init", "export"])
def test_help_has_an_example(lab: Lab, verb: str) -> None:
    """Each verb shows how it is typed."""
    text = lab.run(verb, "--help").stdout
    assert f"kvdemo {verb}" in text.split("Example:")[1]
    assert "[[" not in text


def test_wait_follows_an_up_that_is_under_way(lab: Lab) -> None:
    """A service that another command is about to start is waited for; it is not called missing."""
    slow = {"env": {"FAKE_START_S": "3"}}
    profile = lab.profile({"plain": slow, "other": {}})
    process = lab.start("up", profile)
    until(lambda: survey.saved_plan(lab.project()) is not None, PATIENCE)
    done = lab.run("wait")
    assert done.returncode == 0, done.stderr
    assert set(states(lab).values()) == {"ready"}
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err


def test_the_saved_plan_is_read_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb reads the plan of a project once and passes it on, so that all of the verb sees the same one."""
    lab.up(lab.profile({"plain": {}}, {}))
    project, documents, plan_of = lab.project(), [], survey.plan_of

    def counting(document: Mapping[str, Any] | None) -> Plan | None:
        documents.append(document)
        return plan_of(document)

    monkeypatch.setattr(survey, "plan_of", counting)
    verbs: dict[str, Callable[[], object]] = {
        "ps": lambda: fleet.status(project, lab.environ),
        "exits": lambda: fleet.exits(project, lab.environ, ["plain"]),
        "wait": lambda: list(fleet.wait(project, lab.environ, ())),
        "logs": lambda: list(logbook.lines(project, ["plain"], lab.environ)),
        "down": lambda: list(teardown.down(project)),
    }
    reads = {}
    for name, verb in verbs.items():
        documents.clear()
        verb()
        reads[name] = len(documents)
    assert reads == dict.fromkeys(verbs, 1)
