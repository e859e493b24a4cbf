"""``kvdemo bench`` from arguments to table: assemble options, drive the story, save, judge, print."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvdemo import (
    __version__,
    bandwidth,
    bench,
    cacheserver,
    calibrate,
    context,
    environment,
    fleet,
    gpus,
    page,
    report,
    results,
    tables,
    workload,
)
from kvdemo.errors import GateError, NotReadyError, ServiceError, UsageError
from kvdemo.plan import Plan
from kvdemo.record import Recorder
from kvdemo.rig import Options, Rig
from kvdemo.sample import Sample
from kvdemo.state import Project
from kvdemo.watch import State


@dataclass(frozen=True)
class Arguments:
    """What the command line said; None or empty means: as the profile says."""

    context: Path | None
    question: str
    trials: int | None
    max_trials: int
    max_tokens: int | None
    endpoint: Literal["chat", "completions"]
    tier: Literal["l1", "l2", "any"]
    drop_page_cache: bool
    concurrency: int
    matrix: bool
    lengths: str
    costs: bool
    limit: bool
    expected_ttft_gain: float | None
    seed: int
    result_dir: Path


def run(project: Project, arguments: Arguments, environ: Mapping[str, str], *, as_json: bool) -> None:
    """Measure, save, print.

    Raises ServiceError when the measurement proves nothing or the answer is wrong, GateError when the gate is missed.
    """
    plan = fleet.loaded(project)
    options = _options(plan, arguments, environ)
    _refuse_unless_ready(project, environ)
    samples: list[Sample] = []
    with Rig(plan, options) as rig:
        prepared = rig.prepare()
        conditions = _conditions(rig, arguments, environ) | prepared
        if arguments.limit:
            conditions |= _calibration(options)
        name = f"{plan.project}-{time.strftime('%Y%m%d-%H%M%S')}-{options.run_id[:4]}"
        recorder = Recorder(arguments.result_dir, name, conditions)
        try:
            _drive(rig, recorder, samples, quiet=as_json)
        except KeyboardInterrupt:
            conditions["interrupted"] = True
            recorder.amend(conditions)
            _finish(conditions, samples, recorder, as_json=as_json)
            raise
        finally:
            cacheserver.forget(plan, f"kvdemo-{options.run_id}-*")
    document = _finish(conditions, samples, recorder, as_json=as_json)
    _judge(document, arguments.expected_ttft_gain)


def _options(plan: Plan, arguments: Arguments, environ: Mapping[str, str]) -> Options:
    given = plan.bench
    path = arguments.context or (Path(given["context"]) if given.get("context") else None)
    if path is None:
        raise UsageError("no context: the profile names none", "give a text file: --context FILE")
    _refuse_contradictions(arguments)
    return Options(
        document=context.read(path),
        question=arguments.question or given["questions"][0],
        system=given["system"],
        trials=arguments.trials or given["trials"],
        max_trials=arguments.max_trials,
        max_tokens=arguments.max_tokens or given["max_tokens"],
        seed=arguments.seed,
        run_id=secrets.token_hex(6),
        key=fleet.key_of(plan.engines[0], environ),
        endpoint=arguments.endpoint,
        tier="" if arguments.tier == "any" else arguments.tier,
        drop_page_cache=arguments.drop_page_cache,
        concurrency=arguments.concurrency,
        matrix=arguments.matrix,
        lengths=workload.lengths(arguments.lengths),
        costs=arguments.costs,
    )


def _refuse_contradictions(given: Arguments) -> None:
    """Options that mean nothing together must not be left out silently. Raises UsageError."""
    gain = given.expected_ttft_gain
    other = given.lengths or given.concurrency > 1 or given.tier != "any" or given.max_trials or gain is not None
    if given.drop_page_cache and given.tier != "l2":
        raise UsageError("--drop-page-cache needs --tier l2", "only L2 is read from files")
    if given.matrix and other:
        names = "--lengths, --concurrency, --tier, --max-trials or --expected-ttft-gain"
        raise UsageError(f"--matrix cannot be combined with {names}")
    if gain is not None and not (math.isfinite(gain) and gain > 0):
        raise UsageError(f"--expected-ttft-gain: {gain:g} is not a factor", "for example --expected-ttft-gain 2")
    if given.max_trials < 0:
        raise UsageError(f"--max-trials: {given.max_trials} is not a number of trials", "for example --max-trials 30")
    if given.question != given.question.encode(errors="replace").decode():
        raise UsageError("--question: is not UTF-8", "check the terminal's encoding")


def _refuse_unless_ready(project: Project, environ: Mapping[str, str]) -> None:
    lame = [event for event in fleet.status(project, environ) if event.state is not State.READY]
    if lame:
        names = ", ".join(f"{event.service} ({event.state.value})" for event in lame)
        raise NotReadyError(f"the fleet is not ready: {names}", f"kvdemo ps -p {project.name}, then kvdemo up PROFILE")


def _drive(rig: Rig, recorder: Recorder, samples: list[Sample], *, quiet: bool) -> None:
    """Run; save every sample before the next is taken."""
    with report.Progress(quiet=quiet) as show, closing(bench.run(rig)) as stream:
        for event in stream:
            if isinstance(event, Sample):
                samples.append(event)
                recorder.add(event)
            else:
                show(event.text, event.done, event.total)


def _finish(
    conditions: Mapping[str, Any], samples: list[Sample], recorder: Recorder, *, as_json: bool
) -> dict[str, Any]:
    """Judge, save and show what there is."""
    document = results.summarize(conditions, samples)
    if as_json:
        report.out.out(json.dumps(document, ensure_ascii=False), highlight=False)
    else:
        report.out.print(tables.result(document))
    saved = recorder.close(document, page.render(document, samples))
    if not as_json:
        report.out.print(f"Saved: {saved} (samples: .jsonl, report: .html)", style="dim")
    if conditions.get("interrupted"):
        report.err.print(f"interrupted: what was measured is in {recorder.path}")
    return document


def _conditions(rig: Rig, arguments: Arguments, environ: Mapping[str, str]) -> dict[str, Any]:
    """Everything that must be equal for two runs to be compared, and what the limit needs."""
    plan, cast, options = rig.plan, rig.cast, rig.options
    reader = cast.reader
    names = sorted({gpu.name for gpu in gpus.detect(environ) for spec in cast.engines if gpu.index in spec.gpus})
    return {
        "kvdemo_version": __version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "project": plan.project,
        "run_id": options.run_id,
        "backend": "openai-chat" if options.endpoint == "chat" else "openai",
        "model_id": reader.model,
        "model_digest": next(iter(plan.models.values()), ""),
        "versions": next(iter(plan.versions.values()), {}),
        "device": ", ".join(names) or f"{os.cpu_count()} processor cores",
        "num_trials": options.trials,
        "max_concurrency": options.concurrency,
        "max_tokens": options.max_tokens,
        "tier": options.tier or "any",
        "drop_page_cache": options.drop_page_cache,
        "seed": options.seed,
        "question": options.question,
        "context": (arguments.context or Path(plan.bench["context"])).name,
        "chunk_size": reader.chunk_size,
        "kv_bytes_per_token": cacheserver.kv_bytes_per_token(rig.meter.cache_url(reader)) or reader.kv_bytes_per_token,
        "kv_bytes_per_token_by_config": reader.kv_bytes_per_token,
        "baseline": cast.baseline.name,
        "writer": cast.writer.name,
        "reader": cast.reader.name,
        "flags": {spec.name: [_without_folders(word) for word in spec.argv[3:]] for spec in plan.services},
        **(_bandwidths(rig, environ) if arguments.limit else {}),
    }


def _without_folders(word: str) -> str:
    """Reports are shown to others: the folders of this machine are nobody's business."""
    return re.sub(r"(?<![\w.:/])/(?:[^/\s\"']+/)+", ".../", word)


def _calibration(options: Options) -> dict[str, Any]:
    """What this client adds to each TTFT, at the size of this run's prompt."""
    found = calibrate.calibrate(len(options.document.encode()))
    milliseconds = {"p50_ms": found.p50, "p90_ms": found.p90, "max_ms": found.max}
    rounded = {name: round(value * 1000, 3) for name, value in milliseconds.items()}
    return {"client_overhead": {"n": found.n, "prompt_bytes": found.prompt_bytes, **rounded}}


def _bandwidths(rig: Rig, environ: Mapping[str, str]) -> dict[str, float | None]:
    """How fast KV could be moved here at best, in bytes a second."""
    reader, store = rig.cast.reader, rig.plan.service(rig.cast.reader.cache).store
    variables = environment.of_service(environ, reader.env, ())
    disk = bandwidth.disk(Path(store)) if store else None
    return {
        "memory_bandwidth": bandwidth.copy(reader.argv[0], variables, gpu=bool(reader.gpus)),
        "disk_bandwidth": disk.best if disk else None,
    }


def _judge(document: Mapping[str, Any], gain: float | None) -> None:
    if document["answer"]["same"] is False:
        raise ServiceError(
            f"reuse gives another answer than computing: {document['answer']['text']}",
            "the KV that was loaded is wrong: kvdemo down -v",
        )
    if not document["valid"]:
        raise ServiceError(
            "\n  ".join(["the run does not prove the reuse", *tables.complaints(document)]),
            "kvdemo logs shows what the services say",
        )
    reached = (document["speedup"] or {}).get("median", 0.0)
    if gain is not None and reached < gain:
        raise GateError(f"reuse is {reached:.2f}x sooner, {gain:g}x was expected")
