"""What a new user sees first: an installed wheel, an empty directory, and a right answer from every engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import wheels
from kvdemo.config import profile
from kvdemo.judge import record
from kvdemo.judge.sample import Sample
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
def story(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Any:
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


def samples(real: Real, run_id: str) -> tuple[Sample, ...]:
    """What every engine answered in one run."""
    return record.read(next((real.path / "results").glob(f"*{run_id[:4]}.jsonl"))).samples


def test_the_reader_loads_what_the_writer_read(story: tuple[Real, dict[str, Any]]) -> None:
    """Without a plain engine the writer's cold request is the baseline; the proof is the same."""
    _, result = story
    assert [row["verdict"] for row in result["rows"]] == ["COLD", "SHARED", "LOCAL"]
    assert result["answer"]["same"] is True
    assert result["speedup"]["median"] > 2


@pytest.mark.parametrize("question", ANSWERS)
def test_every_engine_gives_the_right_answer(story: tuple[Real, dict[str, Any]], question: str) -> None:
    """What lighthouse.txt says is in the answer, whether the engine computed the document or loaded its KV."""
    real, _ = story
    asked = ("--question", question, "--max-tokens", "32", "--trials", "1", "--no-limit")
    answers = samples(real, real.bench(*asked)["run_id"])
    assert {sample.engine for sample in answers} == {"lmcache-a", "lmcache-b"}
    assert all(ANSWERS[question] in sample.text for sample in answers), [sample.text for sample in answers]


def test_these_are_the_questions_of_the_profiles() -> None:
    """What a user is shown is what is tested here."""
    cpu, smoke = (profile.load(ROOT / "profiles" / f"{name}.yaml", {}).bench for name in ("cpu", "smoke"))
    assert list(cpu.questions) == list(ANSWERS)
    assert smoke.questions[0] == cpu.questions[0]
    text = " ".join((ROOT / "profiles" / "lighthouse.txt").read_text().split())
    assert all(answer in text for answer in ANSWERS.values())
