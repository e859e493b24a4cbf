"""Logs of the services: which ones, which lines, in which order; secrets blanked before anything leaves here."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping

from kvdemo.errors import UsageError
from kvdemo.fleet import excerpts, launchers, logtext
from kvdemo.host.launcher import BEGIN, Launcher
from kvdemo.host.state import Project
from kvdemo.host.survey import saved_plan

POLL = 0.2
"""Seconds between two looks at the files while following: reading a growing file gives no event to wait for."""


def select(project: Project, names: Collection[str], *, previous: bool = False) -> list[str]:
    """The services asked for (all if none is named). Raises UsageError for one that has no log."""
    there = launchers.of(project).logs(previous=previous)
    for name in names:
        if name not in there:
            what = "previous log" if previous else "log"
            raise UsageError(
                f"service {name} has no {what} in project {project.name}", f"there are: {', '.join(there) or 'none'}"
            )
    return [name for name in there if not names or name in names]


def lines(
    project: Project,
    services: Collection[str],
    environ: Mapping[str, str],
    *,
    tail: int | None = None,
    follow: bool = False,
    previous: bool = False,
) -> Iterator[tuple[str, str]]:
    """(service, line) of each log in turn, then, with ``follow``, whatever is added, a new start's log included."""
    plan = saved_plan(project)
    # The names outlive the plan: after `down` the logs are still there, and so is what engines wrote into them.
    names = {name for spec in (plan.services if plan else ()) for name in spec.secrets} | project.secrets()[0]
    secrets = {name: environ[name] for name in sorted(names) if environ.get(name)}
    launcher = launchers.of(project)
    books = {service: _Book(launcher, service, previous) for service in services}
    for service, book in books.items():
        rows = book.read_on() if follow else book.read()
        for row in rows if tail is None else rows[max(0, len(rows) - tail) :]:
            yield service, _shown(row, secrets)
    while follow and not previous:
        for service, book in books.items():
            for row in book.read_on():
                yield service, _shown(row, secrets)
        time.sleep(POLL)


def _shown(row: str, secrets: dict[str, str]) -> str:
    """A line as a terminal may get it: without secrets, and without what would command the terminal."""
    return logtext.plain(excerpts.redact(row, secrets))


class _Book:
    """One service's log and how far it was read; a last line without its end waits for it."""

    def __init__(self, launcher: Launcher, service: str, previous: bool) -> None:
        self.launcher, self.service, self.previous = launcher, service, previous
        self.place, self.rest = BEGIN, b""

    def read(self) -> list[str]:
        """Every line there is, the last one whole or not."""
        rows = self.read_on()
        if self.rest:
            rows.append(self.rest.decode(errors="replace"))
            self.rest = b""
        return rows

    def read_on(self) -> list[str]:
        """The whole lines since the last call."""
        self.place, new = self.launcher.read_log(self.service, self.place, previous=self.previous)
        whole, newline, self.rest = (self.rest + new).rpartition(b"\n")
        return (whole + newline).decode(errors="replace").splitlines()
