"""What a new user sees first: an installed wheel, an empty directory, and a right answer from every engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wheels
from kvdemo.bench import workload
from kvdemo.bench.client import Client
from kvdemo.config import profile
from real_fleet import ROOT, START, Real

SPEAKING = ROOT / ".cache" / "smollm2"
ANSWERS = {
    "Which number is cut upside down on the tower?": "207",
    "On which day was the light lit for the first time?": "1 September 1849",
    "How many panes of glass does the lantern have?": "thirty-six",
    "What do the keepers still call the iron rings?": "Gow's rings",
    "How many blocks are there in the tower?": "one thousand nine hundred and forty",
}
"""What lighthouse.txt says about each question of cpu.yaml."""

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(3 * START),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or not SPEAKING.exists(),
        reason="needs vLLM, LMCache and SmolLM2 (scripts/setup installs them)",
    ),
]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[tuple[Real, dict[str, Any]]]:
    """`init`, `up` and one `bench` by an installed wheel in an empty directory; `down` at the end of the tests."""
    base = tmp_path_factory.mktemp("new-user")
    site = wheels.install(wheel, base / "prefix")
    empty = base / "empty"
    empty.mkdir()
    real = Real(empty, Path("kvdemo.yaml"), "smoke", KVDEMO_MODEL=str(SPEAKING), PYTHONPATH=str(site))
    try:
        real.do("init", "smoke")
        real.do("up")
        yield real, real.bench("--trials", "1", "--no-limit")
        real.do("down")
    finally:
        real.close()


def answer(real: Real, engine: str, question: str) -> str:
    """What an engine answers about the guide, to the end; the guide is computed and stored by the first question."""
    spec, bench = real.plan.service(engine), profile.load(ROOT / "profiles" / "smoke.yaml", {}).bench
    words = workload.messages(bench.system, (real.path / "lighthouse.txt").read_text(), question)
    body = workload.body(spec.model, {"messages": words}, max_tokens=32, salt="answers", ignore_eos=False)
    with Client(spec.url) as client:
        reply = client.stream("/v1/chat/completions", body)
    assert not reply.error
    return reply.text


def test_the_reader_loads_what_the_writer_read(story: tuple[Real, dict[str, Any]]) -> None:
    """Without a plain engine the writer's cold request is the baseline; the proof is the same."""
    _, result = story
    assert [row["verdict"] for row in result["rows"]] == ["COLD", "SHARED", "LOCAL"]
    assert result["answer"]["same"] is True
    assert result["speedup"]["n"] == 1


@pytest.mark.parametrize("question", ANSWERS)
def test_every_engine_gives_the_right_answer(story: tuple[Real, dict[str, Any]], question: str) -> None:
    """What lighthouse.txt says is in the answer of the engine that computed it and of the one that loaded its KV."""
    answers = {engine: answer(story[0], engine, question) for engine in ("lmcache-a", "lmcache-b")}
    assert all(ANSWERS[question].casefold() in text.casefold() for text in answers.values()), answers
    assert len(set(answers.values())) == 1, answers


def test_these_are_the_questions_of_the_profiles() -> None:
    """What a user is shown is what is tested here."""
    cpu, smoke = (profile.load(ROOT / "profiles" / f"{name}.yaml", {}).bench for name in ("cpu", "smoke"))
    assert list(cpu.questions) == list(ANSWERS)
    assert smoke.questions[0] == cpu.questions[0]
    text = " ".join((ROOT / "profiles" / "lighthouse.txt").read_text().split())
    assert all(answer in text for answer in ANSWERS.values())


def test_what_is_computed_again_is_the_question(story: tuple[Real, dict[str, Any]]) -> None:
    """A prompt just longer than whole chunks: a tail of a hundred tokens would take longer than loading the rest."""
    _, result = story
    reuse = next(row for row in result["rows"] if row["arm"] == "reuse")
    assert reuse["cached_tokens"] == 2048
    assert 0 < reuse["prompt_tokens"] - reuse["cached_tokens"] <= 32
