"""Which of the user's own variables a service inherits.

An allow list: a cache server's HTTP front end may show its whole environment to whoever asks, and an engine's
environment is part of what a benchmark measured. Secrets reach engines only, and only those that the profile names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NAMES = frozenset(
    [
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "LOGNAME",
        "PATH",
        "PYTHONPATH",
        "REQUESTS_CA_BUNDLE",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TERM",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    ]
)
PREFIXES = (
    "CUDA_",
    "GLOO_",
    "HF_",
    "LC_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "TORCH",
    "TRANSFORMERS_",
    "VLLM_",
    "XDG_",
)
DECIDED = frozenset(["VLLM_CPU_KVCACHE_SPACE"])
"""Whole GiB, which vLLM's CPU build takes instead of the bytes that its command says."""

SENSITIVE = ("KEY", "PASSWORD", "PASSWD", "SECRET", "TOKEN", "CREDENTIAL")


def inherit(environ: Mapping[str, str]) -> dict[str, str]:
    """The harmless part of ``environ`` that engines and caches need to work at all."""
    return {
        name: value
        for name, value in environ.items()
        if (name in NAMES or name.startswith(PREFIXES) or name.lower().endswith("_proxy"))
        and name not in DECIDED
        and not any(word in name.upper() for word in SENSITIVE)
    }


def of_service(environ: Mapping[str, str], env: Mapping[str, str], secrets: Iterable[str]) -> dict[str, str]:
    """The whole environment of a service: inherited, then its own, then the values of its secrets."""
    return inherit(environ) | dict(env) | {name: environ[name] for name in secrets if environ.get(name)}
