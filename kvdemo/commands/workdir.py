"""The profile of the working directory, which commands take that are given none, as docker compose does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kvdemo.errors import KvdemoError, UsageError

NAMES = ("kvdemo.yaml", "kvdemo.yml")
SUFFIXES = (".yaml", ".yml")


def find_profile() -> Path | None:
    """The profile here, or None. Both names at once are a mistake that is left to the first."""
    return next((Path(name) for name in NAMES if Path(name).is_file()), None)


def profile(path: Path | None) -> Path:
    """The profile that was named, else the one here.

    Raises:
        UsageError: there is neither.
    """
    profile_path = path or find_profile()
    if profile_path is None:
        raise UsageError(
            "which PROFILE? None was named, and here is no kvdemo.yaml",
            "kvdemo init writes one that fits this machine; or name one",
        )
    return profile_path


def arguments(path: Path | None, services: Sequence[str]) -> tuple[Path, list[str]]:
    """Profile and services of ``up [PROFILE] [SERVICE]...``: what is no file may be a service of the profile here.

    Raises:
        UsageError: no profile was named, and there is none here.
    """
    path_here = find_profile()
    if path is None or path_here is None or path.exists() or os.sep in str(path) or path.suffix in SUFFIXES:
        return profile(path), list(services)
    return path_here, [str(path), *services]


def project() -> str:
    """The name of the project that the profile here describes; empty without one, or if it is wrong."""
    from kvdemo.config.profile import load  # noqa: PLC0415 (a tenth of a second that most verbs save)

    path = find_profile()
    try:
        return load(path, os.environ).name if path else ""
    except KvdemoError:
        return ""
