"""Who follows a run: the terminal's line of progress, or one JSON object a line for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from kvdemo.bench.events import Doing, Estimate, Event, Failure, Notice, to_json
from kvdemo.errors import KvdemoError
from kvdemo.report import terminal
from kvdemo.words import forecast


class Follower(Protocol):
    """Is shown every event of a run, under ``with``."""

    def __enter__(self) -> Follower: ...

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, event: Event) -> None:
        """Show it."""


class Lines:
    """Each event as one JSON object on a line of stderr."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Write it at once."""
        sys.stderr.write(json.dumps(to_json(event), ensure_ascii=False) + "\n")
        sys.stderr.flush()


class Words:
    """One moving line on a terminal, a line for each step elsewhere; with ``quiet`` only what must be read."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.show = quiet, terminal.Progress(quiet=quiet)

    def __enter__(self) -> Words:
        self.show.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.show.__exit__()

    def __call__(self, event: Event) -> None:
        """Say what happens now."""
        if isinstance(event, Doing):
            self.show(event.text, event.share)
        elif isinstance(event, Notice):
            terminal.err.print(event.text, markup=False)
        elif isinstance(event, Estimate) and not self.quiet:
            terminal.err.print(forecast.sentence(event), markup=False)


@contextmanager
def failures(follow: Follower) -> Iterator[None]:
    """Let whoever follows know why the command fails."""
    try:
        yield
    except KvdemoError as error:
        follow(Failure(str(error), error.hint, int(error.exit_code)))
        raise


def follower(kind: str, *, quiet: bool) -> Lines | Words:
    """The one that ``--progress`` names."""
    return Lines() if kind == "json" else Words(quiet=quiet)
