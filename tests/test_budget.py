"""Who gets which GPU, and whether memory and disk suffice: pure arithmetic, held against what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvdemo.config.profile import Cache, Engine, Profile
from kvdemo.planning import budget, demand, peak, plan, shape, sums
from kvdemo.planning.facts import Facts, Gpu, Holder, Interpreter, Model

GIB = 1024**3
MISTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "dtype": "bfloat16",
}
SHAPE = shape.of(MISTRAL)
MODEL = Model("org/model", "/m", "d", "bfloat16", 32768, 131072, shape=SHAPE)


def engine(**keys: Any) -> Engine:
    """An engine of the profile."""
    return Engine(model="org/model", **keys)


def profile(**services: Any) -> Profile:
    """A profile with these engines."""
    found = {name.replace("_", "-"): one for name, one in services.items()}
    return Profile(
        path=Path("/p.yaml"),
        engines={n: e for n, e in found.items() if isinstance(e, Engine)},
        caches={n: c for n, c in found.items() if isinstance(c, Cache)},
    )


def gpus(count: int, total: int = 80 * GIB, free: int | None = None) -> Facts:
    """A machine with so many equal GPUs."""
    free = total if free is None else free
    return Facts("py", gpus=tuple(Gpu(n, str(n), f"GPU-{n}", "H", total, free) for n in range(count)))


def test_automatic_gpus_spread() -> None:
    """`auto` takes the GPU that the fewest engines use, after the named ones."""
    given = profile(a=engine(), b=engine(gpus=[0]), c=engine(), d=engine())
    found = budget.assign(given, gpus(2))
    assert {name: one.gpus for name, one in found.items()} == {"a": (1,), "b": (0,), "c": (0,), "d": (1,)}
    assert {one.memory for one in found.values()} == {0.45}


def test_fractions_and_sizes() -> None:
    """A fraction stays; bytes become one; alone on a GPU vLLM's default holds; with kv_cache only the check's."""
    given = profile(
        a=engine(gpus=[0], memory=0.3),
        b=engine(gpus=[1], memory=20 * GIB),
        c=engine(gpus=[2]),
        d=engine(gpus=[3], kv_cache=GIB),
        e=engine(gpus=[]),
    )
    found = budget.assign(given, gpus(4))
    assert {name: one.memory for name, one in found.items()} == {"a": 0.3, "b": 0.25, "c": None, "d": 0.1, "e": None}


def test_auto_avoids_a_full_gpu_and_does_not_move() -> None:
    """Free memory decides, in tenths; what runs already stays where it is."""
    full, free = Gpu(0, "0", "GPU-0", "H", 80 * GIB, 10 * GIB), Gpu(1, "1", "GPU-1", "H", 80 * GIB, 79 * GIB)
    given = profile(a=engine(kv_cache=4 * GIB), b=engine(kv_cache=4 * GIB))
    facts = Facts("py", gpus=(full, free), models={"org/model": MODEL})
    assert {one.gpus for one in budget.assign(given, facts).values()} == {(1,)}
    nearly = replace(facts, gpus=(replace(full, free=78 * GIB), free))
    assert [one.gpus for one in budget.assign(given, nearly).values()] == [(0,), (1,)]
    kept = replace(nearly, kept={"a": (1,), "b": (7,)})
    assert [one.gpus for one in budget.assign(given, kept).values()] == [(1,), (0,)]


def test_gpus_by_uuid_and_without_any() -> None:
    """A UUID finds its GPU; without GPUs the plan is made for a machine that has them, and each one is missed."""
    given = profile(a=engine(gpus=["GPU-1"]))
    found = budget.assign(given, gpus(2))["a"]
    assert (found.devices, found.uuids) == (("1",), ("GPU-1",))
    nowhere = profile(a=engine(), b=engine())
    assigned = budget.assign(nowhere, gpus(0))
    assert [one.gpus for one in assigned.values()] == [(0,), (1,)]
    missing = [str(one) for one in budget.absent(nowhere, gpus(0), assigned)]
    assert missing == [
        f"engine {n}: GPU {i} is not here (this machine has no usable GPUs)" for n, i in (("a", 0), ("b", 1))
    ]
    lost = profile(a=engine(gpus=["GPU-9"]))
    (said,) = budget.absent(lost, gpus(2), budget.assign(lost, gpus(2)))
    assert str(said) == "engine a: GPU GPU-9 is not here (this machine has 2 usable GPUs)"


def test_mig_instances_are_used_one_by_one() -> None:
    """A process sees a single instance, so no engine can be spread over two."""
    parts = tuple(Gpu(n, f"MIG-{n}", f"MIG-{n}", "H", 70 * GIB, 70 * GIB, parent="GPU-0") for n in range(2))
    facts = Facts("py", gpus=parts)
    one = profile(a=engine(gpus=["MIG-1"]))
    assert budget.assign(one, facts)["a"].devices == ("MIG-1",)
    assert not list(budget.absent(one, facts, budget.assign(one, facts)))
    two = profile(a=engine(gpus=[0, 1]))
    (said,) = budget.absent(two, facts, budget.assign(two, facts))
    assert "a process can use one MIG instance only" in said.text


def told(given: Profile, facts: Facts) -> list[sums.Sum]:
    """All sums of a profile."""
    return list(sums.sums(given, facts, budget.assign(given, facts)))


def one_gpu(free: float, *holders: Holder, total: float = 140.4) -> Facts:
    """A machine with one GPU, and the model of Mistral-7B's shape."""
    gpu = Gpu(0, "0", "GPU-0", "H200", int(total * GIB), int(free * GIB), holders)
    return Facts("py", gpus=(gpu,), models={"org/model": MODEL})


def four(**keys: Any) -> Profile:
    """The engines of one-gpu.yaml."""
    one = {"gpus": [0], "max_model_len": 32768} | keys
    return profile(a=engine(**one), b=engine(**one), c=engine(**one, cache="x"), d=engine(**one, cache="x"), x=Cache())


def test_the_sum_of_one_gpu_is_what_was_used() -> None:
    """At rest four engines and their cache used 90,016 MiB, with few CUDA graphs 84,853: the sum without activations.

    Half a GiB each may be off. The sum itself is that of the peak: with 4,352 MiB of KV cache and 2,048 tokens at once
    four used 78.4 GiB of an H100 under load, 0.5 of which were in use before.
    """
    mib = 1024**2
    for keys, used in (({}, 90016), ({"args": {"max_num_seqs": 16}}, 85468 - 615)):
        (found,) = told(four(kv_cache=6 * GIB, **keys), one_gpu(140))
        assert found.fits
        assert abs(found.need - 4 * 8192 * 120 * 1024 - used * mib) < 2 * GIB
    args = {"max-num-seqs": 16, "max-num-batched-tokens": 2048}
    (found,) = told(four(kv_cache=4352 * mib, args=args), one_gpu(79.1, total=79.6))
    assert found.fits
    assert found.need / GIB == pytest.approx(78.4 - 0.5, abs=0.2)
    assert str(found).startswith(
        "GPU 0 (H200, 79.6 GiB): 78.0 GiB are needed (a, b, c, d each 19.3 GiB = weights 13.5 GiB + overhead 1.4 GiB + "
        "0.2 GiB for 2,048 tokens at once + KV 4.2 GiB, 1 LMCache server(s) 0.6 GiB), 79.1 GiB are free"
    )


def test_the_peak_counts_not_the_start() -> None:
    """One engine with 4,608 MiB and 8,192 tokens at once took 20.3 GiB of an H100: four do not fit; fewer tokens do."""
    (found,) = told(four(kv_cache=4608 * 1024**2, args={"max-num-seqs": 16}), one_gpu(79.1, total=79.6))
    assert not found.fits
    assert "a, b, c, d each 20.3 GiB" in str(found)
    assert found.advice == "`max-num-batched-tokens: 2048` and `kv_cache: 4.5GiB` for each engine here would fit"


def test_one_block_is_kept_back() -> None:
    """4,096 MiB hold 32,752 tokens of 128 KiB, not 32,768: one block of 16 belongs to the pool (seen on an H100)."""
    facts = one_gpu(140)
    fits = profile(a=engine(gpus=[0], kv_cache=4 * GIB, max_model_len=32752))
    assert not list(sums.too_small(fits, facts, budget.assign(fits, facts)))
    given = profile(a=engine(gpus=[0], kv_cache=4 * GIB, max_model_len=32768))
    (found,) = sums.too_small(given, facts, budget.assign(given, facts))
    assert found.text.endswith("and the block of 16 tokens that vLLM keeps back")
    assert str(found).endswith("`kv_cache: 4.25GiB` or `max_model_len: 32752` would fit")


@pytest.mark.parametrize(
    ("name", "total", "args", "tokens"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, {}, 8192),
        ("NVIDIA H200", 140.4, {}, 8192),
        ("NVIDIA A100-SXM4-80GB", 79.6, {}, 2048),
        ("NVIDIA B200", 178.0, {}, 16384),
        ("NVIDIA L4", 22.0, {}, 2048),
        ("NVIDIA H200", 140.4, {"max_num_batched_tokens": "4K"}, 4096),
        ("NVIDIA H200", 140.4, {"max-num-batched-tokens": 512}, 512),
        ("NVIDIA H200", 140.4, {"performance-mode": "throughput"}, 16384),
        ("NVIDIA L4", 22.0, {"enable-chunked-prefill": False}, 32768),
    ],
)
def test_tokens_at_once(name: str, total: float, args: dict[str, Any], tokens: int) -> None:
    """What vLLM's server takes by itself on a GPU of that name and size (``get_batch_defaults``), or what is given."""
    gpu = Gpu(0, "0", "", name, int(total * GIB), 0)
    assert demand.of(engine(args=args), MODEL, 1, gpu).batch == tokens


def test_parameters_of_known_models() -> None:
    """Mistral-7B has 7,241,732,096; experts count all in memory, two of eight in the work."""
    assert SHAPE is not None
    assert SHAPE.parameters == 7_241_732_096
    mixtral = shape.of(MISTRAL | {"num_local_experts": 8, "num_experts_per_tok": 2})
    assert mixtral is not None
    assert (mixtral.parameters, round(mixtral.active / 1e9, 1)) == (46_702_792_704, 12.9)
    assert shape.of({}) is None
    assert shape.of(MISTRAL | {"n_routed_experts": 64}) is None
    windowed = shape.of(MISTRAL | {"sliding_window": 4096})
    assert windowed is not None
    assert windowed.keeps is not None
    assert all(layer.window == 4096 for layer in windowed.keeps.attending)


def test_demand_of_ranks_and_dtypes() -> None:
    """Tensor parallelism divides weights and KV heads; fp8 halves the KV; files count before the shape."""
    whole, half = demand.of(engine(), MODEL, 1), demand.of(engine(), MODEL, 2)
    block = 16 * 131072
    assert (whole.weights, whole.kv) == (2 * 7_241_732_096, 4 * GIB + block)
    assert (half.weights, half.kv) == (7_241_732_096, (4 * GIB + block) // 2)
    assert demand.of(engine(), MODEL, 16).kv == (4 * GIB + block) // 8  # eight KV heads cannot be divided further
    assert demand.of(engine(args={"kv_cache_dtype": "fp8"}), MODEL, 1).kv == (4 * GIB + block) // 2
    assert demand.of(engine(), replace(MODEL, weight_bytes=5), 1).weights == 5
    assert demand.of(engine(max_model_len=8192), MODEL, 1).kv == GIB + block
    assert (whole.activations, half.activations) == (2048 * 120 * 1024, 2048 * (56 + 8 + 4) * 1024)
    unknown = demand.of(engine(), Model("org/model"), 1)
    assert (unknown.kv, unknown.least, unknown.tokens(GIB)) == (None, peak.PROCESS + peak.GRAPHS, None)


def test_too_little_gpu_memory_names_the_holders_and_what_would_fit() -> None:
    """What each tenant needs, what is free, who holds the rest, and the value that fits: it does, and no more would."""
    facts = one_gpu(80, Holder(42, 60 * GIB, "python train.py", "service v of project p"))
    (found,) = told(four(kv_cache=6 * GIB), facts)
    text = str(found)
    assert not found.fits
    assert text.startswith("GPU 0 (H200, 140.4 GiB): 92.6 GiB are needed (a, b, c, d each 23.0 GiB = weights 13.5 GiB")
    assert "1 LMCache server(s) 0.6 GiB), 80.0 GiB are free; held by pid 42 (60.0 GiB) service v of project p" in text
    assert text.endswith(
        "`kv_cache: 2.75GiB` with `max_model_len: 21504` for each engine here would fit, or free the GPU"
    )
    assert told(four(kv_cache=int(2.75 * GIB)), facts)[0].fits
    assert not told(four(kv_cache=3 * GIB), facts)[0].fits


@pytest.mark.parametrize(
    ("keys", "free", "advice"),
    [
        ({"kv_cache": 8 * GIB}, 90, "`kv_cache: 5.25GiB` for each engine here would fit"),
        ({"memory": 0.25}, 100, "`memory: 0.17` for each engine here would fit"),
        ({"memory": 0.25}, 80, "`memory: 0.14` with `max_model_len: 21504` for each engine here would fit"),
        ({"kv_cache": 6 * GIB}, 40, "run fewer engines here, or a smaller model"),
        ({"memory": 0.25}, 40, "run fewer engines here, or a smaller model"),
    ],
)
def test_the_value_that_would_fit(keys: dict[str, Any], free: float, advice: str) -> None:
    """As much as there is room for; a shorter context where even one sequence would not fit; else fewer engines."""
    (found,) = told(four(**keys), one_gpu(free))
    assert found.advice == advice


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"memory": 0.1},
            "a: its share of the GPU is 14.0 GiB, but needs 21.0 GiB (weights 13.5 GiB + overhead 2.6 GiB + 0.9 GiB "
            "for 8,192 tokens at once + 4.0 GiB KV cache of 32,768 tokens); `memory: 0.15` would fit",
        ),
        ({"memory": 0.13}, "`memory: 0.15` or `max_model_len: 10240` would fit"),
        (
            {"kv_cache": GIB},
            "a: kv_cache is 1.0 GiB, but needs 4.0 GiB KV cache of 32,768 tokens; `kv_cache: 4.25GiB` or "
            "`max_model_len: 8176` would fit",
        ),
        ({"gpus": []}, "`kv_cache: 5GiB` or `max_model_len: 8064` would fit"),
        ({"gpus": [], "kv_cache": int(3.2 * GIB)}, "`kv_cache: 5GiB` or `max_model_len: 32640` would fit"),
        ({"gpus": [], "kv_cache": int(3.2 * GIB), "max_model_len": 32640}, ""),
        ({"memory": 0.15}, ""),
    ],
)
def test_an_engine_that_vllm_would_refuse(keys: dict[str, Any], said: str) -> None:
    """One sequence of the longest context must fit into its KV cache; the CPU build rounds that up to whole GiB."""
    given, facts = profile(a=engine(**{"gpus": [0], "max_model_len": 32768} | keys)), one_gpu(140)
    found = list(sums.too_small(given, facts, budget.assign(given, facts)))
    assert len(found) == bool(said)
    assert not found or said in str(found[0])


def test_too_little_host_memory_and_shm() -> None:
    """CPU engines and L1 against free memory; the KV of cached CPU engines against /dev/shm."""
    given = profile(a=engine(gpus=[], cache="c", kv_cache=2 * GIB), b=engine(gpus=[]), c=Cache(l1=4 * GIB))
    facts = Facts("py", memory=8 * GIB, shm=GIB)
    memory, shm = told(given, facts)
    assert str(memory).startswith("host memory: 9.6 GiB are needed (L1 4.0 GiB, 2 engines 5.6 GiB), 8.0 GiB are free; ")
    assert str(shm).startswith("/dev/shm: 2.0 GiB are needed (KV cache of cached engines), 1.0 GiB are free; ")
    assert told(given, Facts("py")) == []
    small = profile(a=engine(gpus=[], memory=GIB), c=Cache(l1=4 * GIB))
    assert all(one.fits for one in told(small, replace(facts, memory=6 * GIB)))


def test_a_disk_too_small_for_one_document() -> None:
    """Refused where a length was asked for; where the model's own limit counts, documents may be shorter."""
    facts = Facts("py", models={"org/model": MODEL}, disks={"c": 3 * GIB})
    for length, hard in ((32768, True), (None, False)):
        given = profile(a=engine(gpus=[], cache="c", max_model_len=length, kv_cache=4 * GIB), c=Cache(l2="/kv"))
        (found,) = (one for one in told(given, facts) if one.what == "L2 of c")
        assert (found.fits, found.hard) == (False, hard)
        assert "4.0 GiB are needed (one document of 32,768 tokens), 3.0 GiB are free; set caches.*.l2" in str(found)


def test_a_plan_tells_its_sums() -> None:
    """What fits is shown too; what does not is missing, or a warning."""
    ports = {"a": 1, "b": 2, "c": 3, "d": 4, "x": 5, "x.http": 6}
    facts = replace(one_gpu(140), ports=ports, interpreters={"py": Interpreter("py")}, open_files=512)
    made = plan.make(four(kv_cache=6 * GIB), facts)
    assert [line.split(":")[0] for line in made.sums] == ["GPU 0 (H200, 140.4 GiB)"]
    assert made.service("a").uuids == ("GPU-0",)
    assert made.missing == ("open files: a process may have 512, engines need 1,024; raise it: ulimit -Hn 65535",)
    assert plan.Plan.from_json(made.to_json()) == made
