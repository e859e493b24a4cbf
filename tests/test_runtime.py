"""What an interpreter holds, and what a model's files say."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Lab
from kvdemo.host import packages, runtime

CONFIG = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 8,
    "dtype": "float16",
}


def model(path: Path, config: object = CONFIG, weights: bytes = b"weights") -> Path:
    """A model directory."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(weights)
    return path


def snapshot(home: Path, name: str = "org/model", **options: Any) -> Path:
    """A model as huggingface_hub stores it."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    found = model(repository / "snapshots" / "abc123", **options)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123\n")
    return found


def test_versions_of_another_interpreter(lab: Lab) -> None:
    """Read from package metadata, whichever distribution brings vllm."""
    found = runtime.interpreter(str(lab.python))
    python = ".".join(map(str, sys.version_info[:3]))
    assert found.versions == {"python": python, "vllm": "0.32.0", "lmcache": "0.5.6", "torch": "2.13.0"}
    assert found.problem == ""


@pytest.mark.parametrize("module", packages.SERVERS)
def test_where_the_server_is(tmp_path: Path, module: str) -> None:
    """The newest module that is there, found by its file; vLLM itself is not imported."""
    home = tmp_path / "site"
    for path in (home / "vllm" / "__init__.py", home / f"{module.replace('.', '/')}.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('imported')")
    assert runtime.interpreter(str(beside(tmp_path, home))).server == module


def test_both_servers() -> None:
    """Where both are (vLLM 0.32, 0.33), the new one: the old one is deprecated."""
    assert packages.inventory()["server"] in {"", packages.SERVERS[0]}


def test_a_stamp_of_the_packages(tmp_path: Path) -> None:
    """The same until a package is installed or removed, or a compiled part replaced under the same version."""
    home = tmp_path / "site"
    (home / "torch" / "lib").mkdir(parents=True)
    (home / "torch" / "__init__.py").write_text("")
    part = home / "torch" / "lib" / "libtorch.so"
    part.write_bytes(b"1")
    python = str(beside(tmp_path, home))
    stamps = [runtime.interpreter(python).stamp for _ in range(2)]
    part.write_bytes(b"22")
    stamps.append(runtime.interpreter(python).stamp)
    (home / "numpy").mkdir()
    stamps.append(runtime.interpreter(python).stamp)
    assert stamps[0] == stamps[1]
    assert len(set(stamps)) == 3


def beside(path: Path, home: Path) -> Path:
    """An interpreter with these packages and no others."""
    python = path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={home} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


def test_an_interpreter_without_engines(tmp_path: Path) -> None:
    """What is absent is named, and what to do."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    found = runtime.interpreter(str(bare))
    assert found.problem == f"vllm and torch not installed for {bare}"
    assert found.fix == "run scripts/setup, or set runtime.python to an interpreter that has them"
    assert set(found.versions) == {"python"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "No such file"),
        ("echo broken >&2; exit 3", "(broken)"),
        ("exit 3", "(exit code 3)"),
        ("true", "cannot be run"),
    ],
)
def test_an_interpreter_that_is_none(tmp_path: Path, script: str | None, said: str) -> None:
    """One line that says why, never a traceback."""
    path = tmp_path / "python"
    if script:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    found = runtime.interpreter(str(path))
    assert found.problem.startswith(f"the interpreter {path} cannot be run")
    assert said in found.problem
    assert "\n" not in found.problem


def test_a_model_directory(tmp_path: Path) -> None:
    """Shape, size and identity; K and V of 4 heads of 64 values of 2 bytes in 8 layers."""
    path = model(tmp_path / "m", {**CONFIG, "max_position_embeddings": 4096})
    found = runtime.model(str(path), {})
    assert (found.path, found.dtype, found.context, found.weight_bytes) == (str(path), "float16", 4096, 7)
    assert found.kv_bytes_per_token == 2 * 8 * 4 * 64 * 2
    assert (len(found.digest), found.problem, found.quantized) == (32, "", False)
    assert runtime.model(str(model(tmp_path / "q", {**CONFIG, "quantization_config": {}})), {}).quantized


def test_the_shape_of_a_multimodal_model(tmp_path: Path) -> None:
    """Its text part counts; what is not there is unknown, not guessed."""
    found = runtime.model(str(model(tmp_path / "a", {"text_config": CONFIG})), {})
    assert found.kv_bytes_per_token == 8192
    odd = runtime.model(
        str(model(tmp_path / "b", {"text_config": None, "num_attention_heads": 0, "hidden_size": 1})), {}
    )
    assert (odd.kv_bytes_per_token, odd.context, odd.dtype) == (None, None, "bfloat16")


def test_the_identity_of_weights(tmp_path: Path) -> None:
    """Other bytes or another config: another digest. The place and the time do not matter."""
    digest = runtime.model(str(model(tmp_path / "a")), {}).digest
    copy = shutil.copytree(tmp_path / "a", tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    assert runtime.model(str(copy), {}).digest == digest
    assert runtime.model(str(model(tmp_path / "b", weights=b"weightz")), {}).digest != digest
    assert runtime.model(str(model(tmp_path / "c", {**CONFIG, "rope_theta": 1})), {}).digest != digest


def test_large_weights_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a size on weights are read thinly; size and time still count."""
    monkeypatch.setattr(runtime, "LARGE", 4)
    path = model(tmp_path / "a")
    digest = runtime.model(str(path), {}).digest
    os.utime(path / "model.safetensors", (1, 1))
    assert runtime.model(str(path), {}).digest != digest


@pytest.mark.parametrize("config", ["[]", "{", "", "\xff"])
def test_a_broken_config(tmp_path: Path, config: str) -> None:
    """Told as a problem of the model."""
    path = model(tmp_path / "m")
    (path / "config.json").write_bytes(config.encode("latin-1"))
    assert "its config.json cannot be read" in runtime.model(str(path), {}).problem


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """A directory that is missing, and one whose weights lead nowhere (a cleaned-up download)."""
    absent = runtime.model(str(tmp_path / "x"), {})
    assert (absent.problem, absent.fix) == ("no such directory", "check `model`")
    assert runtime.model(str(tmp_path / ".cache" / "smollm2"), {}).fix == "scripts/setup makes it"
    path = model(tmp_path / "m")
    (path / "more.safetensors").symlink_to(tmp_path / "gone")
    assert "its weights cannot be read" in runtime.model(str(path), {}).problem


def test_a_hugging_face_model(tmp_path: Path) -> None:
    """Found in HF_HOME by its snapshot, whose name is its identity; unknown or half downloaded: not here."""
    path = snapshot(tmp_path)
    here = {"HF_HOME": str(tmp_path)}
    found = runtime.model("org/model", here)
    assert (found.path, found.problem) == (str(path), "")
    assert runtime.model("org/model", {"HF_HUB_CACHE": str(tmp_path / "hub")}).digest == found.digest
    assert runtime.model("org/model", {"XDG_CACHE_HOME": str(tmp_path / "none")}).path is None
    assert runtime.model("org/other", here).path is None
    (path / "model.safetensors").unlink()
    half = runtime.model("org/model", here)
    assert (half.path, half.digest, half.kv_bytes_per_token) == (None, "", 8192)


def test_revisions(tmp_path: Path) -> None:
    """By name or by commit; another one is not here."""
    path = snapshot(tmp_path)
    here = {"HF_HOME": str(tmp_path)}
    assert runtime.model("org/model", here, "abc123").path == str(path)
    assert runtime.model("org/model", here, "v2").path is None


def test_shards(tmp_path: Path) -> None:
    """All that the index names must be here; its sum of sizes counts, and no weights twice."""
    path = snapshot(tmp_path)
    names = [f"model-{n}-of-2.safetensors" for n in (1, 2)]
    index = {"metadata": {"total_size": 99}, "weight_map": dict(zip("ab", names, strict=True))}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / names[0]).write_bytes(b"x")
    here = {"HF_HOME": str(tmp_path)}
    assert (runtime.model("org/model", here).path, runtime.model("org/model", here).weight_bytes) == (None, 99)
    (path / names[1]).write_bytes(b"x")
    assert runtime.model("org/model", here).path == str(path)
    again = model(tmp_path / "m")
    (again / "consolidated.safetensors").write_bytes(b"weights")
    assert runtime.model(str(again), {}).weight_bytes == 7


def safetensors(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file with these tensors (dtype and shape), all zeros."""
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}
    head, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * sizes[dtype]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **head}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.mark.parametrize(
    ("config", "tensors", "dtype", "size"),
    [
        ({"dtype": "float32"}, {"a": ("F32", [10, 10]), "b": ("F32", [10])}, "bfloat16", 220),
        ({"dtype": "bfloat16"}, {"a": ("F32", [10, 10])}, "bfloat16", 200),
        ({"dtype": None}, {"a": ("F16", [10, 10]), "b": ("F32", [10])}, "float16", 220),
        ({"dtype": None}, {"a": ("F32", [10, 10])}, "bfloat16", 200),
        (
            {"dtype": "bfloat16", "quantization_config": {"quant_method": "awq"}},
            {"a": ("U8", [50]), "scale": ("F32", [10])},
            "bfloat16",
            90,
        ),
    ],
)
def test_weights_as_they_are_loaded(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, tuple[str, list[int]]], dtype: str, size: int
) -> None:
    """A float32 checkpoint is computed in bfloat16: half of the file. Quantized weights take what the file takes."""
    path = model(tmp_path / "m", CONFIG | config)
    for file in path.glob("*.safetensors"):
        file.unlink()
    safetensors(path / "model.safetensors", tensors)
    found = runtime.model(str(path), {})
    assert (found.dtype, found.weight_bytes) == (dtype, size)
    assert found.loaded_as("float32").weight_bytes == (size if found.quantized else 2 * size)


def test_a_quantization_beside_the_config(tmp_path: Path) -> None:
    """ModelOpt writes hf_quant_config.json: KV of one byte a value, as vLLM takes it by itself."""
    path = model(tmp_path / "m", CONFIG)
    (path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"kv_cache_quant_algo": "FP8"}}))
    found = runtime.model(str(path), {})
    assert (found.kv_dtype, found.kv_bytes_per_token, found.quantized) == ("fp8", 2 * 8 * 4 * 64, True)
    assert found.loaded_as("float32").kv_bytes_per_token == found.kv_bytes_per_token
