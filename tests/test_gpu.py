"""What only a real GPU can show: where engines run, KV that crosses from one to another, memory that comes back.

The tiny model on all GPUs of the machine. With two or more the KV that is stored from the first is loaded on the last.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from guarding import until
from kvdemo.commands import doctor
from kvdemo.commands.checks import Level
from kvdemo.config import profile as config
from kvdemo.host import gpus, process, procfs, survey
from kvdemo.host.state import Project, root
from kvdemo.planning import plan
from real_fleet import HANDBOOK, MODEL, Real, needs_engines

GPUS = gpus.detect(os.environ)
LAST = len(GPUS) - 1
GIB = 1024**3
SLACK = 256 * 1024**2
PATIENCE = 60
"""Seconds for the driver to take memory back."""

pytestmark = [*needs_engines, pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU")]
two_gpus = pytest.mark.skipif(len(GPUS) < 2, reason="needs two GPUs")

ENGINE = {"gpus": [0], "kv_cache": "2GiB", "max_model_len": 16384, "args": {"max-num-seqs": 4}}
ENGINES = {"plain": {}, "writer": {"cache": "shared"}, "reader": {"cache": "shared", "gpus": [LAST]}}


def profile(path: Path, name: str, engines: object = ENGINES, **engine: object) -> Path:
    """Write one; its cache is shared by whichever engines name it."""
    file = path / f"{name}.yaml"
    document = {
        "name": name,
        "model": str(MODEL),
        "defaults": {"engine": ENGINE | engine},
        "caches": {"shared": {"l1": "2GiB", "l2": "./kv", "chunk_size": 128}},
        "engines": engines,
    }
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


def fleet(path: Path, name: str) -> Real:
    """A project for that profile; the settings of vLLM with which this machine's engines run are kept."""
    own = {key: value for key, value in os.environ.items() if key.startswith("VLLM_")}
    (path / "context.txt").write_text(HANDBOOK.read_text()[:20000])
    return Real(path, path / f"{name}.yaml", name, **own)


def used() -> dict[str, int]:
    """Bytes in use on each GPU that the tests may use; what others do on the rest is none of theirs."""
    return gpus.memory_in_use(frozenset(gpu.uuid for gpu in GPUS))


@pytest.fixture(scope="module")
def before() -> dict[str, int]:
    """Bytes in use on each GPU before anything of this module ran."""
    return used()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, before: dict[str, int]) -> Iterator[Real]:
    """A plain engine and two that share, up; afterwards every GPU's memory is what it was."""
    path = tmp_path_factory.mktemp("gpu")
    profile(path, "gpu-three")
    one = fleet(path, "gpu-three")
    try:
        one.up()
        yield one
    finally:
        one.close()
    until(lambda: back(before), PATIENCE)


def back(before: dict[str, int]) -> bool:
    """Whether all GPUs' memory is what it was."""
    return all(size <= before[uuid] + SLACK for uuid, size in used().items())


def test_doctor() -> None:
    """Everything loads on it, and pinned copies are at least as fast as PCIe 3.0 can be."""
    found = list(doctor.of_machine(sys.executable, os.environ, Path.cwd()))
    named = {check.name: check for check in found}
    assert not [check for check in found if check.level is Level.FAILURE]
    assert named["copy"].values["load"] > 5e9
    for index in range(len(GPUS)):
        assert named[f"GPU {index}"].values["total"] > GIB


def test_engines_run_where_the_profile_says(three: Real, before: dict[str, int]) -> None:
    """Each sees its own GPU and no other, the cache server all of theirs; their KV cache lies there."""
    places = {"plain": 0, "writer": 0, "reader": LAST}
    pids = {name: three.core(name) for name in places} | {"shared": process.members(three.records["shared"])[0].pid}
    for name, pid in pids.items():
        seen = [GPUS[places[name]].device] if name in places else [GPUS[n].device for n in sorted({0, LAST})]
        assert f"CUDA_VISIBLE_DEVICES={','.join(seen)}".encode() in (procfs.environ(pid) or ()), name
    for gpu in GPUS:
        engines = list(places.values()).count(gpu.index)
        grown = used()[gpu.uuid] - before[gpu.uuid]
        assert engines * 2 * GIB <= grown <= engines * 6 * GIB + GIB, (gpu.index, grown)


def test_holders_are_named(three: Real) -> None:
    """Whoever is refused learns which service of which project has the memory, and what would fit."""
    profile(three.path, "gpu-big", {"one": {}}, kv_cache="9000GiB")
    done = three.run("up", three.path / "gpu-big.yaml", "-p", "gpu-big")
    assert done.returncode == 5, done
    said = " ".join((done.stdout + done.stderr).split())
    assert "GPU 0" in said
    assert "would fit" in said
    for name in ("plain", "writer"):
        assert f"pid {three.core(name)} " in said
        assert f"service {name} of project gpu-three" in said


def test_reuse_from_memory(three: Real) -> None:
    """KV that the writer stored gives the reader's answers to the last bit, from one GPU to the other."""
    judge(three.bench("--context", "context.txt", "--trials", "3", "--no-limit"))


def test_reuse_from_disk(three: Real) -> None:
    """The same when L1 is emptied before."""
    judge(three.bench("--context", "context.txt", "--trials", "2", "--no-limit", "--tier", "l2"))


def judge(result: dict[str, object]) -> None:
    """Shared, and exact."""
    rows = result["rows"]
    assert isinstance(rows, list)
    assert {row["arm"]: row["verdict"] for row in rows if row["engine"] == "reader"} == {
        "reuse": "SHARED",
        "again": "LOCAL",
    }
    assert result["valid"] is True
    answer = result["answer"]
    assert isinstance(answer, dict)
    assert answer["same"] is True
    assert "to the last bit" in answer["text"]


def test_a_killed_core_gives_its_memory_back(three: Real) -> None:
    """Its share returns, the others go on, and ``up`` puts it where it was."""
    full = used()[GPUS[0].uuid]
    os.kill(three.core("plain"), signal.SIGKILL)
    until(lambda: used()[GPUS[0].uuid] <= full - 2 * GIB, PATIENCE)
    until(lambda: three.states()["plain"] != "ready", PATIENCE)
    three.up()
    assert set(three.states().values()) == {"ready"}
    assert abs(used()[GPUS[0].uuid] - full) <= GIB


@two_gpus
def test_auto_spreads(three: Real) -> None:
    """Engines that may run anywhere are dealt out; a UUID is taken at its word; an outer choice is honoured."""
    engines: dict[str, object] = dict.fromkeys("abcd") | {"e": {"gpus": [GPUS[1].uuid]}}
    wanted = config.load(profile(three.path, "gpu-auto", engines, gpus="auto"), os.environ)
    planned = plan.make(wanted, survey.survey(wanted, Project(root(three.environ), "gpu-auto"), os.environ))
    assert {planned.service(name).gpus for name in "abcd"} == {(0,), (1,)}
    assert planned.service("e").gpus == (1,)
    three.environ["CUDA_VISIBLE_DEVICES"] = GPUS[1].uuid
    try:
        seen = json.loads(three.run("doctor", "--json").stdout)["checks"]
    finally:
        del three.environ["CUDA_VISIBLE_DEVICES"]
    assert [check["values"]["uuid"] for check in seen if check["name"].startswith("GPU ")] == [GPUS[1].uuid]


@two_gpus
def test_tensor_parallel(tmp_path: Path) -> None:
    """Two engines, each on both GPUs, share; each GPU's half of the KV is stored and loaded; nothing stays behind."""
    profile(tmp_path, "gpu-wide", {"writer": {"cache": "shared"}, "reader": {"cache": "shared"}}, gpus=[0, 1])
    wide = fleet(tmp_path, "gpu-wide")
    began = used()
    try:
        wide.up()
        cold, reuse = (wide.ask(name, HANDBOOK.read_text()[:8000], "wide") for name in ("writer", "reader"))
    finally:
        wide.close()
    assert cold.shared == 0
    assert reuse.shared >= cold.computed // 128 * 128 - 1
    # The tiny model reacts to every token: KV of the wrong half would give another answer.
    assert reuse.token_ids[0] == cold.token_ids[0]
    assert reuse.logprobs[0] == pytest.approx(cold.logprobs[0], abs=0.05)
    until(lambda: back(began), PATIENCE)
