"""What the shell may complete: profiles, projects, and services of the one that is meant. Says nothing, fails never."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from kvdemo.errors import KvdemoError

QUIET = (KvdemoError, OSError, ValueError)
"""What a half-written command line may be wrong about."""


def projects(incomplete: str) -> list[str]:
    """Names of projects that are there."""
    from kvdemo.host import state  # noqa: PLC0415 (nothing of it is needed to run a command)

    return _matching(lambda: [project.name for project in state.projects(state.root(os.environ))], incomplete)


def services(ctx: typer.Context, incomplete: str) -> list[str]:
    """Services of the project or profile that the command line names; else of the one that is up."""
    candidates = _matching(lambda: _services(ctx.params), incomplete)
    return [name for name in candidates if name not in (ctx.params.get("services") or ())]


def profiles(incomplete: str) -> list[str]:
    """Profiles below what is typed, and directories that may hold some."""
    return _matching(lambda: _profiles(Path(incomplete).parent if incomplete else Path()), incomplete)


def _services(params: dict[str, Any]) -> list[str]:
    from kvdemo.commands import workdir  # noqa: PLC0415
    from kvdemo.config.profile import load  # noqa: PLC0415
    from kvdemo.host import state, survey  # noqa: PLC0415

    if "profile" in params:
        path = params["profile"] or workdir.find_profile()
        profile = load(Path(path), os.environ) if path else None
        return [*profile.caches, *profile.engines] if profile else []
    candidates = state.projects(state.root(os.environ))
    name = (
        params.get("project_name")
        or os.environ.get("KVDEMO_PROJECT")
        or (workdir.project() if len(candidates) > 1 else "")
    )
    plans = [survey.saved_plan(project) for project in candidates if name in ("", project.name)]
    return [spec.name for plan in plans if plan for spec in plan.services]


def _profiles(directory: Path) -> list[str]:
    from kvdemo.commands import workdir  # noqa: PLC0415

    entries = sorted(directory.iterdir())
    names = [str(path) for path in entries if path.suffix in workdir.SUFFIXES]
    return names + [f"{path}/" for path in entries if path.is_dir() and not path.name.startswith(".")]


def _matching(names: Callable[[], list[str]], incomplete: str) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except QUIET:
        return []
