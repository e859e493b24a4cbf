"""Interrupted and failed starts leave nothing: no process, directory, socket or shared memory; and say what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from conftest import Lab
from guarding import free_port, gone, until
from kvdemo.host import process, shim

SLOW = {"env": {"FAKE_START_S": "60"}}


def remains(lab: Lab) -> list[str]:
    """What is there of the project but its logs."""
    project = lab.project()
    there = [str(path) for path in (project.sockets, lab.path / "kv") if os.path.lexists(path)]
    there += [str(path) for path in project.dir.glob("*") if path.name not in ("logs", "project.lock")]
    return there + [str(path) for path in Path("/dev/shm").glob(f"{lab.name}*")]


def alive(lab: Lab, service: str) -> bool:
    """Whether it runs; its record goes with it."""
    record = lab.project().records().get(service)
    return record is not None and process.alive(record.leader)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_up_leaves_nothing(lab: Lab, number: int, times: int) -> None:
    """Ctrl-C, SIGTERM and SIGHUP, once or twice: exit 130, and nothing is left but the logs."""
    stubborn = {"FAKE_START_S": "60", "FAKE_IGNORE_SIGTERM": "1"}
    caches = {"shared": {"l1": "16MiB", "chunk_size": 64, "l2": "./kv", "env": {"FAKE_LEAK": f"{lab.name}-leak"}}}
    path = lab.profile({"a": {"env": stubborn}, "b": {"cache": "shared", **SLOW}}, caches, stop_timeout=3)
    up = lab.start("up", path)
    until(lambda: {"a", "b", "shared"} <= lab.project().records().keys(), 30)
    for _ in range(times):
        os.kill(up.pid, number)
        until(lambda: up.poll() is not None or not alive(lab, "b"), 20)
    assert up.wait(30) == 130
    until(lambda: not lab.pids())
    assert remains(lab) == []


def test_an_up_interrupted_before_it_started_anything_leaves_no_directory(lab: Lab) -> None:
    """A plan that cannot be carried out leaves not even the project's directory."""
    path = lab.profile({"a": {"max_model_len": 10_000_000}})
    run = lab.run("up", path)
    assert run.returncode == 5
    assert not lab.project().dir.exists()


def test_down_says_at_once_whom_it_waits_for(lab: Lab) -> None:
    """Pid, command, since when, and how to go on; then it goes on by itself when `up` was ended so."""
    up = lab.start("up", lab.profile({"a": SLOW}))
    until(lambda: lab.project().records())
    down = lab.start("down", "-p", lab.name)
    assert down.stderr is not None
    said = down.stderr.readline() + down.stderr.readline()
    assert f"in use by `kvdemo up` (pid {up.pid}, since " in said
    assert f"kill {up.pid} (it stops what it started)" in said
    os.kill(up.pid, signal.SIGTERM)
    assert down.wait(30) == 0


def test_a_stopped_up_is_named_at_once(lab: Lab) -> None:
    """Who waits for a command that was stopped waits in vain: exit 9 with both ways out, and the second one works."""
    up = lab.start("up", lab.profile({"a": SLOW}))
    until(lambda: lab.project().records())
    os.kill(up.pid, signal.SIGSTOP)
    run = lab.run("down", "-p", lab.name)
    assert run.returncode == 9
    assert "which was stopped (SIGSTOP or Ctrl-Z)" in run.stderr
    assert f"kill -CONT {up.pid}" in run.stderr
    assert f"kill -KILL {up.pid}" in run.stderr
    os.kill(up.pid, signal.SIGKILL)
    run = lab.run("down", "-p", lab.name)
    assert (run.returncode, "1 service ended" in run.stdout) == (0, True)


def test_restart_stops_nothing_that_could_not_start_again(lab: Lab) -> None:
    """A model, an interpreter or a KV store that is gone, a secret that is not set: all told at once, all runs on."""
    caches = {"shared": {"l1": "16MiB", "chunk_size": 64, "l2": "./kv"}}
    path = lab.profile({"a": {"cache": "shared"}}, caches, secrets=["VLLM_API_KEY"])
    assert lab.run("up", path, VLLM_API_KEY="k" * 20).returncode == 0
    before = {name: record.leader for name, record in lab.project().records().items()}
    (lab.path / "model").rename(lab.path / "elsewhere")
    lab.python.chmod(0o644)
    shutil.rmtree(lab.path / "kv")
    (lab.path / "kv").touch()
    run = lab.run("restart", "shared")
    assert run.returncode == 5
    for told in (
        "secret VLLM_API_KEY",
        f"its model {lab.path}/model",
        "its interpreter",
        "its KV store",
        "nothing was",
    ):
        assert told in run.stderr
    assert {name: record.leader for name, record in lab.project().records().items()} == before
    assert all(process.alive(leader) for leader in before.values())
    lab.python.chmod(0o755)


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Path]:
    """A file system of 4 MiB as the state directory."""
    place = lab.path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "kvdemo-test", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a file system here")
    lab.environ["KVDEMO_STATE_DIR"] = str(place)
    try:
        yield place
    finally:
        lab.close()
        subprocess.run(["umount", str(place)], check=True)


def _fill(place: Path, leave: int) -> None:
    with (place / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


@pytest.mark.parametrize("room", [0, 1, 2, 4, 8, 64])
def test_a_full_disk_starts_nothing_and_leaves_nothing(lab: Lab, small_disk: Path, room: int) -> None:
    """Wherever the space ends (lock, document, log, record): one sentence that names the place, and nothing runs."""
    path = lab.profile({"a": {}, "b": {}})
    _fill(small_disk, room * 4096)
    run = lab.run("up", path)
    assert run.returncode in (1, 5)
    assert "No space left on device" in run.stderr
    assert "Traceback" not in run.stderr
    until(lambda: not lab.pids())
    assert remains(lab) == []


def test_restart_and_down_with_a_full_disk(lab: Lab, small_disk: Path) -> None:
    """`restart` stops nothing that it could not start; `ps` and `down` need no space."""
    assert lab.run("up", lab.profile({"a": {}})).returncode == 0
    leader = lab.project().records()["a"].leader
    _fill(small_disk, 0)
    run = lab.run("restart", "a")
    assert run.returncode == 5
    assert "No space left on device" in run.stderr
    assert process.alive(leader)
    assert "ready" in lab.run("ps").stdout
    run = lab.run("down")
    assert run.returncode == 0, run.stderr
    assert leader is not None
    assert gone(leader.pid)


def test_down_with_a_state_directory_that_is_read_only(lab: Lab, small_disk: Path) -> None:
    """What runs is ended all the same, and the next `down` knows that nothing runs."""
    assert lab.run("up", lab.profile({"a": {}})).returncode == 0
    leader = lab.project().records()["a"].leader
    for words in (["--bind", str(small_disk)], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *words, str(small_disk)], check=True)
    run = lab.run("up", lab.path / f"{lab.name}.yaml", KVDEMO_STATE_DIR=str(small_disk))
    assert "Traceback" not in run.stderr
    run = lab.run("down", "-p", lab.name)
    assert run.returncode == 0, run.stderr
    assert leader is not None
    assert shim.stat(leader.pid) is None or gone(leader.pid)
    subprocess.run(["umount", str(small_disk)], check=True)


def test_ps_tells_where_and_since_when_each_service_is(lab: Lab) -> None:
    """Host, port, url, pid, start ticks and start time are fields, of each service and for each project."""
    lab.up(lab.profile({"a": {}, "b": {}}))
    rows = json.loads(lab.run("ps", "--json").stdout)["services"]
    for row in rows:
        record = lab.project().records()[row["service"]]
        assert record.leader is not None
        assert (row["pid"], row["start_ticks"]) == (record.leader.pid, record.leader.starttime)
        assert row["url"] == f"http://{row['host']}:{row['port']}"
        assert row["at"] == f":{row['port']}"
        assert abs(_seconds(row["started_at"]) - record.started_at) < 0.01
    everything = json.loads(lab.run("ps", "--all", "--json").stdout)
    (one,) = (one for one in everything["projects"] if one["project"] == lab.name)
    assert [row["pid"] for row in one["services"]] == [row["pid"] for row in rows]


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo is not None
    return moment.timestamp()


def test_a_key_that_is_asked_for_ends_the_wait(lab: Lab) -> None:
    """An engine that answers 401 never becomes ready: told at once, with the way out."""
    path = lab.profile({"a": {"env": {"FAKE_BEARER": "of-its-own"}}}, start_timeout=25)
    run = lab.run("up", path)
    assert run.returncode == 1
    assert "a: it asks for an API key (401), and kvdemo has none for it" in run.stderr
    assert "secrets: [VLLM_API_KEY]" in run.stderr
    path = lab.profile({"a": {"env": {"FAKE_BEARER": "of-its-own"}}}, start_timeout=25, secrets=["VLLM_API_KEY"])
    run = lab.run("up", path, VLLM_API_KEY="another-key-1234")
    assert run.returncode == 1
    assert "a: it refuses the API key that VLLM_API_KEY holds (401)" in run.stderr
    assert "another-key-1234" not in run.stdout + run.stderr


def test_a_port_taken_between_check_and_bind_is_told(lab: Lab) -> None:
    """Another program that answers on the port of a service ends the start at once; its pid is named."""
    port = free_port()
    path = lab.profile({"a": {"port": port, "env": {"FAKE_BIND_S": "60"}}}, start_timeout=60)
    up = lab.start("up", path)
    until(lambda: lab.project().records())
    server = (
        "import http.server as h\n"
        "class A(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        f"h.HTTPServer(('127.0.0.1', {port}), A).serve_forever()"
    )
    with subprocess.Popen([sys.executable, "-c", server], stderr=subprocess.DEVNULL) as other:
        try:
            _, said = up.communicate(timeout=40)
        finally:
            other.kill()
    assert up.returncode == 1
    assert f"port {port} is answered by another program (pid {other.pid})" in said
    assert "leave `port` out" in said


def test_a_stopped_guardian_is_named_and_replaced(lab: Lab) -> None:
    """`ps` names it with both ways out, `up` starts its service anew, and `down` ends it in good order."""
    path = lab.profile({"a": {}})
    lab.up(path)
    record = lab.project().records()["a"]
    os.kill(record.guardian.pid, signal.SIGSTOP)
    shown = lab.run("ps").stdout
    assert f"its guardian was stopped (SIGSTOP): kill -CONT {record.guardian.pid}, or restart the service" in shown
    run = lab.run("up", path)
    assert run.returncode == 0, run.stderr
    again = lab.project().records()["a"]
    assert again.guardian != record.guardian
    assert gone(record.guardian.pid)
    os.kill(again.guardian.pid, signal.SIGSTOP)
    run = lab.run("down")
    assert (run.returncode, f"(pid {again.guardian.pid}) was stopped" in run.stdout) == (0, True), run.stdout
    assert gone(again.guardian.pid)
