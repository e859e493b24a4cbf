"""``kvdemo top``: what a fleet does now, in place on a terminal, a line or a table at a time elsewhere."""

from __future__ import annotations

import json as jsonlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from kvdemo.commands import options
from kvdemo.commands.options import ProjectOption, Services
from kvdemo.errors import UsageError
from kvdemo.units import LONGEST

if TYPE_CHECKING:
    from kvdemo.fleet.gauges import Gauges
    from kvdemo.judge.frame import Frame

Target = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=URL", help="An engine that something else started; repeat it. Instead of a project."),
]
CacheUrl = Annotated[str, typer.Option(metavar="URL", help="With --target: HTTP address of their cache server.")]
Interval = Annotated[
    float, typer.Option("--interval", "-d", metavar="SECONDS", min=0.2, max=LONGEST, help="Between two looks.")
]
Count = Annotated[
    int | None, typer.Option("--count", "-n", metavar="N", min=1, help="End after so many; else when told to.")
]


def top(
    services: Services = None,
    project_name: ProjectOption = "",
    target: Target = None,
    cache_url: CacheUrl = "",
    interval: Interval = 2.0,
    count: Count = None,
    json: options.JsonLines = False,
) -> None:
    """Show live what each engine and cache does: requests, prompt tokens by source, hit rate, TTFT, KV, L1, L2, GPUs.

    q or Ctrl-C ends it. Where no terminal is, it shows one interval; --json goes on, one object an interval.

    Example: kvdemo top --target a=http://10.0.0.1:8000 --target b=http://10.0.0.2:8000
    """
    gauges = _gauges(services or [], project_name, target or [], cache_url, interval)
    if json:
        _run(gauges, interval, count, _line, time.sleep)
    elif sys.stdout.isatty():
        _live(gauges, interval, count)
    else:
        from kvdemo.report import top as report

        _run(gauges, interval, count or 1, report.once, time.sleep)


def _gauges(services: list[str], project_name: str, target: list[str], cache_url: str, interval: float) -> Gauges:
    """Who is asked."""
    from kvdemo.bench import attach
    from kvdemo.commands import scope
    from kvdemo.fleet import gauges

    length = max(gauges.WINDOW, interval)
    if not target:
        if cache_url:
            raise UsageError("--cache-url needs --target", "a project knows its caches")
        return gauges.of_project(scope.project(project_name), os.environ, services, length)
    if services or project_name:
        raise UsageError("--target cannot be combined with a project or its services", "name the engines by --target")
    return gauges.of_targets(attach.services(target, cache_url), attach.key_of(os.environ), length)


def _run(
    gauges: Gauges, interval: float, frames: int | None, show: Callable[[Frame], None], wait: Callable[[float], object]
) -> None:
    """Show ``frames`` frames, or go on for ever: each after an interval, as all rates need two readings.

    A ``wait`` that returns something true ends it.
    """
    gauges.look()
    due = time.monotonic()
    while frames is None or frames > 0:
        due = max(due + interval, time.monotonic())
        if wait(max(0.0, due - time.monotonic())):
            return
        show(gauges.look())
        frames = None if frames is None else frames - 1


def _live(gauges: Gauges, interval: float, frames: int | None) -> None:
    from kvdemo.report import top as report

    try:
        with _keys() as (wait, hint), report.Screen(f", every {interval:g} s{hint}") as show:
            show(gauges.look())  # states at once, rates after the first interval
            _run(gauges, interval, frames, show, wait)
    except KeyboardInterrupt:
        return


def _line(frame: Frame) -> None:
    from kvdemo.judge.frame import document

    typer.echo(jsonlib.dumps(document(frame)))


@contextmanager
def _keys() -> Iterator[tuple[Callable[[float], object], str]]:
    """How to wait for q so many seconds, and what to tell of it; without a keyboard it only waits."""
    if not sys.stdin.isatty():
        yield time.sleep, ""
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield lambda seconds: _quit_within(keyboard, seconds), "; q quits"
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _quit_within(keyboard: int, seconds: float) -> bool:
    """Whether q is pressed in that time, or the keyboard goes away."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([keyboard], [], [], left)[0]:
            pressed = os.read(keyboard, 64)
            if not pressed or b"q" in pressed.lower():
                return True
    return False
