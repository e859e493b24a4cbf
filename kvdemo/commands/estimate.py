"""``kvdemo estimate``: would sharing help this traffic? A file of requests replayed against caches that are counted."""

from __future__ import annotations

import json as jsonlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvdemo import units
from kvdemo.commands.options import JsonOption, ProfileArgument
from kvdemo.commands.parameters import taking
from kvdemo.errors import UsageError
from kvdemo.estimate.formats import Format

if TYPE_CHECKING:
    from kvdemo.commands.against import Against
    from kvdemo.estimate.reading import Reading
    from kvdemo.estimate.replay import Replay
    from kvdemo.estimate.result import Estimate
    from kvdemo.estimate.savings import Savings, Times


@dataclass(frozen=True)
class Options:
    """The options of ``kvdemo estimate``, each declared once."""

    requests: Annotated[
        Path,
        typer.Argument(
            metavar="REQUESTS.jsonl", help="An OpenAI batch file, a vLLM log, a Mooncake trace, or prompts."
        ),
    ]
    profile: ProfileArgument = None
    format: Annotated[
        Format | None,
        typer.Option(help="What it is, if that cannot be seen.", show_default=False),
    ] = None
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave lines out that hold no request.")] = False
    model: Annotated[str, typer.Option(metavar="ID", help="Whose tokenizer and KV; else the profile's.")] = ""
    engines: Annotated[
        int | None, typer.Option(min=1, help="How many; else those that share the profile's cache, or 2.")
    ] = None
    routing: Annotated[
        Literal["round-robin", "session"], typer.Option(help="session: a session's requests all to one engine.")
    ] = "round-robin"
    engine_cache: Annotated[
        str, typer.Option(metavar="SIZE", help="Of each engine: 20GiB, 130944tokens, unlimited; else the profile's.")
    ] = ""
    shared_cache: Annotated[
        str, typer.Option(metavar="SIZE", help="Of the shared cache, all of it usable; else the profile's.")
    ] = ""
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an engine's block; else the profile's, or 16.")
    ] = None
    chunk_size: Annotated[int | None, typer.Option(min=1, help="Tokens of a chunk; else the profile's, or 256.")] = None
    trace_block_size: Annotated[int, typer.Option(min=1, help="Tokens that a hash id of a trace stands for.")] = 512
    kv_bytes_per_token: Annotated[int | None, typer.Option(min=1, help="If the model's config does not tell.")] = None
    times: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Times of single requests: a saved run, doctor --json.")
    ] = None
    json: JsonOption = False


def run(options: Options) -> None:
    """Read, replay, say."""
    from kvdemo.bench.wire import without_gc
    from kvdemo.report import estimate as media
    from kvdemo.report import terminal

    with (
        without_gc()
    ):  # millions of small objects, none of them in a cycle: looking for cycles takes a third of the time
        outcome = estimate(options)
    if options.json:
        typer.echo(jsonlib.dumps(outcome.to_json(), ensure_ascii=False))
    else:
        terminal.out.print(media.terminal(outcome))


def estimate(options: Options) -> Estimate:
    """The estimate. Raises UsageError, ProfileError, PreflightError (no tokenizer), ServiceError (it died)."""
    from kvdemo.commands import against, workdir
    from kvdemo.estimate import replay, result
    from kvdemo.estimate.replay import Setup

    with _lines(options.requests) as lines:
        about = against.of(options.profile or workdir.find_profile(), against.flags_of(options))
        times = _times(options, about)
        reading = _read(lines, options, about)
    if options.routing == "session" and not reading.trace.numbers:
        hint = "give each a session (user or prompt_cache_key in an OpenAI body), or --routing round-robin"
        raise UsageError(f"{options.requests}: its requests have no session", hint)
    sizes = result.sizes(about.shared, about.own, about.engines)
    setup = Setup(about.engines, options.routing, about.block, about.chunk, about.own, sizes, about.backend)
    try:
        played = replay.replay(reading.trace, setup)
    except ValueError as error:
        raise UsageError(f"{options.requests}: {error}", "give --block-size and --chunk-size that fit") from None
    saved = _savings(options, about, reading, played, times) if times else None
    digest = about.model.digest if about.model else ""
    outcome = result.build(
        options.requests.name, reading, setup, played, per_token=about.per_token, digest=digest, savings=saved
    )
    return replace(outcome, notes=(*about.notes, *_too_long(about, reading), *outcome.notes))


@contextmanager
def _lines(path: Path) -> Iterator[Iterable[str]]:
    """The lines of the file. Raises UsageError if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            yield lines
    except OSError as error:
        hint = "name a file of requests: what it may hold stands in `kvdemo estimate --help`"
        raise UsageError(f"cannot read {path}: {error.strerror or error}", hint) from None


def _too_long(about: Against, reading: Reading) -> list[str]:
    """That an engine would refuse some of the requests."""
    if not about.context:
        return []
    long = sum(tokens >= about.context for tokens in reading.trace.tokens)
    text = f"{units.count(long, 'prompt')} would be refused: an engine takes {about.context:,} tokens with the answer."
    return [f"{text} They count here."] if long else []


def _read(lines: Iterable[str], options: Options, about: Against) -> Reading:
    from kvdemo.estimate import reading
    from kvdemo.estimate.formats import Text
    from kvdemo.host.tokens import Tokenizer

    cut = reading.Cut(about.block, about.chunk, options.trace_block_size)
    with Tokenizer(about.python, about.environ or {}, about.tokenizer, about.template, trust=about.trust) as tokenizer:

        def tokenize(texts: Sequence[Text]) -> Sequence[array[int] | str]:
            if not about.tokenizer:
                raise UsageError("whose tokenizer? The requests are text", "name PROFILE or --model")
            return tokenizer([text._asdict() for text in texts])

        try:
            return reading.read(lines, cut, tokenize, format=options.format, skip=options.skip_broken)
        except UsageError as error:
            raise UsageError(f"{options.requests}: {error}", error.hint) from None


def _times(options: Options, about: Against) -> Times | None:
    """What single requests took, told before millions of them are read."""
    from kvdemo.commands import rates

    if options.times is None:
        return None
    if about.model is None or about.model.shape is None:
        raise UsageError(
            "--from: without the model's form nobody knows what a part of a prompt costs",
            "name PROFILE or --model, of a usual form and with its config.json here",
        )
    return rates.times(options.times, about.model.digest if about.model.weight_bytes else "", about.chunk)


def _savings(options: Options, about: Against, reading: Reading, played: Replay, times: Times) -> Savings:
    from kvdemo.commands import rates
    from kvdemo.estimate.savings import savings

    assert about.model and about.model.shape  # noqa: S101, PT018 (without them there are no times)
    try:
        return savings(reading.trace, played, about.model.shape, times, about.gpus)
    except ValueError as error:
        raise UsageError(f"{options.times}: {error}", rates.HINT) from None


command = taking(
    Options,
    run,
    """Tell which share of this traffic's prompt tokens engines would reuse alone, only by sharing, or not at all.

    The requests are replayed in time order against prefix caches that are counted, not run; nothing is started.
    Example: kvdemo estimate requests.jsonl kvdemo.yaml --engines 4 --shared-cache 64GiB --from results/RUN.jsonl
    """,
)
