"""The options of ``kvdemo bench``: one declaration for the command line, the environment, the profile and the page."""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Lab
from kvdemo.bench import modes
from kvdemo.bench.modes.mode import Mode
from kvdemo.config import benchmark
from kvdemo.config.benchmark import Bench
from kvdemo.errors import UsageError
from runs import CALM

VALUES: dict[str, tuple[object, str]] = {
    "context": ("doc.txt", "doc.txt"),
    "question": ("Why?", "Why?"),
    "system": ("Read.", "Read."),
    "trials": (7, "7"),
    "max_trials": (9, "9"),
    "max_tokens": (5, "5"),
    "ignore_eos": (True, "true"),
    "endpoint": ("completions", "completions"),
    "tier": ("l1", "l1"),
    "drop_page_cache": (True, "true"),
    "concurrency": (2, "2"),
    "matrix": (True, "true"),
    "lengths": ((1000, 2500), "1k,2.5k"),
    "costs": (True, "true"),
    "evicted": (True, "true"),
    "restarted": (True, "true"),
    "limit": (False, "false"),
    "expected_ttft_gain": (2.5, "2.5"),
    "writer": ("b", "b"),
    "reader": ("a", "a"),
    "baseline": ("plain", "plain"),
    "seed": (3, "3"),
}
"""One value of each option other than its default, and the text of it."""


def test_every_option_has_a_value_here() -> None:
    """The tests below are about all of them."""
    hidden = {"questions"}
    assert set(VALUES) == set(Bench.model_fields) - hidden
    assert not [name for name, (value, _) in VALUES.items() if Bench.model_fields[name].default == value]


@pytest.mark.parametrize("name", VALUES)
def test_an_option_is_read_from_text_as_from_a_value(name: str) -> None:
    """What an environment variable or a profile with a variable in it says is what a value of the right type says."""
    value, text = VALUES[name]
    by_text, by_value = Bench().with_values({name: text}), Bench().with_values({name: value})
    assert by_text == by_value != Bench()
    assert by_text.non_default_flags(*VALUES) == [benchmark.flag(name)]
    assert benchmark.of_saved_plan(by_value.model_dump(mode="json")) == by_value


def test_the_command_line_decides_before_the_environment_and_the_profile(lab: Lab) -> None:
    """One value wins: the flag, else KVDEMO_BENCH_NAME, else the profile's key; a switch can be turned off again."""
    lab.up(lab.profile(bench={"context": "./none.txt", "lengths": [64, 128], "matrix": True}))
    clash = lab.run("bench")
    assert (clash.returncode, "--matrix cannot be combined with --lengths" in clash.stderr) == (2, True), clash.stderr
    for arguments, variable, words in (
        (["--no-matrix"], "", "none.txt: no such file"),
        (["--no-matrix"], "other.txt", "other.txt: no such file"),
        (["--no-matrix", "--context", "third.txt"], "other.txt", "third.txt: no such file"),
    ):
        done = lab.run("bench", *arguments, KVDEMO_BENCH_CONTEXT=variable)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_help_shows_every_option_with_its_default(lab: Lab) -> None:
    """The help is the text under the key of the profile."""
    done = lab.run("bench", "--help", COLUMNS="400")
    flat = re.sub(r"[\s│]+", " ", done.stdout)
    for name in VALUES:
        assert benchmark.flag(name) in flat
        assert re.sub(r"\s+", " ", str(Bench.model_fields[name].description)) in flat


def test_what_printing_a_command_cannot_use_is_refused(lab: Lab) -> None:
    """Of all options --with takes those that say whose commands; the variables of a measurement are no mistake."""
    typed = [part for name, (value, text) in VALUES.items() for part in _typed(name, value, text)]
    typed += ["--json", "--verbose", "--format", "github", "--junit", "j.xml", "--progress", "json"]
    typed += ["--result-dir", "r", "--chunk-size", "16", "--cache-url", "http://127.0.0.1:9"]
    done = lab.run("bench", "--with", "aiperf", *typed, "-p", "x", COLUMNS="9999")
    listed, _, rest = done.stderr.removeprefix("error: ").partition(" cannot be combined with --with\n")
    flags = {word for word in typed if word.startswith("--")}
    assert (done.returncode, set(listed.split(", "))) == (2, flags), done.stderr
    assert rest.strip() == "it measures nothing, and prints commands for a shell"
    allowed = {"--with", "--target", "--target-model", "--project-name", "--help"}
    every = set(
        re.findall(r"^[│ ]+(--[a-z][a-z0-9-]+)", lab.run("bench", "--help", COLUMNS="400").stdout, re.MULTILINE)
    )
    assert every - {flag.replace("--no-", "--") for flag in flags} == allowed
    lab.up(lab.profile({"a": {}}))
    assert lab.run("bench", "--with", "aiperf", KVDEMO_BENCH_TRIALS="4").stdout.startswith("# a\n")


def _typed(name: str, value: object, text: str) -> list[str]:
    """An option as somebody types it."""
    flag = benchmark.flag(name)
    return [flag if value else f"--no-{name}"] if isinstance(value, bool) else [flag, text]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lengths", "1k,many", "--lengths: 'many' is not a number of tokens"),
        ("trials", 0, "--trials: expected a whole number of at least 1, got 0"),
        ("max_trials", -1, "--max-trials: expected a number of trials of at least 0, got -1"),
        ("expected_ttft_gain", float("nan"), "--expected-ttft-gain: nan is not a factor"),
        ("expected_ttft_gain", True, "--expected-ttft-gain: expected a factor such as 2, got true"),
        ("matrix", "yes", "--matrix: expected true or false, got 'yes'"),
        ("tier", "l3", "--tier: expected any or l1 or l2, got 'l3'"),
        ("seed", "x", "--seed: expected a whole number, got 'x'"),
        ("question", "caf\udce9?", "--question: is not UTF-8"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_flag(name: str, value: object, words: str) -> None:
    """In plain words, whoever gave it."""
    with pytest.raises(UsageError) as refused:
        Bench().with_values({name: value})
    assert words in str(refused.value)


def test_no_fewer_trials_at_most_than_at_least() -> None:
    """Neither would say how many there are."""
    with pytest.raises(UsageError, match="--max-trials: 2 are fewer than the 5 of --trials"):
        modes.select(Bench().with_values({"trials": 5, "max_trials": 2}))
    assert modes.select(Bench().with_values({"trials": 5, "max_trials": 5}))


@pytest.mark.parametrize(
    ("text", "tokens"), [("", ()), ("1k", (1000,)), ("1K, 2.5k,300", (1000, 2500, 300)), ("16k,,4k", (16000, 4000))]
)
def test_lengths(text: str, tokens: tuple[int, ...]) -> None:
    """Numbers of tokens, k is a thousand."""
    assert Bench().with_values({"lengths": text}).lengths == tokens


@CALM
@given(st.text(max_size=12))
def test_other_lengths_are_refused(text: str) -> None:
    """Any text is either positive numbers or a UsageError."""
    with suppress(UsageError):
        assert all(length > 0 for length in Bench().with_values({"lengths": text}).lengths)


@pytest.mark.parametrize(
    ("options", "sections"),
    [
        ({}, ["rows"]),
        ({"matrix": True}, ["matrix"]),
        ({"lengths": "1k"}, ["lengths"]),
        ({"costs": True}, ["rows", "costs"]),
        ({"lengths": "1k", "costs": True}, ["lengths", "costs"]),
    ],
)
def test_options_choose_modes(options: dict[str, Any], sections: list[str]) -> None:
    """One mode that stands alone, then those beside it; each names its section of the result."""
    assert [mode.section for mode in modes.select(Bench().with_values(options))] == sections


@pytest.mark.parametrize("one", modes.MODES, ids=lambda mode: type(mode).__name__)
@pytest.mark.parametrize("other", modes.MODES, ids=lambda mode: type(mode).__name__)
def test_only_one_mode_stands_alone(one: Mode, other: Mode) -> None:
    """Two modes that would each be the whole run are refused, whichever they are; those beside another go with any."""
    pair = {mode.option: VALUES[mode.option][0] for mode in (one, other) if mode.option}
    clash = len({mode.option for mode in (one, other) if mode.option and not mode.beside}) > 1
    with pytest.raises(UsageError, match="cannot be combined") if clash else nullcontext():
        modes.select(Bench().with_values(pair))


@pytest.mark.parametrize("mode", modes.MODES, ids=lambda mode: type(mode).__name__)
def test_a_mode_refuses_what_contradicts_it(mode: Mode) -> None:
    """Every option that means nothing in a mode is refused with both names, never left out silently."""
    assert not mode.option or mode.option in VALUES
    for other in mode.contradictory:
        with pytest.raises(UsageError) as refused:
            modes.select(Bench().with_values({mode.option: VALUES[mode.option][0], other: VALUES[other][0]}))
        assert benchmark.flag(mode.option) in str(refused.value)
        assert benchmark.flag(other) in str(refused.value)
