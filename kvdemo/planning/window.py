"""How long a sequence may be: what a model's config allows, as vLLM derives it, and what an engine is told. Pure.

Source: ``_get_and_verify_max_len`` in vllm/config/model.py (0.32). An earlier vLLM multiplied for YaRN too, so what is
refused is only what none of them takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kvdemo.config import flags

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine
    from kvdemo.planning.facts import Model

_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_SCALED_ALREADY = frozenset(
    {"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope"}
)
"""Kinds of rope scaling whose factor is in ``max_position_embeddings`` already."""


def of_config(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that vLLM takes by default from this config's text part, in tokens; None if unknown."""
    longest = _context_in_config(config)
    if longest is None:
        return None
    for rope in _ropes(config):
        kind = rope.get("rope_type") or rope.get("type")
        original = config.get("original_max_position_embeddings")
        if kind == "longrope" and isinstance(original, int):
            return original
        if kind not in _SCALED_ALREADY and "gemma3" not in str(config.get("model_type")):
            longest = int(longest * _factor(rope))
    return longest


def limit(config: Mapping[str, Any]) -> int | None:
    """More than this no vLLM takes without an override; None if unknown."""
    longest, in_config = of_config(config), _context_in_config(config)
    if longest is None or in_config is None:
        return None
    stretched = [
        int(_factor(rope) * original)
        for rope in _ropes(config)
        if isinstance(original := rope.get("original_max_position_embeddings", in_config), int)
    ]
    return max([longest, in_config, *stretched])


def of_engine(engine: Engine, model: Model) -> int | None:
    """The longest sequence of this engine, prompt and answer, in tokens; None if only the engine itself can tell."""
    if engine.max_model_len is not None:
        return None if engine.max_model_len == "auto" else engine.max_model_len
    changed = overrides(engine)
    if any(name.startswith("rope") for name in changed):
        return None
    return _context_in_config(changed) or model.context


def allows_longer_context(environ: Mapping[str, str]) -> bool:
    """Whether this environment lets vLLM go beyond what the model's files say."""
    return environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0").lower() in ("1", "true")


def overridden(engine: Engine) -> bool:
    """Whether the profile says that this engine may go beyond what the model's files say."""
    return allows_longer_context(engine.env) or any(
        name in _LENGTHS or name.startswith("rope") for name in overrides(engine)
    )


def overrides(engine: Engine) -> dict[str, Any]:
    """What ``hf-overrides`` changes in the text part of the model's config: as YAML, as JSON, or by dotted flags."""
    changed: dict[str, Any] = {}
    for name, value in engine.args.items():
        flag, _, field = flags.canonical(name).partition(".")
        if flag != "hf-overrides":
            continue
        if field:
            changed[field.removeprefix("text_config.").partition(".")[0]] = value
        else:
            changed |= _mapping(value)
    return changed | _mapping(changed.get("text_config"))


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return dict(value) if isinstance(value, Mapping) else {}


def _context_in_config(config: Mapping[str, Any]) -> int | None:
    lengths = [config[name] for name in _LENGTHS if isinstance(config.get(name), int) and config[name] is not True]
    return min((length for length in lengths if length > 0), default=None)


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rope parameters: one mapping, or one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if isinstance(rope, Mapping):
            parts = [part for part in rope.values() if isinstance(part, Mapping)]
            yield from parts if parts and not ({"rope_type", "type"} & rope.keys()) else [rope]
            return


def _factor(rope: Mapping[str, Any]) -> float:
    factor = rope.get("factor")
    return float(factor) if isinstance(factor, int | float) and factor and factor > 0 else 1.0
