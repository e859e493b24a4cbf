#!/usr/bin/env python3
"""Measure what `kvdemo estimate` costs: seconds of processor and wall, and peak memory, for a large generated trace.

    scripts/measure_estimate.py [--requests N] [--engines N]

The trace is of Mooncake's form: conversations that begin with one of 200 instructions (the first ones more often) and
grow by 1 to 16 blocks of 512 tokens with every turn, 20,000 of them at a time. Exit code 3 if a million requests would
take more than a minute of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

BLOCK = 512
INSTRUCTIONS = 200
CONVERSATIONS = 20_000
LONGEST = 120
"""Blocks of a conversation, which then ends."""
GOAL = 60.0
"""Seconds of processor for a million requests."""


def trace(requests: int) -> Iterator[dict[str, Any]]:
    """The lines."""
    chance, fresh = random.Random(1), count()  # noqa: S311 (a trace, no secret)
    starts = [[next(fresh) for _ in range(chance.randint(2, 12))] for _ in range(INSTRUCTIONS)]
    talks: list[list[int]] = []
    now = 0.0
    for _ in range(requests):
        now += chance.expovariate(30) * 1000
        if talks and chance.random() < 0.55:
            at = chance.randrange(len(talks))
        else:
            at = len(talks) if len(talks) < CONVERSATIONS else chance.randrange(CONVERSATIONS)
            talks[at : at + 1] = [list(starts[int(INSTRUCTIONS * chance.random() ** 3)])]
        talk = talks[at]
        talk.extend(next(fresh) for _ in range(chance.randint(1, 16)))
        length = (len(talk) - 1) * BLOCK + chance.randint(1, BLOCK)
        answer = int(chance.expovariate(1 / 350)) + 1
        yield {"timestamp": int(now), "input_length": length, "output_length": answer, "hash_ids": talk}
        if len(talk) > LONGEST:
            talks[at] = list(starts[0])


def main() -> int:
    """Generate, run, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--engines", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "trace.jsonl")
        with file.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in trace(given.requests))
        caches = ("--engine-cache", "400000tokens", "--shared-cache", "3000000tokens")
        words = [
            sys.executable,
            "-m",
            "kvdemo",
            "estimate",
            str(file),
            "--engines",
            str(given.engines),
            *caches,
            "--json",
        ]
        began = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=directory, env=_environ())
        wall = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found, processor = json.loads(done.stdout), used.ru_utime + used.ru_stime
    print(
        f"{found['requests']:,} requests, {found['prompt_tokens']:,} prompt tokens: {processor:.1f} s of processor, "
        f"{wall:.1f} s in all, at most {used.ru_maxrss / 1024:.0f} MiB"
    )
    return 0 if processor <= GOAL * given.requests / 1_000_000 else 3


def _environ() -> dict[str, str]:
    """Ours, with the kvdemo beside this script, and no profile."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} | {"KVDEMO_PROFILE": ""}


if __name__ == "__main__":
    sys.exit(main())
