"""Results read again from files: a run's samples (judged anew), its summary, or what ``vllm bench serve`` saved.

Files may be old, cut off or edited by hand: whatever is wrong is a UsageError with file and line, never a traceback.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvdemo.errors import UsageError
from kvdemo.judge import document, record, results, trafficfile
from kvdemo.judge.result import Result
from kvdemo.judge.sample import Sample


@dataclass(frozen=True)
class SavedRun:
    """A run of kvdemo. ``samples`` is None where only a summary is left."""

    path: Path
    result: Result
    samples: tuple[Sample, ...] | None = None

    def to_json(self) -> str:
        """The result document as one line, as ``bench --json`` prints it."""
        return json.dumps(document.to_json(self.result), ensure_ascii=False)


@dataclass(frozen=True)
class ForeignRun:
    """What ``vllm bench serve`` saved."""

    path: Path
    document: Mapping[str, Any]


def run(path: Path) -> SavedRun:
    """A run judged again from its samples. Raises UsageError for anything but the JSONL of a run."""
    if path.suffix == ".json":
        samples_path = path.with_suffix(".jsonl")
        hint = (
            f"its samples are beside it: {samples_path}" if samples_path.exists() else "give the .jsonl file of the run"
        )
        raise UsageError(f"{path}: a summary: a run is judged from its samples", hint)
    saved = record.read(path)
    if not saved.samples:
        raise UsageError(f"{path}: holds no samples: the run ended before its first request")
    return SavedRun(path, results.summarize(saved.conditions, saved.samples), saved.samples)


def any_result(path: Path) -> SavedRun | ForeignRun:
    """A run (its samples if they are there), a summary, or a result of ``vllm bench serve``. Raises UsageError."""
    if path.suffix == ".jsonl":
        return run(path)
    try:
        text = path.read_text(encoding="utf-8")
        saved = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(saved, dict) and isinstance(saved.get("rows"), list):
        return _summary(path, text)
    if isinstance(saved, dict) and number(saved.get("median_ttft_ms")) is not None:
        return ForeignRun(path, saved)
    if isinstance(saved, dict) and saved.get("mode") == trafficfile.MODE:
        raise UsageError(
            f"{path}: a summary of `kvdemo load`: runs are compared by their phases", "give the .jsonl file"
        )
    raise UsageError(
        f"{path}: neither a result of `kvdemo bench` nor one of `vllm bench serve --save-result`",
        "give a .jsonl or .json file that one of them saved",
    )


def _summary(path: Path, text: str) -> SavedRun:
    """The run whose summary this is, from its samples if they are beside it."""
    try:
        result = document.from_json_text(text)
    except ValueError as error:
        raise UsageError(f"{path}: not a result of kvdemo bench: {error}") from None
    samples_path = path.with_suffix(".jsonl")
    if samples_path.exists() and (whole := run(samples_path)).result.conditions.run_id == result.conditions.run_id:
        return whole
    return SavedRun(path, result)


def number(value: Any) -> float | None:
    """A finite number, or None instead of anything else."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if finite else None
