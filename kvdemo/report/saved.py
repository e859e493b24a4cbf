"""Results read again from files: a run's samples (judged anew), its summary, or what ``vllm bench serve`` saved.

Files may be old, cut off or edited by hand: whatever is wrong is a UsageError with file and line, never a traceback.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from kvdemo.bench import workload
from kvdemo.errors import UsageError
from kvdemo.judge import record, results
from kvdemo.judge.sample import Sample

NEEDED: Mapping[str, type] = {
    "model_id": str,
    "prompt_tokens": int,
    "num_trials": int,
    "device": str,
    "baseline": str,
    "writer": str,
    "reader": str,
}
"""Conditions without which no run can be judged or shown."""


@dataclass(frozen=True)
class Result:
    """What a file holds. ``samples`` is None where only a summary is left; ``foreign``: of ``vllm bench serve``."""

    path: Path
    document: dict[str, Any]
    samples: tuple[Sample, ...] | None = None
    foreign: bool = False

    def to_json(self) -> str:
        """The result document as one line, as ``bench --json`` prints it."""
        return json.dumps(self.document, ensure_ascii=False)


def run(path: Path) -> Result:
    """A run judged again from its samples. Raises UsageError for anything but the JSONL of a run."""
    if path.suffix == ".json":
        beside = path.with_suffix(".jsonl")
        hint = f"its samples are beside it: {beside}" if beside.exists() else "give the .jsonl file of the run"
        raise UsageError(f"{path}: a summary: a run is judged from its samples", hint)
    try:
        conditions, samples = record.read(path)
        json.dumps([conditions, *(sample.to_json() for sample in samples)], ensure_ascii=False).encode()
    except RecursionError:
        raise UsageError(f"{path}: not a kvdemo run: nested too deeply") from None
    except UnicodeEncodeError:
        raise UsageError(f"{path}: not a kvdemo run: it holds half a character (a lone surrogate)") from None
    lines = _kinds(path)
    for name, kind in NEEDED.items():
        if not isinstance(conditions.get(name), kind):
            raise UsageError(f"{path}:{lines['run'][-1]}: not a kvdemo run: {name} is missing or no {kind.__name__}")
    for sample, number in zip(samples, lines["sample"], strict=True):
        if fault := _fault(sample):
            raise UsageError(f"{path}:{number}: not a sample of a kvdemo run: {fault}")
    if not samples:
        raise UsageError(f"{path}: holds no samples: the run ended before its first request")
    return Result(path, results.summarize(conditions, samples), tuple(samples))


def any_result(path: Path) -> Result:
    """A run (its samples if they are there), a summary, or a result of ``vllm bench serve``. Raises UsageError."""
    if path.suffix == ".jsonl":
        return run(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(document, dict) and isinstance(document.get("rows"), list):
        beside = path.with_suffix(".jsonl")
        if beside.exists() and (found := run(beside)).document.get("run_id") == document.get("run_id"):
            return found
        return Result(path, document)
    if isinstance(document, dict) and isinstance(document.get("median_ttft_ms"), int | float):
        return Result(path, document, foreign=True)
    raise UsageError(
        f"{path}: neither a result of `kvdemo bench` nor one of `vllm bench serve --save-result`",
        "give a .jsonl or .json file that one of them saved",
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """The mapping, or an empty one instead of anything else."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list; nothing of anything else."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def number(value: Any) -> float | None:
    """A finite number, or None instead of anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _kinds(path: Path) -> dict[str, list[int]]:
    """The line numbers of conditions and of samples in a file that ``record.read`` has accepted."""
    lines: dict[str, list[int]] = {"run": [], "sample": []}
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        with suppress(ValueError):  # the last line may have been cut off
            lines["run" if json.loads(line)["kind"] == "run" else "sample"].append(number)
    return lines


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _duration(value: Any) -> bool:
    return _number(value) and math.isfinite(value) and value >= 0


def _counts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_whole(count) for count in value.values())


CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "int": _whole,
    "int | None": lambda value: value is None or _whole(value),
    "float": _duration,
    "float | None": lambda value: value is None or _duration(value),
    "str": lambda value: isinstance(value, str),
    "tuple[int, ...]": lambda value: all(map(_whole, value)),
    "tuple[float, ...]": lambda value: all(map(_number, value)),
    "Sources | None": lambda value: value is None or _counts(vars(value)),
    "Mapping[str, int] | None": lambda value: value is None or _counts(value),
}
"""By the annotation of a Sample's field: is this value one? (Log-probabilities may be NaN: that is evidence.)"""


def _fault(sample: Sample) -> str:
    """What is wrong with a sample read from a file; empty if nothing is."""
    for field in fields(Sample):
        value = getattr(sample, field.name)
        if not CHECKS.get(str(field.type), lambda _: True)(value):
            return f"{field.name} is {str(value)[:60]!r}"
    if sample.arm not in get_args(workload.Arm):
        return f"no arm is called {sample.arm[:60]!r}"
    return ""
