"""``kvdemo export``: a plan in the words of other tools. Pure.

Every format is made from the Plan that ``up`` would run, so they cannot disagree; none holds a secret's value.
"""

from __future__ import annotations

from typing import Literal

from kvdemo import backends
from kvdemo.errors import UsageError
from kvdemo.export.compose import compose
from kvdemo.export.k8s import k8s
from kvdemo.export.shell import shell
from kvdemo.export.slurm import slurm
from kvdemo.planning.plan import Plan

Format = Literal["compose", "k8s", "slurm", "shell"]


def export(plan: Plan, form: Format, nodes: int = 1) -> str:
    """The plan in this format. Raises UsageError for nodes where the format has none, and for a GPU nobody knows."""
    if plan.on and form != "slurm":
        raise UsageError(f"{form} runs without Ray, this profile is one of a Ray cluster", "leave `on: ray` out")
    if nodes != 1 and form == "slurm" and not plan.on:
        raise UsageError(f"this profile is one of a single machine, not of {nodes} nodes", "add `on: ray` to it")
    if unknown := [spec.name for spec in plan.engines if -1 in spec.gpus]:
        raise UsageError(f"{unknown[0]}: its GPU is given by a UUID that this machine has not", "give its index")
    if form == "slurm":
        return slurm(plan, nodes)  # it runs kvdemo itself
    for spec in plan.services:
        backend = backends.of(spec.backend)
        if backend.one_machine:
            text = f"{spec.cache or spec.name}: a cache of kind {backend.kind} is started by kvdemo only"
            raise UsageError(text, "export slurm, whose job runs kvdemo, or a profile without it")
    if nodes != 1:
        raise UsageError("--nodes is for slurm only", "Kubernetes runs a cache on every node that carries the label")
    return {"compose": compose, "k8s": k8s, "shell": shell}[form](plan)
