"""The words on the command lines: pure functions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvdemo import backends
from kvdemo.backends.backend import Address
from kvdemo.config.profile import Cache, Engine
from kvdemo.planning import caches, engines, environment

GIB = 1024**3


def engine(**keys: Any) -> Engine:
    """An engine of the profile."""
    return Engine(model="org/model", **keys)


def words(one: Engine, **changes: Any) -> list[str]:
    """The command line of an engine."""
    given: dict[str, Any] = {"command": ("py", "-m", "server"), "model_names": ["m"], "port": 8000, "devices": 1}
    return list(
        engines.argv(one, **given | {"memory": None, "wiring": engines.UNWIRED, "stop_timeout": 30.0} | changes)
    )


def value(argv: list[str], flag: str) -> str:
    """What follows a flag."""
    return argv[argv.index(flag) + 1]


def test_a_plain_engine_on_a_gpu() -> None:
    """The module, not the script; what kvdemo reads later is switched on; no trace of LMCache."""
    argv = words(engine(max_model_len=4096), memory=0.45)
    assert argv[:3] == ["py", "-m", "server"]
    assert {"--enable-prompt-tokens-details", "--enable-per-request-metrics"} < set(argv)
    assert (value(argv, "--max-model-len"), value(argv, "--gpu-memory-utilization")) == ("4096", "0.45")
    assert not {"--kv-transfer-config", "--tensor-parallel-size", "--enforce-eager"} & set(argv)


def test_an_engine_without_a_gpu() -> None:
    """The CPU build: eager, one process, no GPU flags, KV space to the byte."""
    argv = words(engine(gpus=[], kv_cache=int(1.5 * GIB)), devices=0)
    assert "--enforce-eager" in argv
    assert "--gpu-memory-utilization" not in argv
    assert value(argv, "--kv-cache-memory-bytes") == str(int(1.5 * GIB))
    assert value(words(engine(gpus=[]), devices=0), "--kv-cache-memory-bytes") == str(GIB)
    env = engines.env(engine(gpus=[], kv_cache=int(1.5 * GIB)), devices=(), offline=True, sockets="/s", start_timeout=9)
    assert (env["CUDA_VISIBLE_DEVICES"], env["HF_HUB_OFFLINE"]) == ("", "1")
    assert env["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_cached_engine() -> None:
    """The connector knows the server's address and survives its death."""
    argv = words(engine(), wiring=backends.DEFAULT.wiring(Address("10.0.0.1", 5555)))
    config = json.loads(value(argv, "--kv-transfer-config"))
    assert config["kv_connector"] == "LMCacheMPConnector"
    assert config["kv_load_failure_policy"] == "recompute"
    extra = config["kv_connector_extra_config"]
    assert (extra["lmcache.mp.host"], extra["lmcache.mp.port"]) == ("tcp://10.0.0.1", 5555)


def test_several_gpus_and_a_fixed_kv_cache() -> None:
    """Tensor parallel over the GPUs; bytes where bytes were asked for."""
    argv = words(engine(kv_cache=GIB), devices=2, memory=0.1)
    assert (value(argv, "--tensor-parallel-size"), value(argv, "--kv-cache-memory-bytes")) == ("2", str(GIB))


def test_a_null_leaves_a_default_out_but_no_gpu() -> None:
    """Nothing behind a flag takes kvdemo's own choice away, except for the number of ranks."""
    argv = words(engine(args={"shutdown-timeout": None, "tensor-parallel-size": None}), devices=2)
    assert "--shutdown-timeout" not in argv
    assert value(argv, "--tensor-parallel-size") == "2"


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
    env = engines.env(one, devices=("1", "GPU-3"), offline=False, sockets="/s", start_timeout=9.9)
    assert (env["PYTHONHASHSEED"], env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == (
        "7",
        "1,GPU-3",
        "PCI_BUS_ID",
    )
    assert (env["VLLM_ENGINE_READY_TIMEOUT_S"], env["VLLM_RPC_BASE_PATH"]) == ("9", "/s")
    assert "HF_HUB_OFFLINE" not in env


def test_a_cache_server() -> None:
    """Sizes in GiB, a worker for each engine, L2 only with a store."""
    common: dict[str, Any] = {"python": "py", "ports": (1111, 2222), "inner": "127.0.0.1", "engines": 4}
    common["on_gpu"] = True
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
    argv = list(caches.argv(Cache(), store="/kv/x", node="vm-1", **common))
    assert json.loads(value(argv, "--l2-adapter"))["relative_tmp_dir"] == "tmp-vm-1"
    argv = list(caches.argv(Cache(host="10.0.0.1"), store="redis://kv.example:7000", **common))
    assert json.loads(value(argv, "--l2-adapter")) == {"type": "resp", "host": "kv.example", "port": 7000}
    assert (value(argv, "--host"), value(argv, "--http-host")) == ("127.0.0.1", "10.0.0.1")


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        ("0.5.6", {}, {"type": "fs_native", "num_workers": 32, "shared": True}),
        ("0.5.3", {}, {"type": "fs", "shared": True}),
        ("", {}, {"type": "fs", "shared": True}),
        ("0.5.6", {"type": "fs"}, {"type": "fs", "shared": True}),
        ("0.5.6", {"use_odirect": True}, {"type": "fs_native", "num_workers": 32, "shared": True, "use_odirect": True}),
        ("0.5.3", {"type": "fs_native", "num_workers": 2}, {"type": "fs_native", "num_workers": 2, "shared": True}),
        ("0.5.6", {"type": "dax", "slot": 1}, {"type": "dax", "slot": 1, "shared": True}),
    ],
)
def test_l2_takes_the_best_adapter_that_works(version: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Native files from the LMCache that can store salted requests with them; the profile's fields come on top."""
    common: dict[str, Any] = {"python": "py", "ports": (1111, 2222), "inner": "127.0.0.1", "engines": 1, "on_gpu": True}
    argv = list(caches.argv(Cache(l2_adapter=given), store="/kv/x", version=version, **common))
    assert json.loads(value(argv, "--l2-adapter")) == {**expected, "base_path": "/kv/x"}
    argv = list(caches.argv(Cache(l2_adapter=given), store="/kv/x", version=version, **common | {"on_gpu": False}))
    on_processor = {**expected, "num_workers": 8} if expected.get("num_workers") == 32 else expected
    assert json.loads(value(argv, "--l2-adapter")) == {**on_processor, "base_path": "/kv/x"}


def test_inherited_variables() -> None:
    """An allow list without anything that sounds secret; secrets only by name, and never empty ones."""
    mine = {
        "PATH": "/bin",
        "HF_HOME": "/h",
        "HF_TOKEN": "t",
        "AWS_SECRET_ACCESS_KEY": "k",
        "https_proxy": "p",
        "EDITOR": "vi",
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    assert environment.inherit(mine) == {"PATH": "/bin", "HF_HOME": "/h", "https_proxy": "p"}
    found = environment.of_service(mine | {"EMPTY": ""}, {"PATH": "/x", "A": "1"}, ["HF_TOKEN", "EMPTY", "ABSENT"])
    assert found == {"PATH": "/x", "HF_HOME": "/h", "https_proxy": "p", "A": "1", "HF_TOKEN": "t"}


def test_devices_of_a_cache() -> None:
    """A cache server sees every GPU of its engines, or none."""
    assert caches.env(Cache(), devices=["0", "2"])["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert caches.env(Cache(env={"X": "1"}), devices=[]) | {"X": "1"} == engines.QUIET | {
        "CUDA_VISIBLE_DEVICES": "",
        "X": "1",
    }
