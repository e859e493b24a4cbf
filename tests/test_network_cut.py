"""A node of a Ray cluster whose network is cut. It is a network namespace, which needs root."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from conftest import Lab
from guarding import free_port, until
from kvdemo.cluster.remote import GIVEN_UP
from twonodes import FAST, alive, services

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"),
]

SOON = 45
"""Seconds within which what is cut off must show, and what has lost its owner end: some five on a quiet machine."""

HERE, THERE = "10.213.77.1", "10.213.77.2"
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
RAY += ["--num-cpus=1", "--num-gpus=2", "--object-store-memory=80000000"]


def ip(*words: str) -> None:
    """Configure the network."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Network:
    """A switch on this machine, and another host behind it."""

    def __init__(self) -> None:
        tag = str(os.getpid())
        self.host, self.switch, self.port, self.far = f"kv{tag}", f"kvs{tag}", f"kvp{tag}", f"kvf{tag}"

    def make(self) -> None:
        """Raises CalledProcessError where root may not."""
        ip("netns", "add", self.host)
        ip("link", "add", self.switch, "type", "bridge")
        ip("link", "add", self.port, "type", "veth", "peer", "name", self.far, "netns", self.host)
        ip("link", "set", self.port, "up", "master", self.switch)
        ip("link", "set", self.switch, "up")
        ip("addr", "add", f"{HERE}/30", "dev", self.switch)
        ip("-n", self.host, "addr", "add", f"{THERE}/30", "dev", self.far)
        for device in ("lo", self.far):
            ip("-n", self.host, "link", "set", device, "up")

    def remove(self) -> None:
        """Whatever of it was made."""
        for words in (("link", "del", self.port), ("link", "del", self.switch), ("netns", "del", self.host)):
            with suppress(subprocess.CalledProcessError):
                ip(*words)

    def cut(self) -> None:
        """Both sides keep their addresses, and hear nothing."""
        ip("link", "set", self.port, "down")


def end(node: subprocess.Popen[bytes]) -> None:
    """End a node at once, unless it has ended: asked to, it takes half a minute."""
    if node.poll() is None:
        for process in psutil.Process(node.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.kill()
        node.wait()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Whole at first."""
    one = Network()
    try:
        one.make()
        yield one
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network can be made here: {error.stderr}")
    finally:
        one.remove()


class Pair(NamedTuple):
    """The head of a cluster, and the process that its other node, behind the switch, depends on."""

    address: str
    far: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def pair(shared_lab: Lab, network: Network) -> Iterator[Pair]:
    """This host is one node, the one behind the switch the other."""
    shared_lab.patience *= 3  # a command joins the cluster first
    environ = {**os.environ, **FAST, "KVDEMO_STATE_DIR": str(shared_lab.path / "nodes"), "LC_LAB": str(shared_lab.path)}
    port, inside = free_port(), ["ip", "netns", "exec", network.host]
    with ExitStack() as closing:
        short = closing.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))  # sockets are below it
        head = [*RAY, "--head", f"--node-ip-address={HERE}", f"--port={port}", f"--temp-dir={short}"]
        far = [*inside, *RAY, f"--node-ip-address={THERE}", f"--address={HERE}:{port}"]
        start(head, environ, Path(short) / "head.log", closing)
        yield Pair(f"{HERE}:{port}", start(far, environ, Path(short) / "far.log", closing))


def start(words: list[str], environ: dict[str, str], log: Path, closing: ExitStack) -> subprocess.Popen[bytes]:
    """Start a node, and wait until it is one."""
    with log.open("w") as out:
        node = subprocess.Popen(words, env=environ, stdout=out, stderr=out)
    closing.callback(end, node)
    until(lambda: "Ray runtime started" in log.read_text(), 2 * SOON)
    return node


def lost(lab: Lab) -> set[str]:
    """The services of which `ps` says so."""
    return {name for name, row in services(lab).items() if row["state"] == "lost"}


def test_a_node_that_is_cut_off_and_dies(shared_lab: Lab, network: Network, pair: Pair) -> None:
    """`ps` says so within seconds; `down` ends the rest, and names what nobody can look at until it must have ended."""
    lab = shared_lab
    engines = {"a": {"cache": "shared"}, "b": {"cache": "shared"}}
    caches = {"shared": {"l1": "16MiB", "chunk_size": 64, "l2": "./kv"}}
    done = lab.run("up", lab.profile(engines, caches, on={"ray": {"address": pair.address}}, env={"FAKE_CHILD": "1"}))
    assert done.returncode == 0, done.stdout + done.stderr
    state = lab.project().load()
    assert state is not None
    hosts = {spec["name"]: spec["host"] for spec in state["plan"]["services"]}
    cut_off = {name for name, host in hosts.items() if host == THERE}
    assert (len(hosts), len(cut_off)) == (4, 2)

    network.cut()
    until(lambda: lost(lab) == cut_off, SOON)
    assert alive(lab) == set(hosts)
    for _ in range(2):
        done = lab.run("down")
        assert done.returncode == 8
        assert all(name in done.stderr for name in cut_off)
        assert alive(lab) == lost(lab) == cut_off

    end(pair.far)
    until(lambda: not alive(lab), SOON)
    assert lab.run("down").returncode == 8
    state = lab.project().load()
    assert state is not None
    lab.project().save({**state, "unseen": {node: since - 2 * GIVEN_UP for node, since in state["unseen"].items()}})
    done = lab.run("down")
    assert done.returncode == 0
    assert "Ended with their nodes: " in done.stdout
    assert lab.run("ps").returncode == 7


def test_a_cluster_that_is_out_of_reach(shared_lab: Lab, network: Network, pair: Pair) -> None:
    """Whoever is cut off can stop nothing, and forgets nothing: once the head can be reached, `down` ends it all."""
    end(pair.far)
    done = shared_lab.run("up", shared_lab.profile({"a": {}}, on={"ray": {"address": pair.address}}))
    assert done.returncode == 0, done.stdout + done.stderr
    network.cut()
    behind = ["ip", "netns", "exec", network.host, sys.executable, "-m", "kvdemo", "down"]
    environ = {**shared_lab.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(behind, cwd=shared_lab.path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, "out of reach: a on " in done.stderr) == (8, True), done
    assert alive(shared_lab) == {"a"}
    done = shared_lab.run("down")
    assert (done.returncode, "1 service ended" in done.stdout) == (0, True), done
    assert alive(shared_lab) == set()
