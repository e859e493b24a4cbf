"""What comes into a profile from outside of it: pipes, encodings, secrets in .env; and values that only look right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Lab
from kvdemo.config import findings
from kvdemo.config.profile import Engine, Profile, load
from kvdemo.errors import ProfileError
from kvdemo.export import containers
from kvdemo.planning import window
from kvdemo.planning.facts import Model

SMALL = "model: ./m\nengines: {a: }\n"


def told(directory: Path, text: str | bytes) -> str:
    """What is wrong with a profile of this text; empty if nothing is."""
    file = directory / "p.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load(file, {})
    except ProfileError as error:
        return f"{error}\n{error.hint}"
    return ""


def test_a_pipe_is_read_once_and_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`<(...)` and /dev/stdin can be loaded again; relative paths and .env are those of the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("M=./m\n")
    end, start = os.pipe()
    os.write(start, b"model: ${M}\nengines: {a: }\n")
    os.close(start)
    for _ in range(2):
        profile = load(Path(f"/dev/fd/{end}"), {})
        assert (profile.name, profile.engines["a"].model) == ("kvdemo", f"{tmp_path}/m")
    os.close(end)


def test_a_pipe_that_nobody_writes_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named pipe without a writer ends in a clear word, not in a hang."""
    monkeypatch.setattr(findings, "PATIENCE", 0.05)
    os.mkfifo(tmp_path / "p.yaml")
    with pytest.raises(ProfileError, match="nobody wrote into this pipe"):
        load(tmp_path / "p.yaml", {})


def test_a_command_reads_its_standard_input(lab: Lab) -> None:
    """`plan /dev/stdin`, which loads the profile twice, shows what came through the pipe."""
    text = lab.profile({"one": {}}).read_text()
    words = [sys.executable, "-m", "kvdemo", "plan", "/dev/stdin"]
    environ = {**lab.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(words, input=text, cwd=lab.path, env=environ, capture_output=True, text=True, check=True)
    assert f"{lab.path}/model" in done.stdout


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_told_as_that(tmp_path: Path, encoding: str) -> None:
    """With a byte order mark or without, and with the command that converts it; a mark before UTF-8 is no mistake."""
    said = told(tmp_path, SMALL.encode(encoding))
    assert "is UTF-16 text; kvdemo reads UTF-8" in said
    assert "iconv -f UTF-16" in said
    assert told(tmp_path, SMALL.encode("utf-8-sig")) == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("version: true", "expected 1, the version of the file format, got true"),
        ("version: 1.5", "expected 1"),
        ("host: 999.1.1.1", "expected an address"),
        ("served_model_name: --help", "would be read as a flag"),
        ("served_model_name: ' '", "without blanks"),
        ('served_model_name: "a\\nb"', "one line"),
        ('name: "a\\e[31m"', "control character U+001B"),
        ('env: {A: "x\\r"}', "control character U+000D"),
        ('env: {A: "\\x85"}', "control character U+0085"),
        ("on: {ray: {address: 'h:99999'}}", "HOST:PORT"),
        ("caches: {c: {l2: 'redis://h:99999'}}", "expected a port from 1 to 65535, got 99999"),
        ("caches: {c: {l2: 'redis://h:0'}}", "expected a port from 1 to 65535, got 0"),
        ("caches: {c: {l2: 'redis://h/3'}}", "database 0"),
        ("caches: {c: {l2: 'redis://me@h'}}", "LMCACHE_RESP_USERNAME"),
        ("caches: {c: {l2: 'rediss://h:6379'}}", "speaks no TLS"),
        ("caches: {c: {l2: 'valkeys://h'}}", "speaks no TLS"),
        ("caches: {c: {l2: 'unix:///run/redis.sock'}}", "by host and port only"),
        ("defaults: {engine: {max_model_len: 25.6K}}", "25.6k does"),
        ("defaults: {engine: {max_model_len: -2}}", "number of tokens"),
        ("defaults: {engine: {max_model_len: yes}}", "number of tokens"),
        ("defaults: {engine: {max_model_len: 999999999k}}", "number of tokens"),
        ("defaults: {engine: {memory: .nan}}", "expected a fraction"),
        ("defaults: {engine: {model: --help}}", "expected a Hugging Face id"),
        ("defaults: {engine: {model: 'org/m:Q4_K_M'}}", "GGUF is not supported"),
        ("defaults: {engine: {model: ./m.Q4_K_M.gguf}}", "GGUF is not supported"),
        ("defaults: {engine: {model: 'https://huggingface.co/org/m/tree/main'}}", "is org/m meant?"),
    ],
)
def test_values_that_only_look_right_are_findings(tmp_path: Path, line: str, said: str) -> None:
    """Options as values, booleans as numbers, ports that are none, control characters: each at its place."""
    found = told(tmp_path, f"{SMALL}{line}\n")
    assert said in found
    assert f"{tmp_path}/p.yaml:3:" in found
    assert found.isascii() or "\x1b" not in found


@pytest.mark.parametrize(
    ("written", "meant"),
    [("32768", 32768), ("16k", 16000), ("16K", 16384), ("25.6k", 25600), ("1m", 10**6), ("'8192'", 8192)]
    + [(auto, "auto") for auto in ("auto", "AUTO", "-1", "'-1'")],
)
def test_max_model_len_as_vllm_counts(tmp_path: Path, written: str, meant: Any) -> None:
    """The key takes what the flag takes that it replaces."""
    assert told(tmp_path, f"{SMALL}defaults: {{engine: {{max_model_len: {written}}}}}") == ""
    assert load(tmp_path / "p.yaml", {}).engines["a"].max_model_len == meant


CONFIGS: list[tuple[dict[str, Any], int | None, int | None]] = [
    ({"max_position_embeddings": 40960}, 40960, 40960),
    ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384, 16384),
    (
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        },
        131072,
        131072,
    ),
    (
        {
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        32768,
        131072,
    ),
    (
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "long_factor": [1.0]},
        },
        4096,
        131072,
    ),
    ({"n_positions": 1024}, 1024, 1024),
    ({"max_position_embeddings": "many"}, None, None),
    ({}, None, None),
]


@pytest.mark.parametrize(("config", "default", "most"), CONFIGS)
def test_the_window_of_a_config(config: dict[str, Any], default: int | None, most: int | None) -> None:
    """The default is vLLM's; what is refused is only what no vLLM takes; unknown is unknown."""
    assert (window.of_config(config), window.limit(config)) == (default, most)


@pytest.mark.parametrize(
    ("keys", "context", "beyond"),
    [
        ({}, 40960, False),
        ({"max_model_len": "auto"}, None, False),
        ({"max_model_len": "16k"}, 16000, False),
        ({"args": {"hf-overrides": {"max_position_embeddings": 131072}}}, 131072, True),
        ({"args": {"hf_overrides": '{"rope_parameters": {"factor": 4}}'}}, None, True),
        ({"args": {"hf-overrides.rope_scaling.factor": 4}, "max_model_len": 131072}, 131072, True),
        ({"args": {"hf-overrides": {"text_config": {"rope_theta": 1}}}}, None, True),
        ({"args": {"hf-overrides": {"architectures": ["X"]}}}, 40960, False),
        ({"env": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}}, 40960, True),
        ({"env": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "0"}}, 40960, False),
    ],
)
def test_the_documented_ways_to_a_longer_context(keys: dict[str, Any], context: int | None, beyond: bool) -> None:
    """Overrides in whatever form count; with auto, or with rope parameters of one's own, only the engine knows."""
    engine, model = Engine(model="m", **keys), Model("m", context=40960)
    assert (window.of_engine(engine, model), window.overridden(engine)) == (context, beyond)


def test_with_auto_the_plan_of_a_running_fleet_has_what_the_engine_says(lab: Lab) -> None:
    """Before the start the context is unknown, then it is the engine's own; a second `up` changes nothing."""
    path = lab.profile({"one": {"max_model_len": "auto"}})
    assert lab.plan(path).service("one").context is None
    lab.up(path)
    document = lab.project().load()
    assert document is not None
    assert document["plan"]["services"][0]["context"] == 40960
    assert [event.state for event in lab.up(path)][-1] == "unchanged"


KEY = "geheim-4711"


def test_a_secret_that_only_dotenv_has_reaches_the_engine(lab: Lab) -> None:
    """`up` and `ps` find it beside the profile; `plan` does not show it; without it nothing starts."""
    path = lab.profile({"one": {}}, secrets=["VLLM_API_KEY"])
    assert "VLLM_API_KEY is not set, neither in" in lab.run("up", path).stderr
    (lab.path / ".env").write_text(f"VLLM_API_KEY={KEY}\n")
    assert KEY not in lab.run("plan", path).stdout
    done = lab.run("up", path)
    assert done.returncode == 0, done.stderr
    assert lab.run("ps", "--check").returncode == 0
    state = [file.read_bytes() for file in (lab.path / "state").rglob("*") if file.is_file() and file.suffix != ".log"]
    assert not any(KEY.encode() in text for text in state)


def test_a_mistake_in_dotenv_shows_no_value(tmp_path: Path) -> None:
    """Whatever stands in .env may be secret: a finding shows a name at most."""
    (tmp_path / ".env").write_text(f"MINE = {KEY}\n{KEY}\nOTHER='{KEY}\n")
    found = told(tmp_path, SMALL)
    assert found.count("expected NAME=value") == 2
    assert "this quote is never closed" in found
    assert KEY not in found


@pytest.mark.parametrize(
    "place", ["model: ${MY_TOKEN}", "host: $MY_TOKEN", "env: {A: '${MY_TOKEN:?}'}", "env: {A: '${N:-$MY_TOKEN}'}"]
)
def test_a_variable_that_is_a_secret_by_its_name_becomes_no_value(tmp_path: Path, place: str) -> None:
    """It would be in commands, state and messages; what only says yes or no may."""
    file = tmp_path / "p.yaml"
    file.write_text(f"engines: {{a: {{model: m}}}}\n{place}\n")
    with pytest.raises(ProfileError) as caught:
        load(file, {"MY_TOKEN": KEY})
    assert "MY_TOKEN is a secret by its name" in str(caught.value)
    assert KEY not in str(caught.value)
    file.write_text(
        "engines: {a: {model: m}}\nenv: {HF_HUB_DISABLE_IMPLICIT_TOKEN: '${HF_HUB_DISABLE_IMPLICIT_TOKEN:-1}'}\n"
    )
    assert load(file, {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}).env


def test_logs_are_blanked_after_down_too(lab: Lab) -> None:
    """The names of the secrets outlive the fleet, and with them the blanks in its logs; values are kept nowhere."""
    path = lab.profile({"one": {"env": {"FAKE_LOG": "x"}}}, secrets=["QUIET_NAME"])
    done = lab.run("up", path, QUIET_NAME=KEY)
    assert done.returncode == 0, done.stderr
    lab.run("down")
    with lab.project().log("one").open("a") as log:
        log.write(f"the engine repeats {KEY}\n")
    shown = lab.run("logs", "-p", lab.name, QUIET_NAME=KEY).stdout
    assert "the engine repeats ${QUIET_NAME}" in shown
    assert KEY not in shown


WORDS = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(WORDS, st.recursive(WORDS | st.integers() | st.booleans() | st.none() | st.floats(), st.lists)))
def test_args_of_any_kind_are_words_or_findings(tmp_path: Path, args: dict[str, Any]) -> None:
    """Whatever stands under args, there is a command line of printable text, or a finding, and never a traceback."""
    from kvdemo.config import flags

    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"model": "m", "engines": {"a": {"args": args}}}))
    try:
        profile: Profile = load(tmp_path / "p.yaml", {})
    except ProfileError:
        return
    for word in flags.words(profile.engines["a"].args):
        assert "\0" not in word
        assert "\x1b" not in word


def test_a_model_may_have_several_names(tmp_path: Path) -> None:
    """The key takes what the flag takes; requests use the first name."""
    for written, names in (("a", ("a",)), ("[a, b]", ("a", "b")), ("", ())):
        assert told(tmp_path, f"{SMALL}served_model_name: {written}\n") == ""
        assert load(tmp_path / "p.yaml", {}).engines["a"].served_model_name == names
    assert "'a' is named twice" in told(tmp_path, f"{SMALL}served_model_name: [a, a]\n")
    assert "would be read as a flag" in told(tmp_path, f"{SMALL}served_model_name: [a, --b]\n")


def test_a_container_may_fetch_what_args_name(lab: Lab) -> None:
    """A local model is mounted and needs no hub; a draft model of a repository does."""
    args = {"speculative-config": {"model": "org/draft"}}
    plan = lab.plan(lab.profile({"a": {"args": args}, "b": {}}))
    a, b = (containers.container(spec, str) for spec in plan.services)
    assert (a.fetches, a.env.get("HF_HUB_OFFLINE"), b.fetches, b.env["HF_HUB_OFFLINE"]) == (True, None, False, "1")
    assert a.mounts == b.mounts == (f"{lab.path}/model",)


def test_a_file_that_args_name_is_looked_for_before_the_start(lab: Lab) -> None:
    """Each with its flag and its path; what is there is no word worth."""
    args = {
        "chat-template": "template.jinja",
        "tool-parser-plugin": "./plugin.py",
        "lora-modules": ["x=./adapter", "y=org/y"],
        "speculative-config": {"model": "./draft"},
        "tokenizer": "./model",
    }
    missing = lab.plan(lab.profile({"a": {"args": args}})).missing
    expected = [("chat-template", "template.jinja"), ("tool-parser-plugin", "plugin.py")]
    expected += [("speculative-config", "draft"), ("lora-modules", "adapter")]
    assert tuple(map(str, missing)) == tuple(
        f"a: {flag} names {lab.path}/{name}, which is not there" for flag, name in expected
    )
    for name in ("template.jinja", "plugin.py", "adapter", "draft"):
        (lab.path / name).touch()
    assert not lab.plan(lab.profile({"a": {"args": args}})).missing
