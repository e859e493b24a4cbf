"""A traffic run on disk: one line of conditions, one for each phase as it ended; judged again from them at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvdemo.errors import UsageError
from kvdemo.judge import traffic
from kvdemo.judge.record import Recorder
from kvdemo.judge.traffic import Phase, TrafficResult

MODE = "load"
"""What the conditions of such a run say under ``mode``."""


class PhaseRecorder(Recorder):
    """Appends phases to a run's file. Raises as Recorder does."""

    def phase(self, phase: Phase) -> None:
        """Save one phase now."""
        self._line(phase.to_json())


def is_traffic(path: Path) -> bool:
    """Whether the file's first line says that it is such a run; False for whatever cannot be read."""
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(lines.readline(1_000_000))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.get("mode") == MODE


def read(path: Path) -> TrafficResult:
    """A run judged again, without a last line that was cut off. Raises UsageError with the line for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    conditions: dict[str, Any] = {}
    phases: list[Phase] = []
    for number, line in enumerate(lines, 1):
        try:
            document = json.loads(line)
            kind = document.pop("kind")
            if kind == "run" and number > 1 and document.get("run_id") != conditions.get("run_id"):
                raise ValueError("another run begins here; one file holds one run")
            if kind == "run":
                conditions = document
            elif kind == "phase":
                phases.append(Phase.from_json(document))
            else:
                raise ValueError(f"a {kind!r} is no part of it")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == len(lines) and number > 1:
                break
            raise UsageError(f"{path}:{number}: not a line of a kvdemo load run ({error})") from None
    try:
        return traffic.judge(conditions, phases)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(f"{path}: its phases and conditions do not fit together ({error!r})") from None
