"""What must be ready before a service may start. Pure.

``up`` lets an engine start beside its cache, and starts it again if it came too early; nobody does that for an export.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvdemo.planning.plan import ServiceSpec


def at_start(spec: ServiceSpec, services: Sequence[ServiceSpec]) -> set[str]:
    """Every engine before it that measures the memory of one of its GPUs; its cache, if it measures too."""
    dependencies = {spec.server} if spec.server and measures(spec) else set()
    for other in services:
        if other.name == spec.name:
            break
        if measures(other) and set(other.gpus) & set(spec.gpus) and other.kind == spec.kind == "engine":
            dependencies.add(other.name)
    return dependencies & {other.name for other in services}


def in_export(spec: ServiceSpec, services: Sequence[ServiceSpec]) -> set[str]:
    """The same, and its cache in any case."""
    return at_start(spec, services) | ({spec.server} if spec.server else set())


def measures(spec: ServiceSpec) -> bool:
    """VLLM measures free GPU memory at start unless it is told the size of its KV cache; neighbours disturb that."""
    return bool(spec.gpus) and spec.measures
