"""A run on disk: ``NAME.jsonl`` with conditions and every sample as it came, ``NAME.json`` with what they mean.

The samples are written as they arrive: an interrupted run keeps what it has. Any run can be judged again from them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from kvdemo.errors import ServiceError, UsageError
from kvdemo.judge import document
from kvdemo.judge.result import Conditions, Result
from kvdemo.judge.sample import Sample


def check(directory: Path) -> None:
    """Make the directory if it is not there. Raises UsageError if nothing can be saved in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=directory).close()
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror}", "choose another with --result-dir") from None


class Recorder:
    """Appends to a run's JSONL file. Raises UsageError if the directory cannot be written to."""

    def __init__(self, directory: Path, name: str, conditions: Mapping[str, Any]) -> None:
        self.path = directory / f"{name}.jsonl"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.stream = self.path.open("x", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path}: {error.strerror}", "choose another with --result-dir"
            ) from None
        self._line({"kind": "run", **conditions})

    def add(self, sample: Sample) -> None:
        """Save one sample now."""
        self._line({"kind": "sample", **json.loads(sample.to_json())})

    def amend(self, conditions: Mapping[str, Any]) -> None:
        """Replace the conditions: whoever reads the file takes the last ones."""
        self._line({"kind": "run", **conditions})

    def close(self, result: Result, page: str) -> Path:
        """Finish: write the judged ``result`` (.json) and the report ``page`` (.html) beside the samples.

        Returns the path of the .json. Raises ServiceError if the disk does not take them; the samples are safe then.
        """
        return self.finish(document.to_json(result), page)

    def finish(self, result: Mapping[str, Any], page: str) -> Path:
        """The same, of a result that is JSON already."""
        self.stream.close()
        texts = {".json": json.dumps(result, indent=2, ensure_ascii=False) + "\n", ".html": page}
        for suffix, text in texts.items():
            target = self.path.with_suffix(suffix)
            temporary = target.with_suffix(f"{suffix}.tmp")
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(target)
            except OSError as error:
                temporary.unlink(missing_ok=True)
                hint = f"the samples are in {self.path}: kvdemo report {self.path}"
                raise ServiceError(f"cannot write {target}: {error.strerror}", hint) from None
        return self.path.with_suffix(".json")

    def _line(self, line: Mapping[str, Any]) -> None:
        try:
            self.stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.stream.flush()
            os.fsync(self.stream.fileno())
        except OSError as error:
            raise ServiceError(
                f"cannot write {self.path}: {error.strerror}", "what was measured until now is in that file"
            ) from None


@dataclass(frozen=True)
class Run:
    """What the file of a run holds: the last conditions, and the samples."""

    conditions: Conditions
    samples: tuple[Sample, ...]


def read(path: Path) -> Run:
    """A JSONL file, without a last line that was cut off.

    Raises UsageError, with the line, for anything else: damage, foreign lines, a second run in the same file.
    """
    try:
        # Not splitlines(): an answer may hold U+2028, which is no end of line in JSON.
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    conditions: Conditions | None = None
    samples: list[Sample] = []
    for number, line in enumerate(lines, 1):
        try:
            one = document.line(line)
        except ValueError as error:
            if number == len(lines) > 1 and _cut_off(line):
                break  # the writer was killed, or its disk full, in the middle of this line
            raise UsageError(f"{path}:{number}: not a line of a kvdemo run: {error}") from None
        if isinstance(one, Sample):
            samples.append(one)
        elif conditions and one.run_id != conditions.run_id:
            raise UsageError(
                f"{path}:{number}: another run begins here ({one.run_id} after {conditions.run_id})",
                "one file holds one run: cut it in two before this line",
            )
        else:
            conditions = one
    if conditions is None:
        raise UsageError(
            f"{path}: not a kvdemo run: it has no conditions", "give the .jsonl file that `kvdemo bench` saved"
        )
    return Run(conditions, tuple(samples))


def _cut_off(line: str) -> bool:
    """Whether this is no whole JSON value."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False
