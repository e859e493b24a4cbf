"""A traffic run on disk: one line of conditions, one for each phase as it ended; judged again from them at any time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from kvdemo.errors import UsageError
from kvdemo.judge import document, traffic
from kvdemo.judge.record import Recorder
from kvdemo.judge.sample import Count, Positive, Seconds
from kvdemo.judge.traffic import Phase, TrafficResult

MODE = "load"
"""What the conditions of such a run say under ``mode``."""


Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
Few = Annotated[int, Field(ge=0, le=10**6)]


@dataclass(frozen=True)
class _Conditions:
    """What the conditions must hold for the run to be told; other keys are kept as they are."""

    model_id: str
    slo_ttft: Annotated[float, Field(allow_inf_nan=False, ge=1e-6, le=1e6)]
    slo_share: Annotated[float, Field(allow_inf_nan=False, gt=0, le=1)]
    sides: Mapping[str, list[str]]
    documents: Few
    document_tokens: Count
    reuse: Share
    popularity: str
    slo_chosen: str
    device: str = "unknown"
    run_id: str = ""
    turns: Few = 1
    seed: int = 0
    gpus: Mapping[str, list[int | str]] | None = None
    notes: list[str] = field(default_factory=list)
    single_ttft: Mapping[str, Mapping[str, Seconds | None]] | None = None
    own_tokens: Mapping[str, Count | None] | None = None
    l1_bytes: Mapping[str, Count] | None = None
    kv_bytes_per_token: Positive | None = None


_CONDITIONS, _PHASE = TypeAdapter(_Conditions), TypeAdapter(Phase)


class PhaseRecorder(Recorder):
    """Appends phases to a run's file. Raises as Recorder does."""

    def phase(self, phase: Phase) -> None:
        """Save one phase now."""
        self._line(phase.to_json())


def is_traffic(path: Path) -> bool:
    """Whether the file's first line says that it is such a run; False for whatever cannot be read.

    Raises UsageError for a pipe: after this look nobody else could read it, and a named one may have no writer.
    """
    if path.is_fifo() or path.is_char_device():
        raise UsageError(f"{path}: no file; a result is read more than once", "save it to a file first")
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(lines.readline(1_000_000))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.get("mode") == MODE


@dataclass(frozen=True)
class TrafficRun:
    """A saved run, judged again."""

    path: Path
    result: TrafficResult
    phases: tuple[Phase, ...]


def read(path: Path) -> TrafficResult:
    """The result of ``run``."""
    return run(path).result


def run(path: Path) -> TrafficRun:
    """A run judged again, without a last line that was cut off. Raises UsageError with the line for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    conditions: dict[str, Any] = {}
    phases: list[Phase] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            kind = record.pop("kind")
            if kind == "run" and number > 1 and record.get("run_id") != conditions.get("run_id"):
                raise ValueError("another run begins here; one file holds one run")
            if kind == "run":
                _CONDITIONS.validate_json(line, strict=True)
                conditions = record
            elif kind == "phase":
                phases.append(_PHASE.validate_json(line, strict=True))
            else:
                raise ValueError(f"a {kind!r} is no part of it")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == len(lines) and number > 1:
                break
            why = document.fault(error) if isinstance(error, ValidationError) else error
            raise UsageError(f"{path}:{number}: not a line of a kvdemo load run ({why})") from None
    if not phases:
        raise UsageError(f"{path}: holds no phase: the run ended before its first one did")
    try:
        return TrafficRun(path, traffic.judge(conditions, phases), tuple(phases))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(f"{path}: its phases and conditions do not fit together ({error!r})") from None
