"""scripts/check_pair: whether symbols of one library are in others, told from small ones that gcc builds here."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from real_fleet import ROOT

SCRIPT = ROOT / "scripts" / "check_pair"
TORCH = "int old(int a) { return a; } int kept(void) { return 1; } int only_weak(void);"

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc, to build libraries")


def script() -> ModuleType:
    """The script as a module."""
    loader = importlib.machinery.SourceFileLoader("check_pair", str(SCRIPT))
    spec = importlib.util.spec_from_loader("check_pair", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_pair"] = module
    loader.exec_module(module)
    return module


def library(path: Path, source: str, *options: str) -> Path:
    """A shared library of this C source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    argv = ["gcc", "-shared", "-fPIC", "-o", str(path), "-x", "c", "-", "-x", "none", *options]
    subprocess.run(argv, input=source, text=True, check=True)
    return path


def wheel(path: Path, *members: tuple[str, Path]) -> Path:
    """A wheel of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in members:
            archive.write(file, name)
    return path


def test_what_is_missing(tmp_path: Path) -> None:
    """A symbol that torch lost is named; what Python, C and weak references may leave open is not torch's to have."""
    check = script()
    torch = check.read(library(tmp_path / "libtorch.so", TORCH).read_bytes())
    source = """
    #include <stdlib.h>
    extern int old(int), kept(void), lost(int, int), PyInit_x(void), shm_unlink(const char *);
    extern int maybe(void) __attribute__((weak));
    int run(void) { return old(1) + kept() + lost(1, 2) + PyInit_x(); }
    int more(void) { return shm_unlink("") + atoi("1") + (maybe ? maybe() : 0); }
    """
    extension = check.read(library(tmp_path / "cuda_ops.so", source).read_bytes())
    assert {"old", "kept", "lost"} <= extension.wanted
    assert "maybe" not in extension.wanted
    assert "run" in extension.exported
    assert check.missing(extension, [torch]) == ["lost"]
    whole = check.read(library(tmp_path / "more.so", "int lost(int a, int b) { return a + b; }").read_bytes())
    assert check.missing(extension, [torch, whole]) == []


def test_another_cuda_runtime_is_missing(tmp_path: Path) -> None:
    """An extension that needs another major version of CUDA's runtime than torch cannot load beside it."""
    check = script()
    found = {}
    for number in (12, 13):
        runtime = library(
            tmp_path / f"libcudart.so.{number}", "int cuda(void) { return 1; }", f"-Wl,-soname,libcudart.so.{number}"
        )
        needs = "extern int cuda(void); int run(void) { return cuda(); }"
        found[number] = check.read(library(tmp_path / f"user{number}.so", needs, str(runtime)).read_bytes())
    assert "libcudart.so.12" in check.missing(found[12], [found[13]])
    assert check.missing(found[13], [found[13]]) == ["cuda"]


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(80), b"#!/bin/sh\n" * 30])
def test_what_is_no_library_is_unknown(tmp_path: Path, data: bytes) -> None:
    """Nothing is judged by a file that cannot be read."""
    check = script()
    (tmp_path / "x").write_bytes(data)
    archive = wheel(tmp_path / "x.whl", ("lmcache/cuda_ops.so", tmp_path / "x"))
    with pytest.raises(check.UnknownError, match=r"lmcache/cuda_ops\.so of x\.whl cannot be read"):
        check.members(archive, check.EXTENSION)


@pytest.mark.parametrize(("symbol", "code"), [("old", 0), ("gone", 3)])
def test_from_wheels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    symbol: str,
    code: int,
) -> None:
    """The torch that vLLM's metadata pin is the one that counts; the exit code says whether they fit."""
    check = script()
    extension = library(tmp_path / "e.so", f"extern int {symbol}(int); int run(void) {{ return {symbol}(1); }}")
    wheels = {
        "lmcache==0.5.6": wheel(tmp_path / "l.whl", ("lmcache/cuda_ops.cpython-312-x86_64-linux-gnu.so", extension)),
        "torch==2.13.0": wheel(tmp_path / "t.whl", ("torch/lib/libc10.so", library(tmp_path / "c.so", TORCH))),
    }
    monkeypatch.setattr(check, "torch_of", lambda *_: "2.13.0")
    monkeypatch.setattr(check, "download", lambda requirement, *_: wheels[requirement])
    assert check.judge("0.32.0", "0.5.6", "", "3.12", tmp_path) == code
    assert ("missing: gone" if code else "fit, by their symbols") in capsys.readouterr().out


def test_an_lmcache_without_an_extension_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is called fitting because there was nothing to compare."""
    check = script()
    empty = wheel(tmp_path / "l.whl", ("lmcache/__init__.py", SCRIPT))
    monkeypatch.setattr(check, "torch_of", lambda *_: "2.13.0")
    monkeypatch.setattr(check, "download", lambda *_: empty)
    with pytest.raises(check.UnknownError, match="has no CUDA extension"):
        check.judge("0.32.0", "0.5.6", "", "3.12", tmp_path)


def test_usage() -> None:
    """Without versions it says how it is called; its help names the exit codes."""
    none = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (none.returncode, "VLLM LMCACHE" in none.stderr) == (2, True)
    told = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=False)
    assert (told.returncode, "Exit code 0" in told.stdout) == (0, True)
