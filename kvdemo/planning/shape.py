"""What a model's config.json says about its size: parameters, KV cache, work of a prefill. Pure arithmetic.

Limits: transformers of the usual form (attention, gated MLP or experts). Of another one the parts that are not known
are None, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. ``active`` are the parameters that one token passes (fewer than all with experts).

    ``outer`` are those of embedding and output, which a prefill does not multiply by each token. ``windowed``: some
    layers keep the KV of the last tokens only. ``mlp`` are the values of one token in the buffers of the widest MLP.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    parameters: int
    active: int
    outer: int
    windowed: bool = False
    mlp: int = 0
    vocabulary: int = 0

    def linear_flops(self, tokens: int) -> float:
        """Work of the matrix products of a prefill."""
        return 2.0 * (self.active - self.outer) * tokens

    def attention_flops(self, tokens: int) -> float:
        """Work of causal attention over a prompt: scores and values, each half a square."""
        return 2.0 * self.layers * self.heads * self.head * tokens**2


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about text of a multimodal model's config; else the config."""
    return config["text_config"] if isinstance(config.get("text_config"), dict) else config


def width(config: Mapping[str, Any]) -> int:
    """Bytes of a value of the model's dtype."""
    return WIDTHS.get(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"), 2)


def kv_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """K and V, of every layer and KV head: 2 x layers x heads x head size x bytes per value; or MLA's one vector."""
    try:
        layers = config["num_hidden_layers"]
        if latent := config.get("kv_lora_rank"):
            return int(layers * (latent + config["qk_rope_head_dim"]) * width(config))
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return int(2 * layers * heads * size * width(config))
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def of(config: Mapping[str, Any]) -> Shape | None:
    """The shape of a model with this config, or None if it is not of the usual form."""
    try:
        hidden, layers, heads = (int(config[k]) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head = int(config.get("head_dim") or hidden // heads)
        vocabulary = int(config["vocab_size"])
        experts = int(config.get("num_local_experts") or config.get("num_experts") or 1)
        chosen = int(config.get("num_experts_per_tok") or 1)
        inner = int((config.get("moe_intermediate_size") if experts > 1 else 0) or config["intermediate_size"])
        if config.get("kv_lora_rank") or config.get("n_routed_experts"):
            return None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    attention = hidden * head * (2 * heads + 2 * kv_heads)
    mlp, gate = 3 * hidden * inner, hidden * experts if experts > 1 else 0
    outer = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    norms = (2 * layers + 1) * hidden
    total = layers * (attention + gate + experts * mlp) + outer + norms
    active = layers * (attention + gate + chosen * mlp) + outer + norms
    windowed = bool(config.get("sliding_window")) and config.get("use_sliding_window") is not False
    # Of a dense MLP gate, up and their product; of experts the buffers of vLLM's fused_moe for each chosen one.
    buffers = chosen * (max(2 * inner, hidden) + inner) if experts > 1 else 3 * inner
    return Shape(
        layers, hidden, heads, kv_heads, head, inner, total, active, outer, windowed, mlp=buffers, vocabulary=vocabulary
    )
