"""A running Ray cluster: its nodes, seats for engines, and agents on nodes. The only module that knows Ray.

kvdemo joins a cluster as a driver and never starts one. Agents are detached actors: they outlive the command, not their
node. A placement group holds the GPUs; the agent of a node, which needs none itself, sees all of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping
from typing import Any

from kvdemo.cluster.agent import Agent
from kvdemo.cluster.layout import Placement
from kvdemo.errors import NotReadyError, PreflightError
from kvdemo.host import procfs
from kvdemo.planning.services import Node

NAMESPACE = "kvdemo"
JOIN_PATIENCE = 30.0
PLACE_PATIENCE = 5.0
START_PATIENCE = 60.0
"""Seconds for Ray to start the process of an agent (1 to 3 on two cores), and for it to answer."""

CPU_SEAT = 0.001
"""A bundle may not be empty: what an engine without GPUs asks of its node."""

_JOIN = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
print("joined")
"""


class NodeLostError(NotReadyError):
    """A node or its agent does not answer."""


class ClusterEndedError(PreflightError):
    """The machine of the head answers, the head does not: the cluster has ended."""


def join(address: str) -> None:
    """Become a driver of the cluster. Raises PreflightError if there is none, or this machine is no node of it."""
    # Ray prints what it hears of dead nodes to our standard output, between the lines of a JSON document.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray  # noqa: PLC0415 (half a second that a profile of one machine never pays)
    except ImportError:
        raise PreflightError(
            "the package ray is missing", "pip install 'kvdemo[ray]', here and on every node"
        ) from None
    if ray.is_initialized():
        return
    _probe(address)
    # On a machine that is no node of the cluster Ray's own code aborts the process: then a child tries it first.
    refusal = "" if _is_node(address) else _rehearse(address)
    if refusal:
        raise PreflightError(
            f"cannot join the Ray cluster at {address}: {refusal}",
            "run kvdemo on a node of the cluster (ray start --address=HEAD:6379), with its Python and its Ray; kvdemo "
            "never starts a cluster",
        )
    ray.init(address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)


def _is_node(address: str) -> bool:
    """Whether a daemon of this cluster is seen to run here; that saves most commands a second."""
    mark = f"--gcs-address={address}".encode()
    return any(mark in words and b"raylet" in words[0] for words in procfs.command_lines())


def _rehearse(address: str) -> str:
    """Join in a child; why it could not, or ""."""
    words = [sys.executable, "-c", _JOIN, address]
    try:
        completed = subprocess.run(words, capture_output=True, text=True, timeout=JOIN_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"it did not answer in {JOIN_PATIENCE:.0f} s"
    if completed.returncode == 0 and "joined" in completed.stdout:
        return ""
    lines = completed.stderr.strip().splitlines() or ["no word"]
    errors = [line for line in lines if re.match(r"\w+(\.\w+)*(Error|Exception): ", line)]
    return (errors or lines)[-1][:300]


def _probe(address: str) -> None:
    """A head that is gone is told at once: Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        kind = ClusterEndedError if isinstance(error, ConnectionRefusedError) else PreflightError
        raise kind(f"cannot reach the Ray cluster at {address}: {error.strerror or error}") from None


def address() -> str:
    """HOST:PORT of the head of the cluster that was joined."""
    import ray  # noqa: PLC0415

    return str(ray.get_runtime_context().gcs_address)


def nodes(node_names: Mapping[str, str]) -> dict[str, Node]:
    """The live nodes by id, named after their hosts, numbered where these are equal; names in ``node_names`` stay."""
    import ray  # noqa: PLC0415

    def order(row: Mapping[str, Any]) -> tuple[bool, str]:
        return "node:__internal_head__" not in row["Resources"], row["NodeID"]

    live = sorted((row for row in ray.nodes() if row["Alive"]), key=order)
    hosts = {row["NodeID"]: _label(row["NodeManagerHostname"]) for row in live}
    names = {id: name for id, name in node_names.items() if id in hosts}
    for id, host in hosts.items():
        several = list(hosts.values()).count(host) > 1
        free = [host] * (not several) + [f"{host}-{n}" for n in range(1, 2 * len(live) + 1)]
        names.setdefault(id, next(name for name in free if name not in names.values()))
    return {row["NodeID"]: Node(row["NodeID"], names[row["NodeID"]], row["NodeManagerAddress"]) for row in live}


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.partition(".")[0].lower()).strip("-")[:24].strip("-") or "node"


def place(
    group: str, gpu_counts: Mapping[str, int], strategy: str, live: Mapping[str, Node], *, keep: bool
) -> dict[str, Placement]:
    """Reserve a seat for each engine with that many GPUs, all or none. Raises PreflightError if there is no room."""
    import ray  # noqa: PLC0415
    from ray.util import placement_group, placement_group_table  # noqa: PLC0415
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: PLC0415

    bundles = [{"GPU": count} if count else {"CPU": CPU_SEAT} for count in gpu_counts.values()]
    handle = placement_group(bundles, strategy=strategy.upper(), name=group, lifetime="detached" if keep else None)
    largest = max(row["Resources"].get("GPU", 0) for row in ray.nodes() if row["Alive"])
    if not handle.wait(PLACE_PATIENCE if max(gpu_counts.values()) <= largest else 0):
        release([group])
        free = ray.available_resources().get("GPU", 0)
        demand = ", ".join(f"{name} {count}" for name, count in gpu_counts.items())
        raise PreflightError(
            f"the cluster has no room: GPUs wanted, each engine's on one node: {demand}; free: {free:g} of "
            f"{ray.cluster_resources().get('GPU', 0):g} on {len(live)} nodes",
            "wait, ask for fewer, or see who holds them: ray status",
        )
    where = placement_group_table(handle)["bundles_to_node_id"]
    placements = {}
    for index, (name, count) in enumerate(gpu_counts.items()):
        options: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": count,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(handle, placement_group_bundle_index=index),
        }
        gpus = ray.get(ray.remote(_gpus).options(**options).remote(), timeout=START_PATIENCE) if count else ()
        placements[name] = Placement(live[where[index]], gpus)
    return placements


def _gpus() -> tuple[int | str, ...]:
    """In a task: the GPUs of its seat. They stay the same for every task there, and for nobody else."""
    import ray  # noqa: PLC0415

    names = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return tuple(int(name) if name.isdigit() else name for name in names)


def release(groups: Collection[str]) -> None:
    """Give seats back."""
    from ray.util import get_placement_group, remove_placement_group  # noqa: PLC0415

    for group in groups:
        with contextlib.suppress(ValueError):  # it is gone
            remove_placement_group(get_placement_group(group))


def _actor_name(run: str, node: Node) -> str:
    return f"{run}.{node.id[:16]}"


def agent(run: str, node: Node, *, create: bool, keep: bool = True) -> Any:
    """The agent of a project on this node; ``create`` makes one if there is none. Raises Lost, PreflightError."""
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    name = _actor_name(run, node)
    if not create:
        try:
            return ray.get_actor(name, NAMESPACE)
        except ValueError:
            raise NodeLostError(
                f"kvdemo's agent on {node.name} ({node.ip}) has ended, and its services with it"
            ) from None
    handle = ray.remote(Agent).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached" if keep else None,
        num_cpus=0,
        max_restarts=0,  # a service that came back by itself would spoil a measurement unseen
        max_concurrency=32,  # every service is waited for in a call of its own
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
    )
    return handle.remote(run, node.id, node.name, address())


def ask(handle: Any, node: Node, method: str, *arguments: Any, timeout: float) -> Any:
    """Call an agent. Errors of kvdemo come back as they are; raises Lost if it does not answer in time."""
    import ray  # noqa: PLC0415
    from ray import exceptions  # noqa: PLC0415

    where = f"{node.name} ({node.ip})"
    try:
        return ray.get(getattr(handle, method).remote(*arguments), timeout=timeout)
    except exceptions.RayTaskError as error:
        raise error.cause from None
    except exceptions.GetTimeoutError:
        raise NodeLostError(f"{where} did not answer in {timeout:.0f} s") from None
    except exceptions.RayActorError as error:
        if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
            last = str(error).strip().splitlines()[-1]
            raise PreflightError(
                f"kvdemo cannot run on {where}: {last}", "install the same kvdemo beside Ray on every node"
            ) from None
        raise NodeLostError(f"kvdemo's agent on {where} has ended, and its services with it") from None
    except exceptions.RayError as error:
        raise NodeLostError(f"{where}: {type(error).__name__}") from None


def end(handle: Any) -> None:
    """End an agent."""
    import ray  # noqa: PLC0415

    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(handle)
