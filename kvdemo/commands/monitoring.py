"""The story of ``kvdemo export prometheus``: which fleet is meant, and where its files go."""

from __future__ import annotations

import os
from pathlib import Path

from kvdemo.commands import invocation, scope, workdir
from kvdemo.errors import NotReadyError, UsageError
from kvdemo.export import prometheus
from kvdemo.host import survey
from kvdemo.planning.plan import Plan
from kvdemo.report import terminal


def run(profile: Path | None, project_name: str, output: Path | None, nodes: int) -> None:
    """Print the scrape configuration, or write it with a dashboard into a directory. Raises UsageError."""
    if nodes != 1:
        raise UsageError("--nodes is for slurm only", "a fleet that is up says itself where its services are")
    plan = _plan(profile, project_name)
    if output is None:
        invocation.write(prometheus.scrape(plan))
        return
    directory = output.absolute()
    for name, text in prometheus.files(plan, directory).items():
        invocation.save(directory / name, text, parents=True)
    terminal.out.print(prometheus.use(plan, directory), markup=False, soft_wrap=True)


def _plan(profile: Path | None, name: str) -> Plan:
    """What the profile would run, with the ports that it has if it is up; without one, what was started.

    A profile of a cluster cannot say where its services will be, but the plan from which they were started does.
    """
    name = name or os.environ.get("KVDEMO_PROJECT", "")
    if profile is None and (name or not workdir.find_profile()):
        project = scope.project(name)
        if saved := survey.saved_plan(project):
            return saved
        if not workdir.find_profile():
            raise NotReadyError(f"{project.name} is not up", "start it: kvdemo up PROFILE; or name a profile")
    path = workdir.profile(profile)
    project = scope.project_of(path, name)
    planned = scope.plan_for_export(path, project)
    return (survey.saved_plan(project) or planned) if planned.on else planned
