"""The command line: parse, call one story, render. The only place that catches KvdemoError.

Every import beyond typer waits until a verb needs it: ``kvdemo --help`` must not cost half a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
import typer.core

from kvdemo import __version__
from kvdemo.errors import DownIncompleteError, ExitCode, KvdemoError, NotReadyError, PreflightError, UsageError

if TYPE_CHECKING:
    from kvdemo.plan import Plan
    from kvdemo.state import Project
    from kvdemo.watch import Event


class _Verbs(typer.core.TyperGroup):
    """The commands, with one translation of every failure into a message and an exit code around all of them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _interruptible():
                return super().invoke(ctx)
        except KvdemoError as error:
            from kvdemo import report

            report.failure(str(error), error.hint)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output left (`kvdemo logs | head`): nothing is wrong, and nobody is there to be told.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    cls=_Verbs,
    name="kvdemo",
    help="Start vLLM engines that share their KV cache through LMCache, next to plain ones, and measure what it buys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ProfileArgument = Annotated[
    Path, typer.Argument(metavar="PROFILE", help="The profile (YAML).", envvar="KVDEMO_PROFILE")
]
ProjectOption = Annotated[
    str,
    typer.Option("--project-name", "-p", metavar="NAME", help="Which project; may be left out while only one is up."),
]
Services = Annotated[list[str] | None, typer.Argument(metavar="[SERVICE]...", help="Only these.", show_default=False)]
TimeoutOption = Annotated[float | None, typer.Option(metavar="SECONDS", help="Give up after this long.", min=1)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvdemo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Start vLLM engines that share their KV cache through LMCache, next to plain ones, and measure what it buys.

    Exit codes: 0 ok, 1 a service or request failed, 2 usage, 3 gate missed, 4 profile invalid, 5 preflight failed,
    6 timed out, 7 not ready, 8 down incomplete, 9 project in use, 130 interrupted.
    """


@app.command()
def up(
    profile: ProfileArgument,
    services: Services = None,
    timeout: TimeoutOption = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when all can generate / once all are started.")
    ] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was started when something fails.")] = False,
    project_name: Annotated[str, typer.Option("--project-name", "-p", help="Instead of the profile's name.")] = "",
) -> None:
    """Start what the profile describes, in the background, and wait until every service can generate."""
    from kvdemo import fleet, report

    project = _project_of(profile, project_name)
    with project.lock("up") as lock:
        plan = _plan(profile, project, fetch=True)
        if plan.missing:
            raise PreflightError("this machine cannot run the plan:\n  " + "\n  ".join(plan.missing), _PLAN_HINT)
        events = fleet.up(plan, project, os.environ, lock, names=services or (), wait=wait, keep=keep, timeout=timeout)
        _show(events)
    if wait:
        report.out.print(
            f"Ready. Next: kvdemo bench -p {project.name} --context FILE, then kvdemo down -p {project.name}"
        )


_PLAN_HINT = "`kvdemo plan PROFILE` shows the whole plan"


@app.command()
def plan(
    profile: ProfileArgument,
    format: Annotated[
        Literal["text", "json", "shell"], typer.Option(help="shell: a script that starts the same.")
    ] = "text",
    project_name: Annotated[str, typer.Option("--project-name", "-p", help="Instead of the profile's name.")] = "",
) -> None:
    """Show what `up` would run: every command, variable, port, GPU, and what this machine lacks for it."""
    import json

    from kvdemo import export, report

    planned = _plan(profile, _project_of(profile, project_name))
    if format == "json":
        typer.echo(json.dumps(planned.to_json(), indent=2))
    elif format == "shell":
        typer.echo(export.shell(planned))
    else:
        report.out.print(report.plan_text(planned))


@app.command()
def ps(
    services: Services = None,
    project_name: ProjectOption = "",
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Redraw every two seconds until Ctrl-C.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 7 unless every service is ready.")] = False,
) -> None:
    """List the services and what each one is doing now."""
    from kvdemo import fleet, report
    from kvdemo.watch import State

    project = _project(project_name)

    def look() -> list[Event]:
        return fleet.status(project, os.environ, services or ())

    events = look()
    if watch:
        report.watch(look, events)
    if json:
        typer.echo(report.services_json(project.name, events))
    else:
        report.out.print(report.table(events))
    lame = [event.service for event in events if event.state is not State.READY]
    if check and lame:
        raise NotReadyError(f"not ready: {', '.join(lame)}", f"kvdemo logs {lame[0]} -p {project.name}")


app.command("status", hidden=True, help="The same as ps.")(ps)


@app.command()
def logs(
    services: Services = None,
    project_name: ProjectOption = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", metavar="LINES", min=0, help="Only the last lines.")
    ] = None,
    previous: Annotated[bool, typer.Option("--previous", help="Of the start before this one.")] = False,
    no_log_prefix: Annotated[bool, typer.Option("--no-log-prefix", help="Without the service's name.")] = False,
) -> None:
    """Print the services' logs, each line with its service's name; secrets are blanked."""
    from kvdemo import logbook, report

    project = _project(project_name, logs=True)
    chosen = logbook.select(project, services or (), previous=previous)
    for service, text in logbook.lines(project, chosen, os.environ, tail=tail, follow=follow, previous=previous):
        report.log_line(service, text, sorted(chosen), prefix=not no_log_prefix)


@app.command()
def restart(
    services: Annotated[list[str], typer.Argument(metavar="SERVICE...", help="Which; a cache's engines follow it.")],
    project_name: ProjectOption = "",
    timeout: TimeoutOption = None,
) -> None:
    """Stop and start services again."""
    from kvdemo import fleet

    project = _project(project_name)
    with project.lock("restart") as lock:
        _show(fleet.restart(project, os.environ, lock, services, timeout))


@app.command()
def bench(
    project_name: ProjectOption = "",
    context: Annotated[Path | None, typer.Option(help="The document to ask about; else the profile's.")] = None,
    question: Annotated[str, typer.Option(help="What to ask about it; else the profile's first question.")] = "",
    trials: Annotated[int | None, typer.Option(min=1, help="How often, each time under a fresh salt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Length of each answer in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the arms.")] = 0,
    result_dir: Annotated[Path, typer.Option(help="Where to save samples and result.")] = Path("results"),
    json: JsonOption = False,
) -> None:
    """Measure what prefix reuse between engines buys, prove where the tokens came from, compare the answers."""
    from kvdemo import benchmark

    arguments = benchmark.Arguments(context, question, trials, max_tokens, seed, result_dir)
    benchmark.run(_project(project_name), arguments, os.environ, as_json=json)


@app.command()
def down(
    project_name: ProjectOption = "",
    volumes: Annotated[
        bool, typer.Option("--volumes", "-v", help="Delete the KV store too (only one kvdemo made).")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", "-t", metavar="SECONDS", help="Then kill.", min=0)
    ] = None,
    all_projects: Annotated[bool, typer.Option("--all", help="Every project of this user.")] = False,
) -> None:
    """Stop everything, engines before caches, and prove that nothing is left."""
    from kvdemo import report

    try:
        chosen = _projects() if all_projects else [_project(project_name)]
    except NotReadyError:
        chosen = []
    chosen = [project for project in chosen if project.dir.exists()]
    if not chosen:
        report.out.print("Nothing was running.")
    for project in chosen:
        _down(project, volumes, timeout)


def _down(project: Project, volumes: bool, timeout: float | None) -> None:
    from kvdemo import report, teardown

    with project.lock("down", timeout=30):
        remains = teardown.Remains()
        with closing(teardown.down(project, remove_store=volumes, timeout=timeout)) as events, report.Fleet() as show:
            for event in events:
                if isinstance(event, teardown.Remains):
                    remains = event
                else:
                    show(event)
    if remains:
        raise DownIncompleteError(
            f"still there: {remains}", f"try again, or end it by hand: kvdemo down -p {project.name}"
        )
    report.out.print(report.down_summary(remains))


def _show(events: Generator[Event]) -> None:
    from kvdemo import report

    with closing(events) as stream, report.Fleet() as show:
        for event in stream:
            show(event)


def _project_of(profile: Path, name: str) -> Project:
    from kvdemo.profile import load
    from kvdemo.state import Project, root

    return Project(root(os.environ), name or load(profile, os.environ).name)


def _plan(path: Path, project: Project, *, fetch: bool = False) -> Plan:
    """Load, survey, plan; with ``fetch`` download the models first that are not here."""
    from kvdemo import plan as planning
    from kvdemo import runtime, survey
    from kvdemo.profile import load

    profile = load(path, os.environ).model_copy(update={"name": project.name})
    facts = survey.survey(profile, project, os.environ)
    planned = planning.make(profile, facts)
    if fetch and planned.fetch and not planned.missing:
        from kvdemo import report

        for name in planned.fetch:
            report.out.print(f"Downloading {name} from Hugging Face (once) ...")
            engine = next(engine for engine in profile.engines.values() if engine.model == name)
            runtime.fetch(name, engine.runtime.python or facts.default_python, {**os.environ, **engine.env})
        planned = planning.make(profile, survey.survey(profile, project, os.environ))
    return planned


def _projects() -> list[Project]:
    from kvdemo.state import projects, root

    return [project for project in projects(root(os.environ)) if project.load(strict=False) or project.records()]


def _project(name: str, *, logs: bool = False) -> Project:
    """The named project, or the only one that is up (or, with ``logs``, that ever was)."""
    from kvdemo.state import Project, root

    base = root(os.environ)
    if name or (name := os.environ.get("KVDEMO_PROJECT", "")):
        return Project(base, name)
    found = _projects()
    if not found and logs:
        found = [Project(base, path.parent.name) for path in sorted(base.glob("*/logs"))]
    if len(found) > 1:
        names = ", ".join(project.name for project in found)
        raise UsageError(f"several projects are there: {names}", "say which: -p NAME")
    if not found:
        raise NotReadyError("nothing is up", "start it: kvdemo up PROFILE")
    return found[0]


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a verb as Ctrl-C does, so that what it started is stopped again."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """The ``kvdemo`` program."""
    app(prog_name="kvdemo")
