"""Which engines may share KV: those of equal weights, numeric flags and versions. Pure.

A backend's own key holds the model's name and the tokens only: KV of another build would be loaded, silently wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kvdemo import backends
from kvdemo.backends.store import is_server
from kvdemo.errors import ProfileError
from kvdemo.planning import engines, repositories
from kvdemo.planning.facts import Facts, Interpreter, Model
from kvdemo.planning.repositories import Repository

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine, Profile

# Flags that change the numbers in a KV block without changing the backend's key for it.
NUMERIC_FLAGS = (
    "calculate-kv-scales",
    "dtype",
    "enable-lora",
    "hf-overrides",
    "kv-cache-dtype",
    "load-format",
    "lora-modules",
    "model-loader-extra-config",
    "quantization",
    "revision",
    "seed",
)


COMPUTING = ("vllm", "torch")
"""Packages whose version makes KV another one."""


def python_of(profile: Profile, name: str, facts: Facts) -> str:
    """The interpreter of a service."""
    service = profile.caches.get(name) or profile.engines[name]
    return service.runtime.python or facts.default_python


def model_key(engine: Engine) -> str:
    """What tells one model of the profile from another."""
    return repositories.model(engine).key


def model_of(engine: Engine, facts: Facts) -> Model:
    """What is known about an engine's model, in the dtype that the engine computes in."""
    model = facts.models.get(model_key(engine), Model(engine.model))
    dtype = dtype_of(engine, facts)
    return model.loaded_as(dtype) if dtype else model


def dtype_of(engine: Engine, facts: Facts) -> str:
    """What the engine is told to compute in; empty if vLLM decides.

    float32 on a processor without AVX-512: vLLM would take bfloat16, and need up to three times as long. Quantized
    weights go with a half-precision dtype only.
    """
    arguments = engines.normalize(engine.args)
    if dtype := str(arguments.get("dtype", "")):
        return {"auto": "", "half": "float16", "float": "float32"}.get(dtype, dtype)
    model = facts.models.get(model_key(engine))
    quantized = "quantization" in arguments or (model is not None and model.quantized)
    return "" if engine.gpus or facts.wide or quantized else "float32"


def absent(profile: Profile, facts: Facts) -> list[Repository]:
    """What must be downloaded, each repository once: models, then draft models, adapters and tokenizers."""
    by_key: dict[str, Repository] = {}
    for engine in profile.engines.values():
        model = model_of(engine, facts)
        if not (model.path or model.problem):
            by_key.setdefault(model_key(engine), repositories.model(engine))
    for engine in profile.engines.values():
        for other in repositories.auxiliary(engine):
            if other.key not in facts.others:
                by_key.setdefault(other.key, other)
    return list(by_key.values())


def complete(engine: Engine, facts: Facts) -> bool:
    """Whether everything that an engine reads from Hugging Face is here, so that it can do without."""
    return bool(model_of(engine, facts).path) and all(one.key in facts.others for one in repositories.auxiliary(engine))


def fingerprint(engine: Engine, model: Model, interpreter: Interpreter, package: str) -> dict[str, str]:
    """What must be equal for one engine's KV to be right in another: weights, numeric flags, versions.

    ``package`` is that of the backend which carries it.
    """
    values = engines.normalize(engine.args)
    facts = {"model": engine.model, "digest": model.digest, "dtype": model.dtype}
    facts |= {flag: json.dumps(values[flag], sort_keys=True) for flag in NUMERIC_FLAGS if flag in values}
    return facts | {name: interpreter.versions[name] for name in (*COMPUTING, package) if name in interpreter.versions}


def fingerprints_of(
    profile: Profile, cache: str, facts: Facts, of_nodes: Mapping[str, Facts] | None = None
) -> dict[str, str]:
    """The fingerprint of each model whose engines share this cache; ``of_nodes`` are the facts of engines' own nodes.

    Raises ProfileError for engines of one model that must not share.
    """
    prints: dict[str, tuple[str, dict[str, str]]] = {}
    settings = profile.caches[cache]
    backend = backends.of(settings.kind)
    for name, engine in profile.engines.items():
        if engine.cache != cache:
            continue
        node_facts = (of_nodes or {}).get(name, facts)
        interpreter = node_facts.interpreters[python_of(profile, name, node_facts)]
        own_print = fingerprint(engine, model_of(engine, node_facts), interpreter, backend.package)
        other, other_print = prints.setdefault(engine.model, (name, own_print))
        if own_print != other_print:
            differ = sorted(
                key for key in own_print.keys() | other_print.keys() if own_print.get(key) != other_print.get(key)
            )
            raise ProfileError(
                f"engines {other} and {name} share cache '{cache}' but differ in "
                + ", ".join(
                    f"{key} ({other_print.get(key, 'default')} / {own_print.get(key, 'default')})" for key in differ
                )
                + ": KV of one would silently be wrong in the other",
                "make them equal, or give each its own cache",
            )
    extra = backend.fingerprint(settings.l2_adapter)
    return {model: json.dumps({**own_print, **extra}, sort_keys=True) for model, (_, own_print) in prints.items()}


def store_of(l2: str | None, fingerprints: Mapping[str, str]) -> str:
    """L2 for exactly these weights, flags and versions, none of which the backend's own key knows.

    On disk that is a directory of their own. A server has no directories: whoever starts on it claims it for them
    (``stores.claim``).
    """
    if not l2 or is_server(l2):
        return l2 or ""
    return str(Path(l2) / digest(json.dumps(sorted(fingerprints.values()))))


def digest(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
