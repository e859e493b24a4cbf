"""A fleet of fake engines on a Ray cluster of two nodes: the verbs, and what is left when something is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Lab
from guarding import until
from twonodes import TwoNodes, alive, services

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore")]

SOON = 20
"""Seconds within which what lost its owner must have ended."""

ENGINES: dict[str, dict[str, Any]] = {"plain": {}, "a": {"cache": "shared"}, "b": {"cache": "shared"}}
CACHES = {"shared": {"l1": "16MiB", "chunk_size": 64, "l2": "./kv"}}


@pytest.fixture(scope="module")
def nodes(shared_lab: Lab) -> Iterator[TwoNodes]:
    """The cluster; services inherit a mark that only these tests set."""
    shared_lab.patience *= 3  # a command joins the cluster first, and starts processes of Ray's
    two = TwoNodes({"KVDEMO_STATE_DIR": str(shared_lab.path / "nodes"), "LC_LAB": str(shared_lab.path)})
    try:
        yield two
    finally:
        two.close()


@pytest.fixture(scope="module")
def profile(shared_lab: Lab, nodes: TwoNodes) -> Path:
    """Engines that leave a child behind which ignores SIGTERM, spread over both nodes."""
    env = {"FAKE_CHILD": "1"}
    return shared_lab.profile(ENGINES, CACHES, on={"ray": {"address": nodes.address}}, env=env)


@pytest.fixture
def fleet(shared_lab: Lab, profile: Path) -> Lab:
    """Everything up, whatever ran before."""
    if len(alive(shared_lab)) < 5:
        done = shared_lab.run("up", profile)
        assert done.returncode == 0, done.stdout + done.stderr
    return shared_lab


def test_up_puts_services_on_both_nodes(shared_lab: Lab, nodes: TwoNodes, profile: Path) -> None:
    """Every node with cached engines has its own server, on loopback for engines; nothing binds to all addresses."""
    done = shared_lab.run("up", profile)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = services(shared_lab)
    assert {row["state"] for row in rows.values()} == {"ready"}
    assert rows["a"]["node"] != rows["b"]["node"]
    assert set(rows) == {"plain", "a", "b", f"shared-{rows['a']['node']}", f"shared-{rows['b']['node']}"}
    assert not any(row["nice"] for row in rows.values()) or os.geteuid()
    plan = shared_lab.project().load()
    assert plan is not None
    for spec in plan["plan"]["services"]:
        assert spec["host"] == nodes.address.rpartition(":")[0]
        assert spec["kind"] == "engine" or spec["inner"] == "127.0.0.1"
    again = shared_lab.run("up", profile)
    assert again.stdout.count("unchanged") == 5, again.stdout


def test_packages_that_do_not_load_on_a_node_are_refused(shared_lab: Lab, nodes: TwoNodes) -> None:
    """Each node is asked for its own interpreter before anything starts there; its name stands before what is wrong."""
    broken = shared_lab.path / "broken"
    (broken / "lmcache").mkdir(parents=True)
    (broken / "lmcache" / "__init__.py").write_text("raise ImportError('built for another torch')")
    python = shared_lab.path / "broken-python"
    python.write_text(shared_lab.python.read_text().replace("PYTHONPATH=", f"PYTHONPATH={broken}:"))
    python.chmod(0o755)
    settings: dict[str, Any] = {"name": "broken", "runtime": {"python": str(python)}}
    path = shared_lab.profile(ENGINES, CACHES, on={"ray": {"address": nodes.address}}, **settings)
    done = shared_lab.run("up", path)
    assert done.returncode == 5, done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if "load lmcache: ImportError: built for another torch" in line]
    assert len(told) == 2, done.stderr
    assert len({line.split(":")[0] for line in told}) == 2, told
    assert shared_lab.project("broken").records() == {}


def test_no_gpu_is_given_twice(shared_lab: Lab, nodes: TwoNodes) -> None:
    """Seats are counted by Ray; `plan` gives them back, and says what the nodes (that only pretend) lack."""
    settings: Any = {"on": {"ray": {"address": nodes.address}}, "name": "seated"}
    four = shared_lab.profile({name: {"gpus": 1} for name in "abcd"}, **settings)
    done = shared_lab.run("plan", four, "--format", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert len({(spec["node"], *spec["gpus"]) for spec in plan["services"]}) == 4
    assert all("usable GPU" in text for text in plan["missing"])
    done = shared_lab.run("plan", shared_lab.profile({"a": {"gpus": 3}}, **settings))
    assert (done.returncode, "the cluster has no room" in done.stderr) == (5, True), done.stderr


def test_the_environment_is_not_rays(fleet: Lab) -> None:
    """No variable of Ray's, no thread count of Ray's, and none of its priorities where they may be taken back."""
    (one, *_) = [pid for pid, line in fleet.pids().items() if "api_server" in line]
    names = {pair.partition(b"=")[0].decode() for pair in Path(f"/proc/{one}/environ").read_bytes().split(b"\0")}
    assert not [name for name in names if name.startswith("RAY_")]
    assert not names & {"OMP_NUM_THREADS", "PYTHONBREAKPOINT"}
    assert Path(f"/proc/{one}/oom_score_adj").read_text() == "0\n"


@pytest.mark.usefixtures("fleet")
def test_logs_and_restart(shared_lab: Lab) -> None:
    """Logs come from the nodes, and are followed there; what is restarted stays on its node."""
    done = shared_lab.run("logs", "-n", "1")
    assert {line.split()[0] for line in done.stdout.splitlines()} >= {"plain", "a", "b"}
    following = shared_lab.start("logs", "-f", "-n", "1", "b")
    assert following.stdout
    assert following.stdout.readline().startswith("b ")
    done = shared_lab.run("restart", "b")
    assert done.returncode == 0, done.stderr
    assert "Starting to load model" in next(line for line in following.stdout if "load model" in line)
    following.send_signal(signal.SIGINT)
    assert following.wait(SOON) == 130
    rows = services(shared_lab)
    assert rows["b"]["state"] == "ready"
    assert rows["b"]["node"] != rows["a"]["node"]
    assert rows["b"]["elapsed"] < rows["a"]["elapsed"]


@pytest.mark.usefixtures("fleet")
def test_reuse_between_nodes_is_told_apart(shared_lab: Lab) -> None:
    """What node 1 stored, node 2 loads from L2; the table says where it came from."""
    document = shared_lab.path / "document.txt"
    document.write_text(" ".join(f"word{number}" for number in range(300)))
    done = shared_lab.run("bench", "--matrix", "--context", document, "--trials", "1", "--no-limit", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    cells = {(cell["writer"], cell["reader"]): cell for cell in found["matrix"]["cells"]}
    assert (cells["a", "b"]["verdict"], cells["a", "b"]["where"]) == ("SHARED", "other node")
    assert cells["a", "a"]["verdict"] == "LOCAL"
    assert [row["where"] for row in found["matrix"]["reuse"]] == ["other node"]
    assert found["nodes"]["a"] != found["nodes"]["b"]


@pytest.mark.usefixtures("fleet")
def test_a_killed_agent_takes_its_services_along(shared_lab: Lab, nodes: TwoNodes, profile: Path) -> None:
    """Its guardians end them; ps and bench say what was lost; up brings them back."""
    names = {name for name, row in services(shared_lab).items() if row["state"] == "ready"}
    (agent,) = nodes.agents(nodes.worker)
    assert alive(shared_lab) == names
    os.kill(agent, signal.SIGKILL)
    until(lambda: len(alive(shared_lab)) < len(names) - 1, SOON)
    rows = services(shared_lab)
    lost = {name for name, row in rows.items() if row["state"] == "lost"}
    until(lambda: alive(shared_lab) == names - lost, SOON)
    assert {rows[name]["node"] for name in lost} != {rows[name]["node"] for name in names - lost}
    assert "agent" in rows[min(lost)]["detail"]
    document = shared_lab.path / "document.txt"
    document.write_text("something")
    refused = shared_lab.run("bench", "--no-limit", "--context", document)
    assert (refused.returncode, f"{min(lost)} (lost)" in refused.stderr) == (7, True), refused.stderr
    done = shared_lab.run("up", profile)
    assert done.returncode == 0, done.stdout + done.stderr
    assert alive(shared_lab) == names


@pytest.mark.usefixtures("fleet")
def test_a_killed_node_is_named(shared_lab: Lab, nodes: TwoNodes) -> None:
    """Its services end with it; down ends the others, and names what it could not look at."""
    nodes.kill_node(nodes.worker)
    until(lambda: len(alive(shared_lab)) <= 3, SOON)
    rows = services(shared_lab)
    lost = {name for name, row in rows.items() if row["state"] == "lost"}
    assert lost
    until(lambda: alive(shared_lab) == set(rows) - lost, SOON)
    last = shared_lab.run("down")
    until(lambda: shared_lab.run("down").returncode == 0, 3 * SOON) if last.returncode == 8 else None
    assert min(lost) in last.stdout + last.stderr
    assert alive(shared_lab) == set()
    nodes.add_worker()


@pytest.mark.usefixtures("fleet")
def test_a_killed_head_takes_everything_along(shared_lab: Lab, nodes: TwoNodes) -> None:
    """Without its head a cluster ends; so do services. Nothing waits a minute for it."""
    assert len(alive(shared_lab)) == 5
    nodes.kill_head()
    until(lambda: not alive(shared_lab), 3 * SOON)
    rows = services(shared_lab)
    assert {row["state"] for row in rows.values()} == {"lost"}
    assert "cannot reach the Ray cluster" in rows["a"]["detail"]
    done = shared_lab.run("down")
    assert done.returncode == 0, done.stderr
    assert "Ended with their nodes" in done.stdout


def test_a_cluster_that_is_not_there(shared_lab: Lab) -> None:
    """Told at once, without a word of C++."""
    path = shared_lab.profile(ENGINES, CACHES, on={"ray": {"address": "127.0.0.1:9"}}, name="nowhere")
    done = shared_lab.run("up", path)
    assert (done.returncode, "cannot reach the Ray cluster at 127.0.0.1:9" in done.stderr) == (5, True), done.stderr
