"""Runs made by hand: samples that say what a test wants them to say, and the files that ``kvdemo bench`` would save."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings

import forking
from kvdemo.judge import document, results
from kvdemo.judge.record import Recorder
from kvdemo.judge.result import Result
from kvdemo.judge.sample import Arm, Sample, Sources
from kvdemo.report import page

CALM = settings(deadline=None, max_examples=50)
"""Examples on a machine that others use too: a slow one is no failure."""

HIT = 896
PROMPT = 1000
CONDITIONS: dict[str, Any] = {
    "kvdemo_version": "0.1.0",
    "date": "2026-11-24T02:40:32+0000",
    "project": "demo",
    "run_id": "abcdef",
    "backend": "openai-chat",
    "model_id": "tiny",
    "model_digest": "2cc9",
    "versions": {"vllm": "0.32.0", "lmcache": "0.5.6"},
    "device": "2 processor cores",
    "num_trials": 3,
    "max_concurrency": 1,
    "max_tokens": 4,
    "question": "Who steered?",
    "chunk_size": 128,
    "kv_bytes_per_token": 8192,
    "baseline": "plain",
    "writer": "a",
    "reader": "b",
    "flags": {"a": ["--model", "tiny"]},
    "prompt_tokens": PROMPT,
    "prompt_sha256": "f3ad",
}
ENGINES = {"cold": "plain", "store": "a", "reuse": "b", "again": "b", "control": "plain"}
TTFT = {"cold": 10.0, "store": 11.0, "reuse": 0.5, "again": 0.25, "control": 0.2}


def result(conditions: Mapping[str, Any] = CONDITIONS, made: Iterable[Sample] | None = None) -> Result:
    """What samples mean under these conditions."""
    return results.summarize(document.of_mapping(conditions), samples() if made is None else [*made])


def summarize(conditions: Mapping[str, Any], made: Iterable[Sample]) -> dict[str, Any]:
    """The same as JSON."""
    return document.to_json(result(conditions, made))


def sample(arm: Arm = "reuse", trial: int = 1, **changes: Any) -> Sample:
    """A sample that proves what its arm claims, changed as wanted."""
    hit = 0 if arm in ("cold", "store") else HIT
    shared = hit if arm == "reuse" else 0
    made = Sample(
        trial=trial,
        arm=arm,
        engine=ENGINES[arm],
        started=1.0,
        expected=hit,
        prompt_tokens=PROMPT,
        completion_tokens=4,
        cached_tokens=hit,
        sources=Sources(PROMPT - hit, hit - shared, shared),
        ttft=TTFT[arm] * (1 + trial / 100),
        queue=TTFT[arm] / 10,
        server_ttft=TTFT[arm] / 2,
        itl=(0.01, 0.02, 0.01),
        token_ids=(1, 2, 3, 4),
        logprobs=(-0.5, -0.25, -1.0, -2.0),
        text="Ann, she was nineteen",
    )
    return replace(made, **changes)


def samples(trials: int = 3, **factors: float) -> list[Sample]:
    """A whole run: every arm of every trial, then the control; ``reuse=2.0`` makes that arm twice as slow."""
    arms: tuple[Arm, ...] = ("cold", "store", "reuse", "again")
    made = [sample(arm, trial) for trial in range(1, trials + 1) for arm in arms]
    slowed = [replace(one, ttft=(one.ttft or 0) * factors.get(one.arm, 1.0)) for one in made]
    return [*slowed, sample("control", 0)]


def save(directory: Path, name: str, made: Iterable[Sample], **conditions: Any) -> Path:
    """The JSONL and JSON of a run, written by what writes real ones; the path of the JSONL."""
    given: Mapping[str, Any] = {**CONDITIONS, **conditions}
    recorder = Recorder(directory, name, given)
    kept = list(made)
    for one in kept:
        recorder.add(one)
    meaning = result(given, kept)
    recorder.close(meaning, page.render(meaning, kept))
    return recorder.path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return forking.run(arguments, Path.cwd(), {**os.environ, "PYTHONPATH": str(forking.ROOT)}, 110)


def edit(path: Path, line: int, **changes: Any) -> Path:
    """Change keys of one line (from 1) of a JSONL file, as somebody's editor might."""
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | changes)
    path.write_text("\n".join(lines) + "\n")
    return path
