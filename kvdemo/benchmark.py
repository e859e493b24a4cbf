"""``kvdemo bench`` from arguments to table: assemble options, drive the story, save, judge, print."""

from __future__ import annotations

import json
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
    calibrate,
    context,
    environment,
    fleet,
    gpus,
    health,
    measure,
    page,
    report,
    results,
    tables,
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
            _finish(conditions, samples, recorder, as_json=as_json)
            raise
        finally:
            measure.forget(plan, f"kvdemo-{options.run_id}-*")
    document = _finish(conditions, samples, recorder, as_json=as_json)
    _judge(document, arguments.expected_ttft_gain)


def _options(plan: Plan, arguments: Arguments, environ: Mapping[str, str]) -> Options:
    given = plan.bench
    path = arguments.context or (Path(given["context"]) if given.get("context") else None)
    if path is None:
        raise UsageError("no context: the profile names none", "give a text file: --context FILE")
    if arguments.drop_page_cache and arguments.tier != "l2":
        raise UsageError("--drop-page-cache needs --tier l2", "only L2 is read from files")
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
        lengths=_lengths(arguments.lengths),
        costs=arguments.costs,
    )


def _lengths(text: str) -> tuple[int, ...]:
    """``1k,2k,12000`` as tokens (k = 1,000)."""
    found = []
    for word in filter(None, (part.strip().lower() for part in text.split(","))):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", word)
        if not match or float(match[1]) <= 0:
            raise UsageError(f"--lengths: {word!r} is not a number of tokens", "for example --lengths 1k,4k,16k")
        found.append(int(float(match[1]) * (1000 if match[2] else 1)))
    return tuple(found)


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
    saved = recorder.close(document, page.render(document, samples))
    if as_json:
        report.out.print(json.dumps(document, ensure_ascii=False), soft_wrap=True, markup=False)
    else:
        report.out.print(tables.result(document))
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
        "kv_bytes_per_token": _kv_bytes(rig) or reader.kv_bytes_per_token,
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


def _kv_bytes(rig: Rig) -> int | None:
    """KV bytes a token by LMCache's own account, all ranks together."""
    for meta in health.status(rig.meter.cache_url(rig.cast.reader)).get("cache_context_meta", {}).values():
        if size := meta.get("kv_cache_layout", {}).get("cache_size_per_token"):
            return int(size) * int(meta.get("world_size", 1))
    return None


def _bandwidths(rig: Rig, environ: Mapping[str, str]) -> dict[str, float | None]:
    """How fast KV could be moved here at best, in bytes a second."""
    reader, store = rig.cast.reader, rig.plan.service(rig.cast.reader.cache).store
    variables = environment.of_service(environ, reader.env, ())
    return {
        "memory_bandwidth": bandwidth.copy(reader.argv[0], variables, gpu=bool(reader.gpus)),
        "disk_bandwidth": bandwidth.disk_read(Path(store)) if store else None,
    }


def _judge(document: Mapping[str, Any], gain: float | None) -> None:
    if document["answer"]["same"] is False:
        raise ServiceError(
            "reuse gives another answer than computing", "the KV that was loaded is wrong: kvdemo down -v"
        )
    if not document["valid"]:
        why = next((f"{r['engine']} {r['arm']}: {r['verdict']}: {r['why']}" for r in document["rows"] if r["why"]), "")
        raise ServiceError(f"the run proves no reuse. {why}".strip(), "kvdemo logs shows what the services say")
    reached = (document["speedup"] or {}).get("median", 0.0)
    if gain is not None and reached < gain:
        raise GateError(f"reuse is {reached:.2f}x sooner, {gain:g}x was expected")
