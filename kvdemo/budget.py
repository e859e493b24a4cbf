"""Which engine runs on which GPU, and whether the memory is there: pure arithmetic over profile and facts.

GPUs are counted as CUDA counts the visible ones. On a machine without the GPUs that a profile names the assignment is
still made, as if they were there, and every absent one is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvdemo.engines import GIB
from kvdemo.facts import Facts, Gpu

if TYPE_CHECKING:
    from kvdemo.profile import Engine, Profile

CACHE_GPU_BYTES = int(0.65 * GIB)
"""GPU memory of one LMCache server's CUDA context and staging (522 to 650 MiB were reported, LMCache#4287)."""

CPU_ENGINE_BYTES = int(1.3 * GIB)
"""Host memory of one engine of vLLM's CPU build beside its KV cache (measured: 1.1 GiB with a tiny model, both of its
processes; 2.1 to 2.2 GiB with a KV cache of 1 GiB)."""


@dataclass(frozen=True)
class Assignment:
    """GPUs of one engine (visible indices), what CUDA_VISIBLE_DEVICES must say, and its fraction of each GPU."""

    gpus: tuple[int, ...]
    devices: tuple[str, ...]
    memory: float | None


def assign(profile: Profile, facts: Facts) -> dict[str, Assignment]:
    """Give every engine its GPUs; ``auto`` takes the GPU that the fewest engines use."""
    chosen = _chosen(profile, facts)
    users = Counter(gpu for gpus in chosen.values() for gpu in gpus)
    by_index = {gpu.index: gpu for gpu in facts.gpus}
    return {
        name: Assignment(
            gpus=gpus,
            devices=tuple(by_index[gpu].device if gpu in by_index else str(gpu) for gpu in gpus),
            memory=_fraction(profile.engines[name], [by_index[gpu] for gpu in gpus if gpu in by_index], users, gpus),
        )
        for name, gpus in chosen.items()
    }


def _chosen(profile: Profile, facts: Facts) -> dict[str, tuple[int, ...]]:
    uuids = {gpu.uuid: gpu.index for gpu in facts.gpus}
    chosen: dict[str, tuple[int, ...]] = {}
    for name, engine in profile.engines.items():
        if engine.gpus != "auto":
            chosen[name] = tuple(gpu if isinstance(gpu, int) else uuids.get(gpu, -1) for gpu in engine.gpus)
    used = Counter(gpu for gpus in chosen.values() for gpu in gpus)
    automatic = [name for name, engine in profile.engines.items() if engine.gpus == "auto"]
    # Without a GPU in sight, plan for a machine that has one for each.
    pool = [gpu.index for gpu in facts.gpus] or list(range(len(used) + len(automatic)))
    for name in automatic:
        pick = min(pool, key=lambda gpu: (used[gpu], gpu))
        used[pick] += 1
        chosen[name] = (pick,)
    return {name: chosen[name] for name in profile.engines}


def _fraction(engine: Engine, gpus: list[Gpu], users: Mapping[int, int], indices: tuple[int, ...]) -> float | None:
    if not indices:
        return None
    if isinstance(engine.memory, float):
        return engine.memory
    if engine.memory is not None:
        return round(engine.memory / min(gpu.total for gpu in gpus), 4) if gpus else None
    if engine.kv_cache:
        # vLLM sizes the KV cache from the bytes then; the fraction is only checked against free memory at start.
        return 0.1
    sharing = max(users[gpu] for gpu in indices)
    return round(0.9 / sharing, 2) if sharing > 1 else None


def shortages(profile: Profile, facts: Facts, assigned: Mapping[str, Assignment]) -> Iterator[str]:
    """What this machine lacks for the profile: GPUs, GPU memory, host memory, shared memory."""
    yield from _absent(profile, facts, assigned)
    for gpu in facts.gpus:
        yield from _short_gpu(profile, gpu, assigned)
    cpu = {name: engine.kv_cache or GIB for name, engine in profile.engines.items() if engine.gpus == ()}
    l1 = sum(cache.l1 for cache in profile.caches.values())
    need = l1 + sum(_host_bytes(profile.engines[name]) + kv for name, kv in cpu.items())
    if facts.memory is not None and need > facts.memory:
        yield (
            f"host memory: {need / GIB:.1f} GiB are needed ({l1 / GIB:.1f} GiB of it L1), {facts.memory / GIB:.1f} GiB "
            "are available; lower caches.*.l1 or kv_cache, or run fewer engines"
        )
    mapped = sum(kv for name, kv in cpu.items() if profile.engines[name].cache)
    if facts.shm is not None and mapped > facts.shm:
        yield (
            f"/dev/shm: cached engines map {mapped / GIB:.1f} GiB of KV cache there, {facts.shm / GIB:.1f} GiB are "
            "free; in a container start it with a larger --shm-size, or lower kv_cache"
        )


def _host_bytes(engine: Engine) -> int:
    """What an engine without a GPU needs beside its KV cache: what the profile says, else what was measured."""
    return engine.memory if isinstance(engine.memory, int) else CPU_ENGINE_BYTES


def _absent(profile: Profile, facts: Facts, assigned: Mapping[str, Assignment]) -> Iterator[str]:
    here = {gpu.index for gpu in facts.gpus}
    have = f"this machine has {len(here) or 'no'} usable GPU{'' if len(here) == 1 else 's'}"
    for name, assignment in assigned.items():
        for index, wanted in zip(assignment.gpus, _wanted(profile.engines[name], assignment), strict=True):
            if index not in here:
                yield f"engine {name}: GPU {wanted} is not here; {have}"


def _wanted(engine: Engine, assignment: Assignment) -> tuple[int | str, ...]:
    return assignment.gpus if engine.gpus == "auto" else engine.gpus


def _short_gpu(profile: Profile, gpu: Gpu, assigned: Mapping[str, Assignment]) -> Iterator[str]:
    tenants = [name for name, assignment in assigned.items() if gpu.index in assignment.gpus]
    caches = {profile.engines[name].cache for name in tenants} - {None}
    need = len(caches) * CACHE_GPU_BYTES
    parts = [f"{len(caches)} LMCache server(s) {need / GIB:.1f} GiB"] if caches else []
    for name in tenants:
        fraction = assigned[name].memory
        share = int((0.9 if fraction is None else fraction) * gpu.total) + (profile.engines[name].kv_cache or 0)
        need += share
        parts.append(f"{name} {share / GIB:.1f} GiB")
    if tenants and need > gpu.free:
        holders = f"; held by {', '.join(gpu.holders)}" if gpu.holders else ""
        yield (
            f"GPU {gpu.index} ({gpu.name}): {need / GIB:.1f} GiB are needed ({', '.join(parts)}), "
            f"{gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB are free{holders}; "
            "lower `memory` of its engines or free the GPU"
        )
