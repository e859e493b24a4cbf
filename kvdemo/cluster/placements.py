"""The plan of a fleet on a cluster: who sits where, what each node says of itself, and the parts put together."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvdemo import __version__
from kvdemo.cluster import cluster, layout
from kvdemo.cluster.cluster import NodeLostError
from kvdemo.cluster.layout import Placement
from kvdemo.cluster.remote import run_name
from kvdemo.errors import PreflightError
from kvdemo.host.state import Project
from kvdemo.host.survey import saved_plan
from kvdemo.planning.facts import Facts
from kvdemo.planning.plan import Plan
from kvdemo.planning.problems import Problem
from kvdemo.planning.services import Node

if TYPE_CHECKING:
    from kvdemo.config.profile import Profile, Ray
    from kvdemo.host.hub import Part

SURVEY = 180.0
"""Seconds for a node's survey: it reads through the weights of its models."""

DOWNLOAD = 6 * 3600.0


def plan(profile: Profile, ray: Ray, project: Project, environ: Mapping[str, str], *, keep: bool) -> Plan:
    """Seat the engines, ask their nodes, plan. With ``keep`` the seats stay reserved, and models are downloaded there.

    Raises PreflightError if there is no such cluster or no room in it.
    """
    cluster.join(ray.address)
    before = saved_plan(project)
    node_names = {node.id: node.name for node in before.nodes} if before else {}
    if (project.load(strict=False) or {}).get("released"):
        before = None  # nothing of it runs, and its seats were given back
    live = cluster.nodes(node_names)
    placements = _previous_placements(profile, before, live)
    # Engines of one cache stand together: what spreads seats puts neighbours on different nodes.
    order = sorted(profile.engines.items(), key=lambda item: item[1].cache or "~")
    gpu_counts = {name: layout.gpu_count(engine) for name, engine in order if name not in placements}
    groups = list(before.on.get("groups", ())) if before else []
    with ExitStack() as undo:
        if gpu_counts:
            fresh = f"{run_name(project)}-{secrets.token_hex(3)}"
            placements |= cluster.place(fresh, gpu_counts, ray.placement, live, keep=keep)
            groups.append(fresh)
            undo.callback(cluster.release, [fresh])
        agents = _Agents(run_name(project), keep=keep)
        if not before:
            undo.callback(agents.end)
        facts = agents.survey(profile, placements, environ)
        on = {"launcher": "ray", "address": cluster.address(), "groups": groups}
        fleet_plan = layout.merge(profile, placements, facts, on)
        parts: tuple[Part, ...] = ("config", "weights")
        for part in parts:
            if not keep or not fleet_plan.fetch or fleet_plan.missing:
                break
            agents.fetch(profile, placements, facts, environ, part)
            facts = agents.survey(profile, placements, environ)
            fleet_plan = layout.merge(profile, placements, facts, on)
        if keep and not fleet_plan.missing:
            fleet_plan = replace(fleet_plan, problems=(*fleet_plan.problems, *agents.vouch(fleet_plan, facts)))
        if keep and not fleet_plan.missing:
            undo.pop_all()
    return fleet_plan


def _previous_placements(profile: Profile, before: Plan | None, live: Mapping[str, Node]) -> dict[str, Placement]:
    """The seats of engines that were started and still fit."""
    placements: dict[str, Placement] = {}
    nodes = {node.name: live.get(node.id) for node in before.nodes} if before else {}
    for spec in before.engines if before else ():
        engine, node = profile.engines.get(spec.name), nodes.get(spec.node)
        if engine and node and layout.gpu_count(engine) == len(spec.gpus):
            placements[spec.name] = Placement(node, spec.gpus)
    return placements


class _Agents:
    """The agents of a project while it is planned."""

    def __init__(self, run: str, *, keep: bool) -> None:
        self.run, self.keep = run, keep
        self.handles: dict[Node, Any] = {}

    def _ask(self, node: Node, method: str, *arguments: object, timeout: float = SURVEY) -> Any:
        if node not in self.handles:
            self.handles[node] = cluster.agent(self.run, node, create=True, keep=self.keep)
        try:
            return cluster.ask(self.handles[node], node, method, *arguments, timeout=timeout)
        except NodeLostError as error:
            raise PreflightError(str(error), "see `ray status`, and Ray's logs on that node") from None

    def survey(
        self, profile: Profile, placements: Mapping[str, Placement], environ: Mapping[str, str]
    ) -> dict[Node, Facts]:
        """The facts of each node, one after the other: no port is given twice in a run."""
        facts: dict[Node, Facts] = {}
        for node in sorted({placements[name].node for name in profile.engines}, key=lambda node: node.name):
            version, device = self._ask(node, "hello")
            if version != __version__:
                raise PreflightError(f"{node.name} has kvdemo {version}, this is {__version__}", "install the same")
            ports_in_use = [port for node_facts in facts.values() for port in node_facts.ports.values()]
            node_answer = self._ask(node, "survey", layout.part(profile, node, placements), ports_in_use)
            facts[replace(node, device=device)] = replace(
                node_answer, secrets=frozenset(name for name in profile.secrets if environ.get(name))
            )
        return facts

    def fetch(
        self,
        profile: Profile,
        placements: Mapping[str, Placement],
        facts: Mapping[Node, Facts],
        environ: Mapping[str, str],
        part: Part,
    ) -> None:
        """Download what nodes lack, one after the other: they may share a directory."""
        secrets = {name: environ[name] for name in profile.secrets if environ.get(name)}
        for node, node_facts in facts.items():
            self._ask(
                node, "fetch", layout.part(profile, node, placements), node_facts, secrets, part, timeout=DOWNLOAD
            )

    def vouch(self, plan: Plan, facts: Mapping[Node, Facts]) -> list[Problem]:
        """What does not load together on the nodes."""
        problems: list[Problem] = []
        for node, node_facts in facts.items():
            specs = [spec for spec in plan.services if spec.node == node.name]
            stamps = {python: one.stamp for python, one in node_facts.interpreters.items()}
            problems += self._ask(node, "vouch", specs, stamps)
        return problems

    def end(self) -> None:
        """End those that were made."""
        for handle in set(self.handles.values()):
            cluster.end(handle)
