"""``kvdemo load``: how many requests a second each side serves within a limit on TTFT, measured or simulated."""

from __future__ import annotations

import json as jsonlib
import math
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
import typer.core

from kvdemo import units
from kvdemo.commands.options import JsonOption, ProgressOption, ProjectOption, ResultDir
from kvdemo.commands.parameters import refuse_beside, taking
from kvdemo.errors import GateError, KvdemoError, ServiceError, UsageError

if TYPE_CHECKING:
    from kvdemo.commands import progress
    from kvdemo.host.state import Project
    from kvdemo.judge.traffic import Gain, Phase, TrafficResult
    from kvdemo.judge.trafficfile import PhaseRecorder
    from kvdemo.load.experiment import Options, Traffic, WarmUp
    from kvdemo.planning.plan import Plan


@dataclass(frozen=True)
class Load:
    """The options of ``kvdemo load``, each declared once."""

    project_name: ProjectOption = ""
    context: Annotated[Path | None, typer.Option(metavar="FILE", help="Documents' text; else the profile's.")] = None
    slo_ttft: Annotated[str, typer.Option(metavar="TIME", help="1s, 850ms; else twice the cold TTFT here.")] = ""
    slo_share: Annotated[str, typer.Option(metavar="SHARE", help="Of all requests sent.")] = "90%"
    rate: Annotated[str, typer.Option(metavar="R1,R2,...|search", help="Requests a second.")] = "search"
    documents: Annotated[int, typer.Option(min=1, max=10**6, help="Documents that have been read before.")] = 10
    document_tokens: Annotated[int, typer.Option(min=0, help="Tokens of each; else as the profile's document.")] = 0
    reuse: Annotated[str, typer.Option(metavar="SHARE", help="Of requests on documents that were read before.")] = (
        "100%"
    )
    popularity: Annotated[Literal["uniform", "zipf"], typer.Option(help="Which document is asked about.")] = "uniform"
    turns: Annotated[int, typer.Option(min=1, max=10**6, help="Questions in a conversation about a document.")] = 1
    duration: Annotated[
        str, typer.Option(metavar="TIME", help="Of each phase; else 30 requests' time, 15 s or more.")
    ] = ""
    engines: Annotated[
        int, typer.Option(min=0, max=10**5, help="Engines of each side; else as many as all sides have.")
    ] = 0
    repetitions: Annotated[int, typer.Option(min=1, help="Of everything, with other arrivals.")] = 1
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of every answer.")] = 24
    expected_capacity_gain: Annotated[float | None, typer.Option(metavar="X", help="Exit 3 below this ratio.")] = None
    what_if: Annotated[Path | None, typer.Option(metavar="RUN", help="Simulate, with a saved run's times.")] = None
    l1: Annotated[str, typer.Option(metavar="SIZE", help="With --what-if: another size of L1.")] = ""
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0
    result_dir: ResultDir = Path("results")
    progress: ProgressOption = "text"
    json: JsonOption = False

    def traffic(self) -> Options:
        """What is asked of the engines. Raises UsageError for an option that cannot be read."""
        from kvdemo.load import experiment

        gain = self.expected_capacity_gain
        if gain is not None and not (math.isfinite(gain) and gain > 0):
            raise UsageError(f"--expected-capacity-gain: {gain:g} is not a factor", "for example 2")
        return experiment.Options(
            slo_ttft=seconds(self.slo_ttft, "--slo-ttft"),
            slo_share=share(self.slo_share, "--slo-share"),
            rates=rates(self.rate),
            documents=self.documents,
            document_tokens=self.document_tokens,
            reuse=share(self.reuse, "--reuse"),
            popularity=self.popularity,
            turns=self.turns,
            duration=seconds(self.duration, "--duration"),
            engines=self.engines,
            repetitions=self.repetitions,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )


def run(options: Load) -> None:
    """Measure, or simulate with --what-if."""
    traffic = options.traffic()
    if options.what_if:
        from kvdemo.commands import whatif

        whatif.simulate(options.what_if, traffic, options.l1, as_json=options.json)
        return
    if options.l1:
        raise UsageError("--l1 needs --what-if", "a running fleet has the size that its profile says")
    from kvdemo.commands import progress, scope

    with progress.follower(options.progress, quiet=options.json) as follow, progress.failures(follow):
        measure(scope.project(options.project_name), traffic, options, follow)


SIMULATED = (
    *("what_if", "l1", "slo_ttft", "slo_share", "documents", "reuse", "popularity", "turns", "engines", "seed"),
    "json",
)
"""Options that mean something to a simulation."""


class Verb(typer.core.TyperCommand):
    """``kvdemo load``."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        if ctx.params["what_if"]:
            refuse_beside(ctx, "--what-if", SIMULATED, "it plays a queue with the run's own times")
        return super().invoke(ctx)


load = taking(
    Load,
    run,
    """Find the highest rate of requests that each side of the fleet serves within a limit on TTFT.

    Sides are the plain engines and those of each cache, equally many, one side at a time, under the same arrivals.
    Example: kvdemo load --slo-ttft 1s --rate 1,2,4,8 --documents 10
    """,
)


def seconds(text: str, option: str) -> float:
    """``1s``, ``850ms``, ``1.5`` as seconds, 0 for nothing. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|min)?", text.strip())
    if not text:
        return 0.0
    value = float(match[1]) * {"ms": 0.001, "m": 60, "min": 60}.get(match[2] or "", 1) if match else 0.0
    if not 1e-6 <= value <= units.LONGEST:
        raise UsageError(
            f"{option}: {text!r} is no time that can be kept", f"for example {option} 1s or {option} 850ms"
        )
    return value


def share(text: str, option: str) -> float:
    """``90%`` or ``0.9``. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value <= 1 or (option == "--slo-share" and value == 0):
        raise UsageError(f"{option}: {text!r} is no share", f"for example {option} 90% or {option} 0.9")
    return value


def rates(text: str) -> tuple[float, ...]:
    """``1,2,4`` in ascending order; nothing for ``search``. Raises UsageError."""
    if text == "search":
        return ()
    values = set()
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            value = 0.0
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"--rate: {word.strip()!r} is no rate", "for example --rate 1,2,4,8 or --rate search")
        values.add(value)
    return tuple(sorted(values))


def measure(project: Project, settings: Options, options: Load, follow: progress.Follower) -> None:
    """Measure a fleet that is up, save, print.

    Raises NotReadyError, UsageError, ServiceError when nothing is proved, GateError when the gate is missed. After the
    warm-up what was measured is saved, whatever ends it.
    """
    from kvdemo.bench.events import Notice
    from kvdemo.commands import participants
    from kvdemo.fleet import fleet
    from kvdemo.judge import record
    from kvdemo.judge.trafficfile import MODE
    from kvdemo.load import experiment, runner

    settings = _with_document(whole := fleet.load_plan(project), settings, options.context)
    plan, sentence = participants.usable(
        whole, fleet.status(project, os.environ), lambda plan: participants.of_load(plan, settings.engines)
    )
    if sentence:
        follow(Notice(sentence))
    record.check(options.result_dir)
    run_id = secrets.token_hex(6)
    key = fleet.key_of(plan.engines[0], os.environ)
    traffic = experiment.Traffic(plan, replace(settings, run_id=run_id, key=key))
    saved = PartialRun(
        options.result_dir, f"{plan.project}-load-{time.strftime('%Y%m%d-%H%M%S')}-{run_id[:4]}", phases=[]
    )
    traffic.finishing = partial(_show_finishing, follow)
    stopped: KeyboardInterrupt | KvdemoError | None = None
    died: list[str] = []
    try:
        _drive(traffic, saved, {"mode": MODE, **_conditions(plan, project.name)}, follow)
    except (KeyboardInterrupt, KvdemoError) as error:
        if saved.recorder is None:
            raise
        stopped = error
    finally:
        died = [ended for engines in traffic.sides.values() if (ended := runner.settle(engines, key))]
        traffic.forget()
    result = _finish(saved, follow, as_json=options.json)
    if stopped is not None and saved.recorder:
        follow(Notice(f"interrupted: what was measured is in {saved.recorder.path}"))
        raise stopped
    if died:
        raise ServiceError("; ".join(died), "kvdemo ps and kvdemo logs say why")
    _gate(result, options.expected_capacity_gain)


def _show_finishing(follow: progress.Follower, number: int, interrupted: bool) -> None:
    """Say what is waited for, if anything is."""
    from kvdemo.bench.events import Doing, Notice

    if not number:
        return
    text = f"{units.count(number, 'request')} at engines with a cache: finished first"
    if interrupted:
        follow(Notice(f"interrupted: {text} (Ctrl-C again hangs up)"))
    else:
        follow(Doing(f"no more are sent; {text}"))


@dataclass
class PartialRun:
    """A run while it is measured: where it is saved, and what there is of it."""

    directory: Path
    name: str
    phases: list[Phase]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    recorder: PhaseRecorder | None = None


def _drive(traffic: Traffic, saved: PartialRun, machine: Mapping[str, Any], show: progress.Follower) -> None:
    """Warm up, then save every phase before the next begins."""
    from kvdemo.judge.traffic import Phase
    from kvdemo.judge.trafficfile import PhaseRecorder

    warm_up = _warm_up(traffic, show)
    saved.conditions = {**machine, **traffic.conditions(warm_up)}
    saved.recorder = PhaseRecorder(saved.directory, saved.name, saved.conditions)
    with closing(traffic.run(warm_up)) as events:
        for event in events:
            if isinstance(event, Phase):
                saved.phases.append(event)
                saved.recorder.phase(event)
            else:
                show(event)


def _finish(saved: PartialRun, follow: progress.Follower, *, as_json: bool) -> TrafficResult:
    """Judge, show and save what there is."""
    from kvdemo.bench.events import Saved
    from kvdemo.judge import traffic
    from kvdemo.report import terminal
    from kvdemo.report import traffic as media

    result = traffic.judge(saved.conditions, saved.phases)
    if as_json:
        terminal.out.out(jsonlib.dumps(result.to_json(), ensure_ascii=False), highlight=False)
    else:
        terminal.out.print(media.terminal(result))
    assert saved.recorder is not None  # noqa: S101 (conditions are there only with it)
    path = saved.recorder.finish(result.to_json(), media.page(result))
    follow(Saved(str(path), str(saved.recorder.path), str(path.with_suffix(".html"))))
    if not as_json:
        terminal.out.print(f"Saved: {path} (phases: .jsonl, report: .html)", style="dim")
    return result


def report(path: Path, html: Path | None, *, as_json: bool) -> None:
    """Judge a saved run of traffic again. Raises UsageError for a damaged one."""
    from kvdemo.judge import trafficfile
    from kvdemo.report import page, terminal
    from kvdemo.report import traffic as media

    result = trafficfile.read(path)
    target = page.save(html or path.with_suffix(".html"), media.page(result))
    if as_json:
        typer.echo(jsonlib.dumps(result.to_json(), ensure_ascii=False))
    else:
        terminal.out.print(media.terminal(result))
    terminal.err.print(f"Report: {target}", markup=False)


def _warm_up(traffic: Traffic, show: progress.Follower) -> WarmUp:
    """Warm up, showing how far it is."""
    stream = traffic.prepare()
    while True:
        try:
            doing = next(stream)
        except StopIteration as end:
            return cast("WarmUp", end.value)
        show(doing)


def _with_document(plan: Plan, settings: Options, path: Path | None) -> Options:
    """The options with the document's text and the profile's questions. Raises UsageError without a document."""
    from kvdemo.bench import context

    document_path = path or (Path(plan.bench["context"]) if plan.bench.get("context") else None)
    if document_path is None:
        raise UsageError("no context: the profile names none", "give a text file: --context FILE")
    questions = tuple(plan.bench.get("questions") or settings.questions)
    system = str(plan.bench.get("system", ""))
    return replace(settings, document=context.read(document_path), system=system, questions=questions)


def _conditions(plan: Plan, project: str) -> dict[str, Any]:
    """The machine and the software, as bench saves them."""
    from kvdemo import __version__
    from kvdemo.host import gpus

    names = sorted({gpu.name for gpu in gpus.detect(os.environ) for spec in plan.engines if gpu.index in spec.gpus})
    return {
        "kvdemo_version": __version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "project": project,
        "device": ", ".join(names) or f"{os.cpu_count()} processor cores",
        "versions": next(iter(plan.versions.values()), {}),
    }


def _gate(result: TrafficResult, gain: float | None) -> None:
    """Raises ServiceError for a run without a proof, GateError for a gain below the one expected; of any cache."""
    from kvdemo.judge.traffic import PLAIN
    from kvdemo.words import traffic as words

    if dead := [one for one in result.capacities if one.died]:
        raise ServiceError("; ".join(f"{one.side}: {one.died}" for one in dead), "kvdemo ps and kvdemo logs say why")
    if gain is None:
        return
    gains = {one.side: one for one in result.gains}
    for side in [one.side for one in result.capacities if one.side != PLAIN]:
        if side not in gains:
            why = words.why_none(result)
            raise ServiceError(f"no ratio of capacities of cache {side}, the gate cannot be judged: {why}")
        _gate_one(gains[side], gain)


def _gate_one(one: Gain, expected: float) -> None:
    ratio = f"{one.ratio.median:.2f}x the rate"
    if one.at_least and one.ratio.median < expected:
        text = f"with cache {one.side} at least {ratio}: whether it is {expected:g}x was not found out"
        raise ServiceError(text, "try higher rates, or lower ones if the side without a cache kept none")
    if one.ratio.median < expected:
        raise GateError(f"with cache {one.side} {ratio}, {expected:g}x was expected")
