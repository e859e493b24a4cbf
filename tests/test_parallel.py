"""How engines spread over their GPUs, and how long their sequences may be: what vLLM would refuse is refused first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvdemo.config import parallel
from kvdemo.config.parallel import Parallel
from kvdemo.config.profile import load
from kvdemo.errors import ProfileError
from kvdemo.planning import demand, plan, shape
from kvdemo.planning.facts import Facts, Gpu, Interpreter, Model
from test_budget import GIB, MISTRAL, MODEL, engine
from test_shape import MODELS

ALL = [0, 1, 2, 3, 4, 5, 6, 7]


def written(directory: Path, gpus: Any, args: dict[str, Any], **keys: Any) -> Path:
    """A profile with one engine."""
    file = directory / "p.yaml"
    one = {"gpus": gpus, "args": args, **keys}
    file.write_text(yaml.safe_dump({"model": "org/model", "engines": {"a": one}}, sort_keys=False))
    return file


def facts(model: Model = MODEL, **changes: Any) -> Facts:
    """A machine with eight GPUs of 80 GiB."""
    gpus = tuple(Gpu(n, str(n), f"GPU-{n}", "H100", 80 * GIB, 79 * GIB) for n in range(8))
    held = {"py": Interpreter("py", {"vllm": "1"})}
    given = Facts("py", gpus=gpus, interpreters=held, models={"org/model": model}, ports={"a": 8000})
    return replace(given, **changes)


@pytest.mark.parametrize(
    ("gpus", "args", "flag"),
    [
        ([0, 1], {}, "--tensor-parallel-size 2"),
        ([0], {}, ""),
        ([0, 1], {"data-parallel-size": 2}, "--data-parallel-size 2"),
        ([2, 3], {"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ([0, 1, 2, 3], {"-pp": 2}, "--tensor-parallel-size 2 --pipeline-parallel-size 2"),
        (ALL, {"dp": 2, "--pipeline-parallel-size": "2"}, "--tensor-parallel-size 2"),
        ([0, 1], {"tp": 2}, "--tensor-parallel-size 2"),
        ([0, 1, 2, 3], {"tp": 2, "pp": 2}, "--tensor-parallel-size 2"),
        ([0, 1], {"data-parallel-size": 4, "data-parallel-size-local": 2}, "--data-parallel-size-local 2"),
        ([0, 1], {"tensor-parallel-size": 2, "nnodes": 2, "pipeline-parallel-size": 2}, "--tensor-parallel-size 2"),
    ],
)
def test_flags_that_go_with_the_gpus(tmp_path: Path, gpus: list[int], args: dict[str, Any], flag: str) -> None:
    """Tensor x pipeline x data is the number of GPUs; tensor takes what the others leave, and is said once."""
    made = plan.make(load(written(tmp_path, gpus, args), {}), facts())
    line = " ".join(made.service("a").argv)
    assert flag in line
    assert line.count("--tensor-parallel-size") == ("--tensor-parallel-size" in flag)
    assert not made.missing


@pytest.mark.parametrize(
    ("gpus", "args", "text"),
    [
        ([0, 1], {"tensor-parallel-size": 2, "data-parallel-size": 2}, "takes 4 GPUs, but this engine has 2 GPUs"),
        ([0, 1], {"tensor-parallel-size": 2, "pipeline-parallel-size": 2}, "takes 4 GPUs, but this engine has 2 GPUs"),
        ([7], {"tensor-parallel-size": 4}, "takes 4 GPUs, but this engine has 1 GPU"),
        ([0, 1, 2, 3], {"tensor-parallel-size": 2}, "takes 2 GPUs, but this engine has 4 GPUs"),
        ("auto", {"-tp": 2}, "takes 2 GPUs, but this engine has 1 GPU"),
        ([0, 1, 2], {"pp": 2}, "this engine has 3 GPUs, which pipeline-parallel 2 does not divide; give it a multiple"),
        ([0, 1], {"dp": "two"}, "expected a whole number of at least 1, got 'two'"),
        ([0, 1], {"dp": 0}, "expected a whole number of at least 1, got 0"),
    ],
)
def test_flags_that_contradict_the_gpus(tmp_path: Path, gpus: Any, args: dict[str, Any], text: str) -> None:
    """A finding at the flag, with its line and a caret."""
    with pytest.raises(ProfileError) as raised:
        load(written(tmp_path, gpus, args), {})
    message = str(raised.value)
    assert text in message
    last = list(args)[-1]
    place, excerpt = message.splitlines()[0], message.splitlines()[1]
    assert place.startswith(f"{tmp_path / 'p.yaml'}:")
    assert last in excerpt
    assert message.splitlines()[2].strip().endswith("^")


def test_heads_must_be_divisible() -> None:
    """32 heads do not go onto three GPUs; the numbers that would are named."""
    file = engine(gpus=[0, 1, 2])
    profile = load_of(file)
    (text,) = plan.make(profile, facts()).missing
    assert "the 32 attention heads of org/model cannot be divided among 3 tensor-parallel ranks" in text
    assert "use 1 or 2 GPUs for it" in text


def load_of(one: Any) -> Any:
    """A profile with this engine."""
    from kvdemo.config.profile import Profile

    return Profile(path=Path("/p.yaml"), engines={"a": one})


def test_what_each_rank_holds() -> None:
    """Tensor and pipeline ranks divide the weights, data-parallel ranks have all; KV heads and layers likewise."""
    weights = 2 * 7_241_732_096
    kinds = {
        "tp": engine(args={}),
        "pp": engine(args={"pipeline-parallel-size": 2}),
        "dp": engine(args={"data-parallel-size": 2}),
    }
    found = {name: demand.of(one, MODEL, 2) for name, one in kinds.items()}
    assert (found["tp"].weights, found["dp"].weights) == (weights // 2, weights)
    # A stage has half of the layers, and embedding or output.
    assert found["pp"].weights == pytest.approx(weights / 2, rel=0.001)
    assert [found[name].per_token for name in kinds] == [65536, 65536, 131072]
    assert parallel.of({}, 0) == Parallel()


def test_a_latent_cache_is_whole_on_every_rank() -> None:
    """MLA's vector cannot be divided among tensor-parallel ranks: eight GPUs keep it eight times."""
    config = MODELS["deepseek-v3"]
    model = Model("org/model", "/m", "d", "bfloat16", 163840, shape.kv_bytes_per_token(config), shape=shape.of(config))
    assert [demand.of(engine(), model, ranks).per_token for ranks in (1, 8)] == [70272, 70272]


def test_the_users_own_variable_allows_a_longer_context() -> None:
    """VLLM_ALLOW_LONG_MAX_MODEL_LEN in the environment reaches the engines, so it counts as in the profile."""
    one = load_of(engine(gpus=[0], max_model_len=131072))
    model = replace(MODEL, context=40960)
    refused = "a: max_model_len 131072 is more than the 40960 of org/model"
    assert any(text.startswith(refused) for text in plan.make(one, facts(model)).missing)
    assert not any(text.startswith(refused) for text in plan.make(one, facts(model, any_length=True)).missing)


def test_weights_alone_refuse() -> None:
    """62.5 GB of weights do not fit into 45 % of 80 GB, whatever is known of KV; the sum adds what is needed."""
    from kvdemo.config.profile import Profile
    from kvdemo.planning import budget, sums

    for known in (MODELS["deepseek-v3"], {}):
        model = Model(
            "org/model", "/m", "d", "bfloat16", 131072, shape.kv_bytes_per_token(known), weight_bytes=62_500_000_000
        )
        one = engine(gpus=[0], memory=0.45, max_model_len=131072)
        profile = Profile(path=Path("/p.yaml"), engines={"a": one, "b": one})
        here = facts(model)
        assigned = budget.assign(profile, here)
        found = list(sums.too_small(profile, here, assigned))
        assert [(one.service, one.kind, one.hard) for one in found] == [
            ("a", "gpu-memory", True),
            ("b", "gpu-memory", True),
        ]
        assert "its share of the GPU is 36.0 GiB, but needs" in found[0].text
        assert not next(iter(sums.sums(profile, here, assigned))).fits


def test_a_dtype_of_the_kv_cache() -> None:
    """What the profile says wins over what the checkpoint asks for; a format with scales is unknown."""
    asks = replace(MODEL, kv_dtype="fp8", kv_bytes_per_token=65536)
    sizes = {
        "auto": (131072, 65536),
        "bfloat16": (131072, 131072),
        "fp8_e4m3": (65536, 65536),
        "nvfp4": (None, None),
    }
    for dtype, (plain, asked) in sizes.items():
        one = engine(args={"kv-cache-dtype": dtype})
        assert (demand.kv_bytes_per_token(one, MODEL), demand.kv_bytes_per_token(one, asks)) == (plain, asked)
    half = engine(gpus=[0], kv_cache=512 * 1024**2 + 16 * 65536, max_model_len=8192)
    assert not plan.make(load_of(half), facts(asks)).missing
    whole = plan.make(load_of(half), facts()).missing
    assert "a: kv_cache is 513 MiB, but needs 1.0 GiB KV cache of 8,192 tokens" in whole[0].replace(
        "0.5 GiB", "513 MiB"
    )


def test_hybrids_are_not_refused_for_what_they_do_not_need() -> None:
    """Qwen3-Next attends in 12 of 48 layers: 6 GiB for 262,144 tokens, which fit beside 76.4 GiB of weights."""
    config = {
        **{"num_hidden_layers": 48, "full_attention_interval": 4, "hidden_size": 2048, "num_attention_heads": 16},
        **{"num_key_value_heads": 2, "head_dim": 256, "linear_key_head_dim": 128},
    }
    model = Model(
        "org/model", "/m", "d", "bfloat16", 262144, shape.kv_bytes_per_token(config), weight_bytes=82_000_000_000
    )
    here = facts(model, gpus=(Gpu(0, "0", "GPU-0", "H200", int(140.4 * GIB), 140 * GIB),))
    assert not plan.make(load_of(engine(gpus=[0], memory=0.65, max_model_len=262144)), here).missing
    assert shape.kv_bytes_per_token(MISTRAL) == 131072
