"""Flags of `vllm serve` and `lmcache server`: their names as a profile may write them, and which of them take what.

Only what a value alone cannot say stands here: most flags need no entry. Source: the parsers of vLLM 0.32
(vllm/engine/arg_utils.py, vllm/entrypoints/launchers/cli_args.py) and of LMCache 0.5.6 (lmcache/v1/*/config.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

SHORT: Mapping[str, str] = {
    "O": "optimization-level",
    "ac": "attention-config",
    "asc": "api-server-count",
    "cc": "compilation-config",
    "dc": "diffusion-config",
    "dcp": "decode-context-parallel-size",
    "device-memory-utilization": "gpu-memory-utilization",
    "dp": "data-parallel-size",
    "dpa": "data-parallel-address",
    "dpb": "data-parallel-backend",
    "dpe": "data-parallel-external-lb",
    "dph": "data-parallel-hybrid-lb",
    "dpl": "data-parallel-size-local",
    "dpm": "data-parallel-multi-port-external-lb",
    "dpn": "data-parallel-rank",
    "dpp": "data-parallel-rpc-port",
    "dpr": "data-parallel-start-rank",
    "ep": "enable-expert-parallel",
    "h": "help",
    "n": "nnodes",
    "pcp": "prefill-context-parallel-size",
    "pp": "pipeline-parallel-size",
    "q": "quantization",
    "r": "node-rank",
    "sc": "speculative-config",
    "tp": "tensor-parallel-size",
}
"""Second names of vLLM's flags."""

APPENDED = frozenset({"l1-manager", "l2-adapter", "middleware", "server-module"})
"""Flags that are repeated for each item of a list."""

JSON_LISTS = frozenset({"allowed-headers", "allowed-methods", "allowed-origins"})
"""Flags that take a list as one JSON text."""

COMMA_LISTS = frozenset({"device-ids", "disable-access-log-for-endpoints", "tool-server"})
"""Flags that take a list as one text with commas."""

OBJECTS = frozenset({"lora-modules"})
"""Flags that take a JSON object for each word."""

SWITCHES = frozenset(
    {
        "aggregate-engine-logging",
        "coordinator-event-reporting",
        "coordinator-l2-event-reporting",
        "data-parallel-multi-port-external-lb",
        "disable-grpc-metrics",
        "disable-log-stats",
        "disable-logging",
        "disable-metrics",
        "disable-observability",
        "enable-blend-reorder",
        "enable-dedup-content",
        "enable-extra-logging",
        "enable-gc-monitor",
        "enable-segmented-prefix",
        "enable-tracing",
        "grpc",
        "headless",
    }
)
"""Flags that are off unless they are there: they have no `--no-` form."""

PATHS = frozenset(
    {
        "allowed-local-media-path",
        "chat-template",
        "download-dir",
        "gds-l1-path",
        "l1-devdax-path",
        "log-config-file",
        "lookup-hash-log-dir",
        "mm-encoder-fp8-scale-path",
        "mm-encoder-fp8-scale-save-path",
        "reasoning-parser-plugin",
        "runtime-plugin-locations",
        "tool-parser-plugin",
        "trace-output",
    }
)
"""Flags whose value is a path whatever it looks like (but for a chat template that is written out)."""

_NUMBER = re.compile(r"-[0-9]*\.?[0-9]+")


def canonical(name: str) -> str:
    """The long name of a flag without dashes in front, such as ``max-model-len`` for ``--max_model_len``.

    What follows a dot is a field of a JSON value and keeps its underscores, as vLLM keeps them.
    """
    flag, dot, fields = name.lstrip("-").partition(".")
    flag = flag.replace("_", "-")
    return SHORT.get(flag, flag) + dot + fields


def words(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Render ``{"max-model-len": 16, "enforce-eager": True}`` as command-line words.

    True is a bare flag, False its ``--no-`` form, None leaves the flag out, a mapping becomes JSON, a list what its
    flag takes: several words, one JSON text, or the flag again and again.
    """
    return tuple(word for name, value in arguments.items() for word in _words(canonical(name), value))


def _words(name: str, value: Any) -> list[str]:
    flag = f"--{name}"
    if value is None:
        return []
    if isinstance(value, bool) and "." not in name:
        off = [] if name in SWITCHES else [f"--no-{name}"]
        return [flag] if value else off
    items = _items(name, value)
    if name in APPENDED:
        return [word for item in items for word in _pair(flag, item)]
    return _pair(flag, items[0]) if len(items) == 1 else [flag, *items]


def _pair(flag: str, value: str) -> list[str]:
    """A flag and its value; in one word where the value would be taken for a flag."""
    return [f"{flag}={value}"] if value.startswith("-") and not _NUMBER.fullmatch(value) else [flag, value]


def _items(name: str, value: Any) -> list[str]:
    """The words behind a flag."""
    if name in OBJECTS and isinstance(value, str) and value.lstrip().startswith("["):
        value = _parse_json(value)
    if name in JSON_LISTS:
        return [value if isinstance(value, str) and value.lstrip().startswith("[") else _json(_as_list(value))]
    if "." in name and not isinstance(value, str):
        return [_json(value)]
    if name in COMMA_LISTS:
        return [",".join(map(_text, _as_list(value)))]
    return [_text(item) for item in _as_list(value)]


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _text(value: Any) -> str:
    return _json(value) if isinstance(value, Mapping | list | bool) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
