"""Which repositories of Hugging Face an engine reads: its model, and whatever else its args name. Pure.

All of them are downloaded before an engine starts: with only the model here, the hub would be off, and the others out
of reach.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kvdemo.config import flags

if TYPE_CHECKING:
    from kvdemo.config.profile import Engine

HUB_VARIABLES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
"""Where an engine looks for Hugging Face models; the first one that is set decides."""

_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")

Format = Literal["", "hf", "mistral"]


@dataclass(frozen=True)
class Repository:
    """A repository, or a directory (``name`` begins with a slash), that this engine reads.

    ``kind``: ``model`` is the engine's own, ``other`` a draft model or adapter, ``tokenizer`` what is read without
    weights. ``form`` is the format that the engine is told to read, empty if it decides itself.
    """

    engine: Engine
    name: str
    kind: Literal["model", "other", "tokenizer"] = "model"
    revision: str = "main"
    form: Format = ""

    @property
    def key(self) -> str:
        """What tells one from another: its name, and for Hugging Face the revision, the place and the format."""
        if self.name.startswith("/"):
            return self.name + self._read_as
        place = next((self.engine.env[name] for name in HUB_VARIABLES if self.engine.env.get(name)), "")
        revision = f"@{self.revision}" if self.revision != "main" else ""
        return self.name + revision + (f" in {place}" if place else "") + self._read_as

    @property
    def _read_as(self) -> str:
        return f" as {self.form}" if self.form else ""


def model(engine: Engine) -> Repository:
    """The engine's model."""
    arguments = _arguments(engine)
    return Repository(engine, engine.model, "model", _text(arguments, "revision") or "main", _format(arguments))


def auxiliary(engine: Engine) -> tuple[Repository, ...]:
    """Draft models, adapters, tokenizers and configs of other repositories than the model's, each once."""
    arguments = _arguments(engine)
    reads = [*_drafts(engine, arguments), *_adapters(engine, arguments), *_tokenizers(engine, arguments)]
    return tuple({one.key: one for one in reads if _REPOSITORY.fullmatch(one.name)}.values())


def files(engine: Engine) -> tuple[tuple[str, str], ...]:
    """Flag and path of whatever an engine reads from this machine because its args say so."""
    arguments = _arguments(engine)
    pairs = [(flag, _text(arguments, flag)) for flag in _FILE_FLAGS]
    parts = (("speculative-config", _drafts), ("lora-modules", _adapters), ("tokenizer", _tokenizers))
    pairs += [(flag, one.name) for flag, of in parts for one in of(engine, arguments) if flag in arguments]
    return tuple(dict.fromkeys((flag, path) for flag, path in pairs if path.startswith("/")))


def paths(engine: Engine) -> tuple[str, ...]:
    """The absolute paths that an engine reads: its model's, and those that its flags name."""
    own = [engine.model] if engine.model.startswith("/") else []
    return tuple(dict.fromkeys([*own, *(path for _, path in files(engine))]))


_FILE_FLAGS = ("chat-template", "tool-parser-plugin", "reasoning-parser-plugin", "log-config-file", "hf-config-path")


def _drafts(engine: Engine, arguments: Mapping[str, Any]) -> Iterator[Repository]:
    speculative = _parse_json(arguments.get("speculative-config"))
    fields = speculative if isinstance(speculative, Mapping) else {}
    fields = {**fields, **{name.partition(".")[2]: v for name, v in arguments.items() if name.startswith(_DRAFT)}}
    revision = _text(fields, "revision") or "main"
    for name in (_text(fields, "model"), _text(arguments, "spec-model")):
        if name != engine.model:
            yield Repository(engine, name, "other", revision)
    yield Repository(engine, _text(fields, "tokenizer"), "tokenizer")


_DRAFT = "speculative-config."


def _adapters(engine: Engine, arguments: Mapping[str, Any]) -> Iterator[Repository]:
    modules = _parse_json(arguments.get("lora-modules"))
    for item in map(_parse_json, modules if isinstance(modules, list) else [modules]):
        path = item.get("path") if isinstance(item, Mapping) else str(item).partition("=")[2]
        yield Repository(engine, str(path), "other")
    by_modality = _parse_json(arguments.get("default-mm-loras"))
    for path in by_modality.values() if isinstance(by_modality, Mapping) else ():
        yield Repository(engine, str(path), "other")


def _tokenizers(engine: Engine, arguments: Mapping[str, Any]) -> Iterator[Repository]:
    for flag, revision in (("tokenizer", "tokenizer-revision"), ("hf-config-path", ""), ("generation-config", "")):
        name = _text(arguments, flag)
        if name != engine.model:
            yield Repository(engine, name, "tokenizer", _text(arguments, revision) or "main")


def _format(arguments: Mapping[str, Any]) -> Format:
    formats = {_text(arguments, "config-format"), _text(arguments, "load-format")}
    return "mistral" if "mistral" in formats else "hf" if formats & {"hf", "safetensors", "fastsafetensors"} else ""


def _arguments(engine: Engine) -> dict[str, Any]:
    return {flags.canonical(name): value for name, value in engine.args.items()}


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _parse_json(value: Any) -> Any:
    """JSON in a text as its value; everything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") else value
    except ValueError:
        return value
