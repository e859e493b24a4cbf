"""Which engine runs on which GPU, and with which share of it: pure arithmetic over profile and facts.

GPUs are counted as CUDA counts the visible ones. On a machine without the GPUs that a profile names the assignment is
still made, as if they were there, and every absent one is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvdemo.planning import compatibility, demand
from kvdemo.planning.facts import Facts, Gpu
from kvdemo.planning.problems import Problem

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine, Profile


@dataclass(frozen=True)
class Assignment:
    """GPUs of one engine (visible indices), what CUDA_VISIBLE_DEVICES must say, and its fraction of each GPU."""

    gpus: tuple[int, ...]
    devices: tuple[str, ...]
    memory: float | None
    uuids: tuple[str, ...] = ()


def assign(profile: Profile, facts: Facts) -> dict[str, Assignment]:
    """Give every engine its GPUs; ``auto`` takes the one with most memory left, then with the fewest engines."""
    gpus_by_engine = _pick_gpus(profile, facts)
    users = Counter(gpu for gpus in gpus_by_engine.values() for gpu in gpus)
    by_index = {gpu.index: gpu for gpu in facts.gpus}
    return {
        name: Assignment(
            gpus=gpus,
            devices=tuple(by_index[gpu].device if gpu in by_index else str(gpu) for gpu in gpus),
            uuids=tuple(by_index[gpu].uuid for gpu in gpus if gpu in by_index),
            memory=_fraction(profile.engines[name], [by_index[gpu] for gpu in gpus if gpu in by_index], users, gpus),
        )
        for name, gpus in gpus_by_engine.items()
    }


def _pick_gpus(profile: Profile, facts: Facts) -> dict[str, tuple[int, ...]]:
    gpus_by_engine: dict[str, tuple[int, ...]] = {}
    for name, engine in profile.engines.items():
        if engine.gpus != "auto":
            gpus_by_engine[name] = tuple(gpu if isinstance(gpu, int) else _index(gpu, facts) for gpu in engine.gpus)
    automatic = [name for name, engine in profile.engines.items() if engine.gpus == "auto"]
    # Without a GPU in sight, plan for a machine that has one for each.
    count = len({gpu for gpus in gpus_by_engine.values() for gpu in gpus}) + len(automatic)
    pool = facts.gpus or tuple(Gpu(n, str(n), "", "", 0, 0) for n in range(count))
    for name in automatic:
        previous = facts.kept.get(name, ())
        stays = previous and {*previous} <= {gpu.index for gpu in pool}
        gpus_by_engine[name] = previous if stays else (_roomiest(profile, facts, gpus_by_engine, pool),)
    return {name: gpus_by_engine[name] for name in profile.engines}


def _index(uuid: str, facts: Facts) -> int:
    """The GPU whose UUID is, or as the only one begins with, this text; -1 if it is not here."""
    fits = [gpu.index for gpu in facts.gpus if gpu.uuid.startswith(uuid)]
    return fits[0] if len(fits) == 1 else -1


def _roomiest(
    profile: Profile, facts: Facts, gpus_by_engine: Mapping[str, tuple[int, ...]], pool: Sequence[Gpu]
) -> int:
    """The GPU with most memory left, in tenths of it: small differences must not move an engine at the next `up`."""
    users = Counter(gpu for gpus in gpus_by_engine.values() for gpu in gpus)
    reserved: Counter[int] = Counter()
    for name, gpus in gpus_by_engine.items():
        engine = profile.engines[name]
        need = demand.of(engine, compatibility.model_of(engine, facts), len(gpus), pool[0])
        for gpu in gpus:
            reserved[gpu] += need.fixed + (engine.kv_cache or need.kv or 0)

    def order(gpu: Gpu) -> tuple[float, int, int]:
        tenths = round(10 * (gpu.free - reserved[gpu.index]) / gpu.total) if gpu.total else 0
        return -tenths, users[gpu.index], gpu.index

    return min(pool, key=order).index


def _fraction(engine: Engine, gpus: list[Gpu], users: Mapping[int, int], indices: tuple[int, ...]) -> float | None:
    if not indices:
        return None
    if isinstance(engine.memory, float):
        return engine.memory
    if engine.memory is not None:
        total = min((gpu.total for gpu in gpus), default=0)
        return round(engine.memory / total, 4) if total else None
    if engine.kv_cache:
        # vLLM sizes the KV cache from the bytes then; the fraction is only checked against free memory at start.
        return 0.1
    sharing = max(users[gpu] for gpu in indices)
    return round(0.9 / sharing, 2) if sharing > 1 else None


def absent(profile: Profile, facts: Facts, assignments: Mapping[str, Assignment]) -> Iterator[Problem]:
    """GPUs that engines want and this machine does not have."""
    indices = {gpu.index for gpu in facts.gpus}
    parts = {gpu.index for gpu in facts.gpus if gpu.parent}
    problem = f"this machine has {len(indices) or 'no'} usable GPU{'' if len(indices) == 1 else 's'}"
    for name, assignment in assignments.items():
        if len(assignment.gpus) > 1 and parts & {*assignment.gpus}:
            yield Problem(
                "gpu", f"engine {name}: a process can use one MIG instance only", "give it one, or whole GPUs", name
            )
        for index, index_or_uuid in zip(
            assignment.gpus, _requested_gpus(profile.engines[name], assignment), strict=True
        ):
            if index not in indices:
                yield Problem(
                    "gpu",
                    f"engine {name}: GPU {index_or_uuid} is not here ({problem})",
                    "",
                    name,
                    f"GPU {index_or_uuid}",
                )


def _requested_gpus(engine: Engine, assignment: Assignment) -> tuple[int | str, ...]:
    return assignment.gpus if engine.gpus == "auto" else engine.gpus
