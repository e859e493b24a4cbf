"""Sizes of public models, worked out by hand from their config.json: the sums are right, or say "unknown"."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from kvdemo.planning import layers, shape

GPT_OSS = ["sliding_attention", "full_attention"] * 12
GRANITE = (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4
ROPE = ["full_attention"] + ["linear_attention"] * 3

MODELS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    },
    "llama-3.3-70b": {
        **{"model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672},
        **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256},
    },
    "llama-2-7b": {
        **{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008},
        **{"num_attention_heads": 32, "num_key_value_heads": None, "vocab_size": 32000},
    },
    "llama-4-scout": {
        **{"model_type": "llama4_text", "num_hidden_layers": 48, "hidden_size": 5120, "intermediate_size": 8192},
        **{"intermediate_size_mlp": 16384, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128},
        **{"num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "vocab_size": 202048},
        **{"attention_chunk_size": 8192, "no_rope_layers": [1, 1, 1, 0] * 12, "router_aux_loss_coef": 0.001},
    },
    "qwen2.5-7b": {
        **{"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944},
        **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "sliding_window": 131072},
        **{"use_sliding_window": False, "max_window_layers": 28, "tie_word_embeddings": False},
    },
    "qwen3-0.6b": {
        **{"model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 3072},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936},
        **{"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None},
    },
    "qwen3-30b-a3b": {
        **{"model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "intermediate_size": 6144},
        **{"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1},
        **{"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936},
        **{"mlp_only_layers": [], "norm_topk_prob": True, "router_aux_loss_coef": 0.001},
    },
    "qwen1.5-moe-a2.7b": {
        **{"model_type": "qwen2_moe", "num_hidden_layers": 24, "hidden_size": 2048, "intermediate_size": 5632},
        **{"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts": 60},
        **{"num_experts_per_tok": 4, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936},
        **{"decoder_sparse_step": 1, "use_sliding_window": False},
    },
    "qwen3.5-27b": {
        **{"model_type": "qwen3_5_text", "num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size": 17408},
        **{"num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320},
        **{"layer_types": (ROPE[1:] + ROPE[:1]) * 16, "full_attention_interval": 4, "linear_num_value_heads": 48},
    },
    "gemma-2-9b": {
        **{"model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584, "intermediate_size": 14336},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000},
        **{"sliding_window": 4096, "sliding_window_size": 4096, "cache_implementation": "hybrid"},
    },
    "gemma-3-12b": {
        **{"model_type": "gemma3_text", "num_hidden_layers": 48, "hidden_size": 3840, "intermediate_size": 15360},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 262208, "sliding_window": 1024},
    },
    "gemma-3n-e4b": {
        **{"model_type": "gemma3n_text", "num_hidden_layers": 35, "hidden_size": 2048, "num_kv_shared_layers": 15},
        **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 262400},
        **{"intermediate_size": [16384] * 35, "sliding_window": 512},
        **{"layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7},
    },
    "gemma-4": {
        **{"model_type": "gemma4_text", "num_hidden_layers": 60, "hidden_size": 5376, "head_dim": 256},
        **{"num_attention_heads": 32, "num_key_value_heads": 16, "global_head_dim": 512, "vocab_size": 262144},
        **{"num_global_key_value_heads": 4, "attention_k_eq_v": True, "sliding_window": 1024},
        **{"intermediate_size": 21504, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10},
    },
    "gpt-oss-20b": {
        **{"model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "intermediate_size": 2880},
        **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088},
        **{"num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4, "sliding_window": 128},
        **{"layer_types": GPT_OSS, "router_aux_loss_coef": 0.9, "initial_context_length": 4096},
    },
    "deepseek-v2-lite": {
        **{"model_type": "deepseek_v2", "num_hidden_layers": 27, "hidden_size": 2048, "intermediate_size": 10944},
        **{"kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
        **{"v_head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400},
        **{"n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408},
        **{"first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "aux_loss_alpha": 0.001},
    },
    "deepseek-v3": {
        **{"model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "intermediate_size": 18432},
        **{"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
        **{"v_head_dim": 128, "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280},
        **{"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048},
        **{"first_k_dense_replace": 3, "moe_layer_freq": 1, "ep_size": 1, "num_nextn_predict_layers": 1},
    },
    "deepseek-v3.2": {
        **{"model_type": "deepseek_v32", "num_hidden_layers": 61, "hidden_size": 7168, "kv_lora_rank": 512},
        **{"qk_rope_head_dim": 64, "num_attention_heads": 128, "index_head_dim": 128, "index_topk": 2048},
    },
    "minicpm3-4b": {
        **{"model_type": "minicpm3", "num_hidden_layers": 62, "hidden_size": 2560, "kv_lora_rank": 256},
        **{"qk_rope_head_dim": 32, "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 73448},
    },
    "kimi-k2": {
        **{"model_type": "kimi_k2", "num_hidden_layers": 61, "hidden_size": 7168, "intermediate_size": 18432},
        **{"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
        **{"v_head_dim": 128, "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 163840},
        **{"n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048},
        **{"first_k_dense_replace": 1, "moe_layer_freq": 1, "ep_size": 1},
    },
    "kimi-linear-48b-a3b": {
        **{"model_type": "kimi_linear", "num_hidden_layers": 27, "hidden_size": 2304, "kv_lora_rank": 512},
        **{"qk_rope_head_dim": 64, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 163840},
        **{"linear_attn_config": {"full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "kda_layers": [1, 2, 3]}},
        **{"v_head_dim": 128, "num_experts": 256},
    },
    "glm-4.5-air": {
        **{"model_type": "glm4_moe", "num_hidden_layers": 46, "hidden_size": 4096, "intermediate_size": 10944},
        **{"num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151552},
        **{"n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1408},
        **{"first_k_dense_replace": 1, "tie_word_embeddings": False},
    },
    "phi-4": {
        **{"model_type": "phi3", "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 17920},
        **{"num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352, "sliding_window": None},
    },
    "granite-4.0-h-tiny": {
        **{"model_type": "granitemoehybrid", "num_hidden_layers": 40, "hidden_size": 1536, "intermediate_size": 512},
        **{"num_attention_heads": 12, "num_key_value_heads": 4, "layer_types": GRANITE, "vocab_size": 100352},
        **{"mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4},
        **{"num_local_experts": 64, "num_experts_per_tok": 6, "shared_intermediate_size": 1024},
    },
    "mixtral-8x7b": {
        **{"model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": None},
        **{"num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02},
    },
    "falcon-h1-7b": {
        **{"model_type": "falcon_h1", "num_hidden_layers": 44, "hidden_size": 3072, "intermediate_size": 12288},
        **{"num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 130049},
        **{"mamba_d_ssm": 3072, "mamba_n_heads": 24, "mamba_d_head": 128, "mamba_d_state": 256},
    },
    "falcon-7b": {
        **{"model_type": "falcon", "num_hidden_layers": 32, "hidden_size": 4544, "num_attention_heads": 71},
        **{"multi_query": True, "new_decoder_architecture": False, "vocab_size": 65024},
    },
    "mamba2-2.7b": {"model_type": "mamba2", "num_hidden_layers": 64, "hidden_size": 2560, "state_size": 128},
    "minimax-m1": {
        **{"model_type": "minimax_m1", "num_hidden_layers": 80, "hidden_size": 6144, "intermediate_size": 9216},
        **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 200064},
        **{"attn_type_list": ([0] * 7 + [1]) * 10, "num_local_experts": 32, "num_experts_per_tok": 2},
    },
    "minimax-m2": {
        **{"model_type": "minimax_m2", "num_hidden_layers": 62, "hidden_size": 3072, "intermediate_size": 1536},
        **{"num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 200064},
        **{"attn_type_list": [1] * 62, "num_local_experts": 256, "num_experts_per_tok": 8, "scoring_func": "sigmoid"},
    },
    "nemotron-super-49b": {
        **{"model_type": "nemotron-nas", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": None},
        **{"num_attention_heads": 64, "num_key_value_heads": None, "vocab_size": 128256},
        **{"block_configs": [{"attention": {"no_op": True}}] * 80},
    },
    "zamba2-7b": {
        **{"model_type": "zamba2", "num_hidden_layers": 81, "hidden_size": 3584, "num_attention_heads": 32},
        **{"num_key_value_heads": 32, "layers_block_type": ["mamba"] * 80 + ["hybrid"], "vocab_size": 32000},
    },
    "bamba-9b": {
        **{"model_type": "bamba", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "attn_layer_indices": [9, 18, 27]},
        **{"mamba_n_heads": 128, "mamba_d_head": 64, "mamba_d_state": 128, "vocab_size": 128256},
    },
    "lfm2-1.2b": {
        **{"model_type": "lfm2", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "conv_L_cache": 3, "vocab_size": 65536},
    },
    "hunyuan-large": {
        **{"model_type": "hunyuan", "num_hidden_layers": 64, "hidden_size": 6400, "num_attention_heads": 80},
        **{"num_key_value_heads": 8, "use_cla": True, "cla_share_factor": 2, "vocab_size": 128512},
    },
    "llama-3.2-11b-vision": {
        **{"model_type": "mllama_text_model", "num_hidden_layers": 40, "hidden_size": 4096},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "cross_attention_layers": [3, 8, 13]},
    },
    "mimo-v2-flash": {
        **{"model_type": "mimo_v2_flash", "num_hidden_layers": 48, "hidden_size": 4096, "num_attention_heads": 64},
        **{"num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128, "swa_num_key_value_heads": 8},
        **{"hybrid_layer_pattern": [0] + [1] * 47, "sliding_window_size": 128},
    },
    "an-unknown-hybrid": {
        **{"model_type": "new", "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 16},
        **{"num_key_value_heads": 16, "rwkv_head_size": 64},
    },
    "t5-like": {"is_encoder_decoder": True, "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12},
}

KV = {
    "llama-3.1-8b": 2 * 32 * 8 * 128 * 2,
    "llama-3.3-70b": 2 * 80 * 8 * 128 * 2,
    "llama-2-7b": 2 * 32 * 32 * 128 * 2,
    "llama-4-scout": 2 * 48 * 8 * 128 * 2,
    "qwen2.5-7b": 2 * 28 * 4 * 128 * 2,
    "qwen3-0.6b": 2 * 28 * 8 * 128 * 2,
    "qwen3-30b-a3b": 2 * 48 * 4 * 128 * 2,
    "qwen1.5-moe-a2.7b": 2 * 24 * 16 * 128 * 2,
    "qwen3.5-27b": 2 * 16 * 4 * 256 * 2,
    "gemma-2-9b": 2 * 42 * 8 * 256 * 2,
    "gemma-3-12b": 2 * 48 * 8 * 256 * 2,
    "gemma-3n-e4b": 2 * 20 * 2 * 256 * 2,
    "gpt-oss-20b": 2 * 24 * 8 * 64 * 2,
    "deepseek-v2-lite": 27 * 576 * 2,
    "deepseek-v3": 61 * 576 * 2,
    "kimi-k2": 61 * 576 * 2,
    "kimi-linear-48b-a3b": 7 * 576 * 2,
    "glm-4.5-air": 2 * 46 * 8 * 128 * 2,
    "phi-4": 2 * 40 * 10 * 128 * 2,
    "granite-4.0-h-tiny": 2 * 4 * 4 * 128 * 2,
    "mixtral-8x7b": 2 * 32 * 8 * 128 * 2,
    "falcon-h1-7b": 2 * 44 * 2 * 128 * 2,
    "falcon-7b": 2 * 32 * 1 * 64 * 2,
    "minimax-m1": 2 * 10 * 8 * 128 * 2,
    "minimax-m2": 2 * 62 * 8 * 128 * 2,
    "bamba-9b": 2 * 3 * 8 * 128 * 2,
    "lfm2-1.2b": 2 * 6 * 8 * 64 * 2,
}
"""Bytes a token: K and V x attending layers x KV heads x head size x 2 bytes; MLA's one vector. Others: unknown."""

BILLIONS = {
    "llama-3.1-8b": (8.03, 8.03),
    "llama-3.3-70b": (70.55, 70.55),
    "llama-2-7b": (6.74, 6.74),
    "llama-4-scout": (107.8, 17.2),
    "qwen2.5-7b": (7.62, 7.62),
    "qwen3-0.6b": (0.596, 0.596),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen1.5-moe-a2.7b": (14.3, 2.7),
    "gemma-2-9b": (9.24, 9.24),
    "gemma-3-12b": (11.8, 11.8),
    "gpt-oss-20b": (20.9, 4.19),
    "deepseek-v2-lite": (15.7, 2.66),
    "deepseek-v3": (671.0, 37.6),
    "kimi-k2": (1026.0, 32.9),
    "glm-4.5-air": (106.9, 13.4),
    "phi-4": (14.66, 14.66),
    "mixtral-8x7b": (46.7, 12.9),
    "minimax-m2": (228.7, 11.0),
}
"""Parameters of the text part, and those that one token passes with embedding and output. Others: unknown."""


@pytest.mark.parametrize("name", MODELS)
def test_kv_of_public_models(name: str) -> None:
    """Each layer counts as its config says; a model whose config says it in another way is unknown, never guessed."""
    assert shape.kv_bytes_per_token(MODELS[name]) == KV.get(name)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_public_models(name: str) -> None:
    """All parameters within 1 %, active ones within 5 % of what the weights hold; or unknown."""
    found = shape.of(MODELS[name])
    if name not in BILLIONS:
        assert found is None
        return
    assert found is not None
    total, active = BILLIONS[name]
    assert found.parameters / 1e9 == pytest.approx(total, rel=0.01)
    assert found.active / 1e9 == pytest.approx(active, rel=0.05)


def test_windows() -> None:
    """Within its window every layer keeps all; beyond it only the others do, and that is the least there is."""
    kept = layers.of(MODELS["gpt-oss-20b"])
    assert kept is not None
    assert (kept.uniform(128), kept.uniform(129)) == (True, False)
    assert kept.at_least(1128) == 2 * 8 * 64 * (12 * 1128 + 12 * 128)
    mistral = MODELS["llama-3.1-8b"] | {"model_type": "mistral", "sliding_window": 4096}
    found = layers.of(mistral)
    assert found is not None
    assert (found.uniform(4096), found.uniform(4097)) == (True, False)
    never = layers.of(mistral | {"sliding_window": None})
    assert never is not None
    assert never.uniform(10**6)


@pytest.mark.parametrize(
    ("keys", "full"),
    [
        ({"model_type": "gemma3_text", "sliding_window": 1024, "sliding_window_pattern": 6}, 5),
        ({"sliding_window": 4096, "sliding_window_pattern": "LLLG"}, 8),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 28}, 28),
        ({"model_type": "llama4_text"}, 8),
        ({"layer_types": ["full_attention"] * 32}, 32),
    ],
)
def test_which_layers_have_a_window(keys: dict[str, Any], full: int) -> None:
    """By a pattern, from some layer on, or as the layers are named."""
    config = MODELS["llama-3.1-8b"] | {"head_dim": 128} | keys
    kept = layers.of(config)
    assert kept is not None
    assert len([layer for layer in kept.attending if layer.window is None]) == full
    assert len(kept.attending) == 32


@pytest.mark.parametrize(
    "keys",
    [
        {"layer_types": ["full_attention"] * 31},
        {"layer_types": ["full_attention"] * 31 + ["something_new"]},
        {"hybrid_override_pattern": "*" * 31 + "?"},
        {"attn_type_list": [1] * 31 + [2]},
        {"attn_layer_indices": [32]},
        {"layers_block_type": ["hybrid"] * 32},
        {"mamba_d_state": 16},
        {"conv_kernel": 4},
        {"attention_types": [["global"], 32]},
        {"num_key_value_heads": "eight"},
        {"compress_ratios": [4] * 32},
        {"sliding_window": 4096, "sliding_window_pattern": "LXG"},
    ],
)
def test_what_is_not_understood_is_unknown(keys: dict[str, Any]) -> None:
    """A key that says that layers differ makes the whole unknown unless all of it is understood."""
    assert layers.of(MODELS["llama-3.1-8b"] | keys) is None


def test_kv_heads_of_each_layer() -> None:
    """Some models list them layer by layer; not named at all they are known of known models only."""
    listed = MODELS["llama-3.1-8b"] | {"num_key_value_heads": [8] * 16 + [4] * 16}
    assert shape.kv_bytes_per_token(listed) == 2 * (16 * 8 + 16 * 4) * 128 * 2
    absent = {key: value for key, value in MODELS["llama-3.1-8b"].items() if key != "num_key_value_heads"}
    assert shape.kv_bytes_per_token(absent) == 2 * 32 * 32 * 128 * 2
    assert shape.kv_bytes_per_token(absent | {"model_type": "new"}) is None


def test_ranks_divide_heads_and_repeat_a_latent_vector() -> None:
    """Eight KV heads among 16 ranks are one each; MLA's vector is whole on every rank."""
    grouped, latent = layers.of(MODELS["llama-3.1-8b"]), layers.of(MODELS["deepseek-v3"])
    assert grouped is not None
    assert latent is not None
    assert [grouped.values(ranks) for ranks in (1, 2, 8, 16)] == [32 * 2 * 128 * n for n in (8, 4, 1, 1)]
    assert {latent.values(ranks) for ranks in (1, 2, 8)} == {61 * 576}


def test_states_of_recurrent_layers() -> None:
    """One state a sequence, whatever its length: 36 layers of Gated DeltaNet in Qwen3-Next; Mamba-2 in Granite 4."""
    qwen = {
        **{"num_hidden_layers": 48, "full_attention_interval": 4, "num_attention_heads": 16, "hidden_size": 2048},
        **{"num_key_value_heads": 2, "head_dim": 256, "linear_key_head_dim": 128, "linear_value_head_dim": 128},
        **{"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_conv_kernel_dim": 4},
    }
    found, granite = layers.of(qwen), layers.of(MODELS["granite-4.0-h-tiny"])
    assert found is not None
    assert granite is not None
    assert (found.recurrent, found.state) == (36, 36 * ((2 * 2048 + 4096) * 3 + 32 * 128 * 128))
    assert granite.state == 36 * (48 * 64 * 128 + (48 * 64 + 2 * 128) * 3)
    assert not found.uniform(1)


@pytest.mark.parametrize(
    ("config", "quantization", "dtype", "width"),
    [
        ({}, {}, "", 2),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}}, {}, "fp8", 1),
        ({"quantization_config": {"kv_cache_scheme": None}}, {}, "", 2),
        ({"quantization_config": {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}}, {}, "fp8", 1),
        ({"quantization_config": {"quantization": {"kv_cache_quant_algo": "FP8"}}}, {}, "fp8", 1),
        ({}, {"producer": {}, "quantization": {"kv_cache_quant_algo": "FP8"}}, "fp8", 1),
        ({}, {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}, "", 2),
        ({}, {"quantization": {"kv_cache_quant_algo": "NVFP4"}}, "unknown", None),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 4, "type": "int"}}}, {}, "unknown", None),
        ({"torch_dtype": "float32"}, {}, "", 2),
    ],
)
def test_the_checkpoint_asks_for_a_kv_dtype(
    config: dict[str, Any], quantization: dict[str, Any], dtype: str, width: int | None
) -> None:
    """fp8 is one byte a value; another format is unknown; a float32 checkpoint keeps its KV in bfloat16."""
    given = MODELS["llama-3.1-8b"] | config
    assert shape.kv_dtype(given, quantization) == dtype
    assert shape.kv_bytes_per_token(given, quantization) == (width and 65536 * width)


@pytest.mark.parametrize(
    ("keys", "billions"),
    [
        ({"num_local_experts": 128, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}, 400.7),
        ({"n_routed_experts": 8}, None),
        ({"num_experts": 8, "num_experts_per_tok": 2, "num_local_experts": 4}, None),
        ({"num_experts": [8] * 48, "num_experts_per_tok": 2}, None),
        ({"num_experts": 8, "num_experts_per_tok": 2, "moe_new_kind": 3}, None),
        ({"parallel_attn_mlp_res": True, "model_type": "arctic"}, None),
        ({"hidden_act": "relu2"}, None),
    ],
)
def test_experts_in_some_layers(keys: dict[str, Any], billions: float | None) -> None:
    """Right, or unknown: a guess of parameters is worth nothing. The first is Llama 4 Maverick."""
    base = {key: value for key, value in MODELS["llama-4-scout"].items() if "expert" not in key and "moe" not in key}
    found = shape.of(base | keys)
    assert (found and round(found.parameters / 1e9, 1)) == billions


def test_the_text_part_of_a_multimodal_model() -> None:
    """Its own keys, and what is said of the whole: the quantization."""
    text = shape.text_config({"llm_config": MODELS["phi-4"], "quantization_config": {"a": 1}, "vision_config": {}})
    assert (text["hidden_size"], text["quantization_config"]) == (5120, {"a": 1})
    assert shape.text_config({"thinker_config": {"text_config": {"hidden_size": 7}}})["hidden_size"] == 7
    assert shape.text_config({"hidden_size": 3}) == {"hidden_size": 3}


ORACLE = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import vllm.config
from transformers import AutoConfig
from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS as KNOWN
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase as Base
answers = {}
for name, config in json.load(sys.stdin).items():
    kind = config.pop("model_type")
    made = AutoConfig.for_model(kind, **config)
    heads = KNOWN.get(kind, Base)(made, made)
    answers[name] = [heads.get_total_num_kv_heads(), heads.get_head_size(), heads.is_deepseek_mla()]
json.dump(answers, sys.stdout)
"""
WITH_VLLM = [
    *("llama-3.1-8b", "llama-2-7b", "qwen2.5-7b", "qwen3-0.6b", "qwen3-30b-a3b", "gemma-2-9b", "gemma-3-12b"),
    *("gpt-oss-20b", "deepseek-v2-lite", "deepseek-v3", "glm-4.5-air", "phi-4", "mixtral-8x7b", "falcon-7b"),
    *("granite-4.0-h-tiny", "falcon-h1-7b", "minimax-m2", "bamba-9b", "lfm2-1.2b"),
]


@pytest.mark.real
def test_vllm_counts_heads_alike() -> None:
    """KV heads and head size of each attending layer are those that vLLM itself derives from the same config."""
    asked = json.dumps({name: MODELS[name] for name in WITH_VLLM})
    done = subprocess.run([sys.executable, "-c", ORACLE], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (heads, size, latent) in json.loads(done.stdout.splitlines()[-1]).items():
        kept = layers.of(MODELS[name])
        assert kept is not None
        (layer,) = {(one.heads, one.values) for one in kept.attending}
        assert layer == ((0, size) if latent else (heads, 2 * size)), name


def test_every_parameter_is_counted() -> None:
    """Attention, MLP, norms, embedding and output, to the last one."""
    config = MODELS["llama-3.1-8b"] | {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1376}
    found = shape.of(config | {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 3041})
    assert found is not None
    attention, mlp = 512 * 64 * (16 + 8), 3 * 512 * 1376
    assert found.parameters == 8 * (attention + mlp + 2 * 512) + 512 + 2 * 3041 * 512
