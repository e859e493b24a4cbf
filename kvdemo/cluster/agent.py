"""What runs on every node of a cluster: the local launcher, in a process that the cluster keeps.

Each service holds a lease on this process: when it ends, whatever killed it, the guardians of its services end them.
The environment of services is the node's own, not what the cluster puts around its workers.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvdemo import __version__
from kvdemo.host import gpus, hub, imports, procfs, state, survey
from kvdemo.host.launcher import Place
from kvdemo.host.local import Local
from kvdemo.host.state import Project
from kvdemo.planning import compatibility, environment
from kvdemo.planning.facts import Facts
from kvdemo.planning.problems import Problem
from kvdemo.planning.services import ServiceSpec

if TYPE_CHECKING:
    from kvdemo.config.profile import Profile
    from kvdemo.host.hub import Part

OF_RAY = frozenset(["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"])
"""Variables that Ray sets for its workers according to what they asked for."""

ASK_HEAD, HEAD_PATIENCE = 5.0, 60.0
"""Seconds between two looks at the cluster's head, and without an answer until this node gives up."""


class Agent:
    """One project's services on one node; ``run`` is the project's name on this cluster, ``head`` where that has it."""

    def __init__(self, run: str, node_id: str, node: str, head: str) -> None:
        self.environ = _own_environment()
        self.project = Project(state.root(self.environ) / ".nodes" / node_id[:16], run)
        self.node = node
        self.local = Local(self.project, leased=True)
        threading.Thread(target=_end_with, args=(os.pidfd_open(os.getppid()), head), daemon=True).start()

    def hello(self) -> tuple[str, str]:
        """The version of kvdemo here, and what computes here."""
        names = [gpu.name for gpu in gpus.detect(self.environ)]
        counts = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
        return __version__, ", ".join(counts) or f"{os.cpu_count()} processor cores"

    def survey(self, profile: Profile, avoid: Collection[int]) -> Facts:
        """The facts of this node for its part of the profile."""
        return survey.survey(profile, self.project, self.environ, node=self.node, avoid=avoid)

    def vouch(self, specs: Sequence[ServiceSpec], stamps: Mapping[str, str]) -> list[Problem]:
        """What does not load together in the interpreters of these services."""
        problems = []
        for question in imports.questions(specs, stamps, self.environ):
            doubts, answered = question.doubt()
            if doubts and answered:
                text = f"the packages of {question.python} do not load together: load {doubts.step}: {doubts.text}"
                problems.append(Problem("interpreter", text, doubts.fix).of_node(self.node))
        return problems

    def fetch(self, profile: Profile, facts: Facts, secrets: Mapping[str, str], part: Part) -> None:
        """Download this part of the models that are not here."""
        for repository in compatibility.absent(profile, facts):
            hub.download(repository, facts.default_python, {**self.environ, **secrets}, part)

    def prepare(self, plan: Mapping[str, Any], fresh: bool) -> None:
        """Note what ``remains`` will compare with, and the plan, by which the next survey knows what is ours."""
        self.project.save({**self.local.prepare(fresh=fresh), "plan": plan})

    def start(self, spec: ServiceSpec, run_id: str, secrets: Mapping[str, str]) -> None:
        """Start a service here."""
        self.local.start(spec, run_id, {**environment.inherit(self.environ), **secrets})

    def sees(self, path: str) -> bool:
        """Whether this file is there for this node."""
        return Path(path).exists()

    def stop(self, services: Collection[str], timeout: float) -> list[Any]:
        """End services; all events at once."""
        return list(self.local.stop(services, timeout))

    def logs_of(self, previous: bool) -> list[str]:
        """The services that have a log here."""
        return self.local.logs(previous=previous)

    def log_of(self, service: str, place: Place, previous: bool, last: int) -> tuple[Place, bytes]:
        """A piece of what was written since."""
        return self.local.read_log(service, place, previous=previous, last=last)

    def call(self, method: str, *arguments: Any) -> Any:
        """Any other question to the local launcher."""
        return getattr(self.local, method)(*arguments)

    def erase(self) -> None:
        """Forget the project here, its logs included."""
        shutil.rmtree(self.project.dir, ignore_errors=True)


def _end_with(parent: int, head: str) -> None:
    """End this process, and the leases with it, when its parent has ended or the cluster's head is long out of reach.

    The parent is Ray's daemon of the node; without the head nobody can stop the services any more. Ray does both, too,
    but takes a zombie for alive (under a first process that buries nobody, a container's, it waits for ever), and on a
    node that is cut off it ends nothing until the network is back.
    """
    last_answer = time.monotonic()
    while not select.select([parent], [], [], ASK_HEAD)[0] and time.monotonic() - last_answer < HEAD_PATIENCE:
        host, _, port = head.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_HEAD):
            last_answer = time.monotonic()
    os._exit(1)


def _own_environment() -> dict[str, str]:
    """The variables of this process that its parent, Ray's daemon of the node, has too."""
    pairs = procfs.environ(os.getppid())
    if not pairs:
        return {name: value for name, value in os.environ.items() if name not in OF_RAY}
    own = dict(pair.decode(errors="surrogateescape").split("=", 1) for pair in pairs)
    inherited = {name: value for name, value in os.environ.items() if own.get(name) == value}
    inherited.pop("CUDA_VISIBLE_DEVICES", None)  # GPUs are counted as the machine counts them; Ray names them so, too
    return inherited
