"""``kvdemo bench`` from arguments to table: assemble options, drive the story, save, judge, print."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kvdemo.bench import attach, bench, cacheserver, conditions, context, workload
from kvdemo.bench.measure import ReplacedError
from kvdemo.bench.rig import Options, Rig
from kvdemo.errors import GateError, NotReadyError, ServiceError, UsageError
from kvdemo.fleet import fleet
from kvdemo.fleet.watch import State
from kvdemo.host.state import Project
from kvdemo.judge import document, results
from kvdemo.judge.record import Recorder
from kvdemo.judge.result import Result
from kvdemo.judge.sample import Sample
from kvdemo.planning.plan import Plan
from kvdemo.report import page, tables, terminal
from kvdemo.words import findings


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
    writer: str
    reader: str
    baseline: str
    seed: int
    result_dir: Path


def of_project(project: Project, arguments: Arguments, environ: Mapping[str, str], *, as_json: bool) -> None:
    """Measure a fleet that is up, as ``run`` does. Raises NotReadyError too, if it is not."""
    plan = fleet.loaded(project)
    options = _options(plan, arguments, fleet.key_of(plan.engines[0], environ))
    nice = _ready(project, environ)
    run(plan, options, arguments, environ, as_json=as_json, nice=nice, death=partial(fleet.death, project, environ))


def of_targets(targets: attach.Targets, arguments: Arguments, environ: Mapping[str, str], *, as_json: bool) -> None:
    """Measure engines that something else started, as ``run`` does. Raises NotReadyError for one that is not there."""
    _refuse_for_targets(arguments)
    key = attach.key_of(environ)
    plan = attach.plan(targets, key)
    run(plan, _options(plan, arguments, key), arguments, environ, as_json=as_json)


def run(
    plan: Plan,
    options: Options,
    arguments: Arguments,
    environ: Mapping[str, str],
    *,
    as_json: bool,
    nice: Mapping[str, int] | None = None,
    death: Callable[[str], str] = lambda _: "",
) -> None:
    """Measure, save, print.

    ``death`` says why an engine has ended; empty while it lives.

    Raises ServiceError when the measurement proves nothing or the answer is wrong, GateError when the gate is missed.
    """
    samples: list[Sample] = []
    with Rig(plan, options) as rig:
        prepared = rig.prepare()
        found = conditions.of(rig, arguments.context, environ, limit=arguments.limit) | prepared
        found["nice"] = dict(nice or {})
        name = f"{plan.project}-{time.strftime('%Y%m%d-%H%M%S')}-{options.run_id[:4]}"
        recorder = Recorder(arguments.result_dir, name, found)
        try:
            _drive(rig, recorder, samples, death, quiet=as_json)
        except (KeyboardInterrupt, ReplacedError) as error:
            found["interrupted"] = True
            if isinstance(error, ReplacedError):
                found["stopped"] = str(error)
            recorder.amend(found)
            _finish(found, samples, recorder, as_json=as_json)
            raise
        finally:
            cacheserver.forget(plan, f"kvdemo-{options.run_id}-*")
    result = _finish(found, samples, recorder, as_json=as_json)
    _judge(result, arguments.expected_ttft_gain, attached=plan.attached)


def _options(plan: Plan, arguments: Arguments, key: str) -> Options:
    given = plan.bench
    path = arguments.context or (Path(given["context"]) if given.get("context") else None)
    if path is None:
        whose = "" if plan.attached else ": the profile names none"
        raise UsageError(f"no context{whose}", "give a text file: --context FILE")
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
        key=key,
        endpoint=arguments.endpoint,
        tier="" if arguments.tier == "any" else arguments.tier,
        drop_page_cache=arguments.drop_page_cache,
        concurrency=arguments.concurrency,
        matrix=arguments.matrix,
        lengths=workload.lengths(arguments.lengths),
        costs=arguments.costs,
        writer=arguments.writer,
        reader=arguments.reader,
        baseline=arguments.baseline,
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


def _refuse_for_targets(given: Arguments) -> None:
    """What needs a fleet that kvdemo started. Raises UsageError."""
    if given.tier != "any":
        raise UsageError("--tier cannot be combined with --target", "it would empty the L1 of somebody else's server")


def _ready(project: Project, environ: Mapping[str, str]) -> dict[str, int]:
    """The lowered priorities (nice) of a fleet that is ready. Raises NotReadyError if a service is not."""
    events = fleet.status(project, environ)
    lame = [event for event in events if event.state is not State.READY]
    if lame:
        names = ", ".join(f"{e.service} ({e.detail if e.cause else e.state.value})" for e in lame)
        fixes = dict.fromkeys(event.fix for event in lame if event.fix)
        ways = f"kvdemo ps -p {project.name}, then kvdemo up PROFILE"
        raise NotReadyError(f"the fleet is not ready: {names}", "\n".join((*fixes, ways)))
    return {event.service: event.nice for event in events if event.nice}


def _drive(rig: Rig, recorder: Recorder, samples: list[Sample], death: Callable[[str], str], *, quiet: bool) -> None:
    """Run; save every sample before the next is taken. A request that failed with its engine says why that died."""
    with terminal.Progress(quiet=quiet) as show, closing(bench.run(rig)) as stream:
        for event in stream:
            if isinstance(event, Sample):
                why = death(event.engine) if event.error else ""
                samples.append(replace(event, error=f"{event.engine} {why}") if why else event)
                recorder.add(samples[-1])
            else:
                show(event.text, event.done, event.total)


def _finish(conditions: Mapping[str, Any], samples: list[Sample], recorder: Recorder, *, as_json: bool) -> Result:
    """Judge, save and show what there is."""
    result = results.summarize(document.of_mapping(conditions), samples)
    if as_json:
        terminal.out.out(json.dumps(document.to_json(result), ensure_ascii=False), highlight=False)
    else:
        terminal.out.print(tables.result(result))
    saved = recorder.close(result, page.render(result, samples))
    if not as_json:
        terminal.out.print(f"Saved: {saved} (samples: .jsonl, report: .html)", style="dim")
    if conditions.get("interrupted"):
        terminal.err.print(f"interrupted: what was measured is in {recorder.path}")
    return result


def _judge(result: Result, gain: float | None, *, attached: bool) -> None:
    if result.answer.same is False:
        raise ServiceError(
            f"reuse gives another answer than computing: {result.answer.text}",
            f"the KV that was loaded is wrong: {'empty the cache of these engines' if attached else 'kvdemo down -v'}",
        )
    if not result.valid:
        raise ServiceError(
            "\n  ".join(["the run does not prove the reuse", *findings.complaints(result)]),
            "the engines' logs show what they say" if attached else "kvdemo logs shows what the services say",
        )
    reached = result.speedup.median if result.speedup else 0.0
    if gain is not None and reached < gain:
        raise GateError(f"reuse is {reached:.2f}x faster (TTFT), {gain:g}x was expected")
