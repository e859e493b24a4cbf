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
from kvdemo.errors import PreflightError
from kvdemo.host import hub, procfs, runtime

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
