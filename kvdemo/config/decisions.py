"""One decision, one place: flags, variables and fields that decide what a key of the profile decides.

kvdemo must know these things itself: where it asks, what it may take of a GPU, where KV lies, what an answer proves.
What is passed on beside the key would contradict it unseen, so each is refused where it stands, with what to write.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvdemo import backends
from kvdemo.backends.backend import READ
from kvdemo.config import flags
from kvdemo.config.part import Part
from kvdemo.config.settings import Cache, Engine

OWN_KEYS: Mapping[str, str] = {
    "device-ids": "gpus",
    "gpu-memory-utilization": "memory",
    "host": "host",
    "kv-cache-memory-bytes": "kv_cache",
    "max-model-len": "max_model_len",
    "model": "model",
    "port": "port",
    "served-model-name": "served_model_name",
}
"""Flags of engines that kvdemo must know and that therefore have a key: in ``args`` they would contradict it unseen.

Those of a cache server are its backend's (``own_keys``)."""

OWN_VARIABLES: Mapping[str, str] = {
    "CUDA_DEVICE_ORDER": "gpus",
    "CUDA_VISIBLE_DEVICES": "gpus",
    "HIP_VISIBLE_DEVICES": "gpus",
    "NVIDIA_VISIBLE_DEVICES": "gpus",
    "ROCR_VISIBLE_DEVICES": "gpus",
    "VLLM_CPU_KVCACHE_SPACE": "kv_cache",
    "VLLM_ENGINE_READY_TIMEOUT_S": "start_timeout",
}
"""Variables that decide what a key decides, and that key."""


def _always(_: Any) -> bool:
    return True


def _is_set(value: Any) -> bool:
    return value is not None


def _on(value: Any) -> bool:
    return value not in (None, False)


def _off(value: Any) -> bool:
    return value is False


def _off_or_left_out(value: Any) -> bool:
    return value in (None, False)


def _not(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: value is not None and str(value) not in allowed


def _equals(name: str) -> Callable[[Any], bool]:
    return lambda value: str(value) == name


def _names_lmcache(value: Any) -> bool:
    return "lmcache" in str(value).lower()


@dataclass(frozen=True)
class _Rule:
    # Refuses a flag where ``when`` holds for its value; ``cached``: only in engines with a cache, only in plain ones.
    text: str
    when: Callable[[Any], bool] = _is_set
    cached: bool | None = None


_WIRED = "an engine with a cache is wired by kvdemo to the cache server beside it; leave this flag out"
_BY_CACHE = "an engine without 'cache' is the baseline: write 'cache: NAME', and the cache server under 'caches'"
_HTTP = "kvdemo asks its engines over plain HTTP on 'host' and 'port'; leave this flag out, and put TLS in front of it"
_TEXT = "kvdemo asks for text over vLLM's OpenAI API, and an engine that does not answer there is never ready"

REMOVED: Mapping[str, str] = {
    "disable-frontend-multiprocessing": "leave it out",
    "disable-log-requests": "leave it out: requests are logged only with 'enable-log-requests: true'",
    "enable-prompt-adapter": "leave it out",
    "enable-reasoning": "leave it out: 'reasoning-parser' is enough",
    "guided-decoding-backend": "write 'structured-outputs-config: {backend: NAME}'",
    "lora-extra-vocab-size": "leave it out",
    "num-lookahead-slots": "leave it out",
    "num-scheduler-steps": "leave it out",
    "num-speculative-tokens": "write 'speculative-config: {model: NAME, num_speculative_tokens: N}'",
    "preemption-mode": "leave it out",
    "prompt-adapters": "leave it out",
    "rope-scaling": "write 'hf-overrides: {rope_parameters: {...}}'",
    "rope-theta": "write 'hf-overrides: {rope_parameters: {rope_theta: N}}'",
    "speculative-model": "write 'speculative-config: {model: NAME, num_speculative_tokens: N}'",
    "swap-space": "leave it out",
    "task": "leave it out, or write 'runner: generate'",
    "use-v2-block-manager": "leave it out",
    "worker-use-ray": "write 'distributed-executor-backend: ray'",
}
"""Flags that older documentation names and the parser of vLLM 0.32 does not know, and what to write instead."""

_RULES: dict[str, tuple[_Rule, ...]] = {
    "config": (_Rule("write the flags of that file here, under 'args': kvdemo must see what they decide"),),
    "convert": (_Rule(_TEXT, _not("auto", "none")),),
    "disable-log-stats": (_Rule(READ, _on),),
    "download-dir": (_Rule("models lie where Hugging Face keeps them: write 'env: {HF_HUB_CACHE: DIRECTORY}'"),),
    "enable-per-request-metrics": (_Rule(READ, _off_or_left_out),),
    "enable-prefix-caching": (
        _Rule(
            "kvdemo compares reuse with the engine's own prefix cache, and every trial's document is new: cold is "
            "cold with it; leave this flag out",
            _off,
        ),
    ),
    "enable-prompt-tokens-details": (_Rule(READ, _off_or_left_out),),
    "enable-ssl-refresh": (_Rule(_HTTP, _on),),
    "grpc": (_Rule(_TEXT, _on),),
    "headless": (_Rule(_TEXT, _on),),
    "help": (_Rule("it ends the engine before it starts; see `vllm serve --help` for every flag"),),
    "kv-offloading-backend": (_Rule(_WIRED, cached=True), _Rule(_BY_CACHE, _names_lmcache, cached=False)),
    "kv-offloading-size": (_Rule(_WIRED, cached=True),),
    "kv-transfer-config": (_Rule(_WIRED, _always, cached=True), _Rule(_BY_CACHE, _names_lmcache, cached=False)),
    "load-format": (_Rule("GGUF is not supported: name the repository that the file was made from", _equals("gguf")),),
    "runner": (_Rule(_TEXT, _not("auto", "generate")),),
    "skip-tokenizer-init": (_Rule(_TEXT, _on),),
    "ssl-ca-certs": (_Rule(_HTTP),),
    "ssl-cert-reqs": (_Rule(_HTTP),),
    "ssl-certfile": (_Rule(_HTTP),),
    "ssl-ciphers": (_Rule(_HTTP),),
    "ssl-keyfile": (_Rule(_HTTP),),
    "tokens-only": (_Rule(_TEXT, _on),),
    "uds": (_Rule("kvdemo asks its engines on 'host' and 'port'; leave this flag out"),),
}

_VARIABLES: dict[str, str] = {
    "KVDEMO_RUN": "by it kvdemo finds what an engine leaves behind; leave this variable out",
    "SPT_NOENV": "by its environment kvdemo finds what an engine leaves behind; leave this variable out",
    "VLLM_USE_MODELSCOPE": "kvdemo downloads models from Hugging Face: give a local directory as 'model'",
    "VLLM_RPC_BASE_PATH": "kvdemo gives each project a private directory for sockets; leave this variable out",
}


def own_keys(part: type[Part]) -> Mapping[str, str]:
    """The flags of this part of a profile that have a key, and that key; of a cache those of every kind."""
    if part is Engine:
        return OWN_KEYS
    every = backends.BACKENDS.values() if part is Cache else ()
    return {flag: key for one in every for flag, key in one.own_flags.items()}


def of_engine(flag: str, value: Any, *, cached: bool | None) -> Iterator[str]:
    """What is wrong with this flag and value; ``cached`` is None while it is not known whether the engine has a cache.

    Rules that depend on the cache hold for an engine as a whole, the others where its args or the defaults stand.
    """
    base = flag.partition(".")[0]
    if cached is None:
        yield from _name(base, OWN_KEYS, _RULES, "vLLM")
        if base in REMOVED:
            yield f"vLLM 0.32 has no such flag: {REMOVED[base]}"
    for rule in _RULES.get(base, ()):
        if rule.cached is cached and rule.when(value):
            yield rule.text


def of_cache(flag: str, value: Any, kind: str) -> Iterator[str]:
    """What is wrong with this flag and value of a cache server of this kind."""
    base, backend = flag.partition(".")[0], backends.of(kind)
    yield from _name(base, backend.own_flags, backend.refused_flags, backend.title)
    if (refusal := backend.refused_flags.get(base)) and refusal.holds(value):
        yield refusal.text


def _name(flag: str, own: Mapping[str, str], rules: Mapping[str, Any], program: str) -> Iterator[str]:
    """A flag that has a key, or that its program takes for another one."""
    if key := own.get(flag):
        yield f"this flag has a key of its own: write '{key}' outside of args"
    elif whole := _abbreviation_of(flag, own, rules):
        yield f"{program} reads this as --{whole}: write a flag's whole name"


def _abbreviation_of(flag: str, *tables: Mapping[str, Any]) -> str:
    """The flag that a parser would take this beginning of its name for; empty if it is a name of its own."""
    names = {name for names in tables for name in names}
    if flag in names or flag in _WHOLE:
        return ""
    return next((name for name in sorted(names) if name.startswith(flag)), "")


_WHOLE = frozenset({"api-key", "enable", "hf-token"})
"""Whole names that begin another flag's name, or that have a rule elsewhere."""


def of_variable(name: str) -> str:
    """What is wrong with setting this variable; empty if nothing is."""
    of_backends = backends.BACKENDS.values()
    keys = ChainMap(*(dict(one.own_variables) for one in of_backends), dict(OWN_VARIABLES))
    if key := keys.get(name):
        return f"this variable decides what a key decides: write '{key}' instead"
    return ChainMap(*(dict(one.refused_variables) for one in of_backends), _VARIABLES).get(name, "")


def block_size(engine: Engine, cache: Cache) -> str:
    """What is wrong between an engine's block size and its cache's chunks; empty if nothing is known to be."""
    size = {flags.canonical(name): value for name, value in engine.args.items()}.get("block-size")
    if isinstance(size, str) and size.isdigit():
        size = int(size)
    backend = backends.of(cache.kind)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        return ""
    if backend.chunk_is_block and size != cache.chunk_size:
        return f"{backend.title} stores whole blocks of the engine: leave it out, and write 'chunk_size' of the cache"
    if cache.chunk_size % size == 0:
        return ""
    return (
        f"{backend.title} takes chunks of whole blocks only: {size} does not divide chunk_size "
        f"{cache.chunk_size} of the cache"
    )


def lacking(cache: Cache, key: str) -> str:
    """Why this key of a cache means nothing to its backend; empty if it does."""
    return backends.of(cache.kind).lacks.get(key, "") if getattr(cache, key) else ""
