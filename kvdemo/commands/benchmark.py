"""``kvdemo bench`` from its options to the table: find whom to measure, drive the story, save, judge, print."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvdemo import shipped, units
from kvdemo.bench import attach, bench, cacheserver, conditions, context, modes
from kvdemo.bench.events import Notice, Saved
from kvdemo.bench.session import Session
from kvdemo.commands import participants
from kvdemo.commands.liveness import Liveness
from kvdemo.commands.pipeline import Pipeline
from kvdemo.commands.progress import Follower
from kvdemo.config import benchmark
from kvdemo.config.benchmark import Bench
from kvdemo.errors import GateError, KvdemoError, ServiceError, UsageError
from kvdemo.fleet import fleet
from kvdemo.host.state import Project
from kvdemo.judge import document, effect, results
from kvdemo.judge.effect import Effect
from kvdemo.judge.record import Recorder
from kvdemo.judge.result import Result
from kvdemo.judge.sample import Sample
from kvdemo.planning.plan import Plan
from kvdemo.report import page, tables, terminal
from kvdemo.words import findings, table


@dataclass(frozen=True)
class Output:
    """Where the result goes, and who follows the run."""

    directory: Path
    as_json: bool
    follow: Follower
    verbose: bool = False
    ci: Pipeline | None = None


@dataclass(frozen=True)
class Task:
    """What is measured: ``document`` is the text of the file called ``name``."""

    plan: Plan
    options: Bench
    name: str
    document: str
    key: str = ""
    nice: Mapping[str, int] = field(default_factory=dict)
    liveness: Liveness | None = None


def of_project(project: Project, values: Mapping[str, Any], environ: Mapping[str, str], output: Output) -> None:
    """Measure a fleet that is up, as ``run`` does; of its services those that are up, if they suffice.

    Raises NotReadyError if they do not.
    """
    plan = fleet.load_plan(project)
    options = benchmark.of_saved_plan(plan.bench).with_values(values)
    modes.select(options)
    name, text = _document(options)
    events = fleet.status(project, environ)
    part, sentence = participants.usable(plan, events, lambda plan: participants.of_bench(plan, options))
    if sentence:
        output.follow(Notice(sentence))
    nice = {event.service: event.nice for event in events if event.nice}
    key, liveness = fleet.key_of(plan.engines[0], environ), Liveness.of(project, part, environ)
    run(Task(part, options, name, text, key, nice, liveness), environ, output)


def of_targets(targets: attach.Targets, values: Mapping[str, Any], environ: Mapping[str, str], output: Output) -> None:
    """Measure engines that something else started, as ``run`` does. Raises NotReadyError for one that is not there."""
    options = Bench().with_values(values)
    if options.tier != "any":
        raise UsageError("--tier cannot be combined with --target", "it would empty the L1 of somebody else's server")
    key = attach.key_of(environ)
    plan = attach.plan(targets, key)
    modes.select(options)
    name, text = _document(options)
    run(Task(plan, options, name, text, key), environ, output)


def run(task: Task, environ: Mapping[str, str], output: Output) -> None:
    """Measure, save, print.

    Raises ServiceError when the measurement proves nothing, the answer is wrong, or an engine is not the process that
    it was; GateError when the gate is missed.
    """
    if output.ci:
        output.ci.gain = task.options.expected_ttft_gain
    run_id = secrets.token_hex(6)
    samples: list[Sample] = []
    restart = task.liveness.restart if task.liveness else None
    with Session(task.plan, task.options, task.document, run_id=run_id, key=task.key, restart=restart) as session:
        session.connect()
        if task.options.context is None:
            output.follow(Notice(bench.shorten(session)))
        prompt = session.prepare()
        bench.check(session)
        facts = conditions.of(session, task.name, environ) | prompt
        facts["nice"] = dict(task.nice)
        name = f"{task.plan.project}-{time.strftime('%Y%m%d-%H%M%S')}-{run_id[:4]}"
        recorder = Recorder(output.directory, name, facts)
        try:
            _drive(session, recorder, samples, task, output)
            if task.liveness:
                task.liveness.check()
        except (KeyboardInterrupt, KvdemoError) as error:
            facts["interrupted"] = True
            if isinstance(error, KvdemoError):
                facts["stopped"] = str(error)
            recorder.amend(facts)
            _finish(facts, samples, recorder, output)
            if names := " ".join(task.liveness.restarting if task.liveness else ()):
                output.follow(Notice(f"their restart was cut short: kvdemo start {names} -p {task.plan.project}"))
            raise
        finally:
            cacheserver.forget(task.plan, f"kvdemo-{run_id}-*", session.meter.began)
    if sentence := short_answers(samples):
        output.follow(Notice(sentence))
    result = _finish(facts, samples, recorder, output)
    _judge(result, task, _deaths(task, samples))


def _document(options: Bench) -> tuple[str, str]:
    """Name and text of the document, the shipped handbook if nobody chose one. Raises UsageError if it is unfit."""
    if options.context is None:
        try:
            return shipped.HANDBOOK, context.read(shipped.directory() / shipped.HANDBOOK)
        except FileNotFoundError as error:
            raise UsageError(f"no context, and {error}", "give a text file: --context FILE") from None
    return context.name(options.context), context.read(options.context)


def _drive(session: Session, recorder: Recorder, samples: list[Sample], task: Task, output: Output) -> None:
    """Run; save every sample before the next is taken. A request that failed with its engine says why that died."""
    with closing(bench.run(session)) as stream:
        for each in stream:
            event = each
            if isinstance(event, Sample):
                why = task.liveness.death(event.engine) if task.liveness and event.error else ""
                event = replace(event, error=f"{event.error}; {event.engine} {why}") if why else event
                samples.append(event)
                recorder.add(event)
            output.follow(event)


def _finish(conditions: Mapping[str, Any], samples: list[Sample], recorder: Recorder, output: Output) -> Result:
    """Judge, save and show what there is."""
    result = results.summarize(document.of_mapping(conditions), samples)
    if output.as_json:
        # Not by the terminal's console, which replaces characters that a terminal would act upon: JSON is for programs.
        sys.stdout.write(json.dumps(document.to_json(result), ensure_ascii=False) + "\n")
    else:
        terminal.out.print(tables.result(result, samples, verbose=output.verbose))
    files = recorder.close(result, page.render(result, samples))
    event = Saved(str(files), str(recorder.path), str(files.with_suffix(".html")))
    output.follow(event)
    if output.ci:
        output.ci.note_result(result, event)
    if not output.as_json:
        terminal.out.print(f"Saved: {files} (samples: .jsonl, report: .html)", style="dim")
    if conditions.get("interrupted"):
        output.follow(Notice(f"interrupted: what was measured is in {recorder.path}"))
    return result


def short_answers(samples: Sequence[Sample]) -> str:
    """Which answers are shorter than an engine that ignores the end of sequence makes them; empty if none is."""
    short = [
        sample
        for sample in samples
        if not sample.error and (sample.completion_tokens or 0) < (sample.requested_tokens or 0)
    ]
    if not short:
        return ""
    first = short[0]
    tokens = f"{first.completion_tokens or 0:,} of {first.requested_tokens or 0:,} tokens"
    what = f"{units.count(len(short), 'answer')} ended early although ignore_eos was asked for"
    return f"{what}: {first.engine} sent {tokens} ({first.finish_reason})."


def _deaths(task: Task, samples: Sequence[Sample]) -> list[str]:
    """Why engines have ended of which a request failed, where no sample says it: some take a while to end."""
    errors = {sample.engine: sample.error for sample in samples if sample.error}
    deaths = {engine: task.liveness.death(engine) for engine in errors} if task.liveness else {}
    return [f"{engine} {why}" for engine, why in deaths.items() if why and why not in errors[engine]]


def _judge(result: Result, task: Task, deaths: Sequence[str]) -> None:
    attached, gain = task.plan.attached, task.options.expected_ttft_gain
    if result.answer.same is False:
        raise ServiceError(
            f"reuse gives another answer than computing: {result.answer.text}",
            f"the KV that was loaded is wrong: {'empty the cache of these engines' if attached else 'kvdemo down -v'}",
        )
    if not result.valid:
        raise ServiceError(
            "\n  ".join(["the run does not prove the reuse", *deaths, *findings.complaints(result)]),
            "the engines' logs show what they say" if attached else "kvdemo logs shows what the services say",
        )
    if gain is not None:
        gate(result, gain)


def gate(result: Result, gain: float) -> None:
    """Raises GateError for a speed-up that is smaller than expected, or that could be noise; of several caches any."""
    ratios = {"": result.speedup}
    if result.contest:
        ratios = {f"{side.contender.cache}: ": side.speedup for side in result.contest.sides}
    for whose, speedup in ratios.items():
        if speedup is None:
            raise GateError(f"{whose}the run has no speed-up of one reuse, {gain:g}x was expected")
        factor = units.ratio(speedup.median)
        if speedup.median < gain:
            raise GateError(f"{whose}reuse is {factor} faster (TTFT), {gain:g}x was expected")
        if gain > 1 and effect.of(speedup, result.noise_floor) is not Effect.FASTER:
            interval = f"{whose}reuse is within noise ({factor}, {table.spread(speedup, 'x')})"
            raise GateError(f"{interval}, {gain:g}x was expected", "measure more --trials")
