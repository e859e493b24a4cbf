"""``kvdemo bench`` from arguments to table: assemble options, drive the story, save, judge, print."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kvdemo import __version__, bench, context, fleet, gpus, results, tables
from kvdemo.errors import NotReadyError, ServiceError, UsageError
from kvdemo.plan import Plan
from kvdemo.record import Recorder
from kvdemo.report import err, out
from kvdemo.sample import Sample
from kvdemo.state import Project
from kvdemo.watch import State


@dataclass(frozen=True)
class Arguments:
    """What the command line said; None or empty means: as the profile says."""

    context: Path | None
    question: str
    trials: int | None
    max_tokens: int | None
    seed: int
    result_dir: Path


def run(project: Project, arguments: Arguments, environ: Mapping[str, str], *, as_json: bool) -> None:
    """Measure, save, print. Raises ServiceError (exit 1) when the measurement proves nothing or the answer is wrong."""
    plan = fleet.loaded(project)
    options = _options(plan, arguments, environ)
    _refuse_unless_ready(project, environ)
    samples: list[Sample] = []
    with bench.Bench(plan, options) as measuring:
        conditions = _conditions(plan, options, measuring, arguments) | measuring.prepare()
        name = f"{plan.project}-{time.strftime('%Y%m%d-%H%M%S')}-{options.run_id[:4]}"
        recorder = Recorder(arguments.result_dir, name, conditions)
        try:
            _drive(measuring, recorder, samples, quiet=as_json)
        except KeyboardInterrupt:
            if samples:
                document = results.summarize({**conditions, "interrupted": True}, samples)
                out.print(tables.result(document))
                err.print(f"interrupted: {len(samples)} samples are in {recorder.path}")
            raise
        finally:
            bench.forget(plan, options.run_id)
    document = results.summarize(conditions, samples)
    saved = recorder.close(document)
    if as_json:
        out.print(json.dumps(document, ensure_ascii=False), soft_wrap=True, markup=False)
    else:
        out.print(tables.result(document))
        out.print(f"Saved: {saved} and the samples beside it (.jsonl)", style="dim")
    _judge(document)


def _options(plan: Plan, arguments: Arguments, environ: Mapping[str, str]) -> bench.Options:
    given = plan.bench
    path = arguments.context or (Path(given["context"]) if given.get("context") else None)
    if path is None:
        raise UsageError("no context: the profile names none", "give a text file: --context FILE")
    return bench.Options(
        document=context.read(path),
        question=arguments.question or given["questions"][0],
        system=given["system"],
        trials=arguments.trials or given["trials"],
        max_tokens=arguments.max_tokens or given["max_tokens"],
        seed=arguments.seed,
        run_id=secrets.token_hex(6),
        key=fleet.key_of(plan.engines[0], environ),
    )


def _refuse_unless_ready(project: Project, environ: Mapping[str, str]) -> None:
    lame = [event for event in fleet.status(project, environ) if event.state is not State.READY]
    if lame:
        names = ", ".join(f"{event.service} ({event.state.value})" for event in lame)
        raise NotReadyError(f"the fleet is not ready: {names}", f"kvdemo ps -p {project.name}, then kvdemo up PROFILE")


def _drive(measuring: bench.Bench, recorder: Recorder, samples: list[Sample], *, quiet: bool) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    show = not quiet and err.is_terminal
    progress = Progress(*columns, console=err, transient=True)
    with progress if show else nullcontext(), closing(measuring.run()) as stream:
        task = progress.add_task("", total=None)
        for event in stream:
            if isinstance(event, Sample):
                samples.append(event)
                recorder.add(event)
            elif show:
                progress.update(task, description=event.text, completed=event.done, total=event.total or None)
            elif not quiet:
                err.print(event.text)


def _conditions(plan: Plan, options: bench.Options, measuring: bench.Bench, arguments: Arguments) -> dict[str, Any]:
    cast = measuring.cast
    reader = cast.reader
    names = sorted({gpu.name for gpu in gpus.detect(os.environ) for spec in cast.engines if gpu.index in spec.gpus})
    return {
        "kvdemo_version": __version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "project": plan.project,
        "run_id": options.run_id,
        "backend": "openai-chat",
        "model_id": reader.model,
        "model_digest": plan.models,
        "versions": plan.versions,
        "device": ", ".join(names) or f"{os.cpu_count()} processor cores (absolute times say little)",
        "num_trials": options.trials,
        "max_concurrency": 1,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "question": options.question,
        "context": str(arguments.context or plan.bench.get("context")),
        "chunk_size": reader.chunk_size,
        "kv_bytes_per_token": reader.kv_bytes_per_token,
        "baseline": cast.baseline.name,
        "writer": cast.writer.name,
        "reader": cast.reader.name,
        "flags": {spec.name: list(spec.argv[3:]) for spec in plan.services},
    }


def _judge(document: Mapping[str, Any]) -> None:
    if document["answer"]["same"] is False:
        raise ServiceError(
            "reuse gives another answer than computing", "the KV that was loaded is wrong: kvdemo down -v"
        )
    if not document["valid"]:
        why = next((f"{r['engine']} {r['arm']}: {r['verdict']}: {r['why']}" for r in document["rows"] if r["why"]), "")
        raise ServiceError(f"the run proves no reuse. {why}".strip(), "kvdemo logs shows what the services say")
