"""What a run yields for whoever watches it: typed events beside its samples, one JSON object each.

The terminal, the page and ``--progress json`` are consumers of the same stream; nobody reads another's text.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kvdemo.judge.sample import Sample


@dataclass(frozen=True)
class Doing:
    """The next request: ``share`` is the part of the run, from 0 to 1, that is behind it.

    ``trial`` counts from 1 up to at most ``trials``; 0 outside of trials. ``engine`` and ``arm`` may be empty.
    """

    text: str
    share: float = 0.0
    trial: int = 0
    trials: int = 0
    engine: str = ""
    arm: str = ""


@dataclass(frozen=True)
class Estimate:
    """How long the run will take, from the rate that this machine has just shown.

    ``requests`` are to come, of which ``computed`` compute a whole prompt in ``seconds_each``; all in ``seconds``.
    ``first``: by the first prompt of an engine, which pays for what comes once, so most runs are quicker.
    """

    seconds: float
    requests: int
    computed: int
    seconds_each: float
    first: bool = False


@dataclass(frozen=True)
class Notice:
    """Something that the reader of the result should know."""

    text: str


@dataclass(frozen=True)
class Saved:
    """The files of a run that has been judged."""

    result: str
    samples: str
    report: str


@dataclass(frozen=True)
class Failure:
    """Why the command ends with something else than 0."""

    message: str
    hint: str
    exit_code: int


Event = Doing | Estimate | Notice | Sample | Saved | Failure


def to_json(event: Event) -> dict[str, Any]:
    """The event as ``--progress json`` prints it; its kind is under ``event``."""
    if isinstance(event, Sample):
        sample_keys = {"engine": event.engine, "arm": event.arm, "trial": event.trial, "writer": event.writer}
        return {
            "event": "sample",
            **sample_keys,
            "ttft": event.ttft,
            "cached_tokens": event.cached_tokens,
            "error": event.error,
        }
    return {"event": type(event).__name__.lower(), **asdict(event)}
