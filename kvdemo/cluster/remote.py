"""The launcher of a cluster: every question goes to the agent of the service's node, which asks its local launcher.

What a node that does not answer would have said is told as lost. Services hold leases on their agents, so what was lost
ends by itself; that a service still answers is seen by asking it, never from the cluster's view of its nodes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvdemo.cluster import cluster
from kvdemo.cluster.agent import ASK_HEAD, HEAD_PATIENCE
from kvdemo.cluster.cluster import NodeLostError
from kvdemo.errors import KvdemoError, PreflightError
from kvdemo.host import health
from kvdemo.host.launcher import BEGIN, Event, Place, Remains, State, Status
from kvdemo.host.local import Local
from kvdemo.host.state import Project
from kvdemo.planning.plan import Plan
from kvdemo.planning.services import Node, ServiceSpec

ANSWER = 5.0
"""Seconds for an agent to answer a short question."""

GIVEN_UP = HEAD_PATIENCE + 3 * ASK_HEAD
"""Seconds after which the agent of a node that was cut off has ended; its services have ``stop_timeout`` more."""


def run_name(project: Project) -> str:
    """The project's name on a cluster: other users, and other state directories, may have one of the same name."""
    return f"{project.name[:46]}-{hashlib.sha256(str(project.dir).encode()).hexdigest()[:8]}"


class Remote:
    """Services of a project on the nodes of its plan: the one that runs (``before``), the one that shall run."""

    def __init__(self, project: Project, before: Plan | None, plan: Plan | None = None) -> None:
        plans = [one for one in (plan, before) if one]
        self.project, self.plan, self.run = project, plans[0], run_name(project)
        self.nodes = {node.name: node for one in plans for node in one.nodes}
        self.homes = {spec.name: spec.node for one in plans for spec in one.services}
        self.specs = {spec.name: spec for one in plans for spec in one.services}
        self.groups = {group for one in plans for group in one.on.get("groups", ())}
        self.copies = Local(project)
        document = project.load(strict=False) or {}
        self.released = bool(document.get("released"))
        self.unseen: dict[str, float] = document.get("unseen", {})
        """Since when nodes are out of reach on which an earlier ``down`` could not look."""
        self.ended_whole = False
        self._alive = self._join()

    def _join(self) -> Mapping[str, Node] | str:
        """The live nodes by id, or why there is no cluster."""
        try:
            cluster.join(self.plan.on["address"])
        except PreflightError as error:
            self.ended_whole = isinstance(error, cluster.ClusterEndedError)
            return str(error)
        return cluster.nodes({})

    def _ask(self, node: str, method: str, *arguments: Any, timeout: float = ANSWER, create: bool = False) -> Any:
        """The agent's answer. Raises Lost."""
        home, alive = self.nodes[node], self._alive
        if isinstance(alive, str):
            raise NodeLostError(alive)
        if home.id not in alive:
            raise NodeLostError(f"node {home.name} ({home.ip}) is gone from the cluster")
        agent = cluster.agent(self.run, home, create=create)
        own = ("start", "prepare", "sees", "stop", "erase", "logs_of", "log_of")
        words = (method, *arguments) if method in own else ("call", method, *arguments)
        return cluster.ask(agent, home, *words, timeout=timeout + (cluster.START_PATIENCE if create else 0))

    def _ask_all(self, method: str, *arguments: Any, timeout: float = ANSWER, create: bool = False) -> dict[str, Any]:
        """The answers of all nodes that give one."""

        def one(node: str) -> Any:
            try:
                return self._ask(node, method, *arguments, timeout=timeout, create=create)
            except NodeLostError:
                return None

        with ThreadPoolExecutor(len(self.nodes) or 1) as pool:
            answers = dict(zip(self.nodes, pool.map(one, self.nodes), strict=True))
        return {node: answer for node, answer in answers.items() if answer is not None}

    def recover(self) -> list[str]:
        """On every node that answers."""
        return [name for names in self._ask_all("recover").values() for name in names]

    def started_services(self) -> list[str]:
        """Those that agents know, and all of the nodes that do not answer; after ``release`` those never seen again."""
        if self.released:
            return [name for name, node in self.homes.items() if node in self.unseen]
        answers = self._ask_all("started_services")
        silent = [name for name, node in self.homes.items() if node not in answers]
        return [name for names in answers.values() for name in names] + silent

    def runs(self) -> set[str]:
        """As agents know them."""
        return {run for runs in self._ask_all("runs").values() for run in runs}

    def running(self) -> set[str]:
        """What lives on nodes that answer."""
        return {name for names in self._ask_all("running").values() for name in names}

    def prepare(self, *, fresh: bool) -> dict[str, Any]:
        """Every node notes its own."""
        self.released = False
        for node in self.plan.nodes:
            specs_here = tuple(spec for spec in self.plan.services if spec.node == node.name)
            self._ask(node.name, "prepare", replace(self.plan, services=specs_here).to_json(), fresh, create=True)
        return {"released": False, "unseen": {}}

    def start(self, spec: ServiceSpec, run_id: str, environ: Mapping[str, str]) -> None:
        """On its node, by its agent; only secrets leave this machine."""
        self.homes[spec.name] = spec.node
        if spec.directory:
            self._check_shared(spec, run_id)
        secrets = {name: environ[name] for name in spec.secrets if environ.get(name)}
        self._ask(spec.node, "start", spec, run_id, secrets, timeout=90)

    def _check_shared(self, spec: ServiceSpec, run_id: str) -> None:
        """A directory of that name on each node's own disk would share nothing, and nobody would notice."""
        token = Path(spec.directory) / f".kvdemo-{run_id}-{spec.name}"
        token.touch()
        try:
            if not self._ask(spec.node, "sees", str(token)):
                raise PreflightError(
                    f"{spec.name}: {spec.directory} on node {spec.node} is not the directory of that name here",
                    "caches.*.l2 must be one directory that every node mounts at the same path, or redis://HOST:PORT",
                )
        finally:
            token.unlink(missing_ok=True)

    def note(self, service: str) -> None:
        """Left to ``settled``: the agents' own launchers look at what they stop."""

    def note_shared_memory(self) -> None:
        """Every node notes its own."""
        self._ask_all("note_shared_memory")

    def status(self, service: str) -> Status | None:
        """As its agent says; lost if it says nothing."""
        if self.released and self.homes[service] not in self.unseen:
            return None
        try:
            answer: Status | None = self._ask(self.homes[service], "status", service)
        except NodeLostError as error:
            return Status(0, alive=False, guarded=False, lost=str(error))
        return answer

    def wait_for_end(self, service: str, timeout: float) -> bool:
        """What is lost has ended for us."""
        try:
            return bool(self._ask(self.homes[service], "wait_for_end", service, timeout, timeout=timeout + ANSWER))
        except NodeLostError:
            return True

    def stranger(self, spec: ServiceSpec) -> int:
        """As seen on its node."""
        return int(self._ask(spec.node, "stranger", spec))

    def logs(self, *, previous: bool = False) -> list[str]:
        """Those on the nodes, and the copies of those that were stopped."""
        names = {name for names in self._ask_all("logs_of", previous).values() for name in names}
        return sorted(names | set(self.copies.logs(previous=previous)))

    def read_log(
        self, service: str, place: Place = BEGIN, *, previous: bool = False, last: int = 0
    ) -> tuple[Place, bytes]:
        """From its node, or else what was copied of it."""
        try:
            words = ("log_of", service, place, previous, last)
            answer: tuple[Place, bytes] = self._ask(self.homes[service], *words, timeout=30)
        except (NodeLostError, KeyError):
            return self.copies.read_log(service, place, previous=previous, last=last)
        return answer

    def log_end(self, service: str) -> bytes:
        """From its node, or else of what was copied of it."""
        try:
            return bytes(self._ask(self.homes[service], "log_end", service, timeout=30))
        except (NodeLostError, KeyError):
            return self.copies.log_end(service)

    def stop(self, services: Collection[str], timeout: float) -> Generator[Event]:
        """On all nodes at once; their logs are copied here, for the nodes forget them."""
        by_node: dict[str, list[str]] = {}
        for name in services:
            by_node.setdefault(self.homes[name], []).append(name)
            yield Event(name, State.STOPPING)
        with ThreadPoolExecutor(len(by_node) or 1) as pool:
            tasks = {pool.submit(self._stop_there, node, names, timeout): names for node, names in by_node.items()}
            for task in as_completed(tasks):
                try:
                    yield from task.result()
                except KvdemoError as error:
                    yield from (Event(name, State.LOST, detail=str(error)) for name in tasks[task])

    def _stop_there(self, node: str, names: list[str], timeout: float) -> list[Event]:
        events: list[Event] = self._ask(node, "stop", names, timeout, timeout=timeout + 60, create=True)
        for name in names:
            self._copy_log(node, name)
        return [event for event in events if event.state is not State.STOPPING]

    def _copy_log(self, node: str, name: str) -> None:
        place = BEGIN
        with self.project.rotate_log(name).open("wb") as copy:
            while True:
                place, piece = self._ask(node, "log_of", name, place, False, 0, timeout=60)
                if not piece:
                    return
                copy.write(piece)

    def tidy(self) -> None:
        """On every node."""
        self._ask_all("tidy")

    def remains(self, specs: Collection[ServiceSpec], runs: Collection[str]) -> Remains:
        """Every node looks. Of a node that is gone nothing is left that could be seen, unless its services answer.

        A node that is dead to its cluster, and cannot be reached either, is unseen for as long as its agent may take to
        notice that it is cut off.
        """
        remains = Remains(checked={"ports": 0, "segments": 0, "gpus": 0})
        unseen: dict[str, float] = {}
        for name, node in self.nodes.items():
            specs_here = [spec for spec in specs if spec.node == name]
            try:
                answer = self._ask(name, "remains", specs_here, runs, timeout=90, create=True)
            except NodeLostError as error:
                answers = {spec.name: health.request(spec.url, "/health", timeout=2) for spec in specs_here}
                answering = [service for service, (status, _) in answers.items() if status]
                dead = not isinstance(self._alive, str) and node.id not in self._alive
                refused = all(b"refused" in reason for _, reason in answers.values())
                since = self.unseen.get(name, time.time())
                given_up = time.time() - since > GIVEN_UP + max([spec.stop_timeout for spec in specs_here], default=0)
                problem = f"{', '.join(answering or answers)} on {name} ({error})"
                if answering:
                    remains.processes.append(problem)
                elif (dead and (refused or given_up)) or (self.ended_whole and refused):
                    remains.gone.append(problem)
                else:
                    remains.unseen.append(problem)
                    unseen[name] = since
                continue
            remains.add(answer, name)
        self.unseen = unseen
        return remains

    def release(self) -> None:
        """End the agents, and give the seats back, if there is a cluster to give them to."""
        if isinstance(self._alive, str):
            return
        if document := self.project.load(strict=False):
            self.project.save({**document, "released": True, "unseen": self.unseen})
        self.released = True
        for node in self.nodes.values():
            if node.id in self._alive:
                try:
                    self._ask(node.name, "erase")
                    cluster.end(cluster.agent(self.run, node, create=False))
                except NodeLostError:
                    continue
        cluster.release(self.groups)
