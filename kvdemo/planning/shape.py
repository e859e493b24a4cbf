"""What a model's config.json says about its size: parameters, KV cache, work of a prefill. Pure arithmetic.

Limits: transformers of the usual form (attention or MLA, a gated MLP or experts in some or all layers). Of another one
the parts that are not known are None, and nothing is guessed. What layers keep of a sequence is in ``layers``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvdemo.planning import layers
from kvdemo.planning.layers import Layers

Config = Mapping[str, Any]

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. ``active`` are the parameters that one token passes (fewer than all with experts).

    ``outer`` are those of embedding and output, which a prefill does not multiply by each token. ``mlp`` are the values
    of one token in the buffers of the widest MLP. ``keeps`` is what the layers keep of a sequence, None if that is not
    known.
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
    mlp: int = 0
    vocabulary: int = 0
    keeps: Layers | None = None

    def linear_flops(self, tokens: int) -> float:
        """Work of the matrix products of a prefill."""
        return 2.0 * (self.active - self.outer) * tokens

    def attention_flops(self, tokens: int) -> float:
        """Work of causal attention over a prompt: scores and values, each half a square; of a window, its part."""
        attending = self.keeps.attending if self.keeps else ()
        windows = [layer.window for layer in attending] or [None] * self.layers
        pairs = sum(_pairs(tokens, window) for window in windows)
        return 4.0 * self.heads * self.head * pairs


def _pairs(tokens: int, window: int | None) -> float:
    """Pairs of tokens that causal attention looks at."""
    if not window or window >= tokens:
        return tokens**2 / 2
    return window**2 / 2 + (tokens - window) * window


def text_config(config: Config) -> Config:
    """The part about text of a multimodal model's config; else the config.

    A quantization of the whole belongs to the part too.
    """
    for path in (("text_config",), ("llm_config",), ("language_config",), ("thinker_config", "text_config")):
        part: Any = config
        for key in path:
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping):
            whole = {key: config[key] for key in ("quantization_config", "dtype", "torch_dtype") if key in config}
            return {**whole, **part}
    return config


def width(config: Config) -> int:
    """Bytes of a value of the model's dtype."""
    return WIDTHS.get(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"), 2)


def kv_dtype(config: Config, quantization: Config | None = None) -> str:
    """The dtype of the KV cache that the checkpoint itself asks for: fp8, "unknown" if it is another, "" if none.

    vLLM takes it for ``kv-cache-dtype: auto``: compressed-tensors' ``kv_cache_scheme`` and ModelOpt's
    ``kv_cache_quant_algo``, in config.json or in hf_quant_config.json (``quantization``).
    """
    settings = {**(config.get("quantization_config") or {}), **((quantization or {}).get("quantization") or {})}
    nested = settings.get("quantization")
    inner = nested.get("kv_cache_quant_algo") if isinstance(nested, Mapping) else None
    algorithm = settings.get("kv_cache_quant_algo") or inner
    scheme = settings.get("kv_cache_scheme")
    if algorithm:
        return "fp8" if str(algorithm).upper() == "FP8" else "unknown"
    if isinstance(scheme, Mapping):
        return "fp8" if (scheme.get("num_bits"), scheme.get("type")) == (8, "float") else "unknown"
    return ""


def kv_bytes_per_token(config: Config, quantization: Config | None = None) -> int | None:
    """Bytes of a token in the KV cache of all layers together, in the dtype that vLLM takes by itself; None if unknown.

    Of attention that is 2 x KV heads x head size a layer; of MLA one latent vector, exactly as long as it is stored.
    """
    settings = kv_dtype(config, quantization)
    keeps = layers.of(config)
    if keeps is None or settings == "unknown":
        return None
    # A float32 checkpoint is computed in bfloat16, so its KV is kept in that.
    return keeps.values() * (1 if settings == "fp8" else min(2, width(config)))


def of(config: Config) -> Shape | None:
    """The shape of a model with this config, or None if it is not of the usual form."""
    try:
        return _of(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


# Absent in config.json: embedding and output are one (transformers 5.19). Else they are two.
TIED = re.compile(r"gemma|cohere|smollm3|ernie4_5|lfm2")

USUAL = re.compile(
    r"|llama|llama4_text|(ministral3?|mistral|mixtral)|qwen[23](_moe)?|qwen2(_5)?_vl(_text)?|qwen3_vl(_moe)?_text"
    r"|gemma[23]?(_text)?|phi3|phimoe|granite|granitemoe(shared)?|olmo[23]?|olmoe|gpt_oss|glm4?|glm4_moe(_lite)?"
    r"|deepseek_v[23]|kimi_k2|cohere2?|internlm[23]|baichuan|minimax_m2|ernie4_5(_moe)?|seed_oss|smollm3|exaone4?"
    r"|hunyuan_v1_dense|stablelm|dots1|mimo|bailing_moe|solar|yi|aquila|internlm|xverse|orion"
)
"""Types of models whose MLPs are gated (gate, up, down) and whose attention is Q, K, V and output, or MLA."""


def _of(config: Config) -> Shape | None:
    kind = str(config.get("model_type") or "")
    activation = str(config.get("hidden_act") or config.get("mlp_hidden_act") or "")
    keeps = layers.of(config)
    recurrent = keeps is not None and (keeps.recurrent or len(keeps.attending) != int(config["num_hidden_layers"]))
    if not USUAL.fullmatch(kind) or activation.startswith("relu") or recurrent:
        return None
    hidden, count, heads = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    vocabulary = int(config["vocab_size"])
    mlps = _mlps(config, count, hidden)
    if config.get("kv_lora_rank"):
        kv_heads, head, attention = heads, int(config["qk_nope_head_dim"]), _latent_attention(config, hidden, heads)
        head += int(config["qk_rope_head_dim"])
    else:
        size = layers.kv_heads(config)
        if isinstance(size, list):
            return None
        kv_heads, head = size, layers.head_size(config)
        attention = hidden * head * (2 * heads + 2 * kv_heads)
    tied = config.get("tie_word_embeddings", bool(TIED.match(kind)))
    outer = vocabulary * hidden * (1 if tied else 2)
    rest = count * attention + outer + (2 * count + 1) * hidden
    return Shape(
        layers=count,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head=head,
        inner=max(mlp.inner for mlp in mlps),
        parameters=rest + sum(mlp.parameters for mlp in mlps),
        active=rest + sum(mlp.active for mlp in mlps),
        outer=outer,
        mlp=max(mlp.values for mlp in mlps),
        vocabulary=vocabulary,
        keeps=keeps,
    )


def _latent_attention(config: Config, hidden: int, heads: int) -> int:
    """Parameters of MLA: queries (through their own latent vector, if they have one), latent, expansion, output."""
    no_rope, rope, value = (int(config[key]) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    latent, of_queries = int(config["kv_lora_rank"]), config.get("q_lora_rank")
    queries = int(of_queries) * (hidden + heads * (no_rope + rope)) if of_queries else hidden * heads * (no_rope + rope)
    return queries + hidden * (latent + rope) + latent * heads * (no_rope + value) + heads * value * hidden


@dataclass(frozen=True)
class Mlp:
    """The MLP of one layer: parameters, those that one token passes, width, and values of a token in its buffers."""

    parameters: int
    active: int
    inner: int
    values: int


NUMBERS_OF_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk")
UNDERSTOOD = frozenset(
    [
        *(*NUMBERS_OF_EXPERTS, *EXPERTS_PER_TOKEN),
        *("moe_intermediate_size", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
        *("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "moe_layer_freq", "moe_layers"),
        *("interleave_moe_layer_step", "expert_layer_period", "expert_layer_offset", "moe_layer_interval"),
        *("moe_layer_start_index", "moe_layer_end_index"),
    ]
)
HARMLESS = re.compile(
    r"router|aux|loss|scor|group|norm|bias|dtype|_act|drop|capacity|gate|use_|jitter|ep_size|balanc|statics|kernel"
    r"|parallel|max_expert|output_|multimodal"
)


def _mlps(config: Config, count: int, hidden: int) -> list[Mlp]:
    """The MLP of each layer. Raises UnknownFormError if some have experts, and nobody knows which or how many."""
    numbers = {int(config[key]) for key in NUMBERS_OF_EXPERTS if config.get(key)}
    unknown = [key for key, value in config.items() if re.search("expert|moe", key) and value and key not in UNDERSTOOD]
    if len(numbers) > 1 or any(not HARMLESS.search(key) for key in unknown):
        raise layers.UnknownFormError
    experts = max(numbers, default=1)
    of_layer = _with_experts(config, count) if experts > 1 else [False] * count
    dense_inner = int(config.get("intermediate_size_mlp") or config.get("intermediate_size") or 0)
    sparse = _sparse(config, hidden, experts) if experts > 1 else None
    dense = Mlp(3 * hidden * dense_inner, 3 * hidden * dense_inner, dense_inner, 3 * dense_inner)
    if not dense_inner and not all(of_layer):
        raise layers.UnknownFormError
    return [sparse if sparse and is_sparse else dense for is_sparse in of_layer]


def _sparse(config: Config, hidden: int, experts: int) -> Mlp:
    """The MLP of a layer with experts: gate, experts, and those that every token passes (shared)."""
    active = int(next((config[key] for key in EXPERTS_PER_TOKEN if config.get(key)), 0))
    if not active:
        raise layers.UnknownFormError
    inner = int(config.get("moe_intermediate_size") or config["intermediate_size"])
    if config.get("interleave_moe_layer_step"):
        shared = inner
    else:
        number = sum(int(config.get(f"{name}_experts") or 0) for name in ("n_shared", "num_shared", "moe_num_shared"))
        width = config.get("moe_shared_expert_intermediate_size") or inner
        shared = int(config.get("shared_expert_intermediate_size") or config.get("shared_intermediate_size") or 0)
        shared = shared or number * int(width)
    always = 3 * hidden * shared + hidden * experts
    one = 3 * hidden * inner
    # The buffers of vLLM's fused_moe: the first two products share one, for each chosen expert.
    values = active * (max(2 * inner, hidden) + inner) + 3 * shared
    return Mlp(always + experts * one, always + active * one, inner, values)


def _with_experts(config: Config, count: int) -> list[bool]:
    """Which layers have experts: all, unless a key says otherwise."""
    numbers = range(count)
    if names := config.get("mlp_layer_types"):
        sparse_layers = [{"sparse": True, "dense": False}[name] for name in names]
    elif step := config.get("interleave_moe_layer_step"):
        sparse_layers = [number in (config.get("moe_layers") or range(step - 1, count, step)) for number in numbers]
    elif period := config.get("expert_layer_period"):
        sparse_layers = [number % period == config["expert_layer_offset"] for number in numbers]
    elif step := config.get("decoder_sparse_step"):
        sparse_layers = [
            (number + 1) % step == 0 and number not in (config.get("mlp_only_layers") or ()) for number in numbers
        ]
    elif "moe_k" in config:
        sparse_layers = _of_ernie(config, count)
    else:
        sparse_layers = _after_dense(config, count)
    if len(sparse_layers) != count:
        raise layers.UnknownFormError
    return sparse_layers


def _of_ernie(config: Config, count: int) -> list[bool]:
    """ERNIE 4.5: from a first to a last layer; transformers' default of the first is 1."""
    first, last = int(config.get("moe_layer_start_index", 1)), int(config.get("moe_layer_end_index", -1))
    last, step = last if last > 0 else count - 1, int(config.get("moe_layer_interval", 1))
    return [first <= number <= last and (number + 1) % step == 0 for number in range(count)]


def _after_dense(config: Config, count: int) -> list[bool]:
    """DeepSeek and those after it: the first layers are dense, and of the others every layer or every n-th."""
    first, frequency = int(config.get("first_k_dense_replace") or 0), config.get("moe_layer_freq", 1)
    if isinstance(frequency, list):
        return [bool(one) for one in frequency]
    return [number >= first and number % frequency == 0 for number in range(count)]
