"""The wheel of kvdemo, and an installation of it apart from this environment's kvdemo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(base: Path) -> Path:
    """The wheel, made from the files of the checkout."""
    source = base / "source"
    for folder in ("kvdemo", "profiles"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    words = [
        sys.executable,
        "-m",
        "pip",
        "-q",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(base),
        str(source),
    ]
    subprocess.run(words, check=True, capture_output=True, timeout=200)
    return next(base.glob("*.whl"))


def install(wheel: Path, prefix: Path) -> Path:
    """Install it there; the directory from which it is imported."""
    # Without --ignore-installed pip would uninstall the kvdemo of this environment.
    words = [sys.executable, "-m", "pip", "-q", "install", "--ignore-installed", "--no-deps", "--no-compile"]
    subprocess.run([*words, "--prefix", str(prefix), str(wheel)], check=True, capture_output=True, timeout=100)
    return next(prefix.glob("lib/python*/site-packages"))
