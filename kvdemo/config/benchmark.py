"""The options of ``kvdemo bench``, each declared once: type, check, default and help.

The command line makes a flag of each (``--max-tokens``), the profile reads it as a key of its ``bench:`` section, the
environment has it as ``KVDEMO_BENCH_MAX_TOKENS``, and the page reads the same object. Of several the command line
decides, then the environment, then the profile.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError, WithJsonSchema

from kvdemo.config import fields, values
from kvdemo.config.part import Part
from kvdemo.config.values import between, describe, number, refuse
from kvdemo.errors import UsageError


@dataclass(frozen=True)
class Flag:
    """How the command line shows an option; ``hidden``: it is a key of the profile only."""

    metavar: str = ""
    hidden: bool = False


def prefix_lengths(value: Any) -> tuple[int, ...]:
    """``1k,2k,12000`` or a list of numbers as tokens (k = 1,000); refuses anything else but nothing."""
    if value is None or value == "":
        return ()
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    lengths = []
    for word in filter(None, (str(word).strip().lower() for word in words)):
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(k?)", word, re.ASCII)
        tokens = int(float(match[1]) * (1000 if match[2] else 1)) if match else 0
        if tokens < 1:
            refuse(f"{describe(word)} is not a number of tokens; write them as 1k,4k,16k")
        lengths.append(tokens)
    if value and not lengths:
        refuse(f"{describe(value)} names no length; write them as 1k,4k,16k")
    return tuple(lengths)


def _factor(value: Any) -> float | None:
    if value is None or value == "":
        return None
    factor = number(value)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        refuse(f"expected a factor such as 2, got {describe(value)}")
    if not (math.isfinite(factor) and factor > 0):
        refuse(f"{factor:g} is not a factor; for example 2")
    return float(factor)


def _whole_number(value: Any) -> int:
    whole = number(value)
    if isinstance(whole, bool) or not isinstance(whole, int):
        refuse(f"expected a whole number, got {describe(value)}")
    return whole


def _name(value: Any) -> str:
    return values.optional(values.plain_text)(value) or ""


def _utf8(value: Any) -> str | None:
    text: str | None = values.optional(values.plain_text)(value)
    if text and text != text.encode(errors="replace").decode():
        refuse("is not UTF-8; check the terminal's encoding")
    return text


def _switch(value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    switch = words.get(value, value) if isinstance(value, str) else value
    if not isinstance(switch, bool):
        refuse(f"expected true or false, got {describe(value)}")
    return switch


def _one_of(*choices: str) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        if value not in choices:
            refuse(f"expected {' or '.join(choices)}, got {describe(value)}")
        return str(value)

    return checked


_LENGTHS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer", "minimum": 1}}]}
_TEXT_OR_NOTHING = WithJsonSchema({"type": ["string", "null"]})

Switch = Annotated[bool, BeforeValidator(_switch), WithJsonSchema({"type": "boolean"})]
Endpoint = Annotated[Literal["chat", "completions"], BeforeValidator(_one_of("chat", "completions"))]
Tier = Annotated[Literal["any", "l1", "l2"], BeforeValidator(_one_of("any", "l1", "l2"))]
Lengths = Annotated[tuple[int, ...], BeforeValidator(prefix_lengths), WithJsonSchema(_LENGTHS)]
Factor = Annotated[float | None, BeforeValidator(_factor), WithJsonSchema({"type": ["number", "null"]})]
Name = Annotated[str, BeforeValidator(_name), _TEXT_OR_NOTHING]
Question = Annotated[str | None, BeforeValidator(_utf8), _TEXT_OR_NOTHING]
WholeNumber = Annotated[int, BeforeValidator(_whole_number), WithJsonSchema({"type": "integer"})]
Trials = Annotated[
    int, BeforeValidator(between(0, 2**31, "a number of trials")), WithJsonSchema({"type": "integer", "minimum": 0})
]


class Bench(Part):
    """The options of `kvdemo bench`."""

    context: fields.OptionalPath = None
    """Text file with the document to ask about, in a profile relative to it. Default: as much of the shipped handbook
    as this machine reads in some ten seconds."""
    question: Question = None
    """What to ask about it. Default: the first of `questions`."""
    questions: Annotated[fields.Texts, Flag(hidden=True)] = ("What is this document about? Answer in one sentence.",)
    """Questions about the document; the page offers all of them. Default: one that asks what it is about."""
    system: fields.Text = "Answer the question from the document."
    """Instruction before the document. Default: one sentence asking to answer from the document."""
    trials: fields.Count = 3
    """Trials: fresh documents that are put to every engine once. Default: 3."""
    max_trials: Trials = 0
    """Go on until the speed-up is known within 5 %, or this often; 0 for exactly `trials`. Default: 0."""
    max_tokens: fields.Count = 16
    """Length of each answer in tokens. Default: 16."""
    ignore_eos: Switch = False
    """Generate `max_tokens` tokens also where the model ends its answer before, so that every answer has the same
    length. Default: false, an answer ends where the model ends it."""
    endpoint: Endpoint = "chat"
    """OpenAI endpoint to use. Default: chat."""
    tier: Tier = "any"
    """Where the reader is to find the KV; l2 clears L1 before it is asked. Default: any."""
    drop_page_cache: Switch = False
    """With tier l2: read the files from the disk itself, not from the page cache. Default: false."""
    concurrency: fields.Count = 1
    """Ask each engine this many documents at once. Default: 1."""
    matrix: Switch = False
    """Every engine writes, every engine reads. Default: false."""
    lengths: Annotated[Lengths, Flag(metavar="1k,2k,...")] = ()
    """Sweep over these prompt lengths in tokens. Default: none, the whole document."""
    costs: Switch = False
    """Also measure what storing costs another engine's decoding. Default: false."""
    evicted: Switch = False
    """Ask each engine again after its own prefix cache was emptied. Default: false."""
    restarted: Switch = False
    """Ask each engine again after it was restarted. Default: false."""
    limit: Switch = True
    """Also measure what this machine and this client can do at best. Default: true."""
    expected_ttft_gain: Annotated[Factor, Flag(metavar="X")] = None
    """Exit 3 below this speed-up. Default: none."""
    writer: Annotated[Name, Flag(metavar="NAME")] = ""
    """The engine that stores. Default: the first that shares."""
    reader: Annotated[Name, Flag(metavar="NAME")] = ""
    """The engine that loads. Default: the next that shares."""
    baseline: Annotated[Name, Flag(metavar="NAME")] = ""
    """The plain engine to compare with. Default: the last one."""
    seed: WholeNumber = 0
    """Seed of the order of the arms. Default: 0."""

    def with_values(self, values: Mapping[str, Any]) -> Bench:
        """These options with some replaced. Raises UsageError that names the flag of a wrong value."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        try:
            return Bench.model_validate({**self.model_dump(mode="json"), **plain})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            message = first.get("ctx", {}).get("message", first["msg"])
            raise UsageError(f"{flag(str(first['loc'][0]))}: {message}") from None

    def check_combination(self) -> None:
        """Options that mean nothing together must not be left out silently. Raises UsageError."""
        if self.drop_page_cache and self.tier != "l2":
            raise UsageError("--drop-page-cache needs --tier l2", "only L2 is read from files")
        if 0 < self.max_trials < self.trials:
            text = f"--max-trials: {self.max_trials} are fewer than the {self.trials} of --trials"
            raise UsageError(text, "give --max-trials 0 for exactly so many, or lower --trials")

    @property
    def asked_question(self) -> str:
        """The question of a run."""
        return self.question or self.questions[0]

    def non_default_flags(self, *names: str) -> list[str]:
        """Those of these options that do not have their default, as flags."""
        return [flag(name) for name in names if getattr(self, name) != type(self).model_fields[name].default]


def flag(name: str) -> str:
    """An option as the command line has it."""
    return f"--{name.replace('_', '-')}"


def of_saved_plan(document: Mapping[str, Any]) -> Bench:
    """The options of a plan as it was saved; a key that this version does not know is left out."""
    return Bench.model_validate({name: value for name, value in document.items() if name in Bench.model_fields})
