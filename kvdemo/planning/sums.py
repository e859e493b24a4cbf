"""Does it fit? What a plan needs of each GPU, of host memory, /dev/shm and disk, against what is there. Pure.

A sum that does not fit says who needs what, who holds the rest, and which value would fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvdemo import backends, units
from kvdemo.planning import compatibility, demand
from kvdemo.planning.budget import Assignment
from kvdemo.planning.engines import GIB
from kvdemo.planning.facts import Facts, Gpu
from kvdemo.planning.problems import Problem

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine, Profile

CPU_ENGINE_BYTES = int(1.3 * GIB)
"""Host memory of one engine of vLLM's CPU build beside its KV cache (measured: 1.1 GiB with a tiny model, both of its
processes; 2.1 to 2.2 GiB with a KV cache of 1 GiB)."""

UNCERTAIN = GIB // 2
"""How far an engine's need may be off (the sums of engines that were measured are)."""

FEW_FILES = 1024
"""Open files of a process. Engines and cache servers idle with 30 to 52; connections and KV files in flight are
more."""

VLLM_MEMORY = 0.92
"""The share of a GPU that vLLM takes unless told (0.92 since 0.32, 0.9 before)."""


@dataclass(frozen=True)
class Sum:
    """Bytes needed of one thing, and bytes there; ``advice`` is what to do when they do not suffice.

    ``hard`` is whether the fleet cannot start without, ``kind`` the code of the problem if it does not fit.
    """

    kind: str
    what: str
    need: int
    available: int
    parts: tuple[str, ...]
    advice: str = ""
    holders_text: str = ""
    hard: bool = True

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.need <= self.available

    @property
    def problem(self) -> Problem:
        """That there is not enough, and what to do."""
        return Problem(self.kind, f"{self._needs}{self.holders_text}", self.advice, place=self.what, hard=self.hard)

    @property
    def _needs(self) -> str:
        parts = f" ({', '.join(self.parts)})" if self.parts else ""
        return f"{self.what}: {_gib(self.need)} are needed{parts}, {_gib(self.available)} are free"

    def __str__(self) -> str:
        return self._needs if self.fits else str(self.problem)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 1024**2:.0f} MiB"


def sums(profile: Profile, facts: Facts, assignments: Mapping[str, Assignment]) -> Iterator[Sum]:
    """Everything that is counted: each GPU in use, host memory, /dev/shm, the disks of L2."""
    for gpu in facts.gpus:
        if row := _gpu(profile, facts, gpu, assignments):
            yield row
    cpu = {name: engine.kv_cache or GIB for name, engine in profile.engines.items() if engine.gpus == ()}
    users = Counter(engine.cache for engine in profile.engines.values())
    kinds = {name: backends.of(cache.kind) for name, cache in profile.caches.items()}
    l1 = sum(one.l1 * (users[name] if kinds[name].private_l1 else 1) for name, one in profile.caches.items())
    copies = sum(kinds[engine.cache].engine_bytes for engine in profile.engines.values() if engine.cache)
    engines = sum((_host_bytes(profile.engines[name]) + kv for name, kv in cpu.items()), 0)
    if facts.memory is not None and l1 + engines + copies:
        parts = [f"L1 {_gib(l1)}"] * bool(l1) + [f"{units.count(len(cpu), 'engine')} {_gib(engines)}"] * bool(cpu)
        parts += [f"their copies {_gib(copies)}"] * bool(copies)
        advice = "lower caches.*.l1 or kv_cache, or run fewer engines"
        yield Sum("host-memory", "host memory", l1 + engines + copies, facts.memory, tuple(parts), advice)
    mapped = sum(kv for name, kv in cpu.items() if (used := profile.engines[name].cache) and kinds[used].pools)
    if facts.shm is not None and mapped:
        advice = "in a container start it with a larger --shm-size, or lower kv_cache"
        yield Sum("shm", "/dev/shm", mapped, facts.shm, ("KV cache of cached engines",), advice)
    yield from _disks(profile, facts)


def _host_bytes(engine: Engine) -> int:
    """What an engine without a GPU needs beside its KV cache: what the profile says, else what was measured."""
    return engine.memory if isinstance(engine.memory, int) else CPU_ENGINE_BYTES


def _disks(profile: Profile, facts: Facts) -> Iterator[Sum]:
    """One document of the longest context must find room in L2; a shorter one may do where no length was asked for."""
    for name, free in facts.disks.items():
        users = [engine for engine in profile.engines.values() if engine.cache == name]
        needs = [demand.of(engine, compatibility.model_of(engine, facts), 1) for engine in users]
        requirement, context = max(((one.kv or 0, one.context or 0) for one in needs), default=(0, 0))
        advice = "set caches.*.l2 to a larger disk, lower max_model_len, or leave l2 out"
        if requirement:
            hard = any(engine.max_model_len for engine in users)
            yield Sum(
                "disk", f"L2 of {name}", requirement, free, (f"one document of {context:,} tokens",), advice, hard=hard
            )


def _share(engine: Engine, requirement: demand.Demand, assignment: Assignment, gpu: Gpu) -> int:
    """What an engine will take of its GPU: its share, but never less than it needs."""
    if engine.kv_cache:
        return requirement.fixed + engine.kv_cache
    return max(int((VLLM_MEMORY if assignment.memory is None else assignment.memory) * gpu.total), requirement.least)


def _gpu(profile: Profile, facts: Facts, gpu: Gpu, assignments: Mapping[str, Assignment]) -> Sum | None:
    tenants = {name: profile.engines[name] for name, one in assignments.items() if gpu.index in one.gpus}
    if not tenants or not gpu.total:
        return None
    caches = {engine.cache for engine in tenants.values() if engine.cache}
    kinds = Counter(backends.of(profile.caches[name].kind) for name in caches)
    each = {backend: count * backend.gpu_bytes for backend, count in kinds.items()}
    servers = sum(each.values())
    needs = {
        n: demand.of(e, compatibility.model_of(e, facts), len(assignments[n].gpus), gpu) for n, e in tenants.items()
    }
    shares = {n: _share(e, needs[n], assignments[n], gpu) for n, e in tenants.items()}
    parts = _equal({name: f"{_gib(share)}{_made_of(tenants[name], needs[name])}" for name, share in shares.items()})
    parts += [f"{kinds[backend]} {backend.title} server(s) {_gib(size)}" for backend, size in each.items()]
    holders = f"; held by {', '.join(map(str, gpu.holders))}" if gpu.holders else ""
    fixed = {name: share for name, share in shares.items() if tenants[name].kv_cache}
    room = gpu.free - servers
    if len(fixed) == len(tenants):
        fits = _that_fits(needs.values(), room)
    else:
        fits = _that_fits([needs[n] for n in tenants if n not in fixed], room - sum(fixed.values()), gpu.total)
    advice = f"{fits}, or free the GPU" if gpu.holders else fits
    return Sum(
        "gpu-memory",
        f"GPU {gpu.index} ({gpu.name}, {_gib(gpu.total)})",
        servers + sum(shares.values()),
        gpu.free,
        tuple(parts),
        advice,
        holders,
    )


def _equal(texts: Mapping[str, str]) -> list[str]:
    """Each text once, with the names of all that it is about."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    return [f"{', '.join(same)} {'each ' * (len(same) > 1)}{text}" for text, same in names.items()]


def _made_of(engine: Engine, requirement: demand.Demand) -> str:
    if not requirement.weights:
        return ""
    kv = _gib(engine.kv_cache) if engine.kv_cache else "in what remains"
    return f" = {_fixed_parts(requirement)} + KV {kv}"


def _fixed_parts(requirement: demand.Demand) -> str:
    batch = f"{_gib(requirement.activations)} for {requirement.batch:,} tokens at once"
    parts = [
        f"weights {_gib(requirement.weights or 0)}",
        f"overhead {_gib(requirement.overhead)}",
        *[batch] * bool(requirement.activations),
    ]
    return " + ".join(parts)


def _that_fits(needs: Collection[demand.Demand], room: int, total: int = 0) -> str:
    """The value by which all these engines fit into ``room``: `memory` of a GPU of ``total`` bytes, else `kv_cache`.

    With fewer tokens at once if whole contexts fit so, else with a shorter context, else not at all.
    """
    smaller = [requirement.smaller_batch() for requirement in needs]
    fewer = (
        f"`max-num-batched-tokens: {max(requirement.batch for requirement in smaller)}` and "
        if smaller != [*needs]
        else ""
    )
    choices = [(each, words, *_fitting_kv_cache(each, room, total)) for each, words in ((needs, ""), (smaller, fewer))]
    for each, words, kv, value in choices:
        if kv > 0 and all(kv >= (requirement.kv or 0) for requirement in each):
            return f"{words}{value} for each engine here would fit"
    for each, words, kv, value in choices:
        tokens = min((most for requirement in each if (most := requirement.tokens(kv)) is not None), default=0)
        if kv > 0 and tokens > 0:
            return f"{words}{value} with `max_model_len: {_round(tokens)}` for each engine here would fit"
    return "run fewer engines here, or a smaller model"


def _fitting_kv_cache(needs: Collection[demand.Demand], room: int, total: int) -> tuple[int, str]:
    """KV cache of each engine if all are to fit, and the key that says so."""
    if total:
        fraction = int(100 * room / total / len(needs)) / 100
        return int(fraction * total) - max(requirement.fixed for requirement in needs), f"`memory: {fraction:g}`"
    each = (room - sum(requirement.fixed for requirement in needs)) // len(needs)
    each -= each % (GIB // 4)
    return each, f"`kv_cache: {each / GIB:g}GiB`"


def _round(tokens: int) -> int:
    """Down to whole thousands (1,024): the sum itself is no more precise."""
    return tokens // 1024 * 1024 or tokens


def too_small(profile: Profile, facts: Facts, assignments: Mapping[str, Assignment]) -> Iterator[Problem]:
    """What vLLM itself would refuse: a KV cache that cannot hold one sequence of full length, too few open files."""
    by_index = {gpu.index: gpu for gpu in facts.gpus if gpu.total}
    for name, engine in profile.engines.items():
        assignment = assignments[name]
        gpu = min((by_index[n] for n in assignment.gpus if n in by_index), key=lambda one: one.total, default=None)
        requirement = demand.of(engine, compatibility.model_of(engine, facts), len(assignment.gpus), gpu)
        if engine.kv_cache or not assignment.gpus:
            yield from _small_cache(name, engine, requirement, on_gpu=bool(assignment.gpus))
        elif gpu:
            yield from _small_share(name, requirement, int((assignment.memory or VLLM_MEMORY) * gpu.total), gpu.total)
    if facts.open_files is not None and facts.open_files < FEW_FILES:
        few = f"a process may have {facts.open_files:,}, engines need {FEW_FILES:,}"
        yield Problem("limit", f"open files: {few}", "raise it: ulimit -Hn 65535")


def _small_cache(name: str, engine: Engine, requirement: demand.Demand, *, on_gpu: bool) -> Iterator[Problem]:
    if not requirement.kv or not requirement.context:
        return
    # The CPU build counts whole GiB.
    size = engine.kv_cache or GIB
    size = size if on_gpu else -(-size // GIB) * GIB
    if size >= requirement.kv:
        return
    step = GIB // 4 if on_gpu else GIB
    remedy = f"`kv_cache: {-(-requirement.kv // step) * step / GIB:g}GiB`"
    tokens = requirement.tokens(size)
    full = f"{_gib(requirement.kv)} KV cache of {requirement.context:,} tokens"
    if size >= requirement.kv - requirement.block * (requirement.per_token or 0):
        full += f" and the block of {requirement.block} tokens that vLLM keeps back"
    text = f"{name}: kv_cache is {_gib(size)}, but needs {full}"
    yield Problem("kv-cache", text, _or_shorter(remedy, tokens), name)


def _small_share(name: str, requirement: demand.Demand, share: int, total: int) -> Iterator[Problem]:
    if share >= requirement.least or not requirement.weights:
        return
    remedy = f"`memory: {-(-100 * requirement.least // total) / 100:g}`" if requirement.least <= total else ""
    full = (
        f" + {_gib(requirement.kv)} KV cache of {requirement.context:,} tokens"
        if requirement.kv and requirement.context
        else ""
    )
    tokens = _round(requirement.tokens(share - requirement.fixed) or 0)
    needs = f"{_gib(requirement.least)} ({_fixed_parts(requirement)}{full})"
    # An estimate: within its error vLLM may still start, and says itself whether it can.
    hard = requirement.least - share > UNCERTAIN
    text = f"{name}: its share of the GPU is {_gib(share)}, but needs {needs}"
    yield Problem("gpu-memory", text, _or_shorter(remedy, tokens), name, hard=hard)


def _or_shorter(remedy: str, tokens: int | None) -> str:
    shorter = f"`max_model_len: {tokens}`" if tokens and tokens > 0 else ""
    return f"{' or '.join(filter(None, (remedy, shorter))) or 'another GPU or a smaller model'} would fit"
