"""``kvdemo init``: a commented profile that fits this machine, and the document that it asks about."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from kvdemo import backends, shipped
from kvdemo.errors import PreflightError, UsageError
from kvdemo.host import gpus, hub, maker, runtime
from kvdemo.planning import choice
from kvdemo.planning.choice import Choice, Kind
from kvdemo.report import terminal

SMALL_EDITS = {
    "max_model_len: 32768": "max_model_len: 8192",
    "KV_CACHE:-6GiB": "KV_CACHE:-1GiB",
    "KV_CACHE:-4352MiB": "KV_CACHE:-1GiB",
    "handbook.txt": "lighthouse.txt",
    "l1: 24GiB": "l1: 4GiB",
    "l1: 16GiB": "l1: 3GiB",
    "128 KiB a token": "22.5 KiB a token",
}
"""What else changes in a profile for GPUs whose model becomes SmolLM2."""


QUESTIONS = re.compile(r"^  questions:.*\n(?:    - .*\n)+", re.MULTILINE)


def access(python: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Of each model of Hugging Face, until one can be had: why it cannot ("": it can)."""
    answers: dict[str, str] = {}
    for name in (choice.GATED, choice.OPEN):
        try:
            hub.fetch(name, python, environ, part="access")
            answers[name] = ""
            return answers
        except PreflightError as error:
            answers[name] = str(error).removeprefix(f"model {name} ")
    return answers


def text_of(selection: Choice, model: Path, python: str) -> str:
    """The shipped profile with its comments and the changes that were chosen; its paths are those from here.

    Raises:
        KeyError: the shipped profile does not hold what has to be replaced.
    """
    text = (shipped.directory() / f"{selection.kind}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    body = "".join(lines[1:]).removeprefix("#\n") if lines[0].startswith("# yaml-language-server") else text
    replaced = dict(selection.edits)
    if selection.model == choice.SMALL:
        replaced |= {old: str(model).replace("$", "$$") for old in ("../.cache/smollm2", choice.GATED) if old in body}
        replaced |= {
            old: new for old, new in SMALL_EDITS.items() if old in body and selection.kind in {"one-gpu", "demo4"}
        }
    elif selection.model != choice.GATED:
        replaced[choice.GATED] = selection.model
    if "../.cache/kv-store" in body:
        replaced["../.cache/kv-store"] = "./kv-store"
    if absent := [old for old in replaced if old not in body]:
        raise KeyError(absent[0])
    if replaced:  # all at once: what one change writes, no other may read
        body = re.sub("|".join(map(re.escape, replaced)), lambda match: replaced[match[0]], body)
    if selection.model == choice.SMALL and selection.kind in {"one-gpu", "demo4"}:
        body = QUESTIONS.sub(lambda _: _questions(), body)
    if python:
        quoted = json.dumps(python.replace("$", "$$"), ensure_ascii=False)
        holder = f"\nruntime: {{python: {quoted}}}   # holds vLLM and {backends.DEFAULT.title}\n\ndefaults:\n"
        body = body.replace("\ndefaults:\n", holder, 1)
    return body


def _questions() -> str:
    """Those of cpu.yaml: SmolLM2 answers them rightly, and most others it does not."""
    match = QUESTIONS.search((shipped.directory() / "cpu.yaml").read_text(encoding="utf-8"))
    assert match is not None  # noqa: S101 (the file is ours)
    return match[0]


def document_of(text: str) -> str:
    """The name of the shipped document that a profile asks about."""
    return next(line.split(":", 1)[1].split("#")[0].strip() for line in text.splitlines() if "  context:" in line)


def run(kind: Kind | None, output: Path, python: str, *, force: bool) -> None:
    """Choose, make the model if it is SmolLM2, write.

    Raises:
        UsageError: a file is there and ``force`` is not set, or cannot be written.
        PreflightError: the interpreter holds no engines, or the model cannot be made.
    """
    if python:  # a link stays one: in an environment it is what makes the environment
        python = str(Path(shutil.which(python) or python).absolute())
    holder = runtime.interpreter(python or sys.executable)
    if holder.problem:
        raise PreflightError(holder.problem, "kvdemo init --python /path/to/python (scripts/setup makes one)")
    visible = gpus.detect(os.environ)
    needs_access = kind in {"one-gpu", "demo4"} or (kind is None and bool(visible))
    selection = choice.choose(visible, access(python or sys.executable, os.environ) if needs_access else {}, kind)
    model = maker.speaking(os.environ)
    text = text_of(selection, model, python)
    document = document_of(text)
    for path in (output, output.with_name(document)):
        if path.exists() and not force and path.read_bytes() != _shipped_document(document, path):
            raise UsageError(
                f"{path} is there already", "kvdemo init --force writes it anew; --output FILE writes another"
            )
    if selection.model == choice.SMALL and not os.environ.get("KVDEMO_MODEL") and not model.is_dir():
        terminal.out.print(f"Making SmolLM2-135M-Instruct in {model} (93 MB are fetched, once) ...", markup=False)
        maker.make(model, python or sys.executable)
    _write(output.with_name(document), (shipped.directory() / document).read_text(encoding="utf-8"))
    _write(output, text)
    terminal.out.print(f"{output} ({selection.kind}.yaml): {'; '.join(selection.reasons)}", markup=False)
    where = "" if output in {Path("kvdemo.yaml"), Path("kvdemo.yml")} else f" {output}"
    terminal.out.print(f"Next: kvdemo up{where}, kvdemo bench, kvdemo down", markup=False)


def _shipped_document(document: str, path: Path) -> bytes:
    """The shipped document, for its own path: the same file again is no loss."""
    return (shipped.directory() / document).read_bytes() if path.name == document else b""


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "name another file: --output FILE") from None
