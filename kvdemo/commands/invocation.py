"""Around every command: the only place that catches KvdemoError, signals that end a verb in good order, its events.

Imported with the command line itself, so everything heavy waits until it is needed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer
import typer.core

from kvdemo import units
from kvdemo.errors import DownIncompleteError, ExitCode, KvdemoError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from kvdemo.fleet.watch import Event
    from kvdemo.host.state import Project


DOWN_PATIENCE = 30.0
"""Seconds that `down` waits for another command to leave the project."""


class Verbs(typer.core.TyperGroup):
    """The commands, with one translation of every failure into a message and an exit code around all of them."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with _interruptible():
                return super().invoke(ctx)
        except KvdemoError as error:
            from kvdemo.report import terminal

            terminal.failure(str(error), error.hint)
            raise typer.Exit(error.exit_code) from None
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # what typer passes on of pydantic's words
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output left (`kvdemo logs | head`): nothing is wrong, and nobody is there to be told.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _interruptible() -> Generator[None]:
    """SIGTERM and SIGHUP end a verb as Ctrl-C does, so that what it started is stopped again."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def take_all_down(projects: Sequence[Project], volumes: bool, timeout: float | None) -> None:
    """Stop projects one after another: a failure of one is no other's. Raises the first, at the end."""
    from kvdemo.report import terminal

    failures: list[KvdemoError] = []
    for project in projects:
        try:
            take_down(project, volumes, timeout)
        except KvdemoError as error:
            if len(projects) > 1:
                terminal.failure(f"{project.name}: {error}", error.hint)
            failures.append(error)
    if failures:
        raise failures[0]


def _waiting(what: str, how: str) -> None:
    """Say whom we wait for, at once."""
    from kvdemo.report import terminal

    terminal.err.print(what, markup=False)
    if how:
        terminal.err.print(f"  {how}", markup=False)


def take_down(project: Project, volumes: bool, timeout: float | None, services: Sequence[str] = ()) -> None:
    """Stop a project, or only these services of it, and show it. Raises DownIncompleteError if something survived."""
    from kvdemo.fleet import lifecycle, teardown
    from kvdemo.report import terminal

    with project.lock("down", timeout=DOWN_PATIENCE, waiting=_waiting):
        remains = teardown.Remains()
        stream = (
            lifecycle.down(project, services, timeout)
            if services
            else teardown.down(project, remove_store=volumes, timeout=timeout)
        )
        with closing(stream) as events, terminal.Fleet() as show:
            for event in events:
                if isinstance(event, teardown.Remains):
                    remains = event
                else:
                    show(event)
    again = f"kvdemo down -p {project.name}"
    if remains.has_leftovers:
        raise DownIncompleteError(f"still there: {remains}", f"try again, or end it by hand: {again}")
    if remains:
        raise DownIncompleteError(
            str(remains), f"a node that is cut off from its cluster ends its services itself; look again: {again}"
        )
    terminal.out.print(terminal.down_summary(remains))


def show(events: Generator[Event]) -> None:
    """Show events as they come; whoever makes them is closed in any case."""
    from kvdemo.report import terminal

    with closing(events) as stream, terminal.Fleet() as show:
        for event in stream:
            show(event)


def write(text: str) -> None:
    """Print a document as it is, byte for byte; a terminal gets it with nothing in it that it would obey."""
    typer.echo(units.printable(text) if sys.stdout.isatty() else text, nl=False)


def save(path: Path, text: str, *, parents: bool = False) -> None:
    """Write a file that the user named, with ``parents`` its directories too. Raises UsageError if that cannot be."""
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "name another file: -o FILE") from None
