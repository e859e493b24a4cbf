"""Machines with GPUs for the tests: recorded facts, told by a stand-in for NVIDIA's library."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).parent / "fake" / "nvml"
H200: dict[str, Any] = json.loads((HOME / "h200.json").read_text())
GIB = 1024**3


def machine(*changes: dict[str, Any], **top: Any) -> dict[str, Any]:
    """A machine with one H200 for each mapping of changes; each has a UUID of its own."""
    made = copy.deepcopy(H200) | top
    made["gpus"] = [copy.deepcopy(H200["gpus"][0]) | {"uuid": f"GPU-{n}00"} | one for n, one in enumerate(changes)]
    return made


def stand_in() -> Any:
    """The library that tells them."""
    spec = importlib.util.spec_from_file_location("pynvml", HOME / "pynvml.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(patch: pytest.MonkeyPatch, path: Path, told: dict[str, Any]) -> Path:
    """Make this process see the machine; the file may be written anew at any time."""
    file = path / "nvml.json"
    file.write_text(json.dumps(told))
    patch.setenv("FAKE_NVML", str(file))
    patch.setitem(sys.modules, "pynvml", stand_in())
    return file
