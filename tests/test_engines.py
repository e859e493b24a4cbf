"""The words on the command lines, and who gets which GPU: pure functions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvdemo import budget, caches, engines, environment
from kvdemo.facts import Facts, Gpu
from kvdemo.profile import Cache, Engine, Profile

GIB = 1024**3


def engine(**keys: Any) -> Engine:
    """An engine of the profile."""
    return Engine(model="org/model", **keys)


def words(one: Engine, **changes: Any) -> list[str]:
    """The command line of an engine."""
    given: dict[str, Any] = {"python": "py", "served": "m", "port": 8000, "devices": 1, "memory": None, "cache": None}
    return list(engines.argv(one, **given | {"stop_timeout": 30.0} | changes))


def value(argv: list[str], flag: str) -> str:
    """What follows a flag."""
    return argv[argv.index(flag) + 1]


def profile(**services: Any) -> Profile:
    """A profile with these engines."""
    found = {name.replace("_", "-"): one for name, one in services.items()}
    return Profile(path=Path("/p.yaml"), engines={n: e for n, e in found.items() if isinstance(e, Engine)},
                   caches={n: c for n, c in found.items() if isinstance(c, Cache)})  # fmt: skip


def gpus(count: int, total: int = 80 * GIB, free: int | None = None) -> Facts:
    """A machine with so many equal GPUs."""
    free = total if free is None else free
    return Facts("py", gpus=tuple(Gpu(n, str(n), f"GPU-{n}", "H", total, free) for n in range(count)))


def test_flags() -> None:
    """YAML values become command-line words as vLLM reads them."""
    arguments = {
        "a_b": 1,
        "yes": True,
        "no": False,
        "none": None,
        "many": [1, "x"],
        "map": {"k": [1]},
        "maps": [{"k": 1}],
    }
    assert engines.flags(arguments) == (
        *("--a-b", "1", "--yes", "--no-no", "--many", "1", "x", "--map", '{"k":[1]}', "--maps", '[{"k":1}]'),
    )


def test_a_plain_engine_on_a_gpu() -> None:
    """The module, not the script; what kvdemo reads later is switched on; no trace of LMCache."""
    argv = words(engine(max_model_len=4096), memory=0.45)
    assert argv[:3] == ["py", "-m", "vllm.entrypoints.openai.api_server"]
    assert {"--enable-prompt-tokens-details", "--enable-per-request-metrics"} < set(argv)
    assert (value(argv, "--max-model-len"), value(argv, "--gpu-memory-utilization")) == ("4096", "0.45")
    assert not {"--kv-transfer-config", "--tensor-parallel-size", "--enforce-eager"} & set(argv)


def test_an_engine_without_a_gpu() -> None:
    """The CPU build: eager, one process, no GPU flags, KV space in whole GiB."""
    argv = words(engine(gpus=[], kv_cache=int(1.5 * GIB)), devices=0)
    assert "--enforce-eager" in argv
    assert "--gpu-memory-utilization" not in argv
    env = engines.env(
        engine(gpus=[], kv_cache=int(1.5 * GIB)), devices=(), local_model=True, sockets="/s", start_timeout=9
    )
    assert (env["VLLM_CPU_KVCACHE_SPACE"], env["CUDA_VISIBLE_DEVICES"], env["HF_HUB_OFFLINE"]) == ("2", "", "1")


def test_a_cached_engine() -> None:
    """The connector knows the server's address and survives its death."""
    argv = words(engine(), cache=engines.CacheAddress("10.0.0.1", 5555))
    config = json.loads(value(argv, "--kv-transfer-config"))
    assert config["kv_connector"] == "LMCacheMPConnector"
    assert config["kv_load_failure_policy"] == "recompute"
    extra = config["kv_connector_extra_config"]
    assert (extra["lmcache.mp.host"], extra["lmcache.mp.port"]) == ("tcp://10.0.0.1", 5555)


def test_several_gpus_and_a_fixed_kv_cache() -> None:
    """Tensor parallel over the GPUs; bytes where bytes were asked for."""
    argv = words(engine(kv_cache=GIB), devices=2, memory=0.1)
    assert (value(argv, "--tensor-parallel-size"), value(argv, "--kv-cache-memory-bytes")) == ("2", str(GIB))


def test_args_win_over_defaults() -> None:
    """Whatever the profile says in args replaces kvdemo's own choice, once, in any spelling."""
    argv = words(engine(args={"shutdown_timeout": 3, "--enforce-eager": False}), devices=0)
    assert argv.count("--shutdown-timeout") == 1
    assert value(argv, "--shutdown-timeout") == "3"
    assert "--no-enforce-eager" in argv
    assert "--enforce-eager" not in argv


def test_the_engine_gets_half_of_the_patience_to_shut_down() -> None:
    """The engine's own deadline comes before kvdemo's, and is never 0 (which would leak its shared memory)."""
    assert value(words(engine(), stop_timeout=30.0), "--shutdown-timeout") == "15"
    assert value(words(engine(), stop_timeout=0.5), "--shutdown-timeout") == "1"


def test_env_of_the_profile_wins() -> None:
    """An engine's own variables replace kvdemo's; its GPUs are pinned in nvidia-smi's order."""
    one = engine(env={"PYTHONHASHSEED": "7"})
    env = engines.env(one, devices=("1", "GPU-3"), local_model=False, sockets="/s", start_timeout=9.9)
    assert (env["PYTHONHASHSEED"], env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == (
        "7",
        "1,GPU-3",
        "PCI_BUS_ID",
    )
    assert (env["VLLM_ENGINE_READY_TIMEOUT_S"], env["VLLM_RPC_BASE_PATH"]) == ("9", "/s")
    assert "HF_HUB_OFFLINE" not in env


def test_a_cache_server() -> None:
    """Sizes in GiB, a worker for each engine, L2 only with a store."""
    common: dict[str, Any] = {"python": "py", "port": 1111, "http_port": 2222, "engines": 4, "on_gpu": True}
    argv = list(caches.argv(Cache(l1=int(1.5 * GIB)), store=None, **common))
    assert argv[:4] == ["py", "-m", "lmcache.cli.main", "server"]
    assert (value(argv, "--l1-size-gb"), value(argv, "--max-workers"), value(argv, "--http-port")) == (
        "1.5",
        "4",
        "2222",
    )
    assert "--l2-adapter" not in argv
    argv = list(caches.argv(Cache(args={"max_workers": 9}), store="/kv/x", **common | {"on_gpu": False}))
    assert json.loads(value(argv, "--l2-adapter")) == {"type": "fs", "base_path": "/kv/x", "shared": True}
    assert value(argv, "--max-workers") == "9"
    assert "--no-l1-use-lazy" in argv


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        ("0.5.6", {}, {"type": "fs_native", "num_workers": 8, "shared": True}),
        ("0.5.3", {}, {"type": "fs", "shared": True}),
        ("", {}, {"type": "fs", "shared": True}),
        ("0.5.6", {"type": "fs"}, {"type": "fs", "shared": True}),
        ("0.5.6", {"use_odirect": True}, {"type": "fs_native", "num_workers": 8, "shared": True, "use_odirect": True}),
        ("0.5.3", {"type": "fs_native", "num_workers": 2}, {"type": "fs_native", "num_workers": 2, "shared": True}),
        ("0.5.6", {"type": "dax", "slot": 1}, {"type": "dax", "slot": 1, "shared": True}),
    ],
)
def test_l2_takes_the_best_adapter_that_works(version: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Native files from the LMCache that can store salted requests with them; the profile's fields come on top."""
    common: dict[str, Any] = {"python": "py", "port": 1111, "http_port": 2222, "engines": 1, "on_gpu": True}
    argv = list(caches.argv(Cache(l2_adapter=given), store="/kv/x", lmcache=version, **common))
    assert json.loads(value(argv, "--l2-adapter")) == {**expected, "base_path": "/kv/x"}


def test_automatic_gpus_spread() -> None:
    """`auto` takes the GPU that the fewest engines use, after the named ones."""
    given = profile(a=engine(), b=engine(gpus=[0]), c=engine(), d=engine())
    found = budget.assign(given, gpus(2))
    assert {name: one.gpus for name, one in found.items()} == {"a": (1,), "b": (0,), "c": (0,), "d": (1,)}
    assert {one.memory for one in found.values()} == {0.45}


def test_fractions_and_sizes() -> None:
    """A fraction stays; bytes become one; alone on a GPU vLLM's default holds; with kv_cache only the check's."""
    given = profile(a=engine(gpus=[0], memory=0.3), b=engine(gpus=[1], memory=20 * GIB), c=engine(gpus=[2]),
                    d=engine(gpus=[3], kv_cache=GIB), e=engine(gpus=[]))  # fmt: skip
    found = budget.assign(given, gpus(4))
    assert {name: one.memory for name, one in found.items()} == {"a": 0.3, "b": 0.25, "c": None, "d": 0.1, "e": None}


def test_gpus_by_uuid_and_without_any() -> None:
    """A UUID finds its GPU; without GPUs the plan is made for a machine that has them, and each one is missed."""
    given = profile(a=engine(gpus=["GPU-1"]))
    assert budget.assign(given, gpus(2))["a"].devices == ("1",)
    nowhere = profile(a=engine(), b=engine())
    found = budget.assign(nowhere, gpus(0))
    assert [one.gpus for one in found.values()] == [(0,), (1,)]
    missing = list(budget.shortages(nowhere, gpus(0), found))
    assert missing == [
        f"engine {n}: GPU {i} is not here; this machine has no usable GPUs" for n, i in (("a", 0), ("b", 1))
    ]
    lost = profile(a=engine(gpus=["GPU-9"]))
    (said,) = budget.shortages(lost, gpus(1), budget.assign(lost, gpus(1)))
    assert said == "engine a: GPU GPU-9 is not here; this machine has 1 usable GPU"


def test_too_little_gpu_memory_names_the_holders() -> None:
    """What each tenant needs, what is free, and who holds the rest."""
    gpu = Gpu(0, "0", "GPU-0", "H200", 80 * GIB, 30 * GIB, ("pid 42 (50.0 GiB)",))
    given = profile(a=engine(cache="c"), b=engine(), c=Cache())
    facts = Facts("py", gpus=(gpu,))
    (said,) = budget.shortages(given, facts, budget.assign(given, facts))
    for text in (
        "GPU 0 (H200): 72.6 GiB are needed",
        "a 36.0 GiB",
        "1 LMCache server(s)",
        "held by pid 42",
        "30.0 of 80.0",
    ):
        assert text in said


def test_too_little_host_memory_and_shm() -> None:
    """CPU engines and L1 against free memory; the KV of cached CPU engines against /dev/shm."""
    given = profile(a=engine(gpus=[], cache="c", kv_cache=2 * GIB), b=engine(gpus=[]), c=Cache(l1=4 * GIB))
    facts = Facts("py", memory=8 * GIB, shm=GIB)
    memory, shm = budget.shortages(given, facts, budget.assign(given, facts))
    assert memory.startswith("host memory: 9.6 GiB are needed (4.0 GiB of it L1), 8.0 GiB are available")
    assert shm.startswith("/dev/shm: cached engines map 2.0 GiB")
    assert list(budget.shortages(given, Facts("py"), budget.assign(given, facts))) == []
    small = profile(a=engine(gpus=[], memory=GIB), c=Cache(l1=4 * GIB))
    assert list(budget.shortages(small, replace(facts, memory=6 * GIB), budget.assign(small, facts))) == []


def test_inherited_variables() -> None:
    """An allow list without anything that sounds secret; secrets only by name, and never empty ones."""
    mine = {
        "PATH": "/bin",
        "HF_HOME": "/h",
        "HF_TOKEN": "t",
        "AWS_SECRET_ACCESS_KEY": "k",
        "https_proxy": "p",
        "EDITOR": "vi",
    }
    assert environment.inherited(mine) == {"PATH": "/bin", "HF_HOME": "/h", "https_proxy": "p"}
    found = environment.of_service(mine | {"EMPTY": ""}, {"PATH": "/x", "A": "1"}, ["HF_TOKEN", "EMPTY", "ABSENT"])
    assert found == {"PATH": "/x", "HF_HOME": "/h", "https_proxy": "p", "A": "1", "HF_TOKEN": "t"}


def test_devices_of_a_cache() -> None:
    """A cache server sees every GPU of its engines, or none."""
    assert caches.env(Cache(), devices=["0", "2"])["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert caches.env(Cache(env={"X": "1"}), devices=[]) | {"X": "1"} == engines.QUIET | {
        "CUDA_VISIBLE_DEVICES": "",
        "X": "1",
    }
