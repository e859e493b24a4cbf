"""The verbs that people know from docker compose, as ``cli`` registers them: ls, stop, start, wait, events."""

from __future__ import annotations

import json as jsonlib
import os
from contextlib import closing
from datetime import datetime

import typer

from kvdemo.commands import invocation, options
from kvdemo.commands.options import JsonOption, ProjectOption, Services, TimeoutOption


def ls(json: JsonOption = False) -> None:
    """List the projects of this user: how many services are in which state, the profile, since when they run.

    Example: kvdemo ls --json | jq -r '.projects[].name'
    """
    from kvdemo.commands import scope
    from kvdemo.report import terminal

    rows = [terminal.project_row(one.name, scope.profile_path(one), events) for one, events in scope.statuses()]
    damaged = scope.name_damaged()
    if json:
        typer.echo(jsonlib.dumps({"projects": rows, "damaged": damaged}))
    else:
        terminal.out.print(terminal.projects_table(rows) if rows else "Nothing is up.")


def stop(services: Services = None, project_name: ProjectOption = "", timeout: options.KillTimeout = None) -> None:
    """Stop services, engines before their cache; `start` brings exactly them up again. A cache's engines stop too.

    Example: kvdemo stop lmcache-b
    """
    from kvdemo.commands import scope
    from kvdemo.fleet import lifecycle

    project = scope.project(project_name)
    with project.lock("stop") as lock:
        invocation.show(lifecycle.stop(project, lock, services or (), timeout))


def start(services: Services = None, project_name: ProjectOption = "", timeout: TimeoutOption = None) -> None:
    """Start what was stopped or has ended, caches before engines, by the plan of the last `up`; wait until ready.

    Example: kvdemo start lmcache-b
    """
    from kvdemo.commands import scope
    from kvdemo.fleet import lifecycle

    project = scope.project(project_name)
    with project.lock("start") as lock:
        invocation.show(lifecycle.start(project, os.environ, lock, services or (), timeout))


def wait(services: Services = None, project_name: ProjectOption = "", timeout: TimeoutOption = None) -> None:
    """Wait until every service can generate. Exits 1 with the cause when one ends, 6 in time-out, 7 if not started.

    Example: kvdemo up --no-wait && kvdemo wait --timeout 300
    """
    from kvdemo.commands import scope
    from kvdemo.fleet import fleet

    invocation.show(fleet.wait(scope.project(project_name), os.environ, services or (), timeout))


def events(services: Services = None, project_name: ProjectOption = "", json: options.JsonLines = False) -> None:
    """Print the state of each service now, then every change, until Ctrl-C.

    Example: kvdemo events --json | jq -r 'select(.state == "exited") | .service'
    """
    from kvdemo.commands import scope
    from kvdemo.fleet import lifecycle
    from kvdemo.report import terminal

    project = scope.project(project_name)
    with closing(lifecycle.changes(project, os.environ, services or ())) as stream:
        for event in stream:
            now = datetime.now().astimezone().isoformat(timespec="milliseconds")
            if json:
                row = {"time": now, "project": project.name, **terminal.service_row(event)}
                typer.echo(jsonlib.dumps(row))
            else:
                terminal.out.print(f"{now} ", end="", highlight=False)
                terminal.out.print(terminal.line(event), soft_wrap=True)
