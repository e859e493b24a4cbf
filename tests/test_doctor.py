"""`kvdemo doctor`: what it says of good and of broken machines, interpreters, disks; and that it starts nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import FAKES, Lab
from hub_server import serve
from kvdemo.commands import checks, doctor
from kvdemo.commands.checks import Level
from kvdemo.config import profile
from kvdemo.planning import pair, predict, shape
from kvdemo.planning.facts import Driver, Gpu, Holder, Interpreter, Link
from nvml import GIB, H200, machine
from real_fleet import MODEL, ROOT, START, needs_engines

GPU = Gpu(0, "0", "GPU-0", "NVIDIA H200", 140 * GIB, 139 * GIB, numa=1, link=Link(5, 16, 5, 16))


def levels(found: list[checks.Check]) -> dict[str, Level]:
    """How each check ended."""
    return {check.name: check.level for check in found}


def test_drivers() -> None:
    """None is fine, one that does not answer is not."""
    assert checks.driver(Driver()).text.startswith("no NVIDIA driver")
    assert checks.driver(Driver("580.159.04", "13.0")).text == "580.159.04, runs CUDA up to 13.0"
    assert checks.driver(Driver(problem="NVML: Driver/library version mismatch")).level is Level.FAILURE


@pytest.mark.parametrize(
    ("gpu", "level", "said"),
    [
        (GPU, Level.OK, "NVIDIA H200, 139.0 of 140.0 GiB free, NUMA node 1, PCIe 5.0 x16 (at most 5.0 x16)"),
        ({"holders": (Holder(7, 20 * GIB),)}, Level.WARNING, "held by pid 7 (20.0 GiB)"),
        ({"link": Link(5, 8, 5, 16)}, Level.WARNING, "narrower than it could be"),
        ({"parent": "GPU-x"}, Level.WARNING, "a MIG instance of GPU-x"),
        ({"total": 0, "numa": None, "link": None}, Level.OK, "NVIDIA H200, memory shared with the host"),
    ],
)
def test_gpus(gpu: Gpu | Mapping[str, Any], level: Level, said: str) -> None:
    """What it is, who holds it, how it is connected."""
    (check,) = checks.gpus([gpu if isinstance(gpu, Gpu) else Gpu(**vars(GPU) | dict(gpu))])
    assert (check.level, bool(check.fix)) == (level, level is Level.WARNING)
    assert said in check.text


def test_limits() -> None:
    """Each has three grades at most, and a fix below the best."""
    assert levels(list(checks.limits(2**20, None, (8 * GIB, GIB), gpu=True))) == {
        "open files": Level.OK,
        "/dev/shm": Level.OK,
    }
    poor = list(checks.limits(2048, GIB, (64 * 1024**2, 0), gpu=True))
    assert {check.level for check in poor} == {Level.WARNING}
    assert [check.name for check in poor] == ["open files", "locked memory", "/dev/shm"]
    assert all(check.fix for check in poor)
    assert next(iter(checks.limits(256, None, (0, 0), gpu=False))).level is Level.FAILURE


@pytest.mark.parametrize(
    ("findings", "code", "said", "fix"),
    [
        ([{"step": "torch"}, {"step": "torch", "error": "E: not for CUDA"}], 0, "E: not for CUDA", "CUDA build"),
        ([{"step": "lmcache"}], -signal.SIGSEGV, "crashed (killed by signal 11)", "another torch"),
        ([{"step": "vllm"}], 3, "crashed (exit code 3) ouch", "reinstall"),
        ([{"step": "vllm", "error": "ImportError: x.so: undefined symbol: y"}], 0, "undefined symbol", "another torch"),
        ([{"step": "connector", "error": "ValueError: none"}], 0, "ValueError", "do not go together"),
        ([], None, "ouch", "by hand"),
    ],
)
def test_parts_that_do_not_load(findings: list[dict[str, str]], code: int | None, said: str, fix: str) -> None:
    """The step is named, whether it raised, crashed or hung; what went before is fine."""
    *before, last = checks.imports(pair.outcomes(findings, code, "some\nouch", gpu=True))
    assert all(check.level is Level.OK for check in before)
    assert last.level is Level.FAILURE
    assert last.name == f"load {findings[-1]['step'] if findings else 'interpreter'}"
    assert said in last.text
    assert fix in last.fix


def test_versions() -> None:
    """What is absent is told with its fix."""
    assert checks.versions(Interpreter("py", {"vllm": "1"})).text == "vllm 1 (py)"
    bad = checks.versions(Interpreter("py", {}, "vllm not installed for py", fix="run scripts/setup"))
    assert (bad.text, bad.fix) == ("vllm not installed for py", "run scripts/setup")


def test_a_terminal_shows_checks_in_columns() -> None:
    """Broken lines go on below the text, not below the level; a file gets one line of each text, however long."""
    check = checks.warning("disk of shared", "reads " + "slowly " * 20, "a faster one " * 9)
    narrow = doctor._line(check, 80).plain.splitlines()
    assert max(map(len, narrow)) <= 80
    assert [row[24] != " " and row[:24].isspace() for row in narrow] == [False, *[True] * (len(narrow) - 1)]
    assert sum(row[24:].startswith("fix: a") for row in narrow) == 1
    assert len(doctor._line(check, None).plain.splitlines()) == 2


def document(lab: Lab, *arguments: str | Path, code: int, **environ: str) -> dict[str, Any]:
    """What `doctor --json` prints, under this exit code."""
    done = lab.run("doctor", "--json", *arguments, **environ)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["ok"] == (code == 0)
    return found


def stubs(lab: Lab) -> Path:
    """An interpreter whose torch, vLLM and LMCache do nothing, but load: with its numbers."""
    home = lab.path / "stubs"
    modules = {
        "torch/__init__.py": STUB_TORCH,
        "vllm/__init__.py": "",
        "vllm/_C.py": "",
        "vllm/platforms.py": "class current_platform: device_type = 'cpu'\n",
        "vllm/distributed/kv_transfer/kv_connector/factory.py": STUB_FACTORY,
        "lmcache/__init__.py": "",
        "lmcache/lmcache_native.py": "",
    }
    for name, text in modules.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    python = lab.path / "stubbed"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={home}:{FAKES} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


STUB_TORCH = """
import time
uint8 = bfloat16 = float32 = None
class Tensor:
    def copy_(self, source, non_blocking): time.sleep(0.01)
    def __matmul__(self, other): time.sleep(0.01); return self
    def __getitem__(self, part): return self
    def __mul__(self, other): return self
def ones(*size, **kind): return Tensor()
empty = rand = ones
__version__ = "2.13.0"
class inference_mode:
    def __enter__(self): pass
    def __exit__(self, *_): pass
class nn:
    class functional:
        def scaled_dot_product_attention(*_): time.sleep(0.02)
        def rms_norm(tensor, size): return tensor
        def silu(tensor): return tensor
"""
STUB_FACTORY = """
class KVConnectorFactory:
    @staticmethod
    def get_connector_class_by_name(name): return type(name, (), {})
"""
CONFIG = {
    "max_position_embeddings": 65536,
    "dtype": "bfloat16",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 8,
    "vocab_size": 3000,
}


def test_a_good_machine_is_measured_and_predicted(lab: Lab) -> None:
    """Everything is looked at, nothing is started or left, and the numbers follow from the rates."""
    (lab.path / "model" / "config.json").write_text(json.dumps(CONFIG))
    caches = {"shared": {"l1": "16MiB", "l2": str(lab.path / "kv"), "chunk_size": 256}}
    engine = {"cache": "shared", "max_model_len": 8192, "kv_cache": "1GiB", "args": {"dtype": "bfloat16"}}
    path = lab.profile({"plain": {}, "a": engine, "b": engine}, caches, runtime={"python": str(stubs(lab))})
    found = document(lab, path, code=0)
    named = {check["name"]: check for check in found["checks"]}
    assert {"driver", "open files", "/dev/shm", "versions", "plan", "ports", "copy", "disk of shared"} < set(named)
    assert [name for name in named if name.startswith("load")] == [
        f"load {n}" for n in ("torch", "vllm", "lmcache", "connector")
    ]
    assert named["copy"]["values"]["load"] == pytest.approx(256 * 1024**2 / 0.01, rel=0.5)
    predicted = found["prediction"]
    assert (predicted["tokens"], predicted["hit"], predicted["kv_bytes"]) == (8192, 7936, 7936 * 8192)
    flops, made = shape.of(CONFIG), predicted["times"]["cold"]
    assert flops is not None
    products = 512 * (8 + 2 * 4) * 64 + 8 * 64 * 512 + 3 * 512 * 1376
    matmul, attention = 2 * 1024 * products / 0.04, 4 * 8 * 64 * 1024 * 8192 / 0.02
    computing = flops.linear_flops(8192) / matmul + flops.attention_flops(8192) / attention
    assert made == pytest.approx(computing + predict.REQUEST, rel=0.3)
    assert [tier["name"] for tier in predicted["tiers"]] == ["memory", "disk"]
    assert not (lab.path / "kv").exists()
    assert lab.project().records() == {}


def test_a_broken_interpreter_is_exit_code_5(lab: Lab) -> None:
    """The message names what failed, the rest is still looked at."""
    (lab.path / "torch.py").write_text("import a_part_of_it")
    lab.python.write_text(lab.python.read_text().replace("PYTHONPATH=", f"PYTHONPATH={lab.path}:"))
    done = lab.run("doctor", lab.profile())
    assert done.returncode == 5
    assert "failure  load torch     ModuleNotFoundError" in done.stdout
    assert "disk" not in done.stderr
    assert "checks failed: load torch" in done.stderr


def test_a_compiled_part_that_vllm_does_without(lab: Lab) -> None:
    """A CPU build chooses among several by itself, and only logs what does not load: that is told."""
    python = stubs(lab)
    (lab.path / "stubs" / "vllm" / "platforms.py").write_text("""
import logging
class current_platform:
    device_type = "cpu"
    def import_kernels():
        logging.getLogger("vllm.platforms.cpu").warning("Failed to import from vllm._C: %s", "undefined symbol: x")
""")
    done = lab.run("doctor", lab.profile(runtime={"python": str(python)}))
    assert done.returncode == 5
    assert "failure  load vllm      RuntimeError: Failed to import from vllm._C: undefined symbol: x" in done.stdout


def test_what_the_plan_lacks_is_a_failure(lab: Lab) -> None:
    """The same words as `up`, with what to do in a line of its own."""
    python = stubs(lab)
    given = lab.profile({"a": {"memory": "90000GiB"}, "b": {"gpus": [3]}}, runtime={"python": str(python)})
    done = lab.run("doctor", given)
    assert done.returncode == 5
    assert "failure  plan           host memory: 90000.0 GiB are needed" in done.stdout
    assert "fix: lower caches.*.l1 or kv_cache" in done.stdout
    assert "engine b: GPU 3 is not here" in done.stdout


def test_a_machine_with_a_gpu(lab: Lab) -> None:
    """Told from recorded facts; the torch of this interpreter cannot use it, and that is the finding."""
    (lab.path / "nvml.json").write_text(json.dumps(machine({"processes": [[1, 20 * GIB]]}, {})))
    path = f"{FAKES / 'nvml'}{os.pathsep}{ROOT}"
    found = document(lab, code=5, PYTHONPATH=path, FAKE_NVML=str(lab.path / "nvml.json"), CUDA_VISIBLE_DEVICES="1")
    named = {check["name"]: check for check in found["checks"]}
    assert named["driver"]["values"] == {"driver": "580.159.04", "cuda": "13.0"}
    assert named["GPU 0"]["values"]["uuid"] == "GPU-100"
    assert named["GPU 0"]["values"]["total"] == H200["gpus"][0]["total"]
    assert "GPU 1" not in named


def test_a_gpu_plan_on_recorded_facts(lab: Lab) -> None:
    """`plan` shows the sum; a stranger's memory is named, with the value that would fit."""
    (lab.path / "model" / "config.json").write_text(
        json.dumps(CONFIG | {"hidden_size": 4096, "intermediate_size": 14336})
    )
    (lab.path / "nvml.json").write_text(json.dumps(machine({"free": 20 * GIB, "processes": [[1, 120 * GIB]]})))
    engine = {"gpus": [0], "memory": None, "kv_cache": "6GiB", "max_model_len": 8192}
    path = lab.profile({"a": engine, "b": engine})
    lab.environ |= {"FAKE_NVML": str(lab.path / "nvml.json")}
    done = lab.run("plan", path, PYTHONPATH=f"{FAKES / 'nvml'}{os.pathsep}{ROOT}")
    assert "GPU 0 (NVIDIA H200, 140.4 GiB): " in done.stdout
    assert "held by pid 1 (120.0 GiB)" in done.stdout
    assert "for each engine here would fit, or free the GPU" in done.stdout
    (lab.path / "nvml.json").write_text(json.dumps(machine({})))
    done = lab.run("plan", path, PYTHONPATH=f"{FAKES / 'nvml'}{os.pathsep}{ROOT}")
    assert "fits      GPU 0 (NVIDIA H200, 140.4 GiB): " in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="comes with vLLM")
def test_access_to_a_model(lab: Lab) -> None:
    """Asked without a download; a refusal is a failure with its fix."""
    python = lab.path / "python-with-hub"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={FAKES} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    engine = {"env": {"HF_HOME": str(lab.path / "hub")}}
    path = lab.profile({"a": engine}, model="org/model", runtime={"python": str(python)})
    wanted = profile.load(path, lab.environ)

    def told(url: str) -> checks.Check:
        found = doctor.of_profile(wanted, lab.project(), {**lab.environ, "HF_ENDPOINT": url}, lab.path)
        return next(check for check in found if check.name == "model")

    with serve("org/model", {"config.json": b"{}", "model.safetensors": b"w" * 2000}) as hub:
        assert told(hub.url).text.startswith("org/model can be downloaded: 0.0 GB of weights")
        hub.gated = True
        refused = told(hub.url)
        assert not any(line.startswith("GET") and "/resolve/" in line for line in hub.asked)
    assert (refused.level, "it is gated" in refused.text) == (Level.FAILURE, True)
    assert "accept its licence" in refused.fix


class TestReal:
    """With the real packages."""

    pytestmark = needs_engines

    def test_cpu_profile(self, lab: Lab) -> None:
        """All is well where the other tests start real engines, and reuse is predicted to win."""
        run = lab.start("doctor", "--json", ROOT / "profiles" / "cpu-long.yaml", KVDEMO_MODEL=str(MODEL))
        out, _ = run.communicate(timeout=START)
        found = json.loads(out)
        assert {check["level"] for check in found["checks"]} <= {"ok", "warning"}, found
        assert found["prediction"]["tokens"] > 30000
        assert all(tier["wins"] for tier in found["prediction"]["tiers"])
