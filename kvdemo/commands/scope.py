"""Which project, profile and plan a command means."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvdemo.commands import workdir
from kvdemo.errors import KvdemoError, NotReadyError, UsageError
from kvdemo.fleet import fleet
from kvdemo.host import hub, marks, process, state, survey
from kvdemo.host.state import Project
from kvdemo.planning import compatibility
from kvdemo.planning import plan as planning
from kvdemo.planning.plan import Plan
from kvdemo.report import terminal

if TYPE_CHECKING:
    from kvdemo.config.profile import Profile
    from kvdemo.host.launcher import Event


def project_of(profile: Path, name: str) -> Project:
    """The project of that name, or of the profile. Raises ProfileError."""
    from kvdemo.config.profile import load  # noqa: PLC0415 (a tenth of a second that most verbs save)

    parsed_profile = load(profile, os.environ)
    _take_secrets(parsed_profile.secrets, profile)
    return Project(state.root(os.environ), name or parsed_profile.name)


def _take_secrets(names: Collection[str], profile: Path) -> None:
    """Secrets that only ``.env`` beside the profile has become variables of this process, as all others are."""
    from kvdemo.config.variables import values_beside  # noqa: PLC0415

    missing = [name for name in names if not os.environ.get(name)]
    for name, value in values_beside(profile).items() if missing else ():
        if name in missing and value:
            os.environ[name] = value


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
        from kvdemo.cluster import placements  # noqa: PLC0415

        fleet_plan = placements.plan(profile, profile.on.ray, project, os.environ, keep=fetch)
    else:
        fleet_plan = _local_plan(profile, project, fetch)
    for warning in fleet_plan.warnings if fetch else ():
        terminal.err.print(f"warning: {warning}", markup=False)
    return fleet_plan


def plan_for_export(path: Path, project: Project) -> Plan:
    """The plan to export. A cluster need not be there yet: what its profile counts is numbered as it comes."""
    profile = profile_of(path, project)
    if not profile.on.ray:
        return _local_plan(profile, project, False)
    from kvdemo.cluster import layout  # noqa: PLC0415 (one machine pays nothing for clusters)

    numbers = itertools.count()
    engines = {
        name: engine.model_copy(update={"gpus": tuple(next(numbers) for _ in range(layout.gpu_count(engine)))})
        for name, engine in profile.engines.items()
    }
    fleet_plan = _local_plan(profile.model_copy(update={"on": type(profile.on)(), "engines": engines}), project, False)
    return replace(fleet_plan, on={"address": profile.on.ray.address})


def _local_plan(profile: Profile, project: Project, fetch: bool) -> Plan:
    """The plan of this machine."""
    facts = survey.survey(profile, project, os.environ)
    fleet_plan = planning.make(profile, facts)
    # The config first: whoever has too little memory should hear of it before 15 GB are downloaded.
    for part in ("config", "weights"):
        if not fetch or not fleet_plan.fetch or fleet_plan.missing:
            break
        for repository in compatibility.absent(profile, facts):
            if part == "weights":
                terminal.out.print(f"Downloading {repository.name} from Hugging Face (once) ...")
            hub.download(repository, facts.default_python, os.environ, part)
        facts = survey.survey(profile, project, os.environ)
        fleet_plan = planning.make(profile, facts)
    return fleet_plan


def page_library() -> None:
    """Raises UsageError if the library of `kvdemo ui` is not installed."""
    if importlib.util.find_spec("nicegui") is None:
        raise UsageError("the page needs NiceGUI, which is not installed", "pip install 'kvdemo[ui]'")


def address(host: str, port: int) -> tuple[str, int]:
    """Where the page listens. Raises UsageError if it cannot."""
    if not process.port_free(host, port):
        raise UsageError(f"{host}:{port} cannot be listened on: taken, or no address of ours", "kvdemo ui --port N")
    return host, port


def projects(stores: bool = False, *, marked: bool = False) -> list[Project]:
    """Every project of this user that is up, or left something to take down (with ``stores``: a KV store too).

    With ``marked`` those as well of which a process runs although nothing of them is written down any more.
    """
    base = state.root(os.environ)
    on_disk = state.projects(base, stores=stores)
    selection = {p.name: p for p in on_disk if survey.saved_plan(p) or p.records() or (stores and p.stores.is_file())}
    if marked:
        selection |= {path.name: Project(base, path.name) for path in marks.services() if path.parent == base}
    return [selection[name] for name in sorted(selection)]


def project(name: str, *, logs: bool = False, stores: bool = False) -> Project:
    """The named project, or the only one that is up (or, with ``logs``, that ever was).

    Raises NotReadyError if there is none, UsageError if there are several.
    """
    selection = _select(name, logs=logs, stores=stores)
    names, profile = selection.secrets()
    if profile:
        _take_secrets(names, Path(profile))
    return selection


def _select(name: str, *, logs: bool, stores: bool) -> Project:
    base = state.root(os.environ)
    if name or (name := os.environ.get("KVDEMO_PROJECT", "")):
        return Project(base, name)
    candidates = projects() or projects(stores) or projects(marked=True)
    if not candidates and logs:
        candidates = [Project(base, path.parent.name) for path in sorted(base.glob("*/logs"))]
    if len(candidates) > 1 and (own := workdir.project()):
        candidates = [project for project in candidates if project.name == own] or candidates
    if len(candidates) > 1:
        names = ", ".join(project.name for project in candidates)
        raise UsageError(f"several projects are there: {names}", "say which: -p NAME")
    if not candidates:
        raise NotReadyError("nothing is up", "start it: kvdemo up PROFILE")
    return candidates[0]


def to_stop(name: str, *, everything: bool, stores: bool) -> list[Project]:
    """The projects that `down` means, if there is anything of them: a directory, or a process that carries its mark."""
    if everything:
        return projects(stores, marked=True)
    try:
        selection = project(name, stores=stores)
    except NotReadyError:
        return []
    return [selection] if os.path.lexists(selection.dir) or marks.in_directory(selection.dir, ()) else []


def name_damaged() -> list[dict[str, str]]:
    """Say, as warnings, what stands where projects do and cannot be used; the same as records."""
    base = state.root(os.environ)
    damages = state.damaged_paths(base)
    unplanned = [p for p in state.projects(base) if p.load(strict=False) and not survey.saved_plan(p)]
    damages += [(str(p.document), "its plan is damaged, or of another version") for p in unplanned]
    rows = []
    for path, problem in damages:
        name = Path(path).relative_to(base).parts[0]
        remedy = f"kvdemo down -p {name} ends what is left of it; then remove {path}"
        terminal.err.print(f"warning: {path} cannot be used: {problem}\n  {remedy}", markup=False)
        rows.append({"path": path, "problem": problem, "remedy": remedy})
    return rows


def services_of_all(*, as_json: bool) -> None:
    """Print the services of every project; one that cannot be asked keeps no other."""
    documents = []
    for one in projects(marked=True):
        try:
            events = fleet.status(one, os.environ)
        except KvdemoError as error:
            documents.append({"project": one.name, "services": [], **_unknown(one, error)})
            continue
        documents.append(terminal.services_document(one.name, events))
        if not as_json:
            terminal.out.print(f"{one.name}:")
            terminal.out.print(terminal.table(events))
    damaged = name_damaged()
    if as_json:
        terminal.out.print_json(data={"projects": documents, "damaged": damaged})
    elif not documents:
        terminal.out.print("Nothing is up.")


def statuses() -> Iterator[tuple[Project, list[Event]]]:
    """Every project and the state of its services; of one that cannot be asked, none, and a warning why."""
    for one in projects(marked=True):
        try:
            yield one, fleet.status(one, os.environ)
        except KvdemoError as error:
            _unknown(one, error)
            yield one, []


def _unknown(project: Project, error: KvdemoError) -> dict[str, str]:
    """Say why a project cannot be asked; the same as a record."""
    terminal.err.print(f"warning: {project.name}: {error}\n  {error.hint}", markup=False)
    return {"problem": str(error), "remedy": error.hint}


def profile_path(project: Project) -> str:
    """The profile from which a project was started; empty if that is not known."""
    saved = survey.saved_plan(project)
    return saved.profile if saved else ""
