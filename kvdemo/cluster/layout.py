"""One profile on several nodes: each node's part of it, and the plans of all parts as one. Pure.

Every node with cached engines has a cache server of its own, called CACHE-NODE: engines share memory with it. What
the servers of one cache share is their L2, so it has to be one that every node reaches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvdemo.errors import ProfileError
from kvdemo.planning import compatibility
from kvdemo.planning.facts import Facts
from kvdemo.planning.plan import Plan, make
from kvdemo.planning.problems import Problem
from kvdemo.planning.services import Node, ServiceSpec

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine, Profile


@dataclass(frozen=True)
class Placement:
    """Where an engine is put: a node, and which of its GPUs (index or UUID)."""

    node: Node
    gpus: tuple[int | str, ...] = ()


def gpu_count(engine: Engine) -> int:
    """How many GPUs an engine needs."""
    return 1 if engine.gpus == "auto" else len(engine.gpus)


def part(profile: Profile, node: Node, placements: Mapping[str, Placement]) -> Profile:
    """What of the profile runs on this node; services listen on the node's address."""
    engines: dict[str, Engine] = {}
    for name, engine in profile.engines.items():
        if placements[name].node == node:
            cache = f"{engine.cache}-{node.name}" if engine.cache else None
            engines[name] = engine.model_copy(update={"gpus": placements[name].gpus, "host": node.ip, "cache": cache})
    caches = {
        f"{name}-{node.name}": cache.model_copy(update={"host": node.ip})
        for name, cache in profile.caches.items()
        if f"{name}-{node.name}" in {engine.cache for engine in engines.values()}
    }
    return profile.model_copy(update={"engines": engines, "caches": caches})


def merge(
    profile: Profile, placements: Mapping[str, Placement], facts: Mapping[Node, Facts], on: Mapping[str, Any]
) -> Plan:
    """The plan of the whole fleet. Raises ProfileError for what could never run or share."""
    of_engines = {name: facts[placement.node] for name, placement in placements.items()}
    fingerprints = {
        name: compatibility.fingerprints_of(profile, name, next(iter(facts.values())), of_engines)
        for name in profile.caches
    }
    plans: dict[Node, Plan] = {}
    for node, node_facts in facts.items():
        part_of_node = part(profile, node, placements)
        plans[node] = make(
            part_of_node,
            node_facts,
            {name: fingerprints[name.removesuffix(f"-{node.name}")] for name in part_of_node.caches},
        )
    specs = [spec for plan in plans.values() for spec in plan.services]
    _refuse_apart(profile, specs)
    refuse_strays(specs)
    order = [*profile.caches, *profile.engines]
    return Plan(
        project=profile.name,
        profile=str(profile.path),
        services=tuple(sorted(specs, key=lambda spec: order.index(spec.pool if spec.kind == "cache" else spec.name))),
        problems=tuple(_problems(plans)),
        sums=tuple(f"{node.name}: {text}" for node, plan in plans.items() for text in plan.sums),
        fetch=tuple(sorted({model for plan in plans.values() for model in plan.fetch})),
        bench=profile.bench.model_dump(mode="json"),
        versions={f"{node.name}:{p}": v for node, plan in plans.items() for p, v in plan.versions.items()},
        models={name: digest for plan in plans.values() for name, digest in plan.models.items()},
        on=on,
        nodes=tuple(plans),
    )


def _problems(plans: Mapping[Node, Plan]) -> list[Problem]:
    """Those of all nodes; a secret that is not set is missing once, wherever it is needed."""
    problems = [
        one if one.kind == "secret" else one.of_node(node.name) for node, plan in plans.items() for one in plan.problems
    ]
    node_facts: dict[str, tuple[Node, str]] = {}
    for node, plan in plans.items():
        for model, digest in plan.models.items():
            other, digest_there = node_facts.setdefault(model, (node, digest))
            if digest and digest_there and digest != digest_there:
                text = f"model {model} is not the same on {other.name} and {node.name}: other weights or config"
                problems.append(Problem("weights", text, place=node.name))
    return list(dict.fromkeys(problems))


def _refuse_apart(profile: Profile, specs: Collection[ServiceSpec]) -> None:
    """Servers of one cache on several nodes share nothing unless they have an L2."""
    names = [spec.name for spec in specs]
    for name, cache in profile.caches.items():
        nodes = sorted({spec.node for spec in specs if spec.kind == "cache" and spec.pool == name})
        if len(nodes) > 1 and not cache.l2:
            raise ProfileError(
                f"the engines of cache '{name}' are on {len(nodes)} nodes ({', '.join(nodes)}) and it has no l2: "
                "nothing would be shared between them",
                "give it an l2 that every node reaches (a directory on NFS, or redis://HOST:PORT), or placement: pack",
            )
    for name in names:
        if names.count(name) > 1:
            raise ProfileError(f"two services would be called {name}", "rename the engine of that name")


def refuse_strays(specs: Collection[ServiceSpec]) -> None:
    """KV moves between engine and server by mapped memory or CUDA IPC: both have to be on one node."""
    nodes = {spec.name: spec.node for spec in specs}
    for spec in specs:
        if spec.cache and nodes[spec.cache] != spec.node:
            raise ProfileError(
                f"engine {spec.name} on node {spec.node} is wired to {spec.cache}, the cache server of node "
                f"{nodes[spec.cache]}: they exchange KV through shared memory, which ends at the node",
                "every node has a server of its own; what nodes share is l2",
            )
