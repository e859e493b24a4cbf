"""Other benchmarks' commands for a planned fleet: one line for each engine that a shell and the peer itself accept."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from kvdemo.config.profile import Cache, Engine, Profile
from kvdemo.export import peers
from kvdemo.planning import plan
from kvdemo.planning.facts import Facts, Interpreter, Model

DIRECTORY = "/models/it's tiny"
PORTS = {"shared": 6000, "shared.http": 6001, "plain": 7000, "cached": 7001}
PEERS = get_args(peers.Peer)


def fleet(*, path: str = DIRECTORY, secrets: list[str] | None = None, **engine: Any) -> plan.Plan:
    """A plain engine and a cached one, of a model in a directory whose name needs quotes, on this interpreter."""
    facts = Facts(
        default_python=sys.executable,
        interpreters={sys.executable: Interpreter(sys.executable, {"vllm": "0.32.0", "lmcache": "0.5.6"})},
        models={path: Model(path, path, "d", "bfloat16", context=32768, kv_bytes_per_token=8192)},
        ports=PORTS,
    )
    given: dict[str, Any] = {"model": path, "gpus": [], "served_model_name": "tiny"} | engine
    engines = {"plain": Engine(**given), "cached": Engine(**given, cache="shared")}
    profile = Profile(
        path=Path("/p/demo.yaml"), name="demo", engines=engines, caches={"shared": Cache()}, secrets=secrets or []
    )
    return plan.make(profile, facts)


def words(peer: peers.Peer, made: plan.Plan) -> list[list[str]]:
    """The commands as a shell would see them."""
    return [shlex.split(line) for line in peers.commands(made, peer) if not line.startswith("#")]


def after(command: list[str], flag: str) -> str:
    """What follows a flag."""
    return command[command.index(flag) + 1]


@pytest.mark.parametrize("peer", PEERS)
def test_one_command_for_each_engine(peer: peers.Peer) -> None:
    """A comment names the engine; the command holds its URL, its model's name and, quoted, where its tokenizer is."""
    made = fleet()
    lines = peers.commands(made, peer)
    assert lines[::2] == ["# plain", "# cached"]
    for spec, command in zip(made.engines, words(peer, made), strict=True):
        settings = {word.partition("=")[2] for argument in command for word in argument.split(",")}
        said = settings | set(command)
        assert {spec.url, "tiny"} <= said
        assert (DIRECTORY in said) == (peer != "lmcache-bench")


@pytest.mark.parametrize("peer", PEERS)
def test_no_network_is_needed(peer: peers.Peer) -> None:
    """With a model that is here, peers are told to stay offline; AIPerf would then not find a directory."""
    for command in words(peer, fleet()):
        expected = ["-u", "HF_HUB_OFFLINE"] if peer == "aiperf" else ["HF_HUB_OFFLINE=1"]
        assert command[: 1 + len(expected)] == ["env", *expected]


@pytest.mark.parametrize("peer", PEERS)
def test_a_key_is_named_and_never_shown(peer: peers.Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the engine wants a key, the user's shell fills it in: the very word that the peer reads."""
    monkeypatch.setenv("VLLM_API_KEY", "correct horse")
    for line in peers.commands(fleet(secrets=["VLLM_API_KEY"]), peer)[1::2]:
        assert "correct horse" not in line
        printed = f'for word in {line}; do printf "%s\\n" "$word"; done'
        said = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, check=True).stdout.splitlines()
        names = {"guidellm": "GUIDELLM__SPEC__BACKEND__API_KEY="}
        assert ("" if peer == "aiperf" else names.get(peer, "OPENAI_API_KEY=")) + "correct horse" in said
    assert not any("API_KEY" in line for line in peers.commands(fleet(), peer))


@pytest.mark.parametrize("peer", PEERS)
def test_the_load_fits_the_context(peer: peers.Peer) -> None:
    """Documents are 4,000 tokens long, or half of a shorter context (LMCache counts words of up to two tokens)."""
    for context, length in ((32768, 4000), (1024, 512)):
        wanted = str(length // 2 if peer == "lmcache-bench" else length)
        for command in words(peer, fleet(max_model_len=context)):
            assert wanted in {part for word in command for part in word.replace("=", ",").split(",")}


@pytest.mark.parametrize("kv_bytes", [None, 1024, 8192, 131_072, 2_000_000])
def test_lmcache_asks_about_two_documents(kv_bytes: int | None) -> None:
    """It counts documents from a volume of KV, whatever a token of this model takes."""
    made = fleet()
    document = made.to_json()
    for entry in document["services"]:
        entry["kv_bytes_per_token"] = kv_bytes
    for command in words("lmcache-bench", plan.Plan.from_json(document)):
        volume, per_gb = float(after(command, "--kv-cache-volume")), int(after(command, "--tokens-per-gb-kvcache"))
        assert int(volume * per_gb / int(after(command, "--ldqa-document-length"))) == peers.DOCUMENTS


def real(module: str) -> list[pytest.MarkDecorator]:
    """Marks of a test that asks the peer itself."""
    missing = importlib.util.find_spec(module) is None
    return [pytest.mark.real, pytest.mark.skipif(missing, reason=f"{module} is not installed in this interpreter")]


def ask(command: list[str], path: Path) -> str:
    """Run it; what it printed."""
    done = subprocess.run(command, cwd=path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("peer", [pytest.param("vllm-bench", marks=real("vllm"))])
def test_vllm_accepts_its_command(peer: peers.Peer, tmp_path: Path) -> None:
    """Every flag is one of `vllm bench serve`, with a value that it takes: the printed program up to its start."""
    command = words(peer, fleet())[0]
    assert command.count(peers.VLLM_BENCH) == 1
    program = peers.VLLM_BENCH.replace("serve.main(parser.parse_args())", "print(vars(parser.parse_args()))")
    assert program != peers.VLLM_BENCH
    said = ask([program if word == peers.VLLM_BENCH else word for word in command], tmp_path)
    assert f"'tokenizer': {DIRECTORY!r}" in said
    assert "'prefix_repetition_prefix_len': 4000" in said


@pytest.mark.parametrize("peer", [pytest.param("lmcache-bench", marks=real("lmcache"))])
def test_lmcache_accepts_its_command(peer: peers.Peer, tmp_path: Path) -> None:
    """The printed command leaves nothing to ask about: LMCache can write down what it would do."""
    ask([*words(peer, fleet())[0], "--export-config", "said.json"], tmp_path)
    said = json.loads((tmp_path / "said.json").read_text())
    assert (said["workload"], said["ldqa_document_length"], said["model"]) == ("long-doc-qa", 2000, "tiny")
