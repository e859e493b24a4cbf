"""Question and answer below the table: what people read first must be what the engines said, and who said it."""

from __future__ import annotations

from dataclasses import replace

import runs
from conftest import Lab
from kvdemo.judge.sample import Sample
from kvdemo.words import exchange

QUESTION = "Which number is cut upside down?"


def lines(samples: list[Sample], **conditions: object) -> list[str]:
    """The text below a run of these samples."""
    result = runs.result({**runs.CONDITIONS, "question": QUESTION, **conditions}, samples)
    return [piece.text for piece in exchange.lines(result, samples)]


def said(text: str) -> list[Sample]:
    """A run whose engines all answer so."""
    return [replace(sample, text=text) for sample in runs.samples() if sample.arm != "control"]


def test_equal_answers_are_one_line() -> None:
    """Every engine said the same: the answer once, and of how many answers; line breaks of a model are none here."""
    samples = said("It is\n207.")
    assert lines(samples) == [f"Question: {QUESTION}", f"Answer (all {len(samples)} alike): It is 207."]


def test_different_answers_name_their_engines() -> None:
    """The most frequent first; whoever said something else is named with its phase."""
    samples = said("207")
    odd = next(number for number, sample in enumerate(samples) if sample.arm == "reuse")
    samples[odd] = replace(samples[odd], text="26")
    question, first, second = lines(samples)
    assert (question, first.rsplit(": ", 1)[1], second.rsplit(": ", 1)[1]) == (f"Question: {QUESTION}", "207", "26")
    assert f"1 of {len(samples)}" in second
    assert f"{samples[odd].engine} reuse" in second


def test_a_sweep_shows_the_answers_of_its_longest_prompt() -> None:
    """A shorter prompt is another question: its answers are not those of engines that disagree."""
    short, long = ([replace(one, length=n) for one in said(text)] for n, text in ((321, "11"), (1053, "207")))
    assert lines([*short, *long]) == [f"Question: {QUESTION}", f"Answer (all {len(long)} alike): 207"]


def test_long_and_many_answers_are_cut_and_counted() -> None:
    """No answer fills the screen, and none is left out without a word."""
    samples = [replace(sample, text=f"{number} " + "x" * 999) for number, sample in enumerate(said(""))]
    shown = lines(samples)
    assert len(shown) == 1 + exchange.OTHERS + 1
    assert all(len(line) < exchange.LONGEST + 80 for line in shown)
    assert shown[-1].startswith(f"and {len(samples) - exchange.OTHERS} other answers")


def test_words_of_random_weights_are_called_meaningless() -> None:
    """Where a text is shown that means nothing, the next line says so; of other models it does not."""
    assert lines(said("drift oil"), random_weights=True)[-1] == exchange.MEANINGLESS
    assert exchange.MEANINGLESS not in lines(said("207"))


def test_nothing_is_said_without_question_or_answer() -> None:
    """Neither for a page's history, whose requests have questions of their own."""
    assert lines(said(" ")) == []
    assert lines(said("207"), question="") == []
    assert lines(said("207"), history=True) == []


def test_a_model_that_calls_its_weights_random_is_called_so(lab: Lab) -> None:
    """From the model's own config.json to the last screen of bench and to a report made later; others are not."""
    config = lab.path / "model" / "config.json"
    (lab.path / "context.txt").write_text("word " * 900)
    for marked in (False, True):
        config.write_text(config.read_text().replace("{", '{"kvdemo_random_weights": true, ' if marked else "{", 1))
        assert lab.run("up", lab.profile()).returncode == 0
        result = f"results-{marked}"
        bench = lab.run("bench", "--trials", "1", "--no-limit", "--context", "context.txt", "--result-dir", result)
        report = lab.run("report", next((lab.path / result).glob("*.jsonl")))
        assert (exchange.MEANINGLESS in bench.stdout, exchange.MEANINGLESS in report.stdout) == (marked, marked)
        assert "Answer (" in bench.stdout


def test_weights_that_vllm_makes_up_are_called_random(lab: Lab) -> None:
    """`--load-format dummy` in the profile; the model's own files know nothing of it."""
    (lab.path / "context.txt").write_text("word " * 900)
    engines = {name: {"cache": "shared", "args": {"load_format": "dummy"}} for name in ("a", "b")}
    assert lab.run("up", lab.profile(engines, {"shared": {"l1": "16MiB", "chunk_size": 64}})).returncode == 0
    bench = lab.run("bench", "--trials", "1", "--no-limit", "--context", "context.txt")
    assert exchange.MEANINGLESS in bench.stdout
