"""Measure how fast KV could be moved here at best: memory or GPU copy, and the KV store's disk past the page cache.

Copies run in the engines' interpreter, with the library (torch) and on the device that they use (``probe``).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvdemo.host import probe

FILE_BYTES = 512 * 1024**2
BLOCK = 4 * 1024**2
READERS = (1, 1, 4, 16)
"""How many blocks are asked for at once, pass by pass: one NVMe disk needs several to show what it can do."""
PASS_SECONDS = 2.0
PATIENCE = 180.0
"""Seconds for the engines' interpreter to import its libraries and answer."""


@dataclass(frozen=True)
class Disk:
    """Bytes a second past the page cache: written, read by one reader, read by several (``readers``: how many).

    ``direct`` is whether the file system can be read past the page cache at all; else its pages were only dropped.
    """

    write: float
    sequential: float
    parallel: float
    readers: int
    direct: bool

    @property
    def best(self) -> float:
        """The fastest read."""
        return max(self.sequential, self.parallel)


@dataclass(frozen=True)
class Answer:
    """What the probe said, and how it ended: exit code, or minus the signal; None if it never did."""

    findings: tuple[dict[str, Any], ...]
    code: int | None
    stderr: str = ""


def run_probe(python: str, environ: Mapping[str, str], what: str, **parameters: Any) -> Answer:
    """Run the probe in this interpreter."""
    words = [python, "-c", Path(probe.__file__).read_text(encoding="utf-8"), what, json.dumps(parameters)]
    try:
        completed = subprocess.run(
            words, capture_output=True, text=True, env=dict(environ), timeout=PATIENCE, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer((), None, str(error))
    return Answer(tuple(_documents(completed.stdout)), completed.returncode, completed.stderr)


def _documents(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict):
                yield document


def rates(python: str, environ: Mapping[str, str], **parameters: Any) -> dict[str, float]:
    """``probe.rates`` of this interpreter as one mapping; what could not be measured is not in it."""
    all_rates: dict[str, float] = {}
    for finding in run_probe(python, environ, "rates", **parameters).findings:
        all_rates |= finding
    return all_rates


def copy(python: str, environ: Mapping[str, str], *, gpu: bool) -> float | None:
    """Bytes a second of a 256 MiB copy, pinned host to device or memory to memory; median of nine. None if it fails."""
    return rates(python, environ, gpu=gpu, shape=None, tokenizer="", document="").get("load")


def disk(directory: Path) -> Disk | None:
    """Write and read 512 MiB in this directory, past the page cache; None if it cannot be done.

    O_DIRECT where the file system has it, else after asking the kernel to drop the file's pages.
    """
    file = directory / f".kvdemo-bandwidth-{os.getpid()}"
    try:
        file.touch()
        direct = _can_be_direct(file)
        count, write = _pass(file, 1, FILE_BYTES // BLOCK, write=True, direct=direct)
        reads = [(_pass(file, readers, count, write=False, direct=direct)[1], readers) for readers in READERS]
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
    alone = max(rate for rate, readers in reads if readers == 1)
    parallel, readers = max((rate, readers) for rate, readers in reads if readers > 1)
    return Disk(write, alone, parallel, readers, direct)


def _can_be_direct(file: Path) -> bool:
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _pass(file: Path, workers: int, blocks: int, *, write: bool, direct: bool) -> tuple[int, float]:
    """Move so many blocks, or as many as two seconds allow: how many, and bytes a second."""
    drop_pages(file)
    numbers = iter(range(blocks))
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_work, file, numbers, began, write, direct) for _ in range(workers)]
    completed = sum(one.result() for one in futures)
    return completed, completed * BLOCK / (time.perf_counter() - began)


def _work(file: Path, numbers: Iterator[int], began: float, write: bool, direct: bool) -> int:
    descriptor = os.open(file, (os.O_WRONLY if write else os.O_RDONLY) | (os.O_DIRECT if direct else 0))
    buffer = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT demands
    if write:
        buffer.write(os.urandom(BLOCK))  # a disk may compress what repeats
    try:
        blocks = 0
        while not (blocks and time.perf_counter() - began > PASS_SECONDS):
            if (number := next(numbers, None)) is None:
                break
            (os.pwritev if write else os.preadv)(descriptor, [buffer], number * BLOCK)
            blocks += 1
        if write:
            os.fsync(descriptor)
        return blocks
    finally:
        os.close(descriptor)
        buffer.close()


def drop_pages(file: Path) -> None:
    """Ask the kernel to forget a file's cached pages, so that the next read comes from the disk."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
