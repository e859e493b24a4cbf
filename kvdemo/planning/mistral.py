"""A model in Mistral's own format: ``params.json`` in the names of Hugging Face's ``config.json``. Pure.

Source: vllm/transformers_utils/configs/mistral.py (0.32), which does the same before it loads such a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PARAMS = "params.json"
WEIGHTS = "consolidated*.safetensors"
INDEX = "consolidated.safetensors.index.json"

_WINDOW = 128_000
"""The longest sequence of a model that names none, as vLLM takes it."""

_NAMES = {
    "dim": "hidden_size",
    "norm_eps": "rms_norm_eps",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "tied_embeddings": "tie_word_embeddings",
}
_EXPERTS = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}
_ROUTED = {
    "num_experts": "n_routed_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "first_k_dense_replace": "first_k_dense_replace",
}


def config(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same sizes in the names of a ``config.json``."""
    config = {_NAMES.get(name, name): value for name, value in params.items()}
    config.setdefault("max_position_embeddings", _WINDOW)
    config.setdefault("max_seq_len", config["max_position_embeddings"])
    experts = params.get("moe")
    if isinstance(experts, Mapping):
        names = _ROUTED if experts.get("num_shared_experts") else _EXPERTS
        config |= {names[name]: value for name, value in experts.items() if name in names}
    windows = params.get("sliding_window")
    if isinstance(windows, list):
        config["sliding_window"] = next((window for window in windows if window), None)
    if params.get("quantization"):
        config["quantization_config"] = params["quantization"]
    yarn = params.get("yarn")
    if isinstance(yarn, Mapping):
        config["rope_parameters"] = {"rope_type": "yarn", **yarn}
    return config
