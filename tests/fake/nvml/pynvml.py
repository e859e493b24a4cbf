"""A stand-in for nvidia-ml-py on a machine without GPUs: answers from the JSON file that FAKE_NVML names.

``init`` is the code of the error that nvmlInit ends with. A GPU has uuid, name, total, free, bus, link (generation,
width, both at most), processes (pid, memory), utilization (percent), ``lost``, and in MIG mode its instances. What it
lacks is not supported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
TEXTS = {15: "GPU is lost", 18: "Driver/library version mismatch"}


class NVMLError(Exception):
    """As in the real one: the code is ``value``."""

    def __init__(self, value: int) -> None:
        super().__init__(TEXTS.get(value, f"error {value}"))
        self.value = value


def _machine() -> Any:
    return json.loads(Path(os.environ["FAKE_NVML"]).read_text())


def _known(handle: Mapping[str, Any], name: str) -> Any:
    if name not in handle:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return handle[name]


def nvmlInit() -> None:
    if code := _machine().get("init", 0):
        raise NVMLError(code)


def nvmlShutdown() -> None:
    return


def nvmlSystemGetDriverVersion() -> str:
    return str(_machine()["driver"])


def nvmlSystemGetCudaDriverVersion() -> int:
    return int(_machine()["cuda"])


def nvmlDeviceGetCount() -> int:
    return len(_machine()["gpus"])


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    gpu = _machine()["gpus"][index]
    if gpu.get("lost"):
        raise NVMLError(NVML_ERROR_GPU_IS_LOST)
    return gpu


def nvmlDeviceGetHandleByUUID(uuid: str) -> Any:
    found = [gpu for gpu in _machine()["gpus"] if gpu["uuid"] == uuid]
    if not found:
        raise NVMLError(NVML_ERROR_NOT_FOUND)
    return found[0]


def nvmlDeviceGetUtilizationRates(handle: Any) -> Any:
    return SimpleNamespace(gpu=_known(handle, "utilization"))


def nvmlDeviceGetUUID(handle: Any) -> str:
    return str(_known(handle, "uuid"))


def nvmlDeviceGetName(handle: Any) -> bytes:
    return str(_known(handle, "name")).encode()  # older ones answer bytes


def nvmlDeviceGetMemoryInfo(handle: Any) -> Any:
    return SimpleNamespace(total=_known(handle, "total"), free=_known(handle, "free"))


def nvmlDeviceGetComputeRunningProcesses(handle: Any) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in _known(handle, "processes")]


def nvmlDeviceGetPciInfo(handle: Any) -> Any:
    return SimpleNamespace(busId=_known(handle, "bus"))


def nvmlDeviceGetMigMode(handle: Any) -> list[int]:
    return [1, 1] if _known(handle, "instances") is not None else [0, 0]


def nvmlDeviceGetMaxMigDeviceCount(handle: Any) -> int:
    return len(_known(handle, "instances")) + 1


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Any, index: int) -> Any:
    if index >= len(handle["instances"]):
        raise NVMLError(NVML_ERROR_NOT_FOUND)
    return handle["instances"][index]


def nvmlDeviceGetCurrPcieLinkGeneration(handle: Any) -> int:
    return int(_known(handle, "link")[0])


def nvmlDeviceGetCurrPcieLinkWidth(handle: Any) -> int:
    return int(_known(handle, "link")[1])


def nvmlDeviceGetMaxPcieLinkGeneration(handle: Any) -> int:
    return int(_known(handle, "link")[2])


def nvmlDeviceGetMaxPcieLinkWidth(handle: Any) -> int:
    return int(_known(handle, "link")[3])
