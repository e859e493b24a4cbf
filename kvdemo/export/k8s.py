"""A plan as Kubernetes manifests: LMCache's own layout of one cache server on each node, as a DaemonSet. Pure.

Engines reach the server of their own node only (CUDA IPC and shared memory end at the node), through a Service that
stays on the node; servers of several nodes meet in L2, one volume that all of them can write. There is no volume on the
cache's /dev/shm: it would hide the host's, through which both share memory.
"""

from __future__ import annotations

import hashlib
from typing import Any

from kvdemo.export import containers
from kvdemo.export.containers import KV, Container
from kvdemo.export.yamltext import comment, dump
from kvdemo.planning.plan import Plan

_LONGEST = 63

_HEAD = """\
The fleet of project {project}, made by `kvdemo export k8s` from its profile. It needs kubectl, not kvdemo:

    kubectl label node NODE kvdemo={project}      each node that runs a part of it; {gpus}
{secret}    kubectl apply -f FILE
    kubectl rollout status deployment -l app.kubernetes.io/part-of={project} --timeout={timeout:g}s
    kubectl delete -f FILE                         the claims too: their data go as the storage class says

The namespace must admit pods that share the node's IPC (label pod-security.kubernetes.io/enforce=privileged).
To reach a service from outside: kubectl port-forward service/NAME PORT
{measuring}

To adapt: the image ({image}){paths}; storage classes and sizes of the claims.
On GPUs the nvidia container runtime must be the default one; else add runtimeClassName: nvidia to each pod.
Another image, other weights or another dtype need an empty KV volume.
"""
_SHARED_GPU = """\
In the profile {names} share a GPU. Kubernetes gives each a whole one,
unless the device plugin shares them (time slicing).
"""
_CPU = """\
No published image holds vLLM's CPU build and LMCache, as far as we know. Build one, push it, put its name here:

{dockerfile}"""
_WAIT = """\
import time, urllib.request
while True:
    try:
        urllib.request.urlopen("http://{cache}:{port}/healthcheck", timeout=4)
        break
    except OSError:
        time.sleep(2)
"""


def k8s(plan: Plan) -> str:
    """The manifests. Secrets are references to keys of the Secret ``PROJECT-secrets``."""
    items = [
        containers.container(
            spec,
            _literal,
            cache=object_name(plan.project, spec.cache) if spec.cache else "",
            relative_tmp_dir="tmp-$(NODE_NAME)",
        )
        for spec in plan.services
    ]
    gpu = any(spec.gpus for spec in plan.services)
    image = containers.image(plan, gpu=gpu)
    documents: list[dict[str, Any]] = []
    documents += [_claim(plan, f"{one.spec.name}-kv") for one in items if containers.directory(one.spec)]
    documents += [_claim(plan, "models")] if any(one.fetches for one in items) else []
    for one in items:
        documents += _cache(plan, one, image) if one.spec.kind == "cache" else _engine(plan, one, image)
    return comment(_head(plan, items, image, gpu=gpu)) + "".join(f"---\n{dump(document)}" for document in documents)


def _head(plan: Plan, items: list[Container], image: str, *, gpu: bool) -> str:
    secrets = dict.fromkeys(name for one in items for name in one.secrets)
    lines = "\\n".join(f"{name}=%s" for name in secrets)
    values = " ".join(f'"${name}"' for name in secrets)
    create = f"kubectl create secret generic {plan.project}-secrets --from-env-file=/dev/stdin"
    secret = f"    printf '{lines}\\n' {values} | {create}\n"
    paths = "".join(
        f"; {path}, which each node must have" for path in dict.fromkeys(p for o in items for p in o.mounts)
    )
    head = _HEAD.format(
        project=plan.project,
        gpus="engines ask for NVIDIA GPUs" if gpu else "no GPUs are needed",
        secret=secret if secrets else "",
        timeout=max(spec.start_timeout for spec in plan.services),
        measuring=containers.measuring(plan, how="127.0.0.1"),
        image=image,
        paths=paths,
    )
    sharers = [s.name for s in plan.engines if any(set(s.gpus) & set(o.gpus) for o in plan.engines if o.name != s.name)]
    head += _SHARED_GPU.format(names=", ".join(sharers)) if sharers else ""
    return head + ("" if gpu else _CPU.format(dockerfile=_indent(containers.dockerfile(plan))))


def _indent(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def object_name(project: str, name: str) -> str:
    """The name of an object of this project: no two projects of a namespace have one in common.

    A project whose own name holds a hyphen, or begins with a digit, gets a mark as well, or `a` with `b-c` would be
    `a-b` with `c`. It begins with a letter and has at most 63 characters, as RFC 1035 wants it of a Service.
    """
    mark = hashlib.sha256(project.encode()).hexdigest()
    whole = f"{project}-{name}" if project[0].isalpha() and "-" not in project else f"{project}-{mark[:4]}-{name}"
    whole = whole if whole[0].isalpha() else f"p{whole}"
    if len(whole) <= _LONGEST:
        return whole
    mark = hashlib.sha256(f"{project} {name}".encode()).hexdigest()
    return f"{whole[: _LONGEST - 9].rstrip('-')}-{mark[:8]}"


def _labels(plan: Plan, one: Container | None = None) -> dict[str, str]:
    labels = {"app.kubernetes.io/name": one.spec.name, "app.kubernetes.io/component": one.spec.kind} if one else {}
    return labels | {"app.kubernetes.io/part-of": plan.project}


def _claim(plan: Plan, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": object_name(plan.project, name), "labels": _labels(plan)},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "100Gi"}}},
    }


def _cache(plan: Plan, one: Container, image: str) -> list[dict[str, Any]]:
    """The server of each node, the Service that leads to it, and a wall around its port, which asks for no password."""
    spec = one.spec
    ports = {"zmq": next(port for port in spec.ports if port != spec.port), "http": spec.port}
    from_engines = [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "engine", **_labels(plan)}}}]
    meta = {"name": object_name(plan.project, spec.name), "labels": _labels(plan, one)}
    wall = {
        "podSelector": {"matchLabels": _labels(plan, one)},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": from_engines, "ports": [{"port": port} for port in ports.values()]}],
    }
    service = {
        "selector": _labels(plan, one),
        "internalTrafficPolicy": "Local",
        "ports": [{"name": name, "port": port, "targetPort": port} for name, port in ports.items()],
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": meta,
            "spec": {"selector": {"matchLabels": _labels(plan, one)}, "template": _pod(plan, one, image)},
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": wall},
    ]


def _engine(plan: Plan, one: Container, image: str) -> list[dict[str, Any]]:
    """One pod that is never doubled: a second one during a roll-out would want the GPU of the first."""
    meta = {"name": object_name(plan.project, one.spec.name), "labels": _labels(plan, one)}
    deployment = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "progressDeadlineSeconds": int(one.spec.start_timeout) + 60,
        "selector": {"matchLabels": _labels(plan, one)},
        "template": _pod(plan, one, image),
    }
    service = {"selector": _labels(plan, one), "ports": [{"name": "http", "port": one.port, "targetPort": one.port}]}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": deployment},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
    ]


def _pod(plan: Plan, one: Container, image: str) -> dict[str, Any]:
    spec = one.spec
    volumes, mounts = _volumes(plan, one)
    pod: dict[str, Any] = {"nodeSelector": {"kvdemo": plan.project}, "enableServiceLinks": False}
    if spec.kind == "cache" or spec.cache:
        pod["hostIPC"] = True
        if not spec.gpus:
            pod["hostPID"] = True  # names of shared memory hold process ids there: those of the node are unique
    pod["terminationGracePeriodSeconds"] = max(1, int(spec.stop_timeout))
    if spec.cache:
        pod["initContainers"] = [_wait(plan, one, image)]
    pod["containers"] = [_container(plan, one, image) | ({"volumeMounts": mounts} if mounts else {})]
    if volumes:
        pod["volumes"] = volumes
    return {"metadata": {"labels": _labels(plan, one)}, "spec": pod}


def _wait(plan: Plan, one: Container, image: str) -> dict[str, Any]:
    code = _WAIT.format(cache=object_name(plan.project, one.spec.cache), port=plan.service(one.spec.cache).port)
    return {"name": "cache-is-ready", "image": image, "command": [containers.PYTHON, "-c", code]}


def _container(plan: Plan, one: Container, image: str) -> dict[str, Any]:
    spec = one.spec
    env: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in one.env.items()]
    for name in one.secrets:
        reference = {"name": f"{plan.project}-secrets", "key": name}
        env.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    resources: dict[str, Any] = {}
    if spec.kind == "cache":
        if spec.gpus:
            # All GPUs of the node, and none of them reserved: the engines own them.
            env.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"})
        env.append({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
        resources = {"requests": {"memory": f"{(spec.l1 or 0) / 1024**3 + 2:g}Gi"}}
    elif spec.gpus:
        resources = {"limits": {"nvidia.com/gpu": str(len(spec.gpus))}}
    get = {"httpGet": {"path": one.health, "port": one.port}, "timeoutSeconds": 4}
    items: dict[str, Any] = {
        "name": spec.kind,
        "image": image,
        "command": list(one.command),
        "args": list(one.args),
        "env": env,
        "ports": [{"containerPort": port} for port in spec.ports],
        "resources": resources,
        # Three budgets: loading a model is no reason to be killed, a slow minute is one to get no requests.
        "startupProbe": get | {"periodSeconds": 5, "failureThreshold": max(1, int(spec.start_timeout / 5))},
        "readinessProbe": get | {"periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": get | {"periodSeconds": 10, "failureThreshold": 12},
    }
    return {name: value for name, value in items.items() if value}


def _volumes(plan: Plan, one: Container) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for number, path in enumerate(one.mounts):
        volumes.append({"name": f"host-{number}", "hostPath": {"path": path}})
        mounts.append({"name": f"host-{number}", "mountPath": path, "readOnly": True})
    claims = [("models", "models", containers.HUB)] if one.fetches else []
    claims += [("kv", f"{one.spec.name}-kv", KV)] if containers.directory(one.spec) else []
    for name, claim, target in claims:
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": object_name(plan.project, claim)}})
        mounts.append({"name": name, "mountPath": target})
    if not one.spec.cache and len(one.spec.gpus) > 1 and one.spec.kind == "engine":
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return volumes, mounts


def _literal(text: str) -> str:
    """Text in which Kubernetes replaces nothing."""
    return text.replace("$(", "$$(")
