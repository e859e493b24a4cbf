"""Measure how fast KV could be moved here at best: memory or GPU copy, and the KV store's disk past the page cache.

Copies run in the engines' interpreter, with the library (torch) and on the device that they use.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import statistics
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

COPY = """
import sys, time, torch
gpu = sys.argv[1] == "gpu"
size = 256 * 1024**2
source = torch.ones(size, dtype=torch.uint8, pin_memory=gpu)
target = torch.empty(size, dtype=torch.uint8, device="cuda" if gpu else "cpu")
rates = []
for _ in range(9):
    began = time.perf_counter()
    target.copy_(source)
    if gpu: torch.cuda.synchronize()
    rates.append(size / (time.perf_counter() - began))
print(sorted(rates)[4])
"""
FILE_BYTES = 512 * 1024**2
BLOCK = 4 * 1024**2


def copy(python: str, environ: Mapping[str, str], *, gpu: bool) -> float | None:
    """Bytes a second of a 256 MiB copy, pinned host to device or memory to memory; median of nine. None if it fails."""
    words = [python, "-c", COPY, "gpu" if gpu else "cpu"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=dict(environ), timeout=180, check=True)
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def disk_read(directory: Path) -> float | None:
    """Bytes a second of a sequential read of 512 MiB in this directory past the page cache; None if it cannot be done.

    O_DIRECT where the file system has it, else after asking the kernel to drop the file's pages.
    """
    file = directory / f".kvdemo-bandwidth-{os.getpid()}"
    try:
        with file.open("wb") as stream:
            for _ in range(FILE_BYTES // BLOCK):
                stream.write(os.urandom(1024) * (BLOCK // 1024))
            stream.flush()
            os.fsync(stream.fileno())
        return statistics.median(_read_once(file) for _ in range(3))
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def _read_once(file: Path) -> float:
    drop_pages(file)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        descriptor = os.open(file, os.O_RDONLY)
    buffer = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT demands
    try:
        began = time.perf_counter()
        while os.readv(descriptor, [buffer]) == BLOCK:
            pass
        return FILE_BYTES / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
        buffer.close()


def drop_pages(file: Path) -> None:
    """Ask the kernel to forget a file's cached pages, so that the next read comes from the disk."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
