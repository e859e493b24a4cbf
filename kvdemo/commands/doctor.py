"""``kvdemo doctor``: look at everything that a fleet depends on, show each check as it is done, then a prediction.

Nothing of it starts a service. Programs run in the engines' interpreter for seconds, and a file of 512 MiB is written
to the disk of each KV store and deleted again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvdemo import backends
from kvdemo.backends.store import is_server
from kvdemo.commands import checks
from kvdemo.commands.checks import Check, Level
from kvdemo.errors import PreflightError, UsageError
from kvdemo.host import bandwidth, gpus, hub, imports, machine, runtime, survey
from kvdemo.host.state import Project, root
from kvdemo.planning import compatibility, engines, environment, peak, predict
from kvdemo.planning import plan as planning
from kvdemo.planning.facts import Facts, Interpreter, Model
from kvdemo.planning.plan import Plan, ServiceSpec
from kvdemo.planning.shape import Shape

if TYPE_CHECKING:
    from kvdemo.config.profile import Profile


import sys
import textwrap
from contextlib import closing

from rich.text import Text

from kvdemo.commands import scope
from kvdemo.report import terminal


def of_machine(python: str, environ: Mapping[str, str], store: Path) -> Generator[Check]:
    """Check this machine and this interpreter, without a profile; ``store`` is where KV files would be."""
    devices = survey.name_holders(gpus.detect(environ), root(environ))
    yield from _machine(devices)
    variables = environment.of_service(environ, engines.QUIET, ())
    folder = root(environ) / imports.FOLDER
    loads = yield from _interpreter(
        runtime.interpreter(python), variables, folder, gpu=bool(devices), kinds=(backends.DEFAULT.kind,)
    )
    if loads:
        yield from _copies(bandwidth.rates(python, variables, gpu=bool(devices), shape=None, tokenizer="", document=""))
    yield _disk(store)[0]


def of_profile(profile: Profile, project: Project, environ: Mapping[str, str], results: Path) -> Generator[Check]:
    """Check everything that this profile depends on here, and predict what reuse could buy."""
    if profile.on.ray:
        raise UsageError(
            "doctor looks at this machine, the profile is for a cluster", "kvdemo plan PROFILE asks its nodes"
        )
    facts = survey.survey(profile, project, environ)
    plan = planning.make(profile, facts)
    yield from _machine(facts.gpus)
    yield from checks.plan(plan)
    yield from _models(profile, facts, environ)
    working = yield from _interpreters(plan, facts, environ)
    rates: dict[str, float] = {}
    reader = next((spec for spec in reversed(plan.engines) if spec.cache), None)
    model = _model(profile, facts, reader)
    if reader and reader.python in working:
        gpu = next((gpu for gpu in facts.gpus if gpu.index in reader.gpus), None)
        batch = peak.batched_tokens(profile.engines[reader.name], gpu, reader.context) if gpu else 0
        rates = _rates(plan, reader, model, environ, batch)
        yield from _copies(rates)
    bandwidths = {"memory": rates["load"] * max(1, len(reader.gpus))} if reader and "load" in rates else {}
    for name, cache in profile.caches.items():
        if cache.l2 and not is_server(cache.l2):
            check, result = _disk(Path(cache.l2), name)
            yield check
            if result and reader and reader.cache == name:
                bandwidths["disk"] = result.best
    yield from _prediction(plan, facts, reader, model, rates, bandwidths, results)


def _machine(devices: tuple[Any, ...]) -> Iterator[Check]:
    yield checks.driver(gpus.driver())
    yield from checks.gpus(devices)
    shm = machine.shared_memory()
    yield from checks.limits(machine.open_files(), machine.locked_memory(), shm, gpu=bool(devices))


def _interpreters(plan: Plan, facts: Facts, environ: Mapping[str, str]) -> Generator[Check, None, set[str]]:
    """Each interpreter once, with the environment and on the device of the first engine that it runs; which work."""
    indices = {gpu.index for gpu in facts.gpus}
    folder = root(environ) / imports.FOLDER
    working = set()
    for python, interpreter in facts.interpreters.items():
        users = [spec for spec in plan.services if spec.python == python]
        spec = next((spec for spec in users if spec.kind == "engine"), users[0])
        kinds = imports.kinds(users)
        variables = environment.of_service(environ, spec.env, ())
        if not {*spec.gpus} <= indices:
            yield checks.versions(interpreter)
        elif (yield from _interpreter(interpreter, variables, folder, gpu=bool(spec.gpus), kinds=kinds)):
            working.add(python)
    return working


def _interpreter(
    result: Interpreter, environ: Mapping[str, str], folder: Path, *, gpu: bool, kinds: tuple[str, ...]
) -> Generator[Check, None, bool]:
    """Versions, and whether the compiled parts load together; whether all is well."""
    yield checks.versions(result)
    if result.problem:
        return False
    outcomes, _ = imports.Question(result.python, result.stamp, environ, gpu, kinds, folder).ask()
    results = list(checks.imports(outcomes))
    yield from results
    return all(check.level is Level.OK for check in results)


def _models(profile: Profile, facts: Facts, environ: Mapping[str, str]) -> Iterator[Check]:
    """Whether the Hugging Face models of the profile are here, or can be had."""
    for model in facts.models.values():
        if model.path and not model.name.startswith("/"):
            yield checks.ok("model", f"{model.name} is here complete: engines start without a network")
    for repository in compatibility.absent(profile, facts):
        try:
            size = hub.download(repository, facts.default_python, environ, "access")
        except PreflightError as error:
            yield checks.failure("model", str(error), error.hint)
            continue
        cache_dir = runtime.cache_dir({**environ, **repository.engine.env})
        free = machine.free(cache_dir)
        name = repository.name
        text = f"{name} can be downloaded: {size / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB are free in {cache_dir}"
        fits = free > size
        yield checks.ok("model", text) if fits else checks.failure("model", text, "set HF_HOME to a larger disk")


def _model(profile: Profile, facts: Facts, reader: ServiceSpec | None) -> Model:
    return compatibility.model_of(profile.engines[reader.name], facts) if reader else Model("")


def _rates(plan: Plan, reader: ServiceSpec, model: Model, environ: Mapping[str, str], batch: int) -> dict[str, float]:
    tokenizer = Path(model.path or "", "tokenizer.json")
    document = plan.bench.get("context") or ""
    return bandwidth.rates(
        reader.python,
        environment.of_service(environ, reader.env, ()),
        gpu=bool(reader.gpus),
        shape=_sizes(model.shape, len(reader.gpus)) if model.shape else None,
        batch=batch,
        dtype=model.dtype if model.dtype in {"float32", "float16"} else "bfloat16",
        tokenizer=str(tokenizer) if model.path and tokenizer.is_file() else "",
        document=document if document and Path(document).is_file() else "",
    )


def _sizes(shape: Shape, ranks: int) -> dict[str, int]:
    """The sizes of a layer that the probe runs: what one of so many tensor-parallel ranks has of it."""
    ranks = max(1, ranks)
    return {
        "hidden": shape.hidden,
        "inner": max(1, shape.inner // ranks),
        "heads": max(1, shape.heads // ranks),
        "kv_heads": max(1, shape.kv_heads // ranks),
        "head": shape.head,
    }


def _copies(rates: Mapping[str, float]) -> Iterator[Check]:
    if "load" not in rates:
        yield checks.warning("copy", "could not be measured", "see `load torch` above; a full GPU cannot be measured")
        return
    if "store" in rates:
        text = f"{rates['load'] / 1e9:.1f} GB/s pinned memory to GPU, {rates['store'] / 1e9:.1f} GB/s back"
    else:
        text = f"{rates['load'] / 1e9:.1f} GB/s memory to memory"
    yield checks.ok("copy", text, **{name: round(rates[name]) for name in ("load", "store") if name in rates})


def _disk(store: Path, name: str = "") -> tuple[Check, bandwidth.Disk | None]:
    """Measure where the KV store is, or on the file system where it will be."""
    title = f"disk of {name}" if name else "disk"
    place = store
    while not place.is_dir() and place != place.parent:
        place = place.parent
    result = bandwidth.disk(place)
    if result is None:
        advice = "make it writable, with 512 MiB free, or set caches.*.l2 to another directory"
        return checks.failure(title, f"{place} cannot be written and read", advice), None
    text = (
        f"{place}: writes {result.write / 1e9:.2f} GB/s; reads {result.sequential / 1e9:.2f} GB/s one block at a time, "
        f"{result.parallel / 1e9:.2f} GB/s with {result.readers} at once"
    )
    if not result.direct:
        fix = "this file system has no direct I/O: the page cache may have helped"
        return checks.warning(title, text, fix, **asdict(result)), result
    return checks.ok(title, text, **asdict(result)), result


def _prediction(
    plan: Plan,
    facts: Facts,
    reader: ServiceSpec | None,
    model: Model,
    rates: Mapping[str, float],
    bandwidths: Mapping[str, float],
    results: Path,
) -> Iterator[Check]:
    tokens = int(rates.get("tokens", 0)) or (reader.context if reader else 0)
    if reader is None:
        return
    if not (model.shape and model.kv_bytes_per_token and reader.chunk_size and tokens):
        yield from checks.prediction(None, "", "the model's config is not here, or not of the usual form")
        return
    ranks = max(1, len(reader.gpus))
    names = sorted({gpu.name for gpu in facts.gpus if gpu.index in reader.gpus})
    device = ", ".join(names) or f"{os.cpu_count()} processor cores"
    times = predict.from_results(_saved_results(results), model.digest, device, model.shape, tokens)
    if times is None and {"matmul", "attention"} <= rates.keys():
        # Each GPU of a tensor-parallel engine does its part, and gets its part of the KV.
        server = predict.SERVER if reader.gpus else predict.SERVER_ON_CPU
        tokenizing = rates.get("tokenizing", 0.0)
        speed = predict.Rates(ranks * rates["matmul"], ranks * rates["attention"], tokenizing, server)
        times = predict.from_rates(model.shape, speed, tokens, reader.chunk_size)
    if times is None or not bandwidths:
        yield from checks.prediction(None, "", "this machine's speed could not be measured")
        return
    result = predict.predict(tokens, reader.chunk_size, model.kv_bytes_per_token, times, bandwidths)
    what = Path(plan.bench["context"]).name if "tokens" in rates else "a document of the longest context"
    yield from checks.prediction(result, what, "")


def _saved_results(results: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in sorted(results.glob("*.json")):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(document, dict) and "rows" in document:
            yield file.name, document


STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "bold red"}


def run(profile: Path | None, project_name: str, *, as_json: bool) -> None:
    """Check this machine, or all that a profile needs. Raises PreflightError if a check failed."""
    if profile is None:
        _show(of_machine(sys.executable, os.environ, Path.cwd()), as_json=as_json)
    else:
        results = Path("results")  # where `bench` saves them unless told otherwise
        project = scope.project_of(profile, project_name)
        _show(of_profile(scope.profile_of(profile, project), project, os.environ, results), as_json=as_json)


def _show(checks: Generator[Check], *, as_json: bool) -> None:
    checks_done: list[Check] = []
    with closing(checks) as stream:
        for check in stream:
            checks_done.append(check)
            if not as_json:
                terminal.out.print(_line(check, terminal.out.width if terminal.out.is_terminal else None))
    failed = [check for check in checks_done if check.level is Level.FAILURE]
    if as_json:
        predicted = next((check.values for check in checks_done if check.name == "prediction" and check.values), None)
        document = {"ok": not failed, "checks": [asdict(check) for check in checks_done], "prediction": predicted}
        terminal.out.out(json.dumps(document), highlight=False)
    if failed:
        names = ", ".join(dict.fromkeys(check.name for check in failed))
        raise PreflightError(f"{len(failed)} of {len(checks_done)} checks failed: {names}", "mend them in this order")
    if not as_json:
        warnings = sum(check.level is Level.WARNING for check in checks_done)
        rest = f", {warnings} with a warning" if warnings else ""
        terminal.out.print(f"{len(checks_done)} checks, none failed{rest}.")


def _line(check: Check, width: int | None) -> Text:
    """A check and its fix in columns; broken to the terminal's ``width`` if there is one, for it knows no columns."""
    line = Text(f"{check.level.value:<8}", style=STYLES[check.level])
    line.append(f" {check.name:<14} ", style="not bold default")
    rows = [check.text, *([f"fix: {check.fix}"] if check.fix else [])]
    if width:
        rows = [part for row in rows for part in textwrap.wrap(row, max(20, width - 24), break_on_hyphens=False)]
    return line.append(("\n" + " " * 24).join(rows), style="not bold default")
