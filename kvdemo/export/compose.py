"""A plan as a docker compose file that needs no kvdemo to run. Pure.

What LMCache asks of containers decides the layout. On GPUs, CUDA IPC needs the host's IPC namespace. On a CPU an engine
and its cache map the same shared memory, whose name holds the engine's process id: both must see the same IPC and the
same process ids, or two engines, each with the id 1, would want one segment, and the second could not start.
"""

from __future__ import annotations

from typing import Any

from kvdemo.export import containers
from kvdemo.export.containers import Container
from kvdemo.export.yamltext import AnchoredMapping, comment, dump
from kvdemo.planning import order
from kvdemo.planning.engines import GIB
from kvdemo.planning.plan import Plan

_HEAD = """\
The fleet of project {project}, made by `kvdemo export compose` from its profile. It needs docker compose, not kvdemo:

    docker compose -f FILE up -d --wait      start; returns when every service is healthy
    docker compose -f FILE logs -f SERVICE
    docker compose -f FILE down              the KV files stay in {store}

Published: {ports}
{measuring}

To adapt: VLLM_IMAGE ({image} unless set), KV_DIR (the KV files){paths}.
Another image, other weights or another dtype need an empty KV directory: LMCache's keys know none of them.
"""
_CPU = """\
No published image holds vLLM's CPU build and LMCache, as far as we know: the first `up` builds one.
"""
_HUB = "${HF_HOME:-${HOME}/.cache/huggingface}"
_CHECK = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}{path}', timeout=4)"


def compose(plan: Plan) -> str:
    """The file. Secrets are references to the environment (or ``.env``) of whoever runs it."""
    gpu = any(spec.gpus for spec in plan.services)
    image = containers.image(plan, gpu=gpu)
    build = None if gpu else AnchoredMapping(context=".", dockerfile_inline=containers.dockerfile(plan))
    parts = [containers.container(spec, _literal) for spec in plan.services]
    services = {one.spec.name: _service(plan, one, image, build) for one in parts}
    return comment(_head(plan, parts, image)) + dump({"name": plan.project, "services": services})


def _head(plan: Plan, parts: list[Container], image: str) -> str:
    from_host = [f"the directory {path}" for path in dict.fromkeys(path for one in parts for path in one.mounts)]
    from_host += [f"models from {_HUB}"] if any(one.fetches for one in parts) else []
    store = next((_store(one) for one in parts if containers.directory(one.spec)), "")
    head = _HEAD.format(
        project=plan.project,
        store=store or "nothing: there is no L2",
        image=image,
        ports=", ".join(f"{one.spec.name} at {_published_address(one.spec.host)}:{one.port}" for one in parts),
        measuring=containers.measuring(plan),
        paths="".join(f"; {text}" for text in from_host),
    )
    return head + ("" if any(spec.gpus for spec in plan.services) else _CPU)


def _service(plan: Plan, one: Container, image: str, build: AnchoredMapping | None) -> dict[str, Any]:
    spec = one.spec
    check = ["CMD", containers.PYTHON, "-c", _CHECK.format(port=one.port, path=one.health)]
    waits: dict[str, dict[str, Any]] = {
        name: {"condition": "service_healthy"} | ({"restart": True} if name == spec.cache else {})
        for name in sorted(order.in_export(spec, plan.services))
    }
    service: dict[str, Any] = {
        "image": f"${{VLLM_IMAGE:-{image}}}",
        "build": build,
        "entrypoint": list(one.command),
        "command": list(one.args),
        "environment": one.env | {name: f"${{{name}:?set it in the environment or in .env}}" for name in one.secrets},
        **_namespaces(plan, one),
        **_gpus(one),
        "ports": [{"host_ip": _published_address(spec.host), "published": str(one.port), "target": one.port}],
        "volumes": _volumes(one),
        "depends_on": waits,
        "healthcheck": {
            "test": check,
            "interval": "10s",
            "timeout": "5s",
            "retries": 6,
            "start_period": f"{spec.start_timeout:g}s",
        },
        "stop_grace_period": f"{spec.stop_timeout:g}s",
        "restart": "no",
    }
    return {name: value for name, value in service.items() if value not in (None, [], {})}


def _namespaces(plan: Plan, one: Container) -> dict[str, Any]:
    """Who shares memory with whom."""
    spec = one.spec
    users = [other for other in plan.engines if other.cache == spec.name]
    if spec.kind == "engine" and not spec.cache:
        return {"init": True, "shm_size": "4gb"}
    if spec.gpus:
        return {"init": True, "ipc": "host"}
    if spec.kind == "engine":
        return {"ipc": f"service:{spec.cache}", "pid": f"service:{spec.cache}"}
    size = sum(other.options["kv-cache-memory-bytes"] for other in users)
    return {"init": True, "ipc": "shareable", "shm_size": f"{-(-size // GIB) + 1}gb"}


def _gpus(one: Container) -> dict[str, Any]:
    if not one.spec.gpus:
        return {}
    ids = one.spec.env["CUDA_VISIBLE_DEVICES"].split(",")
    devices = [{"driver": "nvidia", "device_ids": ids, "capabilities": ["gpu"]}]
    pinned = {"ulimits": {"memlock": -1}} if one.spec.kind == "cache" else {}
    return {"deploy": {"resources": {"reservations": {"devices": devices}}}} | pinned


def _volumes(one: Container) -> list[dict[str, Any]]:
    mounts = [{**_bind(_literal(path), _literal(path), make=False), "read_only": True} for path in one.mounts]
    if one.fetches:
        mounts.append(_bind(_HUB, containers.HUB))
    if containers.directory(one.spec):
        mounts.append(_bind(f"${{KV_DIR:-{_literal(_store(one))}}}", containers.KV))
    return mounts


def _bind(source: str, target: str, *, make: bool = True) -> dict[str, Any]:
    return {"type": "bind", "source": source, "target": target, "bind": {"create_host_path": make}}


def _store(one: Container) -> str:
    return f"{one.spec.store}-compose"


def _published_address(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


def _literal(text: str) -> str:
    """Text in which compose replaces nothing."""
    return text.replace("$", "$$")
