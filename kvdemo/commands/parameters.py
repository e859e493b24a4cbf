"""The options of ``kvdemo bench`` as the command line takes them, made from their one declaration.

What is measured is declared in ``kvdemo.config.benchmark.Bench``, what is only about this command in ``Command`` below.
Reading the first needs pydantic, which no other verb should pay for: ``Deferred`` waits until somebody asks.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core
import typer.main
import typer.models

from kvdemo.commands.options import JsonOption, ProgressOption, ProjectOption, ResultDir, VerboseOption
from kvdemo.errors import UsageError


@dataclass(frozen=True)
class Command:
    """Whom ``kvdemo bench`` measures and where its words go."""

    project_name: ProjectOption = ""
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL", help="An engine that something else started; repeat it. The last two share."),
    ] = None
    target_model: Annotated[
        str, typer.Option(metavar="ID", help="With --target: the model, if they offer several.")
    ] = ""
    chunk_size: Annotated[
        int | None, typer.Option(min=1, help="With --target: tokens a chunk; else the cache server's answer, or 256.")
    ] = None
    cache_url: Annotated[
        str,
        typer.Option(
            "--cache-url",
            "--lmcache-url",  # its name before there was more than one backend
            metavar="URL",
            help="With --target: HTTP address of the writer's cache server.",
        ),
    ] = ""
    peer: Annotated[
        Literal["vllm-bench", "lmcache-bench", "guidellm", "aiperf"] | None,
        typer.Option("--with", help="Measure nothing; print how this benchmark would measure the fleet."),
    ] = None
    result_dir: ResultDir = Path("results")
    progress: ProgressOption = "text"
    verbose: VerboseOption = False
    json: JsonOption = False
    format: Annotated[
        Literal["text", "github"],
        typer.Option(help="github: also a step summary in Markdown, annotations, and outputs of the step."),
    ] = "text"
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the verdicts and the gate as JUnit test cases.")
    ] = None


Action = Callable[[Command, Mapping[str, Any]], None]
"""What a command does with its own options and those of the measurement that were given."""


def function(story: Action, doc: str) -> Callable[..., None]:
    """``story`` as a function whose signature typer can read."""

    def command(**values: Any) -> None:
        own = {field.name: values.pop(field.name) for field in fields(Command)}
        story(Command(**own), {name: value for name, value in values.items() if value is not None})

    return _with_signature(command, [*_of(Command), *_of_bench()], doc)


def taking(declaration: Any, story: Callable[[Any], None], doc: str) -> Callable[..., None]:
    """A function whose options are the fields of this dataclass; ``story`` is given one of it."""

    def command(**values: Any) -> None:
        story(declaration(**values))

    return _with_signature(command, _of(declaration), doc)


def _with_signature(command: Callable[..., None], parameters: list[inspect.Parameter], doc: str) -> Callable[..., None]:
    command.__doc__ = doc
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _of(declaration: Any) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(declaration, include_extras=True)
    return [_parameter(field.name, hints[field.name], field.default) for field in fields(declaration)]


def _of_bench() -> list[inspect.Parameter]:
    """Every option without a default here: what was not given is decided by the environment, then by the profile."""
    from kvdemo.config.benchmark import Bench, Flag  # noqa: PLC0415 (see above)

    parameters = []
    for name, field in Bench.model_fields.items():
        flag = next((each for each in field.metadata if isinstance(each, Flag)), Flag())
        if flag.hidden:
            continue
        option = typer.Option(
            envvar=f"KVDEMO_BENCH_{name.upper()}",
            show_envvar=False,
            metavar=flag.metavar or None,
            help=field.description,
        )
        parameters.append(_parameter(name, Annotated[_cli_type(field.annotation), option], None))
    return parameters


def _cli_type(annotation: Any) -> Any:
    """The type by which the command line reads an option, or nothing."""
    if typing.get_origin(annotation) in {tuple, list}:
        return str | None
    optional = typing.get_origin(annotation) in {typing.Union, types.UnionType}
    return annotation if optional else annotation | None


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        name, kind, annotation=annotation, default=inspect.Parameter.empty if default is MISSING else default
    )


def refuse_beside(ctx: Any, option: str, allowed: Collection[str], hint: str) -> None:
    """Raises UsageError for what was typed beside ``option`` and is not ``allowed``: it would be left out silently.

    What the environment or a profile says is about other calls, too, and no mistake.
    """
    typed = [
        (one.secondary_opts if ctx.params[one.name] is False and one.secondary_opts else one.opts)[0]
        for one in ctx.command.params
        if one.name not in allowed and (source := ctx.get_parameter_source(one.name)) and source.name == "COMMANDLINE"
    ]
    if typed:
        raise UsageError(f"{', '.join(typed)} cannot be combined with {option}", hint)


class DeferredCommand(typer.core.TyperCommand):
    """A command whose options are made when they are needed: other verbs do not pay for them."""

    @staticmethod
    def action(command: Command, values: Mapping[str, Any]) -> None:
        """What it does."""
        raise NotImplementedError

    @cached_property
    def with_options(self) -> Any:
        """The command with its options."""
        info = typer.models.CommandInfo(name=self.name, callback=function(type(self).action, self.help or ""))
        return typer.main.get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)

    @property
    def params(self) -> Any:
        """All options."""
        return self.with_options.params

    @params.setter
    def params(self, _: Any) -> None:
        """What typer reads in a function without parameters."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        return self.with_options.invoke(ctx)
