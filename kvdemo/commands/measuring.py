"""The verbs about measuring, as ``cli`` registers them: what it can do ends up in a saved run, and is read from one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kvdemo.commands import options
from kvdemo.commands.options import JsonOption, ProjectOption
from kvdemo.errors import UsageError


def bench(  # noqa: PLR0913, PLR0917 (one parameter is one option)
    project_name: ProjectOption = "",
    target: options.Target = None,
    context: options.Context = None,
    question: options.Question = "",
    trials: options.Trials = None,
    max_trials: options.MaxTrials = 0,
    max_tokens: options.MaxTokens = None,
    endpoint: options.Endpoint = "chat",
    tier: options.Tier = "any",
    drop_page_cache: options.DropPageCache = False,
    concurrency: options.Concurrency = 1,
    matrix: options.Matrix = False,
    lengths: options.Lengths = "",
    costs: options.Costs = False,
    limit: options.Limit = True,
    expected_ttft_gain: options.ExpectedTtftGain = None,
    peer: options.With = None,
    writer: options.Writer = "",
    reader: options.Reader = "",
    baseline: options.Baseline = "",
    target_model: options.TargetModel = "",
    chunk_size: options.ChunkSize = None,
    lmcache_url: options.LmcacheUrl = "",
    seed: options.Seed = 0,
    result_dir: options.ResultDir = Path("results"),
    json: JsonOption = False,
) -> None:
    """Measure what prefix reuse between engines buys, prove where the tokens came from, compare the answers."""
    from kvdemo.bench import attach
    from kvdemo.commands import benchmark, lookup
    from kvdemo.export import peers
    from kvdemo.fleet import fleet

    values = {key: value for key, value in locals().items() if key in benchmark.Arguments.__annotations__}
    arguments = benchmark.Arguments(**values)
    if not target and (target_model or chunk_size or lmcache_url):
        raise UsageError("--target-model, --chunk-size and --lmcache-url need --target", "the profile says them else")
    if target and project_name:
        raise UsageError("--target cannot be combined with --project-name", "a project knows its own engines")
    targets = attach.Targets(target or (), writer, reader, target_model, chunk_size, lmcache_url)
    if peer:
        key = attach.key_of(os.environ)
        plan = attach.plan(targets, key) if target else fleet.loaded(lookup.project(project_name))
        typer.echo("\n".join(peers.commands(plan, peer)))
    elif target:
        benchmark.of_targets(targets, arguments, os.environ, as_json=json)
    else:
        benchmark.of_project(lookup.project(project_name), arguments, os.environ, as_json=json)


def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT.jsonl", help="The samples of a run, as bench saved them.")],
    html: options.Html = None,
    json: JsonOption = False,
) -> None:
    """Judge a saved run again, without a server: the table, and a report as one HTML file."""
    from kvdemo.report import page, saved, tables, terminal

    held = saved.run(result)
    target = page.save(html or result.with_suffix(".html"), page.render(held.result, held.samples or ()))
    if json:
        typer.echo(held.to_json())
    else:
        terminal.out.print(tables.result(held.result))
    terminal.err.print(f"Report: {target}", markup=False)


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A result of kvdemo bench or of vllm bench serve.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Another.")],
    max_regress: options.MaxRegress = "",
    across: options.Across = None,
    arm: options.Arm = "reuse",
) -> None:
    """Say what changed from one saved result to another, and how sure that is; refuse what is not comparable."""
    from kvdemo.report import compare, saved

    limit = compare.percentage(max_regress) if max_regress else None
    pair = (saved.any_result(old), saved.any_result(new))
    found = compare.compare(*pair, across_versions=across is not None, arm=arm)
    typer.echo(compare.text(found))
    if limit is not None:
        typer.echo(compare.gate(found, limit))
