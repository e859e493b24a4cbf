"""vLLM's own tiers: a cache without a process, in the plan, in vLLM's own parser and classes, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvdemo.backends.backend import Address
from kvdemo.backends.native import Native
from kvdemo.bench import cacheserver, workload
from kvdemo.config.profile import Profile, load
from kvdemo.errors import ProfileError, UsageError
from kvdemo.export import formats
from kvdemo.planning import order, plan
from kvdemo.planning.facts import Facts, Gpu, Interpreter, Model
from kvdemo.planning.plan import ServiceSpec

GIB = 1024**3
PROFILES = Path(__file__).parents[1] / "profiles"
VERSIONS = {"vllm": "0.32.0", "torch": "2.13.0", "lmcache": "0.5.6", "mooncake": "0.3.13"}


def profile(path: Path, text: str) -> Profile:
    """A profile of this text."""
    file = path / "p.yaml"
    file.write_text(text)
    return load(file, {})


def facts(one: Profile, gpus: int = 1) -> Facts:
    """A machine with GPUs of 140 GiB, an interpreter with everything, and a port for everybody who wants one."""
    ports = {key: 9000 + n for n, key in enumerate(plan.wanted_ports(one))}
    devices = tuple(Gpu(n, str(n), f"GPU-{n}", "H200", 140 * GIB, 140 * GIB) for n in range(gpus))
    models = {name: Model(name, "/m", "digest") for name in {engine.model for engine in one.engines.values()}}
    return Facts("py", gpus=devices, interpreters={"py": Interpreter("py", VERSIONS)}, models=models, ports=ports)


TIERS = """
model: org/m
caches: {tiers: {kind: vllm, l1: 2GiB, l2: ./kv, chunk_size: 256}}
engines: {a: {cache: tiers, gpus: [0]}, b: {cache: tiers, gpus: [0]}, plain: {gpus: [0]}}
"""


def test_nothing_is_started_for_it(tmp_path: Path) -> None:
    """Engines are all there is; each has the connector, a store by fingerprint, and waits for nobody."""
    one = profile(tmp_path, TIERS)
    made = plan.make(one, facts(one))
    assert [spec.name for spec in made.services] == ["a", "b", "plain"]
    assert set(plan.wanted_ports(one)) == {"a", "b", "plain"}
    config = made.service("a").options["kv-transfer-config"]
    extra = config["kv_connector_extra_config"]
    assert (extra["cpu_bytes_to_use"], extra["block_size"]) == (2 * GIB, 256)
    store = extra["secondary_tiers"][0]["root_dir"]
    assert Path(store).parent == tmp_path / "kv"
    assert made.service("a").directory == made.service("b").directory == store
    assert made.service("plain").directory == ""
    assert "kv-transfer-config" not in made.service("plain").options
    assert not made.service("a").server
    assert all("tiers" not in order.in_export(spec, made.services) for spec in made.services)
    assert plan.Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_what_stands_for_the_cache(tmp_path: Path) -> None:
    """Bench finds the pair, and a cache that nobody can ask."""
    one = profile(tmp_path, TIERS)
    made = plan.make(one, facts(one))
    roles = workload.roles(made)
    assert (roles.writer.name, roles.reader.name, roles.baseline.name) == ("a", "b", "plain")
    cache = made.service("tiers")
    assert (cache.kind, cache.url, cache.l1, cache.chunk_size) == ("cache", "", 2 * GIB, 256)
    assert cache.directory == made.service("a").directory
    with pytest.raises(KeyError):
        made.service("nobody")


def test_fields_of_its_tier(tmp_path: Path) -> None:
    """They go to vLLM as they stand, beside the defaults."""
    one = profile(tmp_path, TIERS.replace("chunk_size", "l2_adapter: {n_read_threads: 32}, chunk_size"))
    extra = plan.make(one, facts(one)).service("a").options["kv-transfer-config"]["kv_connector_extra_config"]
    tier = extra["secondary_tiers"][0]
    assert (tier["type"], tier["n_read_threads"], tier["n_write_threads"]) == ("fs", 32, 16)


def test_chunks_are_waited_for_as_files(tmp_path: Path) -> None:
    """Whole files count, whoever else's were there before; what never comes is not waited for forever."""
    cache = ServiceSpec("c", "cache", (), {}, "", 0, (), 0, 0, backend="vllm", store=str(tmp_path))
    assert cacheserver.chunks_in_files(replace(cache, store="")) is None
    (tmp_path / "model_r0").mkdir()

    def chunk(name: str) -> None:
        (tmp_path / "model_r0" / name).write_bytes(b"KV")

    chunk("old.bin")
    chunk("half.bin_1.tmp")
    before = cacheserver.chunks_in_files(cache)
    assert before == 1
    later = [threading.Timer(0.1 * n, chunk, [f"{n}.bin"]) for n in (1, 2)]
    for timer in later:
        timer.start()
    assert cacheserver.wait_for_chunk_files(cache, before, 2) == 2
    assert cacheserver.wait_for_chunk_files(cache, before, 3) == 2


def test_a_run_deletes_the_files_that_came_with_it(tmp_path: Path) -> None:
    """Nothing evicts them: a run under load would fill the machine. What was there before it stays."""
    one = profile(tmp_path, TIERS)
    made = plan.make(one, facts(one))
    files = [Path(made.service("a").directory) / "model_r0" / f"{n}.bin" for n in range(2)]
    files[0].parent.mkdir(parents=True)
    for file, time in zip(files, (1000, 2000), strict=True):
        file.write_bytes(b"KV")
        os.utime(file, (time, time))
    cacheserver.forget(made, "kvdemo-run-*")
    assert [file.exists() for file in files] == [True, True]
    cacheserver.forget(made, "kvdemo-run-*", 1500.0)
    assert [file.exists() for file in files] == [True, False]


def test_each_engine_pins_its_own_memory(tmp_path: Path) -> None:
    """Two engines of 2 GiB each do not fit into 3 GiB."""
    one = profile(tmp_path, TIERS)
    tight = plan.make(one, replace(facts(one), memory=3 * GIB))
    assert any("host memory: 4.0 GiB are needed" in text for text in tight.missing)


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("{kind: vllm}", "engines share through 'l2' only"),
        ("{kind: vllm, l2: 'redis://h:6379'}", "in a directory, not in Redis"),
        ("{kind: vllm, l2: ./kv, port: 5000}", "have no process"),
        ("{kind: vllm, l2: ./kv, args: {x: 1}}", "have no process"),
        ("{kind: vllm, l2: ./kv, l2_adapter: {root_dir: /tmp}}", "write 'l2'"),
        ("{kind: vllm, l2_adapter: {n_read_threads: 2}}", "these fields are for L2"),
        ("{kind: mooncake, l2: ./kv}", "host memory only"),
    ],
)
def test_keys_that_mean_nothing_to_a_backend(tmp_path: Path, cache: str, said: str) -> None:
    """Told where they stand, with what to do."""
    with pytest.raises(ProfileError) as caught:
        profile(tmp_path, f"model: org/m\ncaches: {{c: {cache}}}\nengines: {{a: {{cache: c}}}}\n")
    assert said in str(caught.value)


def test_the_cpu_build_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """With vLLM's own words, and what else to do."""
    one = profile(tmp_path, TIERS.replace("gpus: [0]", "gpus: []"))
    made = plan.make(one, facts(one, 0))
    refused = [text for text in made.missing if "CPU Offloading is currently only supported" in text]
    assert [text.partition(":")[0] for text in refused] == ["a", "b"]


def test_it_is_not_exported(tmp_path: Path) -> None:
    """Its store and connector are made by kvdemo, which a Slurm job runs."""
    one = profile(tmp_path, TIERS)
    with pytest.raises(UsageError, match="tiers: a cache of kind vllm is started by kvdemo only"):
        formats.export(plan.make(one, facts(one)), "compose")
    assert '"$KVDEMO" up "$PROFILE"' in formats.export(plan.make(one, facts(one)), "slurm")


READ = """
import json, sys
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
config = parser.parse_args(sys.argv[1:]).kv_transfer_config
assert isinstance(config, KVTransferConfig), config
extra = config.kv_connector_extra_config
spec = OffloadingSpecFactory.get_spec_cls(extra)
connector = KVConnectorFactory.get_connector_class_by_name(config.kv_connector)
found = [connector.__name__, spec.__name__, bool(spec.build_metric_definitions(extra)), config.kv_load_failure_policy]
found += [extra["secondary_tiers"][0]["type"] in SecondaryTierFactory._registry, config.kv_role]
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
def test_vllm_takes_the_arguments(tmp_path: Path) -> None:
    """Its own parser reads the flag, its own classes the connector's configuration: all that the CPU build can do."""
    one = profile(tmp_path, TIERS)
    words = plan.make(one, facts(one)).service("a").argv
    at = words.index("--kv-transfer-config")
    done = subprocess.run(
        [sys.executable, "-c", READ, *words[at : at + 2]], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read == ["OffloadingConnector", "TieringOffloadingSpec", True, "recompute", True, "kv_both"]


def test_tiers_are_told_by_the_engine() -> None:
    """Host and disk are L1 and L2; an engine that does not tell leaves them unknown."""
    names = [f"prompt_tokens_cached_by_source{{{source}}}" for source in ("host", "disk")]
    assert Native().engine_tiers({names[0]: 1.0}, {names[0]: 5.0, names[1]: 256.0}) == {"l1": 4, "l2": 256}
    assert Native().engine_tiers({}, {"prompt_tokens": 3.0}) is None


@pytest.mark.parametrize(
    ("name", "gpus", "plain"), [("contest.yaml", 1, ["vllm-a"]), ("contest-2gpu.yaml", 2, ["vllm-a", "vllm-b"])]
)
def test_the_contests_are_planned(name: str, gpus: int, plain: list[str]) -> None:
    """A pair for each cache, plain engines beside them, equal chunks."""
    one = load(PROFILES / name, {})
    made = plan.make(one, facts(one, gpus))
    roles = workload.roles(made)
    assert len(roles.pairs) == 3
    assert [engine.name for engine in roles.plain] == plain
    assert len({pair.reader.chunk_size for pair in roles.pairs}) == 1
    assert _kinds(made.engines) == {"", "lmcache", "vllm", "mooncake"}


def _kinds(engines: Sequence[Any]) -> set[str]:
    return {engine.backend for engine in engines}


def test_the_wiring_names_no_address() -> None:
    """There is nobody to find but the directory."""
    extra = Native().wiring(Address("", 0, l1=GIB, store="/kv/x")).arguments["kv-transfer-config"]
    assert extra["kv_connector_extra_config"]["secondary_tiers"][0]["root_dir"] == "/kv/x"
