"""The command line: parse, call one story, render. ``frame`` is around every verb.

Every import beyond typer waits until a verb needs it: ``kvdemo --help`` must not cost half a second.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer
import typer.core

from kvdemo.commands import estimate, invocation, lifecycle, load, measuring, options, top
from kvdemo.commands.options import JsonOption, ProfileArgument, ProjectOption, Services, TimeoutOption
from kvdemo.errors import NotReadyError, PreflightError, UsageError

if TYPE_CHECKING:
    from kvdemo.fleet.watch import Event

app = typer.Typer(
    cls=invocation.Verbs,
    name="kvdemo",
    epilog="Exit codes: 0 ok, 1 a service or request failed, 2 usage, 3 gate missed, 4 profile invalid, 5 preflight "
    "failed, 6 timed out, 7 not ready, 8 down incomplete, 9 project in use, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main(version: options.Version = False) -> None:
    """Start vLLM engines that share their KV cache through LMCache, next to plain ones, and measure what it buys."""


@app.command()
def init(
    kind: options.Kind = None,
    output: options.ProfileOutput = Path("kvdemo.yaml"),
    python: options.Python = "",
    force: options.Force = False,
) -> None:
    """Write a commented profile that fits this machine, and the document that it asks about.

    Example: kvdemo init smoke
    """
    from kvdemo.commands import starter

    starter.run(kind, output, python, force=force)


@app.command()
def up(
    profile: ProfileArgument = None,
    services: Services = None,
    timeout: TimeoutOption = None,
    wait: options.Wait = True,
    keep: options.Keep = False,
    preheat: options.Preheat = False,
    project_name: options.ProjectName = "",
) -> None:
    """Start what the profile describes, in the background, and wait until every service can generate.

    Example: kvdemo up profiles/cpu.yaml --preheat
    """
    from kvdemo.commands import guard, scope, workdir
    from kvdemo.fleet import fleet
    from kvdemo.report import terminal

    if preheat and not wait:
        raise UsageError("--preheat cannot be combined with --no-wait", "an engine that is not ready cannot read")
    path, targets = workdir.arguments(profile, services or ())
    project = scope.project_of(path, project_name)
    with project.lock("up") as lock:
        plan = scope.plan(path, project, fetch=True)
        if plan.missing:
            problems = "\n  ".join(plan.missing)
            raise PreflightError(
                f"this machine cannot run the plan:\n  {problems}", "kvdemo plan PROFILE shows it whole"
            )
        names, preheating = targets, None
        for question in guard.questions(plan, names, os.environ):
            terminal.err.print(question.text, markup=False)
            if doubt := guard.refuse(question):
                terminal.err.print(f"warning: {doubt}", markup=False)
        if preheat:
            from kvdemo.bench.preheat import Preheat

            preheating = Preheat(plan, project, os.environ, names)
        invocation.show(
            fleet.up(
                plan, project, os.environ, lock, names=names, wait=wait, keep=keep, timeout=timeout, then=preheating
            )
        )
    if preheating:
        preheating.check()
    if wait:
        terminal.out.print(
            f"Ready. Next: kvdemo bench -p {project.name} (or kvdemo ui), then kvdemo down -p {project.name}"
        )


@app.command()
def plan(
    profile: ProfileArgument = None,
    format: options.Format = "text",
    project_name: options.ProjectName = "",
) -> None:
    """Show what `up` would run: every command, variable, port, GPU, and what this machine lacks for it.

    Example: kvdemo plan profiles/demo4.yaml --format json
    """
    import json

    from kvdemo.commands import scope, workdir
    from kvdemo.report import terminal

    path = workdir.profile(profile)
    plan = scope.plan(path, scope.project_of(path, project_name))
    if format == "json":
        typer.echo(json.dumps(plan.to_json(), indent=2))
    else:
        terminal.out.print(terminal.plan_text(plan))


@app.command()
def doctor(
    profile: options.MaybeProfile = None, project_name: options.ProjectName = "", json: JsonOption = False
) -> None:
    """Check this machine and, with a profile, all that it needs; predict what reuse could buy. Starts nothing.

    Example: kvdemo doctor profiles/one-gpu.yaml
    """
    from kvdemo.commands import doctor, workdir

    doctor.run(profile or workdir.find_profile(), project_name, as_json=json)


@app.command()
def export(
    format: options.ExportFormat,
    profile: ProfileArgument = None,
    output: options.Output = None,
    nodes: options.Nodes = 1,
    project_name: options.ProjectName = "",
) -> None:
    """Print what `up` would run as a docker compose file, Kubernetes manifests, a Slurm job or a shell script.

    prometheus: what Prometheus is to read of the fleet that is up, or would be; with -o DIR a Grafana dashboard, too.

    Example: kvdemo export prometheus -p demo4 -o monitoring
    """
    from kvdemo.commands import monitoring, scope, workdir
    from kvdemo.export import formats

    if format == "prometheus":
        monitoring.run(profile, project_name, output, nodes)
        return
    path = workdir.profile(profile)
    text = formats.export(scope.plan_for_export(path, scope.project_of(path, project_name)), format, nodes)
    if output is None:
        invocation.write(text)
    else:
        invocation.save(output, text)


@app.command()
def ps(
    services: Services = None,
    project_name: ProjectOption = "",
    json: JsonOption = False,
    watch: options.Watch = False,
    check: options.Check = False,
    all_projects: options.AllProjects = False,
) -> None:
    """List the services and what each one is doing now.

    Example: kvdemo ps --check
    """
    from kvdemo.commands import scope
    from kvdemo.fleet import fleet
    from kvdemo.fleet.watch import State
    from kvdemo.report import terminal

    if all_projects and (services or watch or check):
        raise UsageError(
            "--all cannot be combined with SERVICE, --watch or --check", "these are about one project: -p NAME"
        )
    if watch and json:
        raise UsageError("--watch cannot be combined with --json", "kvdemo events --json tells every change")
    if all_projects:
        scope.services_of_all(as_json=json)
        return
    project = scope.project(project_name)

    def look() -> list[Event]:
        return fleet.status(project, os.environ, services or ())

    events = look()
    if watch:
        terminal.watch(look, events)
    if json:
        typer.echo(terminal.services_json(project.name, events))
    else:
        terminal.out.print(terminal.table(events))
    unready = [event.service for event in events if event.state is not State.READY]
    if check and unready:
        raise NotReadyError(f"not ready: {', '.join(unready)}", f"kvdemo logs {unready[0]} -p {project.name}")


app.command("status", hidden=True, help="The same as ps.")(ps)


app.command()(lifecycle.ls)
app.command("top")(top.top)


@app.command()
def logs(
    services: Services = None,
    project_name: ProjectOption = "",
    follow: options.Follow = False,
    tail: options.Tail = None,
    previous: options.Previous = False,
    since: options.Since = "",
    no_log_prefix: options.NoLogPrefix = False,
) -> None:
    """Print the services' logs, each line with its service's name; secrets are blanked.

    Example: kvdemo logs --since 5m lmcache-b
    """
    from datetime import datetime

    from kvdemo.commands import scope
    from kvdemo.fleet import fleet, logbook, logtime
    from kvdemo.report import terminal

    project = scope.project(project_name, logs=True)
    begin = logtime.moment(since, datetime.now()) if since else None
    targets = logbook.select(project, services or (), previous=previous)
    for service, text in logbook.lines(
        project, targets, os.environ, tail=tail, follow=follow, previous=previous, since=begin
    ):
        terminal.log_line(service, text, sorted(targets), prefix=not no_log_prefix)
    for event in [] if previous else fleet.exits(project, os.environ, targets):
        terminal.ending(event)


@app.command()
def restart(
    services: Services = None,
    project_name: ProjectOption = "",
    timeout: TimeoutOption = None,
) -> None:
    """Stop and start services again, all that were started if none is named. A cache's engines follow it.

    Example: kvdemo restart shared
    """
    from kvdemo.commands import scope
    from kvdemo.fleet import fleet

    project = scope.project(project_name)
    with project.lock("restart") as lock:
        invocation.show(fleet.restart(project, os.environ, lock, services or (), timeout))


for verb in (lifecycle.stop, lifecycle.start, lifecycle.wait, lifecycle.events):
    app.command()(verb)
app.command(cls=measuring.Bench)(measuring.bench)
app.command("load", cls=load.Verb)(load.load)
app.command("estimate")(estimate.command)
app.command()(measuring.report)
app.command()(measuring.compare)


@app.command()
def ui(
    project_name: ProjectOption = "",
    host: options.Host = "127.0.0.1",
    port: options.Port = 8501,
    result_dir: options.ResultDir = Path("results"),
) -> None:
    """Show the fleet in a web page, until Ctrl-C: ask, race, measure.

    Example: kvdemo ui --port 8501
    """
    from kvdemo.commands import scope

    scope.page_library()
    from kvdemo.ui import web

    web.serve(scope.project(project_name), os.environ, scope.address(host, port), result_dir)


@app.command()
def down(
    services: Services = None,
    project_name: ProjectOption = "",
    volumes: options.Volumes = False,
    timeout: options.KillTimeout = None,
    all_projects: options.AllProjects = False,
) -> None:
    """Stop everything, engines before caches, and prove that nothing is left; of some services, a cache's engines too.

    Example: kvdemo down lmcache-b
    """
    from kvdemo.commands import scope
    from kvdemo.report import terminal

    if services:
        if volumes or all_projects:
            raise UsageError("SERVICE cannot be combined with --volumes or --all", "both are about whole projects")
        invocation.take_down(scope.project(project_name), False, timeout, services)
        return
    targets = scope.to_stop(project_name, everything=all_projects, stores=volumes)
    if not targets:
        terminal.out.print("Nothing was running.")
    try:
        invocation.take_all_down(targets, volumes, timeout)
    finally:
        if all_projects:
            scope.name_damaged()


def main() -> None:
    """The ``kvdemo`` program."""
    app(prog_name="kvdemo")
