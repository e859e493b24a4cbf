"""What each layer of a model keeps of a sequence, from its config.json: KV of every token, of a window, or a state.

Pure. Layers differ: some models attend in every eighth layer only, some within a window, some share the KV of another
layer. What is known comes from the keys that say so; a key that says that layers differ, and is not understood here,
makes the whole unknown. Absent keys have the defaults of transformers' config classes (5.19), as vLLM reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Attention:
    """What one attending layer keeps: ``values`` numbers of a token for each of its ``heads`` KV heads.

    ``heads`` is 0 for the one latent vector of MLA, which every tensor-parallel rank keeps whole. ``window`` is the
    number of tokens that it looks back at most; None is all of them.
    """

    heads: int
    values: int
    window: int | None = None

    def per_rank(self, tensor: int) -> int:
        """Values of a token on one of ``tensor`` ranks: heads are divided as far as they go, then repeated."""
        return self.values * max(1, -(-self.heads // tensor))


@dataclass(frozen=True)
class Layers:
    """What all layers together keep: the attending ones, how many keep a state of fixed size, and its values.

    ``state`` is the number of values of all states of one sequence, 0 if it is not known.
    """

    attending: tuple[Attention, ...]
    recurrent: int = 0
    state: int = 0

    def values(self, tensor: int = 1) -> int:
        """Values of a token in all layers, on one of ``tensor`` tensor-parallel ranks."""
        return sum(layer.per_rank(tensor) for layer in self.attending)

    def at_least(self, context: int, tensor: int = 1) -> int:
        """Values that a sequence of ``context`` tokens takes at least: behind a window they may be dropped."""
        lengths = ((layer, min(context, layer.window or context)) for layer in self.attending)
        return sum(layer.per_rank(tensor) * tokens for layer, tokens in lengths) + self.state // tensor

    def uniform(self, context: int) -> bool:
        """Whether ``context`` tokens take exactly ``context`` times what one takes."""
        return not self.recurrent and all(not layer.window or layer.window >= context for layer in self.attending)


class UnknownFormError(ValueError):
    """A key says that layers differ, in a way that is not understood here."""


HEAD_SIZES = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma3n_text"), 256),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), 256),
    **dict.fromkeys(("qwen3", "qwen3_vl_text", "llama4_text", "ernie4_5", "glm", "glm4", "minimax_m2"), 128),
    **dict.fromkeys(("ministral3", "seed_oss", "solar_open"), 128),
    **{"gpt_oss": 64},
}
"""Head sizes of models whose config may leave them out; else the hidden size is divided among the heads."""

KV_HEADS = {
    **dict.fromkeys(("llama", "olmo", "olmo2", "olmo3", "olmoe", "phi3", "cohere", "cohere2", "granite"), 0),
    **dict.fromkeys(("granitemoe", "phi", "gpt_neox", "gptj", "opt", "qwen", "internlm", "baichuan"), 0),
    **dict.fromkeys(("mistral", "mixtral", "ministral", "ministral3", "llama4_text", "gpt_oss", "minimax_m2"), 8),
    **dict.fromkeys(("seed_oss", "phimoe", "glm4_moe"), 8),
    **{"gemma": 16, "gemma2": 4, "gemma3_text": 4, "gemma3n_text": 2, "smollm3": 4, "ernie4_5_moe": 4},
    **{"qwen2": 32, "qwen2_moe": 16, "qwen3": 32, "qwen3_moe": 4, "qwen3_next": 2},
}
"""KV heads of models whose config may leave them out; 0: as many as there are heads."""

WINDOWS = {
    **dict.fromkeys(("mistral", "ministral", "gemma2", "gemma3_text", "cohere2", "exaone4", "olmo3"), 4096),
    **{"gemma3n_text": 512, "gpt_oss": 128, "llama4_text": 8192},
}
"""Windows of models whose config may leave them out."""

LATENT = frozenset(
    ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2", "kimi_linear", "pangu_ultra_moe", "axk1", ""]
)
"""Models whose latent vector vLLM keeps (``is_deepseek_mla``, vLLM 0.32); others expand it to full heads."""

KINDS = {
    **dict.fromkeys(("full_attention", "attention", "global", "global_attention"), "full"),
    **dict.fromkeys(("sliding_attention", "chunked_attention", "local", "local_attention"), "window"),
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "conv", "gated_deltanet", "kda"), "state"),
    **dict.fromkeys(("mlp", "moe"), "nothing"),
}

DIFFERING = re.compile(
    r"mamba|ssm|rwkv|conv_|_conv|lightning|recurrent|retention|linear_(attn|key|value|num|conv)|hybrid|block_types?$"
    r"|block_configs|layer_types|layers_block|attn_layer|attn_type|attention_type|full_att|full_attn"
    r"|layer_period|layer_pattern|attention_layers|mixer"
)
"""Keys that say that layers differ; unknown unless a rule below reads them."""

ODD = re.compile(
    r"cla_|use_cla|share_?kv|kv_shar(?!ed_layers)|cross_layer|cross_att|global_head|global_key|num_global|k_eq_v"
    r"|index_(head|topk|n_heads)|compress_|swa_|attention_other|kv_n_heads|^attn_config|n_heads_in_group"
    r"|heads_per_layer|v_head_dim|qk_head_dim|attention_groups"
)
"""Keys of attention that is not of the usual form."""

OF_EXPERTS = frozenset({"expert_layer_period", "mlp_layer_types", "mlp_layer_pattern"})
OF_LATENT = frozenset({"v_head_dim", "qk_head_dim"})


def of(config: Config) -> Layers | None:
    """What the layers of a model with this config keep, or None where the config does not say it in a known way."""
    try:
        count = int(config["num_hidden_layers"])
        kinds = _kinds(config, count)
        window = _window(config)
        if config.get("is_encoder_decoder") or ("window" in kinds and window is None):
            return None
        # The last layers of these use the KV of earlier ones.
        own = count - int(config.get("num_kv_shared_layers") or 0)
        kinds = kinds[:own] + ["state" if kind == "state" else "nothing" for kind in kinds[own:]]
        attending = tuple(
            Attention(heads, values, window if kind == "window" else None)
            for kind, (heads, values) in zip(kinds, _attention(config, count), strict=True)
            if kind in {"full", "window", "parallel"}
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    recurrent = sum(kind in {"state", "parallel"} for kind in kinds)
    return Layers(attending, recurrent, recurrent * state_values(config))


def _kinds(config: Config, count: int) -> list[str]:
    """Each layer's kind: full, window, state, parallel (attention beside a state) or nothing (it keeps nothing)."""
    if config.get("model_type") == "falcon_h1":
        return ["parallel"] * count
    for rule in (_by_name, _by_letter, _by_number, _by_list, _by_period):
        kinds = rule(config, count)
        if kinds is not None:
            if len(kinds) != count:
                raise UnknownFormError
            return kinds
    if any(DIFFERING.search(key) and value and key not in OF_EXPERTS for key, value in config.items()):
        raise UnknownFormError
    return _window_kinds(config, count)


def _by_name(config: Config, _count: int) -> list[str] | None:
    names = config.get("layer_types") or config.get("layers_block_type")
    if not names:
        return None
    if any(name not in KINDS for name in names):
        raise UnknownFormError
    return [KINDS[name] for name in names]


def _by_letter(config: Config, _count: int) -> list[str] | None:
    """Nemotron-H: * attends, M is Mamba, - an MLP, E experts."""
    letters = config.get("hybrid_override_pattern")
    if not letters:
        return None
    meaning = {"*": "full", "M": "state", "-": "nothing", "E": "nothing"}
    if any(letter not in meaning for letter in letters):
        raise UnknownFormError
    return [meaning[letter] for letter in letters]


def _by_number(config: Config, _count: int) -> list[str] | None:
    """MiniMax: 1 attends, 0 is lightning attention."""
    numbers = config.get("attn_type_list")
    if not numbers:
        return None
    if any(number not in {0, 1} for number in numbers):
        raise UnknownFormError
    return ["full" if number else "state" for number in numbers]


def _by_list(config: Config, count: int) -> list[str] | None:
    """The attending layers by their numbers: Bamba and LFM2 count from 0, Kimi-Linear from 1."""
    linear = config.get("linear_attn_config")
    if linear and "full_attn_layers" in linear:
        attending = {int(number) - 1 for number in linear["full_attn_layers"]}
    elif numbers := config.get("attn_layer_indices") or config.get("full_attn_idxs"):
        attending = {int(number) for number in numbers}
    else:
        return None
    if not attending <= set(range(count)):
        raise UnknownFormError
    return ["full" if number in attending else "state" for number in range(count)]


def _by_period(config: Config, count: int) -> list[str] | None:
    """Qwen3-Next: the last of every ``full_attention_interval``; Jamba: one of every ``attn_layer_period``."""
    if period := config.get("full_attention_interval"):
        offset = period - 1
    elif period := config.get("attn_layer_period"):
        offset = config["attn_layer_offset"]
    else:
        return None
    return ["full" if number % period == offset else "state" for number in range(count)]


def _window(config: Config) -> int | None:
    """How many tokens a layer with a window looks back; None if no layer has one."""
    if config.get("use_sliding_window") is False:
        return None
    kind = str(config.get("model_type"))
    size = config.get("sliding_window", config.get("attention_chunk_size", WINDOWS.get(kind)))
    return int(size) if size else None


def _window_kinds(config: Config, count: int) -> list[str]:
    """Which layers have a window, where nothing but the window's keys says that layers differ."""
    if _window(config) is None:
        return ["full"] * count
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    if isinstance(pattern, str):
        kinds = {"L": "window", "G": "full"}
        if not set(pattern) <= {*kinds}:
            raise UnknownFormError
        return [kinds[pattern[number % len(pattern)]] for number in range(count)]
    if pattern:
        return ["window" if (number + 1) % pattern else "full" for number in range(count)]
    if config.get("attention_chunk_size") or config.get("model_type") == "llama4_text":
        # Llama 4 chunks the layers with position embedding, three of four.
        embedded = config.get("no_rope_layers") or [(number + 1) % 4 for number in range(count)]
        return ["window" if one else "full" for one in embedded]
    first = config.get("max_window_layers", 0) if config.get("use_sliding_window") else 0
    return ["window" if number >= first else "full" for number in range(count)]


def _attention(config: Config, count: int) -> list[tuple[int, int]]:
    """KV heads and values of a head (K and V) of each layer, if it attends."""
    kind = str(config.get("model_type") or "")
    latent = config.get("kv_lora_rank")
    if any(ODD.search(key) and value and not (latent and key in OF_LATENT) for key, value in config.items()):
        raise UnknownFormError
    if latent:
        if kind not in LATENT:
            raise UnknownFormError
        return [(0, int(latent) + int(config["qk_rope_head_dim"]))] * count
    heads, sizes = kv_heads(config), head_size(config)
    each = heads if isinstance(heads, list) else [heads] * count
    return [(int(one), 2 * sizes) for one in each]


def head_size(config: Config) -> int:
    """Size of one head of attention."""
    for key in ("head_dim", "attention_head_dim", "hidden_size_per_head"):
        if config.get(key):
            return int(config[key])
    if "head_dim" not in config and (size := HEAD_SIZES.get(str(config.get("model_type")))):
        return size
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    if hidden % heads:
        raise UnknownFormError
    return hidden // heads


def kv_heads(config: Config) -> int | list[int]:
    """KV heads of each layer, or of all. Named null they are as many as the heads; not named they are unknown."""
    kind = config.get("model_type")
    if kind == "falcon" and config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    for key in ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num"):
        if key in config:
            names = config[key]
            return names if isinstance(names, list) else int(names or config["num_attention_heads"])
    if kind not in KV_HEADS:
        raise UnknownFormError
    return KV_HEADS[kind] or int(config["num_attention_heads"])


def state_values(config: Config) -> int:
    """Values of the state of one recurrent layer, as vLLM's ``MambaStateShapeCalculator`` counts them; 0 if unknown.

    Of Gated DeltaNet (Qwen3-Next), Mamba-2 (Granite, Bamba, Falcon-H1; Nemotron-H) and Mamba (Jamba).
    """
    try:
        if "linear_num_value_heads" in config:
            key, value = int(config["linear_key_head_dim"]), int(config["linear_value_head_dim"])
            keys, heads = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
            convolved = (2 * key * keys + value * heads) * (int(config["linear_conv_kernel_dim"]) - 1)
            return convolved + heads * value * key
        if "mamba_n_heads" in config:
            names = ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv")
            return _mamba2(*(int(config[name]) for name in names))
        if "mamba_num_heads" in config:
            names = ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel")
            return _mamba2(*(int(config[name]) for name in names))
        inner = int(config["mamba_expand"]) * int(config["hidden_size"])
        return inner * (int(config["mamba_d_state"]) + int(config["mamba_d_conv"]) - 1)
    except (KeyError, TypeError, ValueError):
        return 0


def _mamba2(heads: int, size: int, state: int, groups: int, kernel: int) -> int:
    return heads * size * state + (heads * size + 2 * groups * state) * (kernel - 1)
