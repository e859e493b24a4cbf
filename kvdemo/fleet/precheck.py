"""Before anything is stopped to be started again: is all there that the new start will need?

Space to write state and logs, interpreter, model, KV store, ports, secrets; on this machine, of a plan that was made
before. Limits: what a cluster's nodes have is seen only when a service starts there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from kvdemo.errors import PreflightError, ServiceError
from kvdemo.host import machine, survey
from kvdemo.host.launcher import Launcher
from kvdemo.host.state import Project
from kvdemo.planning.plan import ServiceSpec

SPACE = 1024**2
"""Bytes that state and the first lines of the logs need at least."""


def check(
    project: Project,
    specs: Collection[ServiceSpec],
    environ: Mapping[str, str],
    launcher: Launcher,
    consequence: str = "nothing was stopped, because it could not start again",
) -> None:
    """Raises PreflightError with everything that would keep these services from starting; nothing is touched."""
    problems = list(writing(project))
    for spec in specs:
        problems += [f"secret {name} is not set in the environment" for name in _absent(spec, environ)]
        if not spec.node:
            problems += [f"{spec.name}: {problem}" for problem in _local(spec, launcher)]
    if problems:
        text = "\n  ".join(dict.fromkeys(problems))
        raise PreflightError(f"{consequence}:\n  {text}", "mend that first")


def writing(project: Project) -> Iterator[str]:
    """Why state and logs could not be written."""
    try:
        project.try_writing(SPACE)
    except ServiceError as error:
        yield f"{error}: {error.hint}"


def _absent(spec: ServiceSpec, environ: Mapping[str, str]) -> list[str]:
    """The secrets that the service cannot do without: the Hugging Face token serves the download only."""
    return [name for name in spec.secrets if name != "HF_TOKEN" and not environ.get(name)]


def _local(spec: ServiceSpec, launcher: Launcher) -> Iterator[str]:
    python = spec.python or spec.argv[0]  # a plan of an earlier version has no such field
    if not shutil.which(python):
        yield f"its interpreter {python} is gone, or cannot be executed"
    if spec.source.startswith("/") and not Path(spec.source).exists():
        yield f"its model {spec.source} is gone"
    if spec.directory:
        yield from _store(Path(spec.directory))
    stranger = launcher.stranger(spec)
    for host, port in spec.addresses:
        if port == spec.port and stranger:
            yield f"port {port} is taken: {survey.holder(host, port)}"
        elif port != spec.port and not launcher.running() and (holder := survey.holder(host, port)):
            yield f"port {port} is taken: {holder}"


def _store(directory: Path) -> Iterator[str]:
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        yield f"its KV store {directory} cannot be written"
    elif machine.free(place) < SPACE:
        yield f"no space is left for its KV store {directory}"
