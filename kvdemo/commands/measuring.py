"""The verbs about measuring, as ``cli`` registers them: what it can do ends up in a saved run, and is read from one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kvdemo.commands import options
from kvdemo.commands.options import JsonOption, VerboseOption
from kvdemo.commands.parameters import Command, DeferredCommand, refuse_beside
from kvdemo.errors import UsageError


class Bench(DeferredCommand):
    """``kvdemo bench``."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        if ctx.params["peer"]:
            allowed = ("peer", "project_name", "target", "target_model")
            refuse_beside(ctx, "--with", allowed, "it measures nothing, and prints commands for a shell")
        return super().invoke(ctx)

    @staticmethod
    def action(command: Command, values: Mapping[str, Any]) -> None:
        """Measure the project or the targets, or print how another benchmark would."""
        from kvdemo.bench import attach
        from kvdemo.commands import benchmark, pipeline, progress, scope
        from kvdemo.export import peers
        from kvdemo.fleet import fleet

        if not command.target and (command.target_model or command.chunk_size or command.cache_url):
            raise UsageError("--target-model, --chunk-size and --cache-url need --target", "the profile says them else")
        if command.target and command.project_name:
            raise UsageError("--target cannot be combined with --project-name", "a project knows its own engines")
        if command.json and command.format == "github":
            raise UsageError("--json cannot be combined with --format github", "the output `result` names that file")
        targets = attach.Targets(
            command.target or (),
            values.get("writer", ""),
            values.get("reader", ""),
            command.target_model,
            command.chunk_size,
            command.cache_url,
        )
        if command.peer:
            key = attach.key_of(os.environ)
            plan = attach.plan(targets, key) if command.target else fleet.load_plan(scope.project(command.project_name))
            typer.echo("\n".join(peers.commands(plan, command.peer)))
            return
        ci = pipeline.Pipeline(os.environ, command.format == "github", command.junit)
        with (
            ci.around(),
            progress.follower(command.progress, quiet=command.json) as follow,
            progress.failures(follow),
        ):
            output = benchmark.Output(command.result_dir, command.json, follow, verbose=command.verbose, ci=ci)
            if command.target:
                benchmark.of_targets(targets, values, os.environ, output)
            else:
                benchmark.of_project(scope.project(command.project_name), values, os.environ, output)


def bench() -> None:
    """Measure what prefix reuse between engines buys, prove where the tokens came from, compare the answers.

    Example: kvdemo bench --context file.txt --trials 6
    """


def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT.jsonl", help="The samples of a run, as bench saved them.")],
    html: options.Html = None,
    verbose: VerboseOption = False,
    json: JsonOption = False,
) -> None:
    """Judge a saved run again, without a server: the table, and a report as one HTML file.

    Example: kvdemo report results/RUN.jsonl --html RUN.html
    """
    from kvdemo.judge import trafficfile
    from kvdemo.report import page, savedrun, tables, terminal

    if trafficfile.is_traffic(result):
        from kvdemo.commands import load

        load.report(result, html, as_json=json)
        return
    run = savedrun.run(result)
    target = page.save(html or result.with_suffix(".html"), page.render(run.result, run.samples or ()))
    if json:
        typer.echo(run.to_json())
    else:
        terminal.out.print(tables.result(run.result, run.samples or (), verbose=verbose))
    terminal.err.print(f"Report: {target}", markup=False)


def compare(
    old: Annotated[
        Path, typer.Argument(metavar="OLD", help="A result of kvdemo bench, kvdemo load or vllm bench serve.")
    ],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Another.")],
    max_regress: options.MaxRegress = "",
    across: options.Across = None,
    arm: options.Arm = "",
) -> None:
    """Say what changed from one saved result to another, and how sure that is; refuse what is not comparable.

    Example: kvdemo compare results/before.jsonl results/after.jsonl --max-regress 10%
    """
    from kvdemo.judge import trafficfile
    from kvdemo.report import compare, comparetraffic, savedrun
    from kvdemo.words import comparison as words

    limit = compare.percentage(max_regress) if max_regress else None
    across_versions = across is not None
    pair = [savedrun.any_result(path) for path in (old, new) if not trafficfile.is_traffic(path)]
    if len(pair) == 1:
        raise UsageError("one is a run of kvdemo load, the other is not", "capacity and latency cannot be compared")
    if arm and not any(isinstance(run, savedrun.ForeignRun) for run in pair):
        raise UsageError(
            "--arm: neither file is of vllm bench serve", "two runs of kvdemo are compared in all they have"
        )
    if pair:
        comparison = compare.compare(*pair, across_versions=across_versions, arm=arm or "reuse")
    else:
        runs = (trafficfile.run(old), trafficfile.run(new))
        comparison = comparetraffic.compare(*runs, across_versions=across_versions)
    typer.echo(words.text(comparison))
    if limit is not None:
        typer.echo(compare.gate(comparison, limit))
