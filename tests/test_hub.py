"""Downloads from a hub that serves and refuses: the real huggingface_hub, a local server in place of Hugging Face."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import FAKES, Lab
from hub_server import Hub, serve
from kvdemo.config.profile import Engine
from kvdemo.errors import PreflightError
from kvdemo.host import hub, procfs, runtime
from kvdemo.planning import repositories
from kvdemo.planning.repositories import Format

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs huggingface_hub, which comes with vLLM"
)

CONFIG = {"max_position_embeddings": 65536, "dtype": "bfloat16"}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": b"w" * 1000,
    "consolidated.safetensors": b"w" * 1000,
    "pytorch_model.bin": b"w" * 1000,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """The hub."""
    with serve("org/model", FILES) as running:
        yield running


@pytest.fixture
def asked(server: Hub) -> Iterator[list[str]]:
    """What the hub was asked for since the test began; it is friendly again afterwards."""
    server.asked.clear()
    yield server.asked
    server.refusal, server.gated = None, False


def environ(server: Hub, home: Path, **variables: str) -> dict[str, str]:
    """An environment in which that hub is Hugging Face."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home), "HF_ENDPOINT": server.url, **variables}


def files_of(asked: list[str]) -> set[str]:
    """The files that were downloaded."""
    return {line.rpartition("/")[2] for line in asked if line.startswith("GET") and "/resolve/" in line}


def test_step_by_step(server: Hub, asked: list[str], tmp_path: Path) -> None:
    """Access costs no file, the config comes before the weights, and nothing comes twice."""
    here = environ(server, tmp_path)
    assert hub.fetch("org/model", sys.executable, here, part="access") == 1000
    assert files_of(asked) == set()
    hub.fetch("org/model", sys.executable, here, part="config")
    assert files_of(asked) == {"config.json"}
    half = runtime.model("org/model", here)
    assert (half.path, half.context) == (None, 65536)
    asked.clear()
    hub.fetch("org/model", sys.executable, here)
    assert files_of(asked) == {"model.safetensors"}
    assert runtime.model("org/model", here).path


PARAMS = {"dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 128, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 99}
OWN = {"params.json": json.dumps(PARAMS).encode(), "consolidated.safetensors": b"w" * 1000, "tekken.json": b"{}"}


@pytest.fixture
def holding(server: Hub, asked: list[str]) -> Iterator[Hub]:
    """The hub for a test that changes the files it holds."""
    assert asked == []
    yield server
    server.name, server.files = "org/model", FILES


@pytest.mark.parametrize(
    ("files", "form", "wanted"),
    [
        (OWN, "", set(OWN)),
        (OWN, "mistral", set(OWN)),
        ({**FILES, **OWN}, "mistral", {*OWN, "config.json"}),
        ({**FILES, **OWN}, "", {"config.json", "model.safetensors", "params.json", "tekken.json"}),
        ({**FILES, **OWN}, "hf", {"config.json", "model.safetensors", "params.json", "tekken.json"}),
    ],
)
def test_mistrals_own_format(
    holding: Hub, asked: list[str], tmp_path: Path, files: dict[str, bytes], form: Format, wanted: set[str]
) -> None:
    """The files of the format that the engine reads, and no weights twice; its sizes come from params.json."""
    holding.files = files
    here = environ(holding, tmp_path)
    assert hub.fetch("org/model", sys.executable, here, form=form) == 1000
    assert files_of(asked) == wanted
    model = runtime.model("org/model", here, form=form)
    assert model.path
    assert model.weight_bytes == 1000
    if "config.json" not in files or form == "mistral":
        assert (model.context, model.kv_bytes_per_token) == (128_000, 2 * 2 * 2 * 16 * 2)
        assert model.shape
        assert (model.shape.layers, model.shape.hidden, model.shape.inner) == (2, 64, 128)


def test_a_directory_in_mistrals_own_format(tmp_path: Path) -> None:
    """As vLLM decides: Mistral's where its weights and params.json are, or told so; what is neither says what it is."""
    for name, body in OWN.items():
        (tmp_path / name).write_bytes(body)
    assert runtime.model(str(tmp_path), {}).context == 128_000
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    assert [runtime.model(str(tmp_path), {}, form=form).context for form in ("", "mistral", "hf")] == [
        128_000,
        128_000,
        65536,
    ]
    (tmp_path / "params.json").unlink()
    assert runtime.model(str(tmp_path), {}).context == 65536
    assert "no params.json" in runtime.model(str(tmp_path), {}, form="mistral").problem
    (tmp_path / "config.json").unlink()
    (tmp_path / "x.gguf").touch()
    assert "only GGUF files, which are not supported" in runtime.model(str(tmp_path), {}).problem


@pytest.mark.parametrize(
    ("files", "form", "said"),
    [
        ({"model.Q4_K_M.gguf": b"g"}, "", "it holds GGUF files only, which are not supported"),
        ({"adapter_config.json": b"{}"}, "", "it has no config.json"),
        (FILES, "mistral", "it is not in Mistral's own format"),
    ],
)
def test_a_repository_of_no_known_format_is_not_called_unknown(
    holding: Hub, tmp_path: Path, files: dict[str, bytes], form: str, said: str
) -> None:
    """It is there: what it lacks is told, and its files, not a mistake in spelling."""
    holding.files = files
    with pytest.raises(PreflightError) as caught:
        hub.fetch("org/model", sys.executable, environ(holding, tmp_path), form=form)
    assert said in str(caught.value)
    assert "spelling" not in caught.value.hint


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (
            {"speculative-config": {"method": "eagle3", "model": "o/draft", "revision": "v2"}},
            [("o/draft", "v2", "other")],
        ),
        ({"-sc": '{"model": "o/draft"}'}, [("o/draft", "main", "other")]),
        ({"speculative-config.model": "o/draft"}, [("o/draft", "main", "other")]),
        ({"spec-model": "o/draft"}, [("o/draft", "main", "other")]),
        ({"speculative-config": {"method": "ngram", "model": "ngram"}}, []),
        (
            {"lora-modules": ["x=o/x", {"name": "y", "path": "o/y"}, "z=./z"]},
            [("o/x", "main", "other"), ("o/y", "main", "other")],
        ),
        ({"lora_modules": '{"name": "y", "path": "o/y"}'}, [("o/y", "main", "other")]),
        ({"tokenizer": "o/t", "tokenizer-revision": "v1"}, [("o/t", "v1", "tokenizer")]),
        ({"hf-config-path": "o/c", "generation-config": "vllm", "tokenizer": "o/m"}, [("o/c", "main", "tokenizer")]),
    ],
)
def test_what_else_an_engine_reads(args: dict[str, Any], wanted: list[tuple[str, str, str]]) -> None:
    """Draft models, adapters, tokenizers and configs that are repositories, in every way to write them."""
    found = repositories.auxiliary(Engine(model="o/m", args=args))
    assert [(one.name, one.revision, one.kind) for one in found] == wanted


def test_up_fetches_a_draft_model_too(holding: Hub, asked: list[str], lab: Lab) -> None:
    """Before that its engine may ask the hub; afterwards everything is here, and nobody asks again."""
    holding.name, holding.files = "org/draft", {"config.json": b"{}", "model.safetensors": b"w"}
    python = lab.path / "python-with-hub"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={FAKES} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    lab.environ |= {"HF_ENDPOINT": holding.url, "HF_HOME": str(lab.path / "hub")}
    args = {"speculative-config": {"method": "eagle3", "model": "org/draft", "num_speculative_tokens": 3}}
    path = lab.profile({"a": {"args": args}, "b": {}}, runtime={"python": str(python)})
    planned = lab.plan(path)
    assert planned.fetch == ("org/draft",)
    assert [spec.env.get("HF_HUB_OFFLINE") for spec in planned.services] == [None, "1"]
    done = lab.run("up", path)
    assert done.returncode == 0, done.stderr
    assert "Downloading org/draft" in done.stdout
    assert "model.safetensors" in files_of(asked)
    assert [spec.env.get("HF_HUB_OFFLINE") for spec in lab.plan(path).services] == ["1", "1"]
    asked.clear()
    assert "unchanged" in lab.run("up", path).stdout
    assert asked == []


BAD_TOKEN = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})
NO_REVISION = (404, {"X-Error-Code": "RevisionNotFound"})


@pytest.mark.parametrize(
    ("refusal", "token", "said", "hint"),
    [
        ("gated", "", "it is gated", "org/model, accept its licence, then set HF_TOKEN"),
        ("gated", "other", "it is gated", "with the account of your token"),
        ("unknown", "", "no such model (404)", "check the spelling; if it is private, set HF_TOKEN"),
        (BAD_TOKEN, "bad", "the token is refused (401)", "wrong or expired"),
        ((403, {}), "weak", "access is forbidden (403)", "lacks the permission"),
        ((429, {}), "", "too many requests (429)", "with HF_TOKEN set"),
        (NO_REVISION, "", "no such revision", "`revision`"),
    ],
)
def test_refusals(
    server: Hub, asked: list[str], tmp_path: Path, refusal: Any, token: str, said: str, hint: str
) -> None:
    """Each has its own words and its own advice; the token is not among them."""
    server.gated = refusal == "gated"
    server.refusal = None if isinstance(refusal, str) else refusal
    name = "org/none" if refusal == "unknown" else "org/model"
    here = environ(server, tmp_path, **({"HF_TOKEN": token} if token else {}))
    with pytest.raises(PreflightError) as caught:
        hub.fetch(name, sys.executable, here)
    assert f"model {name} cannot be downloaded: {said}" in str(caught.value)
    assert hint in caught.value.hint
    assert files_of(asked) == set()


def test_no_network(server: Hub, tmp_path: Path) -> None:
    """Nobody answers; and the user's own wish not to be connected."""
    for variables, said in (({"HF_ENDPOINT": "http://127.0.0.1:9"}, "no connection"), ({"HF_HUB_OFFLINE": "1"}, "set")):
        with pytest.raises(PreflightError, match=said) as caught:
            hub.fetch("org/model", sys.executable, environ(server, tmp_path, **variables))
        assert "local directory" in caught.value.hint


@pytest.mark.parametrize(("words", "said"), [("exit 3", "exit code 3"), ("echo ouch >&2; exit 1", "ouch")])
def test_an_interpreter_that_says_nothing(tmp_path: Path, words: str, said: str) -> None:
    """What it left on standard error, or its exit code."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{words}\n")
    python.chmod(0o755)
    with pytest.raises(PreflightError, match=said):
        hub.fetch("org/model", str(python), {})
    with pytest.raises(PreflightError, match="No such file"):
        hub.fetch("org/model", str(tmp_path / "none"), {})


def test_up_fetches_once_and_engines_stay_offline(server: Hub, asked: list[str], lab: Lab) -> None:
    """One download for each place that engines look in, before any starts; then nobody asks the hub again."""
    python = lab.path / "python-with-hub"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={FAKES} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    homes = {name: str(lab.path / name) for name in ("first", "second")}
    engines = {
        "a": {"env": {"HF_HOME": homes["first"]}},
        "b": {"env": {"HF_HOME": homes["first"]}},
        "c": {"env": {"HF_HOME": homes["second"]}},
    }
    path = lab.profile(engines, model="org/model", runtime={"python": str(python)})
    lab.environ |= {"HF_ENDPOINT": server.url}
    done = lab.run("up", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Downloading org/model") == 2
    assert sum(line.startswith("GET") and line.endswith("model.safetensors") for line in asked) == 2
    records = lab.project().records()
    for name in engines:
        leader = records[name].leader
        assert leader is not None
        assert b"HF_HUB_OFFLINE=1" in (procfs.environ(leader.pid) or [])
    asked.clear()
    assert "unchanged" in lab.run("up", path).stdout
    assert asked == []


def test_a_refused_download_starts_nothing(server: Hub, asked: list[str], lab: Lab) -> None:
    """Exit code 5, the reason, and what to do."""
    server.gated = True
    python = lab.path / "python-with-hub"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={FAKES} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    home = {"HF_HOME": str(lab.path / "hub")}
    path = lab.profile({"a": {"env": home}}, model="org/model", runtime={"python": str(python)})
    done = lab.run("up", path, HF_ENDPOINT=server.url)
    assert done.returncode == 5
    assert "it is gated" in done.stderr
    assert "accept its licence" in done.stderr
    assert (asked != [], lab.project().records()) == (True, {})
