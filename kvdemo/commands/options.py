"""Parameters that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kvdemo import __version__, backends
from kvdemo.commands import completion
from kvdemo.units import LONGEST


def _version(show: bool) -> None:
    if show:
        typer.echo(f"kvdemo {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]

ProfileArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="PROFILE",
        help="The profile (YAML); else kvdemo.yaml here.",
        envvar="KVDEMO_PROFILE",
        show_default=False,
        autocompletion=completion.profiles,
    ),
]
Kind = Annotated[
    Literal["cpu", "one-gpu", "demo4", "smoke"] | None,
    typer.Argument(help="Which of the shipped profiles; else the one that fits the GPUs here.", show_default=False),
]
ProfileOutput = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the profile.")]
Python = Annotated[
    str,
    typer.Option(
        metavar="PATH", help=f"The interpreter that holds vLLM and {backends.DEFAULT.title}; else kvdemo's own."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
MaybeProfile = Annotated[
    Path | None,
    typer.Argument(
        metavar="PROFILE",
        help="A profile (YAML); else kvdemo.yaml here, or this machine.",
        autocompletion=completion.profiles,
    ),
]
ProgressOption = Annotated[
    Literal["text", "json"], typer.Option(help="json: each event is one JSON object on a line of stderr.")
]
ProjectOption = Annotated[
    str,
    typer.Option(
        "--project-name",
        "-p",
        metavar="NAME",
        help="Which project; may be left out while only one is up.",
        autocompletion=completion.projects,
    ),
]
Services = Annotated[
    list[str] | None,
    typer.Argument(metavar="SERVICE", help="Only these.", show_default=False, autocompletion=completion.services),
]
TimeoutOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Give up after this long.", min=1, max=LONGEST)
]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Also where the time goes, limit, costs and noise.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]

ResultDir = Annotated[Path, typer.Option(help="Where to save samples, result and report.")]
Host = Annotated[
    str, typer.Option(help="Where the page listens, a name it answers to; whoever reaches it can use the fleet.")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The page's port.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Return when all can generate / once all are started.")]
Preheat = Annotated[
    bool, typer.Option("--preheat", help="Then let each engine read a throwaway text: first long requests are slow.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave what was started when something fails.")]
ProjectName = Annotated[str, typer.Option("--project-name", "-p", help="Instead of the profile's name.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")]
Previous = Annotated[bool, typer.Option("--previous", help="Of the start before this one.")]
NoLogPrefix = Annotated[bool, typer.Option("--no-log-prefix", help="Without the service's name.")]
MaxRegress = Annotated[str, typer.Option(metavar="SHARE", help="Exit 3 if anything is worse by more: 10%.")]
Across = Annotated[Literal["versions"] | None, typer.Option(help="Compare although these differ.")]
Arm = Annotated[str, typer.Option(help="What to compare a result of vllm bench serve with; else reuse.")]
Format = Annotated[Literal["text", "json"], typer.Option(help="json: for programs.")]
ExportFormat = Annotated[
    Literal["compose", "k8s", "slurm", "shell", "prometheus"],
    typer.Argument(metavar="compose|k8s|slurm|shell|prometheus", help="The format."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="PATH", help="Write there, not to stdout: a file; of prometheus a directory."
    ),
]
Nodes = Annotated[int, typer.Option(min=1, help="For slurm, and a profile with `on: ray`: so many nodes.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Redraw every two seconds until Ctrl-C.")]
Check = Annotated[bool, typer.Option("--check", help="Exit 7 unless every service is ready.")]
Tail = Annotated[
    int | None, typer.Option("--tail", "-n", metavar="LINES", min=0, max=10**9, help="Only the last lines.")
]
Since = Annotated[
    str, typer.Option(metavar="TIME", help="Only lines from then on: an age (5m, 1h30m) or a time (2026-11-30T07:15).")
]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="The report; else beside the samples.")]
Volumes = Annotated[bool, typer.Option("--volumes", "-v", help="Delete the KV store too (only one kvdemo made).")]
KillTimeout = Annotated[
    float | None, typer.Option("--timeout", "-t", metavar="SECONDS", help="Then kill.", min=0, max=LONGEST)
]
AllProjects = Annotated[bool, typer.Option("--all", help="Every project of this user.")]
