"""The GPUs of this machine through NVML. No driver, or none visible, is a normal answer: an empty tuple.

A GPU in MIG mode stands for its instances. GPUs count in PCI order, as nvidia-smi counts them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvdemo.planning.facts import Driver, Gpu, GpuLoad, Holder, Link

ABSENT = ("LIBRARY_NOT_FOUND", "DRIVER_NOT_LOADED")
"""NVML's errors that mean: this machine has no NVIDIA driver, or none that runs."""

FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""The kernel's number of the namespace that is not inside a container."""


@contextlib.contextmanager
def _nvml() -> Iterator[tuple[Any, str]]:
    """NVML, or None and why not (empty: there is no driver)."""
    import pynvml  # noqa: PLC0415 (most verbs never ask)

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = error.value in {getattr(pynvml, f"NVML_ERROR_{name}") for name in ABSENT}
        yield None, "" if absent else f"NVML: {error}"
        return
    try:
        yield pynvml, ""
    finally:
        pynvml.nvmlShutdown()


def driver() -> Driver:
    """The driver's version and the newest CUDA that it can run."""
    with _nvml() as (nvml, problem):
        if not nvml:
            return Driver(problem=problem)
        cuda = _query(nvml, "SystemGetCudaDriverVersion", default=0)
        version = _text(_query(nvml, "SystemGetDriverVersion", default=""))
        unreadable = [f"GPU {index}: {error}" for index, error in _unreadable(nvml)]
        return Driver(version, f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "", "; ".join(unreadable))


def detect(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Every GPU that CUDA programs started from here would see, in their order.

    An outer CUDA_VISIBLE_DEVICES is honoured: GPU 0 is then the first one it names.
    """
    with _nvml() as (nvml, _):
        gpus = list(_leaves(nvml)) if nvml else []
    selection = _visible(gpus, environ["CUDA_VISIBLE_DEVICES"]) if "CUDA_VISIBLE_DEVICES" in environ else gpus
    return tuple(replace(gpu, index=index) for index, gpu in enumerate(selection))


def memory_in_use(devices: frozenset[str] | None = None) -> dict[str, int]:
    """Bytes in use on each GPU (all, or those UUIDs): to see that memory came back."""
    with _nvml() as (nvml, _):
        gpus = list(_leaves(nvml)) if nvml else []
    return {gpu.uuid: gpu.total - gpu.free for gpu in gpus if devices is None or gpu.uuid in devices}


def loads(environ: Mapping[str, str]) -> dict[int, GpuLoad]:
    """What every GPU is doing, by its index as ``detect`` counts them."""
    visible = detect(environ)
    with _nvml() as (nvml, _):
        return {gpu.index: _load(nvml, gpu) for gpu in visible} if nvml else {}


def _load(nvml: Any, gpu: Gpu) -> GpuLoad:
    handle = _query(nvml, "DeviceGetHandleByUUID", gpu.uuid, default=None)
    rates = _query(nvml, "DeviceGetUtilizationRates", handle, default=None) if handle is not None else None
    return GpuLoad(gpu.index, gpu.total - gpu.free, gpu.total, rates.gpu / 100 if rates else None)


def _visible(gpus: list[Gpu], names: str) -> list[Gpu]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: indices, UUIDs or unique beginnings of them; it stops at a wrong one."""
    selection: list[Gpu] = []
    for name in (name.strip() for name in names.split(",")):
        start = name if name.startswith(("GPU-", "MIG-")) else "none"
        fits = [gpu for gpu in gpus if name == gpu.device or gpu.uuid.startswith(start)]
        # Of a GPU in MIG mode CUDA gives a process the first instance.
        fits = (
            fits or [gpu for gpu in gpus if gpu.parent and (name == str(gpu.index) or gpu.parent.startswith(start))][:1]
        )
        if len(fits) != 1 or fits[0] in selection:
            break
        selection += fits
    return selection


def _unreadable(nvml: Any) -> Iterator[tuple[int, str]]:
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            yield index, str(error)


def _leaves(nvml: Any) -> Iterator[Gpu]:
    """What engines can run on: whole GPUs, and the instances of GPUs in MIG mode. ``index`` is the whole GPU's."""
    for index in range(nvml.nvmlDeviceGetCount()):
        with contextlib.suppress(nvml.NVMLError):  # a GPU that fell off the bus must not hide the others
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            whole = _gpu(nvml, handle, index)
            divided = _query(nvml, "DeviceGetMigMode", handle, default=(0, 0))[0]
            yield from _instances(nvml, handle, whole) if divided else [whole]


def _instances(nvml: Any, handle: Any, whole: Gpu) -> Iterator[Gpu]:
    for number in range(_query(nvml, "DeviceGetMaxMigDeviceCount", handle, default=0)):
        with contextlib.suppress(nvml.NVMLError):  # not every place holds one
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            gpu = _gpu(nvml, part, whole.index)
            yield replace(gpu, device=gpu.uuid, parent=whole.uuid, numa=whole.numa, link=whole.link)


def _gpu(nvml: Any, handle: Any, index: int) -> Gpu:
    memory = _query(nvml, "DeviceGetMemoryInfo", handle, default=None)
    return Gpu(
        index=index,
        device=str(index),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total=int(memory.total) if memory else 0,
        free=int(memory.free) if memory else 0,
        holders=tuple(_holders(nvml, handle)),
        numa=_numa(nvml, handle),
        link=_link(nvml, handle),
    )


def _holders(nvml: Any, handle: Any) -> Iterator[Holder]:
    """Processes on the GPU. In containers the pids may be the host's: good to name, never to kill."""
    for process in _query(nvml, "DeviceGetComputeRunningProcesses", handle, default=[]):
        yield Holder(int(process.pid), process.usedGpuMemory or None, _command(int(process.pid)))


def _command(pid: int) -> str:
    """The command of a process on a GPU; empty where the pid could be another process's in another namespace."""
    try:
        outside = Path("/proc/self/ns/pid").stat().st_ino == FIRST_PID_NAMESPACE
        if not outside and not any("/dev/nvidia" in str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()):
            return ""
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    return " ".join(words.split())[:80]


def _numa(nvml: Any, handle: Any) -> int | None:
    pci = _query(nvml, "DeviceGetPciInfo", handle, default=None)
    if match := re.fullmatch(r"0*([0-9A-Fa-f]{4}):(.*)", _text(pci.busId) if pci else ""):
        with contextlib.suppress(OSError, ValueError):
            node = int(Path(f"/sys/bus/pci/devices/{match[1]}:{match[2]}".lower(), "numa_node").read_text())
            return node if node >= 0 else None
    return None


def _link(nvml: Any, handle: Any) -> Link | None:
    names = ("CurrPcieLinkGeneration", "CurrPcieLinkWidth", "MaxPcieLinkGeneration", "MaxPcieLinkWidth")
    values = [int(_query(nvml, f"DeviceGet{name}", handle, default=0)) for name in names]
    return Link(*values) if all(values) else None


def _query(nvml: Any, question: str, *about: Any, default: Any) -> Any:
    """The answer, or the default where this GPU or driver does not know."""
    try:
        return getattr(nvml, f"nvml{question}")(*about)
    except nvml.NVMLError:
        return default


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
