"""What the terminal shows of a fleet: live table, lines, ``ps``, ``plan``. The only module that prints services.

On a terminal events redraw one table; elsewhere each change of state or phase is one line.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kvdemo import units
from kvdemo.fleet.teardown import Remains
from kvdemo.fleet.watch import Event, State
from kvdemo.planning.plan import Plan, ServiceSpec

STYLES = {
    State.READY: "green",
    State.UNCHANGED: "green",
    State.FAILED: "bold red",
    State.LOST: "bold red",
    State.UNHEALTHY: "yellow",
    State.EXITED: "dim",
    State.ABSENT: "dim",
    State.STOPPING: "yellow",
}
GIB = 1024**3


class PlainConsole(Console):
    """The edge of the terminal: whatever is printed, no text in it commands the terminal; only rich itself does."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Every line, cell, label and error passes here in segments; rich's own control segments stay."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else units.printable(segment.text)
            yield segment if text is segment.text else segment._replace(text=text)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string becomes a text of the width that it is shown with."""
        return super().render_str(units.printable(text), **options)


out = PlainConsole(highlight=False, soft_wrap=not sys.stdout.isatty())
err = PlainConsole(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


class Fleet:
    """Shows a stream of events: ``with Fleet() as show: show(event)``."""

    def __init__(self, console: Console = out) -> None:
        self.console = console
        self.rows: dict[str, Event] = {}
        self.live = Live(console=console, refresh_per_second=8, transient=False) if console.is_terminal else None

    def __enter__(self) -> Fleet:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event; what it leaves out is kept from the event before it."""
        before = self.rows.get(event.service)
        if before:
            event = replace(
                event,
                kind=event.kind or before.kind,
                at=event.at or before.at,
                node=event.node or before.node,
                memory=event.memory or before.memory,
            )
        self.rows[event.service] = event
        if self.live:
            self.live.update(table(self.rows.values()))
        elif before is None or (event.state, event.phase, event.detail) != (before.state, before.phase, before.detail):
            self.console.print(line(event))


def line(event: Event) -> Text:
    """One event as one line of plain text."""
    phase = f" ({event.phase})" if event.phase and event.state is State.STARTING else ""
    detail = f"  {units.printable(event.detail)}" if event.detail else ""
    elapsed = f" {duration(event.elapsed)}" if event.elapsed else ""
    text = f"{event.service:<14} {event.state.value}{phase}{elapsed} {f'{event.node} {event.at}'.strip()}{detail}"
    return Text(text.rstrip(), style=STYLES.get(event.state, ""))


def table(events: Iterable[Event]) -> Table:
    """The services as a table: what, state, phase, elapsed, memory, where."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    events = list(events)
    nodes = any(event.node for event in events)
    for heading in ("SERVICE", "KIND", "NODE", "STATE") if nodes else ("SERVICE", "KIND", "STATE"):
        grid.add_column(heading, no_wrap=True)
    grid.add_column("ELAPSED", justify="right", no_wrap=True)
    grid.add_column("MEMORY", justify="right", no_wrap=True)
    grid.add_column("AT", no_wrap=True)
    grid.add_column("", overflow="fold")
    for event in events:
        phase = f" · {event.phase}" if event.phase and event.state is State.STARTING else ""
        grid.add_row(
            event.service,
            event.kind,
            *([event.node] if nodes else []),
            Text(event.state.value + phase, style=STYLES.get(event.state, "cyan")),
            duration(event.elapsed),
            f"{event.memory / GIB:.1f} GiB" if event.memory else "",
            event.at,
            Text("\n".join(filter(None, (event.detail, event.fix and f"-> {event.fix}"))), style="dim"),
        )
    return grid


def duration(seconds: float) -> str:
    """12s, 3m05s, 2h10m."""
    if seconds <= 0:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def services_document(project: str, events: Iterable[Event]) -> dict[str, Any]:
    """A project as ``ps --json`` tells it."""
    return {"project": project, "services": [service_row(event) for event in events]}


def service_row(event: Event) -> dict[str, Any]:
    """One service as every JSON document of kvdemo tells it."""
    return {**asdict(event), "state": event.state.value, "elapsed": round(event.elapsed, 1)}


def project_row(name: str, profile: str, events: Sequence[Event]) -> dict[str, Any]:
    """A project as ``ls --json`` tells it: the number of services in each state, and the start of the oldest."""
    states = Counter(event.state.value for event in events)
    started = sorted(event.started_at for event in events if event.started_at and event.pid)
    return {"name": name, "states": dict(states), "profile": profile, "since": started[0] if started else None}


def projects_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The projects as a table: name, how many services are in which state, since when, profile."""
    grid = Table("NAME", "STATUS", "SINCE", "PROFILE", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        status = ", ".join(f"{state}({n})" for state, n in row["states"].items()) or "unknown"
        since = (row["since"] or "").replace("T", " ")[:19]
        grid.add_row(row["name"], status, since, units.printable(row["profile"]))
    return grid


def services_json(project: str, events: Iterable[Event]) -> str:
    """``ps --json``: one document."""
    return json.dumps(services_document(project, events))


def down_summary(remains: Remains) -> str:
    """The proof, in one line."""
    checked = remains.checked
    kv_text = f"{units.size(checked['kv_bytes'])} of KV" if checked.get("kv_bytes") else "it was empty"
    store_text = f" Deleted the KV store ({kv_text})." if checked.get("stores") else ""
    if not checked.get("services"):
        return f"Nothing was running.{store_text}"
    proofs = [f"{units.count(checked['services'], 'service')} ended", "no process of theirs lives"]
    for what, number, state in (
        ("port", checked.get("ports", 0), "free"),
        ("shared-memory segment", checked.get("segments", 0), "gone"),
    ):
        if number:
            proofs.append(f"{units.count(number, what)} {'is' if number == 1 else 'are'} {state}")
    if checked.get("gpus"):
        proofs.append(f"GPU memory given back on {checked['gpus']}")
    nodes_text = f" Ended with their nodes: {', '.join(remains.gone)}." if remains.gone else ""
    return f"Nothing is left: {', '.join(proofs)}.{store_text}{nodes_text}"


def plan_text(plan: Plan) -> Group:
    """The plan for people: what fits and what is missing, the variables of all, then each service's command."""
    parts: list[Text | str] = [f"[bold]{escape(plan.project)}[/] from {escape(plan.profile)}\n"]
    parts += [f"[green]fits[/]      {escape(line)}" for line in plan.sums]
    parts += [f"[yellow]warning[/]   {escape(line)}" for line in plan.warnings]
    for name in plan.fetch:
        parts.append(f"[yellow]to fetch[/]  model {escape(name)} is downloaded from Hugging Face first")
    for problem in plan.missing:
        parts.append(f"[yellow]missing[/]   {escape(problem)}")
    if not plan.missing:
        parts.append("[green]nothing is missing[/]: `kvdemo up` would start this")
    variables = [_variables(spec) for spec in plan.services]
    shared = [row for row in variables[0] if all(row in rows for rows in variables)] if len(variables) > 1 else []
    if shared:
        parts.append(Text("\nevery service", style="bold").append("\n  " + "\n  ".join(shared), style="not bold dim"))
    parts.append("")
    for spec, rows in zip(plan.services, variables, strict=True):
        parts.append(_service_text(spec, [row for row in rows if row not in shared]))
    return Group(*parts)


def _variables(spec: ServiceSpec) -> list[str]:
    return [f"{name}={value}" for name, value in spec.env.items()] + [f"{name}=${{{name}}}" for name in spec.secrets]


def _service_text(spec: ServiceSpec, variables: list[str]) -> Text:
    where = f"GPU {','.join(map(str, spec.gpus))}" if spec.gpus else "no GPU"
    text = Text(f"{spec.name}", style="bold")
    where = f"node {spec.node} ({spec.host}), {where}" if spec.node else where
    text.append(f"  {spec.kind}, port {', '.join(map(str, spec.ports))}, {where}", style="not bold")
    text.append(f", {spec.budget}" if spec.budget else "", style="not bold")
    text.append("".join(f"\n  {row}" for row in variables), style="not bold dim")
    text.append("\n  " + shlex.join(spec.argv) + "\n", style="not bold")
    return text


def failure(message: str, hint: str) -> None:
    """An error and its hint, to standard error."""
    err.print(Text("error: ", style="bold red").append(units.printable(message), style="not bold default"))
    for row in hint.split("\n") if hint else ():
        err.print(Text(f"  {units.printable(row)}"))


def log_line(service: str, text: str, services: list[str], *, prefix: bool = True) -> None:
    """One line of a service's log, its name in front in a colour of its own."""
    line = Text()
    if prefix:
        colours = ("cyan", "green", "magenta", "yellow", "blue", "red")
        line.append(f"{service:<{max(map(len, services))}} | ", style=colours[services.index(service) % len(colours)])
    out.print(line.append(text), soft_wrap=True)


def ending(event: Event) -> None:
    """Below its log: why a service has ended, on standard error, so that a copy of the log stays one."""
    err.print(Text(f"{event.service}: {event.detail}" + (f"\n-> {event.fix}" if event.fix else "")), soft_wrap=True)


def watch(observe: Callable[[], Iterable[Event]], events: Iterable[Event]) -> None:
    """Show the table of services every two seconds until Ctrl-C; on a terminal in one place."""
    try:
        if not out.is_terminal:
            while True:
                out.print(table(events))
                time.sleep(2)
                events = observe()
        with Live(table(events), console=out, auto_refresh=False) as live:
            while True:
                time.sleep(2)
                live.update(table(observe()), refresh=True)
    except KeyboardInterrupt:
        return


class Progress:
    """Shows what a benchmark is doing: one moving line on a terminal, a line for each step elsewhere, or nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.text = quiet, ""
        self.live = None if quiet or not err.is_terminal else err.status("starting")

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, text: str, share: float = 0.0) -> None:
        """Say what happens now, and how much of the run is behind."""
        if self.live:
            self.live.update(f"{escape(text)}  ({share:.0%})" if share else escape(text))
        elif not self.quiet and text != self.text:
            err.print(text, markup=False)
        self.text = text
