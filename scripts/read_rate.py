#!/usr/bin/env python3
"""How fast files as L2 keeps them can be read here: from the page cache, and past it, by so many threads.

    scripts/read_rate.py DIRECTORY [--files N] [--mib M]      default: 123 files of 32 MiB, a document of 31,500 tokens

The files hold random bytes (of Mistral-7B's shape: chunks of 256 tokens, 128 KiB a token), are read in blocks of 4 MiB,
and deleted. One JSON object of GB/s: a list holds repeated readings. This is the floor of a reuse from L2 whose pages
are in memory, which `kvdemo bench --tier l2` cannot know: it measures the disk itself.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

BLOCK = 4 * 1024**2
THREADS = (1, 8, 16, 32)
DIRECT = 48
"""Files that are read past the page cache: enough for a rate, few enough for a slow disk."""


def read(flags: int, file: Path) -> int:
    """Read a file in blocks into one page-aligned buffer; its bytes."""
    descriptor, done = os.open(file, os.O_RDONLY | flags), 0
    with mmap.mmap(-1, BLOCK) as buffer:
        while count := os.preadv(descriptor, [buffer], done):
            done += count
    os.close(descriptor)
    return done


def rate(files: list[Path], threads: int, flags: int = 0) -> float:
    """GB/s of reading these files with so many threads."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(partial(read, flags), files))
    return round(done / (time.perf_counter() - began) / 1e9, 2)


def write(files: list[Path], size: int) -> float:
    """GB/s of writing them, until the disk has them."""
    blob, began = os.urandom(size), time.perf_counter()
    for file in files:
        file.write_bytes(blob)
    os.sync()
    return round(len(files) * size / (time.perf_counter() - began) / 1e9, 2)


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("--files", type=int, default=123, metavar="N")
    parser.add_argument("--mib", type=int, default=32, metavar="M", help="of each file")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    files = [given.directory / f".read-rate-{number}" for number in range(given.files)]
    try:
        found: dict[str, object] = {"write": write(files, given.mib * 1024**2)}
        rate(files, THREADS[-1])
        found["page_cache"] = {threads: [rate(files, threads) for _ in range(3)] for threads in THREADS}
        some = files[:DIRECT]
        found["direct"] = {threads: [rate(some, threads, os.O_DIRECT) for _ in range(2)] for threads in THREADS}
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
