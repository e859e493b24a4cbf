"""``kvdemo bench --target``: engines that something else started, here the fakes.

What a project proves is proved from outside too; what cannot be seen from there is UNPROVEN, with the reason.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Lab
from kvdemo.host import health
from kvdemo.planning.plan import Plan
from relay import certificate, relay

CHUNK = 64
ENGINES = ("plain", "other", "a", "b")
KEY = "correct-horse"


class Outside:
    """The fleet, and the command put to its addresses by somebody who knows nothing of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        engines: dict[str, dict[str, Any]] = {name: {} for name in ENGINES}
        for name in ("a", "b"):
            engines[name] = {"cache": "shared"}
        # Another's chunk size than LMCache's own.
        path = lab.profile(engines, {"shared": {"l1": "16MiB", "chunk_size": CHUNK}})
        (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(980)))
        lab.up(path)
        self.plan: Plan = lab.plan(path)
        self.runs = 0
        self.cache = ("--lmcache-url", self.plan.service("shared").url)

    def urls(self, *names: str) -> list[str]:
        """Options that name these engines."""
        return [word for name in names for word in ("--target", f"{name}={self.plan.service(name).url}")]

    def run(self, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The command to its end, in a state directory where nothing was ever up."""
        self.runs += 1
        environ = {"KVDEMO_STATE_DIR": str(self.lab.path / "nothing"), **environ}
        given = ("--context", "context.txt", "--trials", "1", "--no-limit", "--result-dir", f"results{self.runs}")
        done = self.lab.run("bench", *given, *options, **environ)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def judged(self, *options: str, code: int = 0, **environ: str) -> dict[str, Any]:
        """The result, as it was saved; the exit code is ``code``."""
        done = self.run("--json", *options, **environ)
        assert done.returncode == code, done
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def break_(self, service: str, **faults: object) -> None:
        """Give a service these faults and no other."""
        body = {f"FAKE_{name}": str(value) for name, value in faults.items()}
        assert health.request(self.plan.service(service).url, "/fake", body=body)[0] == 200


@pytest.fixture(scope="module")
def fleet(shared_lab: Lab) -> Iterator[Outside]:
    """All four engines and their cache."""
    yield Outside(shared_lab)
    shared_lab.down()


@pytest.fixture
def outside(fleet: Outside) -> Iterator[Outside]:
    """The same without faults, before and after."""
    yield fleet
    for name in (*ENGINES, "shared"):
        fleet.break_(name)


def rows(document: dict[str, Any]) -> dict[tuple[str, str], tuple[str, int]]:
    """Verdict and cached tokens of each row."""
    return {(row["engine"], row["arm"]): (row["verdict"], row["cached_tokens"]) for row in document["rows"]}


def test_verdicts_are_those_of_the_project(outside: Outside) -> None:
    """Four addresses in the order of the profile, with or without that of the LMCache server: the same is proved."""
    inside = outside.judged(KVDEMO_STATE_DIR=outside.lab.environ["KVDEMO_STATE_DIR"])
    asked = outside.judged(*outside.urls(*ENGINES), *outside.cache)
    blind = outside.judged(*outside.urls(*ENGINES), "--chunk-size", str(CHUNK))
    for document in (asked, blind):
        assert rows(document) == rows(inside)
        assert document["valid"]
        assert document["answer"]["same"] is True
        assert document["speedup"]["n"] == 1
        assert document["versions"] == {"vllm": "0.32.0"}
        assert [document[role] for role in ("baseline", "writer", "reader")] == ["other", "a", "b"]
    assert asked["chunk_size"] == CHUNK
    assert "visibility_lag" in asked["costs"]
    assert "visibility_lag" not in blind.get("costs", {})


def test_roles_can_be_given(outside: Outside) -> None:
    """Any order, with the roles named; two targets alone are writer and reader, the writer's cold the baseline."""
    roles = ("--writer", "b", "--reader", "a", "--baseline", "plain")
    document = outside.judged(*outside.urls("a", "plain", "b", "other"), *roles, *outside.cache)
    assert [document[role] for role in ("baseline", "writer", "reader")] == ["plain", "b", "a"]
    assert rows(document)["a", "reuse"][0] == "SHARED"
    document = outside.judged(*outside.urls("a", "b"), *outside.cache)
    assert (document["baseline"], rows(document)["b", "reuse"][0]) == ("a", "SHARED")


def test_the_project_takes_roles_too(outside: Outside) -> None:
    """Who writes and who reads can be turned round for a fleet of kvdemo's own."""
    inside: dict[str, Any] = {"KVDEMO_STATE_DIR": outside.lab.environ["KVDEMO_STATE_DIR"]}
    document = outside.judged("--writer", "b", "--baseline", "plain", **inside)
    assert [document[role] for role in ("baseline", "writer", "reader")] == ["plain", "b", "a"]
    for wrong in (("--writer", "plain"), ("--writer", "a", "--reader", "a"), ("--baseline", "a")):
        assert outside.run(*wrong, **inside).returncode == 2


def test_a_wrong_chunk_size_is_no_proof(outside: Outside) -> None:
    """More is expected than comes: PARTIAL, and the remedy is named."""
    done = outside.run(*outside.urls("a", "b"), "--chunk-size", "980")
    assert done.returncode == 1
    assert "--chunk-size" in done.stderr + done.stdout


def test_nothing_is_shared(outside: Outside) -> None:
    """Engines that do not share: MISS, whatever the command line calls them; no hint at a fleet of kvdemo's."""
    done = outside.run(*outside.urls("plain", "other"))
    assert done.returncode == 1
    assert "MISS" in done.stdout
    assert "nobody can ask its cache server why" in done.stderr
    assert "kvdemo logs" not in done.stderr


def test_counters_that_cannot_be_read(outside: Outside) -> None:
    """Without /metrics nothing is proved."""
    outside.break_("b", NO_METRICS=1)
    done = outside.run(*outside.urls("a", "b"), *outside.cache)
    assert done.returncode == 1
    assert "UNPROVEN" in done.stdout
    assert "/metrics cannot be read" in done.stderr


def test_a_router_proves_nothing(outside: Outside) -> None:
    """Each connection goes to another engine: its counters are those of several, and it is told so."""
    ports = [outside.plan.service(name).port for name in ("a", "b")]
    with relay(*ports) as port:
        targets = [word for name in ("one", "two") for word in ("--target", f"{name}=http://127.0.0.1:{port}")]
        done = outside.run(*targets, *outside.cache)
    assert done.returncode == 1
    assert "UNPROVEN" in done.stdout
    assert "the address of one engine, not of a router" in done.stderr


def test_a_proxy_that_buffers_proves_no_time(outside: Outside) -> None:
    """Its streams arrive in one piece: UNPROVEN with the reason, no speed-up, exit 1; without it the same is proved."""
    with (
        relay(outside.plan.service("a").port, hold=lambda _: True) as a,
        relay(outside.plan.service("b").port, hold=lambda _: True) as b,
    ):
        targets = ["--target", f"a=http://127.0.0.1:{a}", "--target", f"b=http://127.0.0.1:{b}"]
        done = outside.run(*targets, *outside.cache)
    assert done.returncode == 1
    assert "UNPROVEN: the stream arrives in one piece (16 tokens within" in done.stderr
    assert "measure at the engine's own address" in done.stderr
    assert "faster (TTFT)" not in done.stdout
    with relay(outside.plan.service("a").port) as a, relay(outside.plan.service("b").port) as b:
        targets = ["--target", f"a=http://127.0.0.1:{a}", "--target", f"b=http://127.0.0.1:{b}"]
        assert rows(outside.judged(*targets, *outside.cache))["b", "reuse"][0] == "SHARED"


def test_a_stream_that_is_late_once_is_noise(outside: Outside) -> None:
    """Where the other streams of an engine come token by token, nothing buffers: the one that does not was late."""
    held: list[int] = []

    def third(number: int) -> bool:
        held.extend([number] if number == 3 else [])
        return number == 3

    with relay(outside.plan.service("b").port, hold=third) as b:
        targets = [*outside.urls("a"), "--target", f"b=http://127.0.0.1:{b}"]
        verdicts = {key: verdict for key, (verdict, _) in rows(outside.judged(*targets, *outside.cache)).items()}
    assert held
    assert (verdicts["b", "reuse"], verdicts["b", "again"]) == ("SHARED", "LOCAL")


def test_https(outside: Outside, tmp_path: Path) -> None:
    """The same is proved through TLS, with a certificate that is trusted; an untrusted one is refused."""
    pem = certificate(tmp_path)
    with (
        relay(outside.plan.service("a").port, tls=pem) as a,
        relay(outside.plan.service("b").port, tls=pem) as b,
    ):
        targets = ["--target", f"a=https://127.0.0.1:{a}/v1", "--target", f"b=https://127.0.0.1:{b}/"]
        document = outside.judged(*targets, *outside.cache, SSL_CERT_FILE=str(pem))
        assert rows(document)["b", "reuse"][0] == "SHARED"
        refused = outside.run(*targets)
    assert refused.returncode == 7
    assert "certificate" in refused.stderr.lower()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--target", "a=http://127.0.0.1:9"], 2, "one is not enough"),
        (["--target", "http://127.0.0.1:9"], 2, "expected NAME=URL"),
        (["--target", "a=ftp://x", "--target", "b=http://y"], 2, "is not an address"),
        (["--target", "a=http://u:secret@x", "--target", "b=http://y"], 2, "holds no password"),
        (["--target", "a=http://127.0.0.1:99999", "--target", "b=http://y"], 2, "is not an address"),
        (["--target", "a=http://x", "--target", "a=http://y"], 2, "two are called a"),
        (["--target", "a=http://x", "--target", "b=http://y", "--writer", "c"], 2, "no target is called c"),
        (
            ["--target", "a=http://x", "--target", "b=http://y", "--reader", "a", "--writer", "a"],
            2,
            "writer and reader",
        ),
        (["--target", "a=http://x", "--target", "b=http://y", "--tier", "l2"], 2, "--tier cannot be combined"),
        (["--target", "a=http://x", "--target", "b=http://y", "-p", "demo"], 2, "--project-name"),
        (["--target", "a=http://127.0.0.1:9", "--target", "b=http://127.0.0.1:9"], 7, "Connection refused"),
        (["--cache-url", "http://127.0.0.1:9"], 2, "need --target"),
    ],
)
def test_mistakes(lab: Lab, options: list[str], code: int, said: str) -> None:
    """Each is told in words before anything is asked."""
    (lab.path / "context.txt").write_text("x")
    done = lab.run("bench", "--context", "context.txt", *options)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "secret" not in done.stderr.replace("u:secret@x", "")


def test_models_must_agree(outside: Outside) -> None:
    """No common model, and one that a target does not offer."""
    targets = outside.urls("a", "b")
    done = outside.run(*targets, "--target-model", "gpt")
    assert (done.returncode, "has no gpt" in done.stderr) == (2, True)
    outside.break_("b", MODEL_ID="another")
    done = outside.run(*targets)
    assert (done.returncode, "no model in common" in done.stderr) == (2, True)


def test_a_cache_server_that_is_none(outside: Outside) -> None:
    """The address of an engine is not that of its LMCache server."""
    done = outside.run(*outside.urls("a", "b"), "--cache-url", outside.plan.service("a").url)
    assert (done.returncode, "no LMCache server answers" in done.stderr) == (7, True)


def test_keys(lab: Lab) -> None:
    """The key comes from the environment, under vLLM's name or OpenAI's, and is saved nowhere."""
    lab.environ |= {"VLLM_API_KEY": KEY}
    engines = {"a": {"cache": "shared"}, "b": {"cache": "shared"}}
    path = lab.profile(engines, {"shared": {"l1": "16MiB", "chunk_size": CHUNK}}, secrets=["VLLM_API_KEY"])
    lab.up(path)
    (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(300)))
    plan = lab.plan(path)
    options = [word for spec in plan.engines for word in ("--target", f"{spec.name}={spec.url}")]
    options += ["--context", "context.txt", "--trials", "1", "--no-limit", "--chunk-size", str(CHUNK)]
    del lab.environ["VLLM_API_KEY"]
    refused = lab.run("bench", *options)
    assert (refused.returncode, "OPENAI_API_KEY" in refused.stderr) == (7, True)
    done = lab.run("bench", *options, OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done
    assert not [file for file in (lab.path / "results").iterdir() if KEY in file.read_text()]
    for key, words in ((None, "asks for an API key (401)"), ("wrong", "refuses the API key")):
        own = lab.run("bench", "--context", "context.txt", **({"VLLM_API_KEY": key} if key else {}))
        assert (own.returncode, words in own.stderr, "VLLM_API_KEY" in own.stderr) == (7, True, True), own
    lab.environ |= {"VLLM_API_KEY": KEY}
    lab.down()


@pytest.mark.parametrize("key", ["se\rcret", "secret\n", "secr\u00e9t", "sec\tret", " secret"], ids=ascii)
@pytest.mark.parametrize("verb", ["bench", "up", "ps"])
def test_a_key_that_no_header_can_carry(lab: Lab, key: str, verb: str) -> None:
    """Refused in words with exit code 2, before anything is asked or started, and never shown."""
    (lab.path / "context.txt").write_text("x")
    path = lab.profile({"a": {}}, secrets=["VLLM_API_KEY"])
    if verb == "ps":
        lab.environ["VLLM_API_KEY"] = "good"
        lab.up(path)
    targets = ("--target", "a=http://127.0.0.1:9", "--target", "b=http://127.0.0.1:9", "--context", "context.txt")
    arguments: dict[str, tuple[str | Path, ...]] = {"bench": targets, "up": (path,), "ps": ()}
    done = lab.run(verb, *arguments[verb], VLLM_API_KEY=key)
    assert (done.returncode, "VLLM_API_KEY" in done.stderr) == (2, True), done
    assert "Traceback" not in done.stderr
    assert key not in done.stderr + done.stdout
    assert "secret" not in done.stderr
    assert lab.project().records().keys() == ({"a"} if verb == "ps" else set())


def test_other_benchmarks(outside: Outside) -> None:
    """--with prints their commands for targets too, with the model's name as tokenizer."""
    done = outside.lab.run("bench", *outside.urls("a", "b"), "--with", "vllm-bench")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert lines[::2] == ["# a", "# b"]
    assert f"--base-url {outside.plan.service('a').url}" in lines[1]
    assert "--tokenizer model" in lines[1]
