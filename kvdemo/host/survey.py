"""Gather the facts that ``plan`` needs: GPUs, interpreters, models, ports, memory. Reads only, starts nothing.

Ports without a number come from 18000 to 27999: below the range the kernel hands out by itself, so that no outgoing
connection takes one between now and the engine's bind. What live projects of this user claim is left alone, and a
running fleet of this project keeps its ports.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from kvdemo import backends
from kvdemo.backends.store import is_server
from kvdemo.host import gpus, machine, marks, process, runtime, typecheck
from kvdemo.host.procfs import Record, alive
from kvdemo.host.state import Project, amounts, projects
from kvdemo.planning import repositories, window
from kvdemo.planning.facts import Facts, Gpu, Model
from kvdemo.planning.plan import Plan, wanted_ports

if TYPE_CHECKING:
    from kvdemo.config.profile import Profile

FIRST_PORT, PORTS = 18000, 10000


def survey(
    profile: Profile, project: Project, environ: Mapping[str, str], *, node: str = "", avoid: Collection[int] = ()
) -> Facts:
    """Everything the plan may depend on, as seen now; ``avoid`` are ports that other nodes' services take."""
    services = {**profile.caches, **profile.engines}
    pythons = {service.runtime.python or sys.executable for service in services.values()}
    previous, records = saved_plan(project), _records(project)
    running = _running(previous, records)
    ports, busy = _ports(profile, project, running, avoid, _previous_ports(previous))
    own = sum(process.memory(records[name]) for name in running if name in records)
    return Facts(
        default_python=sys.executable,
        gpus=_gpus(environ, project, bool(running)),
        interpreters={python: runtime.interpreter(python) for python in pythons},
        models=_models(profile, environ),
        others=_local_repositories(profile, environ),
        absent=frozenset(path for path in _paths(profile) if not Path(path).exists()),
        ports=ports,
        busy=busy,
        secrets=frozenset(name for name in profile.secrets if environ.get(name)),
        memory=machine.memory() + own,
        shm=machine.free("/dev/shm") + own,
        any_length=window.allows_longer_context(environ),
        open_files=machine.open_files(),
        wide=machine.has_avx512(),
        disks={name: machine.free(l2) for name, l2 in _directories(profile).items()},
        kept=_previous_gpus(previous, running),
        node=node,
        sockets=str(project.sockets),
    )


def _directories(profile: Profile) -> dict[str, str]:
    """L2 of each cache that has it in a directory."""
    return {name: cache.l2 for name, cache in profile.caches.items() if cache.l2 and not is_server(cache.l2)}


def _models(profile: Profile, environ: Mapping[str, str]) -> dict[str, Model]:
    """Every model once, however many engines run it (its weights are hashed)."""
    models = {one.key: one for one in map(repositories.model, profile.engines.values())}
    return {
        key: runtime.model(one.name, {**environ, **one.engine.env}, one.revision, one.form)
        for key, one in models.items()
    }


def _paths(profile: Profile) -> set[str]:
    return {path for engine in profile.engines.values() for _, path in repositories.files(engine)}


def _local_repositories(profile: Profile, environ: Mapping[str, str]) -> frozenset[str]:
    """What engines read besides their models, and is here."""
    auxiliaries = [one for engine in profile.engines.values() for one in repositories.auxiliary(engine)]
    return frozenset(
        one.key
        for one in auxiliaries
        if runtime.is_local(one.name, {**environ, **one.engine.env}, one.revision, one.kind)
    )


def _gpus(environ: Mapping[str, str], project: Project, running: bool) -> tuple[Gpu, ...]:
    """The GPUs; what this project's own running fleet holds counts as free, or a second `up` would be refused."""
    before = amounts(project.load(strict=False)) if running else {}
    visible = name_holders(gpus.detect(environ), project.dir.parent)
    return tuple(replace(gpu, free=max(gpu.free, gpu.total - before.get(gpu.uuid, gpu.total))) for gpu in visible)


def name_holders(visible: tuple[Gpu, ...], root: Path) -> tuple[Gpu, ...]:
    """The same GPUs, those holders named that are services of this user's projects."""
    if not any(gpu.holders for gpu in visible):
        return visible
    owners = {
        member.pid: f"service {name} of project {project.name}"
        for project in projects(root)
        for name, record in project.records().items()
        for member in process.members(record)
    }
    return tuple(
        replace(gpu, holders=tuple(replace(one, service=owners.get(one.pid, "")) for one in gpu.holders))
        for gpu in visible
    )


def _previous_gpus(plan: Plan | None, running: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.gpus for spec in plan.engines if spec.name in running} if plan else {}


def saved_plan(project: Project) -> Plan | None:
    """The plan that the project's fleet was started from, if there is a readable one."""
    return plan_of(project.load(strict=False))


def plan_of(document: Mapping[str, Any] | None) -> Plan | None:
    """The plan in a project's document, if there is one and it is whole."""
    try:
        plan = Plan.from_json(document["plan"]) if document else None
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return plan if plan and typecheck.fits(plan, Plan) else None


def _records(project: Project) -> dict[str, Record]:
    """The records of the project's services, those made anew included whose own are lost."""
    records = project.records()
    return {record.service: record for record in marks.in_directory(project.dir, records.values())} | records


def _running(plan: Plan | None, records: Mapping[str, Record]) -> dict[str, tuple[int, ...]]:
    """Ports of each service of this plan that is alive."""
    if plan is None:
        return {}
    return {
        spec.name: spec.ports for spec in plan.services if spec.name in records and alive(records[spec.name].leader)
    }


def _claims(project: Project) -> dict[int, str]:
    """Ports that live services of other projects use or are about to use."""
    claims: dict[int, str] = {}
    for other in projects(project.dir.parent):
        if other.name == project.name:
            continue
        for name, ports in _running(saved_plan(other), other.records()).items():
            claims |= dict.fromkeys(ports, f"service {name} of project {other.name}; kvdemo down -p {other.name}")
    return claims


def _ports(
    profile: Profile,
    project: Project,
    running: Mapping[str, tuple[int, ...]],
    avoid: Collection[int],
    previous: Mapping[str, int],
) -> tuple[dict[str, int], dict[int, str]]:
    requests = wanted_ports(profile)
    hosts = {name: service.host for name, service in {**profile.caches, **profile.engines}.items()}
    hosts |= {name: "127.0.0.1" for name in profile.caches if profile.on.ray}
    hosts |= {f"{name}.http": cache.host for name, cache in profile.caches.items()}
    hosts |= {key: hosts[key.partition(".")[0]] for key in requests if key not in hosts}
    own = {port for ports in running.values() for port in ports}
    claims = _claims(project)
    fixed = {port for port in requests.values() if port}
    ports: dict[str, int] = {}
    busy: dict[int, str] = {}
    start = int(hashlib.sha256(f"{os.getuid()} {project.name}".encode()).hexdigest(), 16)
    candidates = (FIRST_PORT + (start + step) % PORTS for step in range(PORTS))
    for key, port in requests.items():
        host = hosts[key]
        if port:
            ports[key] = port
            if port not in own and (occupant := claims.get(port) or holder(host, port)):
                busy[port] = occupant
            continue
        last = previous.get(key)
        if (
            last
            and last not in fixed
            and last not in avoid
            and (last in own or (last not in claims and process.port_free(host, last)))
        ):
            ports[key] = last
            continue
        in_use = fixed | own | claims.keys() | set(ports.values()) | set(avoid)
        ports[key] = next(free for free in candidates if free not in in_use and process.port_free(host, free))
    return ports, busy


def _previous_ports(plan: Plan | None) -> dict[str, int]:
    """The ports of the last start, so that a second ``up`` plans the same."""
    ports: dict[str, int] = {}
    for spec in plan.services if plan else ():
        ports[spec.name] = spec.ports[0]
        if spec.kind == "cache":
            ports[f"{spec.name}.http"] = spec.port
            more = backends.of(spec.backend).more_ports
            ports |= {f"{spec.name}.{name}": port for name, port in zip(more, spec.ports[2:], strict=False)}
    return ports


def holder(host: str, port: int) -> str:
    """Who has this port, in words; empty if a server could bind it."""
    if process.port_free(host, port):
        return ""
    names = []
    for pid in process.listeners(port):
        try:
            command = " ".join(" ".join(psutil.Process(pid).cmdline()).split())  # `python -c` has line breaks
            names.append(f"pid {pid} ({command[:80]})")
        except psutil.Error:
            names.append(f"pid {pid}")
    return ", ".join(names) or "a process that cannot be seen from here"
