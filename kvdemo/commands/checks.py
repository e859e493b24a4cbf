"""What the facts about this machine mean: each becomes a check, with the fix if something is wrong. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kvdemo import units
from kvdemo.planning.engines import GIB
from kvdemo.planning.facts import Driver, Gpu, Interpreter
from kvdemo.planning.pair import Outcome
from kvdemo.planning.plan import Plan
from kvdemo.planning.predict import Prediction, sentence
from kvdemo.planning.sums import FEW_FILES

ENOUGH_FILES = 4 * FEW_FILES

SMALL_SHM = GIB
"""Docker gives 64 MiB of /dev/shm unless told otherwise; vLLM's processes and LMCache share memory there."""


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; ``values`` are its numbers for programs."""

    name: str
    level: Level
    text: str
    fix: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def ok(name: str, text: str, **values: Any) -> Check:
    """Nothing is wrong."""
    return Check(name, Level.OK, text, values=values)


def warning(name: str, text: str, fix: str, **values: Any) -> Check:
    """It works, but not as well as it could."""
    return Check(name, Level.WARNING, text, fix, values)


def failure(name: str, text: str, fix: str, **values: Any) -> Check:
    """The fleet cannot run like this."""
    return Check(name, Level.FAILURE, text, fix, values)


def driver(state: Driver) -> Check:
    """The NVIDIA driver."""
    values = {"driver": state.version, "cuda": state.cuda}
    if state.problem:
        fix = "restart the machine (after an update of the driver), or ask who runs it; nvidia-smi should say the same"
        return failure("driver", state.problem, fix, **values)
    if not state.version:
        return ok("driver", "no NVIDIA driver: engines run on vLLM's CPU build", **values)
    return ok("driver", f"{state.version}, runs CUDA up to {state.cuda}", **values)


def gpus(devices: Sequence[Gpu]) -> Iterator[Check]:
    """Each GPU: what it is, what is free, who holds the rest, how it is connected."""
    for gpu in devices:
        name = f"GPU {gpu.index}"
        part = f", a MIG instance of {gpu.parent}" if gpu.parent else ""
        node = f", NUMA node {gpu.numa}" if gpu.numa is not None else ""
        link = f", {gpu.link}" if gpu.link else ""
        size = f"{gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB free" if gpu.total else "memory shared with the host"
        text = f"{gpu.name}{part}, {size}{node}{link}"
        values = {"index": gpu.index, "uuid": gpu.uuid, "total": gpu.total, "free": gpu.free, "numa": gpu.numa}
        if gpu.holders:
            holders = "; ".join(map(str, gpu.holders))
            yield warning(name, f"{text}; held by {holders}", "end them if their memory is needed", **values)
        elif gpu.link and gpu.link.width < gpu.link.max_width:
            fix = "KV is copied over this link: check its slot or riser, or use another GPU"
            yield warning(name, f"{text}: the link is narrower than it could be", fix, **values)
        elif gpu.parent:
            fix = "older vLLM cannot start on MIG instances (vllm#20939): if an engine ends at once, turn MIG off"
            yield warning(name, text, fix, **values)
        else:
            yield ok(name, text, **values)


def limits(files: int, locked: int | None, shm: tuple[int, int], gpu: bool) -> Iterator[Check]:
    """Open files, locked memory and /dev/shm of this shell or container."""
    fix = "raise the hard limit: ulimit -Hn, LimitNOFILE= of the service, or docker run --ulimit nofile=65535"
    text = f"{files:,} open files a process"
    if files < FEW_FILES:
        yield failure("open files", text, fix, limit=files)
    elif files < ENOUGH_FILES:
        yield warning("open files", f"{text} are few for several engines", fix, limit=files)
    else:
        yield ok("open files", text, limit=files)
    if gpu and locked is not None:
        fix = "if LMCache cannot pin L1: ulimit -l unlimited, or docker run --ulimit memlock=-1"
        yield warning("locked memory", f"{locked / GIB:.3g} GiB a process", fix, limit=locked)
    total, free = shm
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if total < SMALL_SHM:
        yield warning("/dev/shm", text, "start the container with --shm-size 8g", total=total, free=free)
    else:
        yield ok("/dev/shm", text, total=total, free=free)


def versions(interpreter: Interpreter) -> Check:
    """What the engines' interpreter holds."""
    if interpreter.problem:
        fix = interpreter.fix or "set runtime.python in the profile"
        return failure("versions", interpreter.problem, fix, interpreter=interpreter.python)
    text = ", ".join(f"{name} {version}" for name, version in interpreter.versions.items())
    return ok("versions", f"{text} ({interpreter.python})", interpreter=interpreter.python, **interpreter.versions)


def imports(outcomes: Iterable[Outcome]) -> Iterator[Check]:
    """Whether torch, vLLM, LMCache and the connector load together in one process of that interpreter."""
    for one in outcomes:
        name = f"load {one.step}"
        yield failure(name, one.text, one.fix) if one.failed else ok(name, one.text)


def plan(fleet_plan: Plan) -> Iterator[Check]:
    """What the plan says: what is missing (but of interpreters, which have checks of their own), short, or fits."""
    for problem in fleet_plan.problems:
        if problem.kind == "interpreter":
            continue
        make = failure if problem.hard else warning
        yield make("plan", problem.text, problem.fix, kind=problem.kind, service=problem.service, place=problem.place)
    for text in fleet_plan.sums:
        yield ok("plan", text)
    if not any(problem.kind == "port" for problem in fleet_plan.problems):
        ports = sorted(port for spec in fleet_plan.services for port in spec.ports)
        yield ok("ports", f"{', '.join(map(str, ports))} are free or our own", ports=ports)


def prediction(forecast: Prediction | None, what: str, why: str) -> Iterator[Check]:
    """What reuse could buy here."""
    if forecast is None:
        yield warning("prediction", f"not possible: {why}", "measure instead: kvdemo up, kvdemo bench")
        return
    cold = forecast.times.cold
    yield ok(
        "prediction",
        f"{what}: {forecast.tokens:,} tokens, {forecast.kv_bytes / 1e6:,.0f} MB of KV to share; computing takes "
        f"{units.duration(cold * 1000)}, a local hit {units.duration(forecast.times.local * 1000)} "
        f"({forecast.times.basis})",
        **forecast.to_json(),
    )
    for tier in forecast.tiers:
        if tier.wins:
            yield ok("prediction", sentence(tier, cold))
        else:
            fix = "a faster disk, a slower GPU or a larger model: here L2 keeps KV for later, it does not save time"
            yield warning("prediction", sentence(tier, cold), fix if tier.name == "disk" else "use longer documents")
