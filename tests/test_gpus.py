"""GPU facts from NVML: what a recorded machine says, and a library or a GPU that does not answer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pynvml
import pytest

from kvdemo.host import gpus
from kvdemo.planning.facts import Driver, Gpu, Link
from nvml import GIB, H200, install, machine, stand_in

MIG = {
    "instances": [
        {"uuid": f"MIG-{n}aa", "name": "NVIDIA H200 MIG 3g.71gb", "total": 70 * GIB, "free": 69 * GIB, "processes": []}
        for n in range(2)
    ]
}


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Make this process see a machine."""
    return lambda told: install(monkeypatch, tmp_path, told)


def uuids(found: tuple[Gpu, ...]) -> list[str]:
    """Which ones."""
    return [gpu.uuid for gpu in found]


def test_this_machine() -> None:
    """The real library answers, or there is no driver; neither is an error."""
    found = gpus.detect({})
    assert bool(found) == bool(gpus.driver().version)
    assert set(gpus.memory_in_use()) == set(uuids(found))


def test_the_stand_in_is_like_the_library() -> None:
    """It offers nothing that the real one does not have, under the same names and codes."""
    names = {name for name in vars(stand_in()) if name.lower().startswith("nvml")}
    assert names <= set(vars(pynvml))
    assert all(getattr(stand_in(), n) == getattr(pynvml, n) for n in names if n.startswith("NVML_"))


def test_an_h200(see: Any) -> None:
    """Everything that is known of it."""
    see(H200)
    (gpu,) = gpus.detect({})
    assert (gpu.index, gpu.device, gpu.name, gpu.parent, gpu.holders) == (0, "0", "NVIDIA H200", "", ())
    assert (gpu.total // 1024**2, gpu.free) == (143771, H200["gpus"][0]["free"])
    assert gpu.link == Link(5, 16, 5, 16)
    assert gpus.driver() == Driver("580.159.04", "13.0")
    assert gpus.memory_in_use() == {gpu.uuid: gpu.total - gpu.free}


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1,0", ["GPU-100", "GPU-000"]),
        (" GPU-2 ", ["GPU-200"]),
        ("GPU-", []),
        ("0,7,1", ["GPU-000"]),
        ("0,-1,1", ["GPU-000"]),
        ("0,0", ["GPU-000"]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_an_outer_choice_is_honoured(see: Any, visible: str, expected: list[str]) -> None:
    """As CUDA does: in that order, unique beginnings of UUIDs, and nothing from the first wrong name on."""
    see(machine({}, {}, {}))
    found = gpus.detect({"CUDA_VISIBLE_DEVICES": visible})
    assert uuids(found) == expected
    assert [gpu.index for gpu in found] == list(range(len(expected)))
    assert [gpu.device for gpu in found] == [uuid[4] for uuid in expected]


def test_mig_instances_stand_for_their_gpu(see: Any) -> None:
    """Each one is a device of its own; the GPU itself is none any more, but names its first instance."""
    see(machine(MIG, {}))
    found = gpus.detect({})
    assert [(gpu.index, gpu.device, gpu.parent) for gpu in found] == [
        (0, "MIG-0aa", "GPU-000"),
        (1, "MIG-1aa", "GPU-000"),
        (2, "1", ""),
    ]
    assert found[0].link == Link(5, 16, 5, 16)
    for visible, uuid in (("MIG-1aa", "MIG-1aa"), ("0", "MIG-0aa"), ("GPU-000", "MIG-0aa"), ("MIG-1", "MIG-1aa")):
        assert uuids(gpus.detect({"CUDA_VISIBLE_DEVICES": visible})) == [uuid]
    assert set(gpus.memory_in_use()) == {"MIG-0aa", "MIG-1aa", "GPU-100"}


def test_who_holds_a_gpu(see: Any) -> None:
    """Pid and size; the command too unless the pid may be that of another namespace."""
    see(machine({"processes": [[os.getpid(), 5 * GIB], [2**22 + 1, None]]}))
    ours, gone = gpus.detect({})[0].holders
    assert str(ours).startswith(f"pid {os.getpid()} (5.0 GiB)")
    assert (gone.memory, gone.command, str(gone)) == (None, "", f"pid {2**22 + 1}")
    outside = Path("/proc/self/ns/pid").stat().st_ino == gpus.FIRST_PID_NAMESPACE
    assert bool(ours.command) == outside


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, ""),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, ""),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "NVML: Driver/library version mismatch"),
    ],
)
def test_no_usable_driver(see: Any, code: int, problem: str) -> None:
    """No GPU, no error; what is wrong is told where something is."""
    see({"init": code})
    assert (gpus.detect({}), gpus.memory_in_use(), gpus.driver()) == ((), {}, Driver(problem=problem))


def test_a_gpu_that_fell_off_the_bus(see: Any) -> None:
    """It does not hide the others, whose numbers stay, and is told."""
    see(machine({"lost": True}, {}))
    assert [(gpu.device, gpu.uuid) for gpu in gpus.detect({})] == [("1", "GPU-100")]
    assert gpus.driver().problem == "GPU 0: GPU is lost"


def test_a_gpu_that_tells_little(see: Any) -> None:
    """Memory shared with the host, no PCIe, no list of processes: unknown, not an error."""
    see(H200 | {"gpus": [{"uuid": "GPU-x", "name": "NVIDIA GB10"}]})
    (gpu,) = gpus.detect({})
    assert (gpu.total, gpu.link, gpu.numa, gpu.holders, gpu.device) == (0, None, None, (), "0")


def test_memory_that_comes_back(see: Any) -> None:
    """What is in use is asked anew each time."""
    file = see(machine({"free": 10 * GIB, "total": 12 * GIB}))
    assert gpus.memory_in_use(frozenset({"GPU-000"})) == {"GPU-000": 2 * GIB}
    file.write_text(json.dumps(machine({"free": 12 * GIB, "total": 12 * GIB})))
    assert gpus.memory_in_use() == {"GPU-000": 0}
    assert gpus.memory_in_use(frozenset()) == {}
