"""Which project, profile and plan a command means."""

from __future__ import annotations

import importlib.util
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvdemo.errors import NotReadyError, UsageError
from kvdemo.host import hub, process, state, survey
from kvdemo.host.state import Project
from kvdemo.planning import kinship
from kvdemo.planning import plan as planning
from kvdemo.planning.plan import Plan
from kvdemo.report import terminal

if TYPE_CHECKING:
    from kvdemo.config.profile import Profile


def project_of(profile: Path, name: str) -> Project:
    """The project of that name, or of the profile. Raises ProfileError."""
    from kvdemo.config.profile import load  # noqa: PLC0415 (a tenth of a second that most verbs save)

    return Project(state.root(os.environ), name or load(profile, os.environ).name)


def profile_of(path: Path, project: Project) -> Profile:
    """The profile, for that project. Raises ProfileError."""
    from kvdemo.config.profile import load  # noqa: PLC0415

    return load(path, os.environ).model_copy(update={"name": project.name})


def plan(path: Path, project: Project, *, fetch: bool = False) -> Plan:
    """Load, survey, plan; with ``fetch`` download the models first that are not here.

    Raises ProfileError, and PreflightError for a model that cannot be downloaded.
    """
    profile = profile_of(path, project)
    if profile.on.ray:
        from kvdemo.cluster import seats  # noqa: PLC0415

        planned = seats.plan(profile, profile.on.ray, project, os.environ, keep=fetch)
    else:
        planned = _here(profile, project, fetch)
    for warning in planned.warnings if fetch else ():
        terminal.err.print(f"warning: {warning}", markup=False)
    return planned


def elsewhere(path: Path, project: Project) -> Plan:
    """The plan to export. A cluster need not be there yet: what its profile counts is numbered as it comes."""
    profile = profile_of(path, project)
    if not profile.on.ray:
        return _here(profile, project, False)
    from kvdemo.cluster import layout  # noqa: PLC0415 (one machine pays nothing for clusters)

    numbers = itertools.count()
    engines = {
        name: engine.model_copy(update={"gpus": tuple(next(numbers) for _ in range(layout.gpu_count(engine)))})
        for name, engine in profile.engines.items()
    }
    planned = _here(profile.model_copy(update={"on": type(profile.on)(), "engines": engines}), project, False)
    return replace(planned, on={"address": profile.on.ray.address})


def _here(profile: Profile, project: Project, fetch: bool) -> Plan:
    """The plan of this machine."""
    facts = survey.survey(profile, project, os.environ)
    planned = planning.make(profile, facts)
    # The config first: whoever has too little memory should hear of it before 15 GB are downloaded.
    for part in ("config", "weights"):
        if not fetch or not planned.fetch or planned.missing:
            break
        for engine in kinship.absent(profile, facts):
            if part == "weights":
                terminal.out.print(f"Downloading {engine.model} from Hugging Face (once) ...")
            python, environ = engine.runtime.python or facts.default_python, {**os.environ, **engine.env}
            hub.fetch(engine.model, python, environ, part=part, revision=kinship.revision_of(engine))
        facts = survey.survey(profile, project, os.environ)
        planned = planning.make(profile, facts)
    return planned


def page_library() -> None:
    """Raises UsageError if the library of `kvdemo ui` is not installed."""
    if importlib.util.find_spec("nicegui") is None:
        raise UsageError("the page needs NiceGUI, which is not installed", "pip install 'kvdemo[ui]'")


def address(host: str, port: int) -> tuple[str, int]:
    """Where the page listens. Raises UsageError if it cannot."""
    if not process.port_free(host, port):
        raise UsageError(f"{host}:{port} cannot be listened on: taken, or no address of ours", "kvdemo ui --port N")
    return host, port


def projects(stores: bool = False) -> list[Project]:
    """Every project of this user that is up, or left something to take down (with ``stores``: a KV store too)."""
    found = state.projects(state.root(os.environ), stores=stores)
    return [p for p in found if p.load(strict=False) or p.records() or (stores and p.stores.exists())]


def project(name: str, *, logs: bool = False, stores: bool = False) -> Project:
    """The named project, or the only one that is up (or, with ``logs``, that ever was).

    Raises NotReadyError if there is none, UsageError if there are several.
    """
    base = state.root(os.environ)
    if name or (name := os.environ.get("KVDEMO_PROJECT", "")):
        return Project(base, name)
    found = projects() or projects(stores)
    if not found and logs:
        found = [Project(base, path.parent.name) for path in sorted(base.glob("*/logs"))]
    if len(found) > 1:
        names = ", ".join(project.name for project in found)
        raise UsageError(f"several projects are there: {names}", "say which: -p NAME")
    if not found:
        raise NotReadyError("nothing is up", "start it: kvdemo up PROFILE")
    return found[0]
