"""Token ids of prompts, by the tokenizer of the engines' own interpreter: one process for a whole file."""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from kvdemo.errors import PreflightError, ServiceError
from kvdemo.host import tokenizer


class Tokenizer:
    """Starts that process at the first prompt, and ends it with the block."""

    def __init__(
        self, python: str, environ: Mapping[str, str], name: str, template: str = "", *, trust: bool = False
    ) -> None:
        self.python, self.environ, self.name = python, dict(environ), name
        self.parameters = json.dumps({"name": name, "template": template, "trust": trust})
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: IO[bytes] | None = None

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process:
            if kind:
                self.process.kill()
            self.process.communicate()
        if self.errors:
            self.errors.close()

    def __call__(self, prompts: Sequence[Mapping[str, Any]]) -> list[array[int] | str]:
        """The token ids of prompts (``prompt``, or ``messages`` and ``options``), or why there are none.

        Raises PreflightError if the tokenizer cannot be loaded, ServiceError if its process ends.
        """
        process = self.process or self._start()
        assert process.stdin is not None  # noqa: S101 (it is a pipe)
        # A line is read whole before anything is answered: neither side waits for the other.
        try:
            process.stdin.write(json.dumps(list(prompts)).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise self._ended() from None
        return [self._result() for _ in prompts]

    def _start(self) -> subprocess.Popen[bytes]:
        words = [self.python, "-c", Path(tokenizer.__file__).read_text(encoding="utf-8"), self.parameters]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        try:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                # Its threads are of no use to short prompts, and it forks nothing.
                env=self.environ | {"TOKENIZERS_PARALLELISM": "true", "TRANSFORMERS_VERBOSITY": "error"},
            )
        except OSError as error:
            raise PreflightError(f"{self.python} cannot be run: {error.strerror}", "set runtime.python") from None
        assert self.process.stdout is not None  # noqa: S101 (it is a pipe)
        try:
            answer = json.loads(self.process.stdout.readline() or b"{}")
        except ValueError:
            answer = {}
        if not answer.get("ready"):
            why = answer.get("error") or self._last_words()
            hint = "name a model that is here, or whose tokenizer can be downloaded: --model; see kvdemo doctor"
            raise PreflightError(f"the tokenizer of {self.name} cannot be loaded: {why}", hint)
        return self.process

    def _result(self) -> array[int] | str:
        (count,) = struct.unpack("<i", self._read(4))
        if count == tokenizer.FAILED:
            (length,) = struct.unpack("<i", self._read(4))
            return self._read(length).decode()
        ids = array("I")
        ids.frombytes(self._read(4 * count))
        return ids

    def _read(self, size: int) -> bytes:
        assert self.process is not None  # noqa: S101 (called after the start)
        assert self.process.stdout is not None  # noqa: S101 (it is a pipe)
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise self._ended()
        return data

    def _ended(self) -> ServiceError:
        return ServiceError(f"the tokenizer of {self.name} ended: {self._last_words()}")

    def _last_words(self) -> str:
        assert self.process is not None  # noqa: S101 (called after the start)
        assert self.errors is not None  # noqa: S101 (opened with it)
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit code {self.process.returncode}"
