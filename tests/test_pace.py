"""How long a run takes, and how long a document may be, from the pace that one answer has shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Lab
from kvdemo import units
from kvdemo.bench import measure, pace
from kvdemo.bench.client import Reply
from kvdemo.bench.events import Doing, Estimate, Event, Failure, Notice, Saved, to_json
from kvdemo.bench.modes import retention
from kvdemo.bench.modes.mode import Work
from kvdemo.bench.pace import Pace
from kvdemo.commands.benchmark import short_answers
from kvdemo.words import forecast
from runs import CALM, sample


def test_one_slow_gap_is_not_the_pace() -> None:
    """The first token after the prompt may pay for what comes once: the median is the pace, also of a sample."""
    shown = pace.of(reply(itl=[4.0, 0.1, 0.1]))
    assert shown
    assert shown.decode == 0.1
    measured = pace.of_sample(
        replace(sample("cold"), prompt_tokens=1000, cached_tokens=0, ttft=2.0, itl=(4.0, 0.1, 0.1))
    )
    assert measured == Pace(0.002, 0.1)
    assert pace.of_sample(replace(sample("cold"), error="it died")) is None


def reply(**values: Any) -> Reply:
    """An answer of four tokens to a prompt of 1,000."""
    usage = {"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 0}}
    return Reply(**{"ttft": 2.0, "itl": [0.1, 0.2, 0.3], "usage": usage, **values})


def test_the_pace_is_that_of_what_was_computed() -> None:
    """Seconds a computed token and a gap; tokens from a cache cost nothing, and a failure shows no pace."""
    shown = pace.of(reply())
    assert shown
    assert (shown.prefill, shown.decode) == pytest.approx((0.002, 0.2))
    cached = {"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 900}}
    assert pace.of(reply(usage=cached, itl=[])) == Pace(0.02, 0.0)
    assert pace.of(reply(usage={"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 9}})) is None
    assert pace.of(reply(error="it died")) is None
    assert pace.of(Reply()) is None


def test_an_estimate_adds_up() -> None:
    """What is computed at the pace of the prefill, each answer at that of decoding, and what comes before."""
    estimate = pace.estimate(Pace(0.001, 0.1), Work(requests=10, computed=4, tokens=80_000), max_tokens=11, before=5)
    assert (estimate.requests, estimate.computed) == (10, 4)
    assert (estimate.seconds, estimate.seconds_each) == pytest.approx((5 + 80 + 10, 20))
    words = "This takes about 95 s: 10 requests, 4 of them computing a whole prompt (about 20 s each here)."
    assert forecast.sentence(estimate) == words
    # An engine's first prompt pays for what comes once: what follows from it is no forecast of the others.
    assert "20 s here for the first, which pays for what comes once" in forecast.sentence(replace(estimate, first=True))


@pytest.mark.parametrize(("forgets", "floods"), [(True, 0), (False, 3)])
def test_a_flood_is_a_part_of_the_work(monkeypatch: pytest.MonkeyPatch, forgets: bool, floods: int) -> None:
    """An engine that cannot be told to forget computes as many tokens as its KV cache holds, in each trial."""
    plain, reader = (SimpleNamespace(cache=cache, context=8192) for cache in ("", "shared"))
    roles = SimpleNamespace(baseline=plain, plain=[plain], pairs=[SimpleNamespace(reader=reader)])
    prompt, options = SimpleNamespace(tokens=1000), SimpleNamespace(trials=2)
    session: Any = SimpleNamespace(roles=roles, prompt=prompt, options=options, meter=SimpleNamespace(key=""))
    monkeypatch.setattr(retention, "_reset", lambda *_: forgets)
    monkeypatch.setattr(measure, "own_tokens", lambda *_: 20_000)
    asked, control, flood = Work(4, 3, 3000), Work(2, 1, 1000), Work(1, 1, 8191).times(2 * floods)
    assert retention.Evicted().work(session) == (asked + flood).times(2) + control


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (49.6, "50 s"), (99.4, "99 s"), (100, "2 min"), (240, "4 min"), (7800, "2 h 10 min")],
)
def test_an_estimate_is_no_more_exact_than_it_can_be(seconds: float, words: str) -> None:
    """Whole seconds, whole minutes, hours and minutes."""
    assert units.approximate_duration(seconds) == words


@CALM
@given(st.floats(1e-6, 1.0), st.integers(16, 4096), st.none() | st.integers(512, 1_000_000), st.floats(0.1, 60))
def test_a_document_fits_the_machine(prefill: float, chunk: int, window: int | None, comfort: float) -> None:
    """Whole chunks, within the window, read within the comfort unless four chunks are already more."""
    tokens = pace.document_tokens(Pace(prefill, 0.0), chunk, window, comfort)
    assert tokens % chunk == 0
    assert tokens >= chunk
    if window is not None and tokens > chunk:
        assert tokens + pace.ROOM <= window
    if tokens > 4 * chunk:
        assert tokens * prefill <= comfort
        longer = tokens + chunk
        assert longer * prefill > comfort or (window is not None and longer + pace.ROOM > window)


def test_a_long_run_is_announced_and_events_are_lines_of_json(lab: Lab) -> None:
    """Before a run of more than half a minute: how long, at this machine's pace; each event one JSON object."""
    engines: dict[str, dict[str, Any]] = {
        name: {"env": {"FAKE_TOKEN_US": "1000"}, **({"cache": "shared"} if name in "ab" else {})}
        for name in ("plain", "a", "b")
    }
    lab.up(lab.profile(engines, {"shared": {"l1": "16MiB", "chunk_size": 64}}))
    (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(900)))
    running = lab.start("bench", "--context", "context.txt", "--trials", "40", "--no-limit", "--progress", "json")
    assert running.stderr
    events: list[dict[str, Any]] = []
    while not events or events[-1]["event"] != "sample":
        events.append(json.loads(running.stderr.readline()))
    running.terminate()
    _, rest = running.communicate(timeout=30)
    assert [event["event"] for event in events[:3]] == ["doing", "estimate", "doing"]
    estimate = events[1]
    # 40 trials of two prompts that are computed, and one control; a second for each.
    assert (estimate["requests"], estimate["computed"]) == (40 * 4 + 2, 81)
    assert estimate["seconds_each"] == pytest.approx(0.96, rel=0.5)
    assert estimate["seconds"] == pytest.approx(81 * estimate["seconds_each"], rel=0.3)
    first = next(event for event in events if event["event"] == "doing" and event["trial"])
    assert (first["trial"], first["trials"], first["share"]) == (1, 40, 0)
    assert events[-1]["ttft"] > 0
    saved = json.loads(next(line for line in rest.splitlines() if '"event": "saved"' in line))
    assert (lab.path / saved["samples"]).exists()


def test_a_document_that_nobody_chose_fits_the_machine(lab: Lab) -> None:
    """The shipped handbook, as much as this machine reads in ten seconds and its cache holds; the run says how much."""
    lab.up(lab.profile())  # 8 KiB a token, 16 MiB of L1: half of it is 1,024 tokens
    done = lab.run("bench", "--trials", "1", "--no-limit", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert f"No document was chosen: {result['prompt_tokens']:,} tokens of the shipped handbook" in done.stderr
    assert 600 < result["prompt_tokens"] <= 1024
    assert result["context"] == "handbook.txt"
    lab.environ["KVDEMO_BENCH_CONTEXT"] = "none.txt"
    assert "none.txt: no such file" in lab.run("bench").stderr


def test_an_answer_ends_where_the_model_ends_it(lab: Lab) -> None:
    """Not at max_tokens, unless --ignore-eos says so: then an answer that is cut short has failed or is told."""
    engines = {name: {"env": {"FAKE_EOS_AFTER": "3"}, **({"cache": "s"} if name in "ab" else {})} for name in "pab"}
    lab.up(lab.profile(engines, {"s": {"l1": "16MiB", "chunk_size": 64}}))
    (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(900)))
    for options, tokens in (((), 3), (("--ignore-eos",), 16)):
        done = lab.run("bench", "--context", "context.txt", "--trials", "1", "--no-limit", "--json", *options)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["ignore_eos"], result["answer"]["same"]) == (bool(options), True)
        (samples,) = (path for path in (lab.path / "results").glob("*.jsonl") if result["run_id"] in path.read_text())
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        counts = {line["completion_tokens"] for line in lines if line["kind"] == "sample"}
        assert counts == {tokens}


def test_an_answer_that_is_shorter_than_asked_for_is_told() -> None:
    """An engine that was told to ignore the end of sequence and did not: how many answers, and the first of them."""
    whole = replace(sample("reuse"), requested_tokens=16, completion_tokens=16, finish_reason="length")
    short = replace(whole, completion_tokens=3, finish_reason="stop")
    free = replace(short, requested_tokens=None)
    failed = replace(short, error="it died")
    assert short_answers([whole, free, failed]) == ""
    words = f"2 answers ended early although ignore_eos was asked for: {short.engine} sent 3 of 16 tokens (stop)."
    assert short_answers([whole, short, short]) == words


@pytest.mark.parametrize(
    "event",
    [Doing("x"), Estimate(1, 1, 1, 1), Notice("x"), Saved("a", "b", "c"), Failure("x", "y", 1), sample("reuse")],
    ids=lambda event: type(event).__name__,
)
def test_every_event_is_documented(event: Event) -> None:
    """docs/bench.md has a row for each kind, with every key."""
    kind, *keys = to_json(event)
    page = (Path(__file__).parents[1] / "docs" / "bench.md").read_text()
    (line,) = re.findall(rf"^\| `{to_json(event)[kind]}` \|.*$", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line)) - {to_json(event)[kind]} == set(keys)


def test_a_failure_is_an_event(lab: Lab) -> None:
    """Message, hint and exit code, for a program that follows."""
    lab.up(lab.profile())
    done = lab.run("bench", "--progress", "json", "--context", "none.txt")
    event = json.loads(done.stderr.splitlines()[0])
    assert (event["event"], event["exit_code"], done.returncode) == ("failure", 2, 2)
    assert event["message"] == "context none.txt: no such file"
