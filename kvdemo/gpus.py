"""The GPUs of this machine through NVML. No driver, or none visible, is a normal answer: an empty tuple."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from kvdemo.facts import Gpu


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml  # noqa: PLC0415 (most verbs never ask)

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def detect(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Every GPU that CUDA programs started from here would see, in their order.

    An outer CUDA_VISIBLE_DEVICES is honoured: GPU 0 is then the first one it names.
    """
    with _nvml() as nvml:
        if not nvml:
            return ()
        physical = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(physical)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    chosen = [gpu for name in names for gpu in physical if name == gpu.device or gpu.uuid.startswith(name)]
    return tuple(Gpu(**{**vars(gpu), "index": index}) for index, gpu in enumerate(chosen))


def used(devices: frozenset[str] | None = None) -> dict[str, int]:
    """Bytes in use on each GPU (all, or those UUIDs): to see that memory came back."""
    with _nvml() as nvml:
        if not nvml:
            return {}
        found = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    return {gpu.uuid: gpu.total - gpu.free for gpu in found if devices is None or gpu.uuid in devices}


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        device=str(index),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total=int(memory.total),
        free=int(memory.free),
        holders=tuple(_holders(nvml, handle)),
    )


def _holders(nvml: Any, handle: Any) -> Iterator[str]:
    """Processes on the GPU. In containers the pids are the host's: good to name, never to kill."""
    with contextlib.suppress(nvml.NVMLError):
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            size = f" ({process.usedGpuMemory / 1024**3:.1f} GiB)" if process.usedGpuMemory else ""
            yield f"pid {process.pid}{size}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
