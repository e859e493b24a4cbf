"""`kvdemo compare`: what changed, how sure that is, what cannot be compared, and the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdemo.errors import GateError, UsageError
from kvdemo.judge.comparison import Comparison
from kvdemo.judge.sample import Sample, Sources
from kvdemo.report import compare, savedrun
from kvdemo.words import comparison as words
from runs import CALM, CONDITIONS, PROMPT, run, samples, save

values = st.lists(st.floats(0.01, 1000), min_size=3, max_size=8)


def both(
    directory: Path, new: list[Sample] | None = None, old: list[Sample] | None = None, **changes: Any
) -> Comparison:
    """A run compared with another: other samples, or other conditions."""
    one = save(directory, "old", old or samples())
    other = save(directory, "new", new or samples(), **changes)
    return compare.compare(savedrun.any_result(one), savedrun.any_result(other))


def foreign(path: Path, **changes: Any) -> Path:
    """What `vllm bench serve --save-result --save-detailed` writes."""
    document = {
        "date": "20261124-024032",
        "backend": "openai-chat",
        "model_id": "./models/tiny",
        "num_prompts": 4,
        "max_concurrency": 1,
        "median_ttft_ms": 505.0,
        "ttfts": [0.5, 0.505, 0.51, 0.0],
        "errors": ["", "", "", "timeout"],
    }
    path.write_text(json.dumps(document | changes))
    return path


def test_every_arm_is_compared(tmp_path: Path) -> None:
    """Each arm has both medians and their ratio with an interval, whatever the engines are called."""
    renamed = [replace(s, engine={"a": "x", "b": "y"}.get(s.engine, s.engine)) for s in samples(reuse=1.5)]
    found = both(tmp_path, renamed, writer="x", reader="y")
    lines = {line.name: line for line in found.lines}
    assert list(lines) == ["cold (baseline)", "cold+store", "reuse", "again", "speed-up of reuse"]
    reuse, speedup = lines["reuse"], lines["speed-up of reuse"]
    assert reuse.change == pytest.approx(1.5)
    assert reuse.ratio is not None
    assert reuse.ratio.low <= 1.5 <= reuse.ratio.high
    assert reuse.sizes == (3, 3)
    assert speedup.old == 20.0
    assert speedup.new == pytest.approx(13.3333)
    assert speedup.difference is not None
    assert speedup.difference.median == pytest.approx(-6.6667, abs=0.001)
    assert "The speed-up differs by -6.7" in words.text(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_id": "other"}, "model_id: tiny and other"),
        ({"model_digest": "ffff"}, "model_digest: 2cc9 and ffff"),
        ({"prompt_sha256": "0000"}, "prompt_sha256: f3ad and 0000"),
        ({"chunk_size": 256}, "chunk_size: 128 and 256"),
        ({"device": "NVIDIA H200"}, "device: 2 processor cores and NVIDIA H200"),
        ({"max_tokens": 5}, "max_tokens: 4 and 5"),
        ({"max_concurrency": 8}, "max_concurrency: 1 and 8"),
        ({"versions": {"vllm": "0.33.0", "lmcache": "0.5.6"}}, "versions: vllm: 0.32.0 and 0.33.0"),
        ({"versions": None}, "versions"),
    ],
)
def test_what_is_not_comparable_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Runs under other conditions are refused; the message names what differs, and both values."""
    with pytest.raises(UsageError, match="not comparable") as error:
        both(tmp_path, **changes)
    assert said in str(error.value)


def test_where_things_lie_makes_no_difference(tmp_path: Path) -> None:
    """The same versions in another interpreter, and the same model elsewhere, are the same."""
    there, here = (
        {"versions": {f"/{at}/python": CONDITIONS["versions"]}, "model_digest": {f"/{at}/tiny": "2cc9"}} for at in "ab"
    )
    old = save(tmp_path, "old", samples(), **there)
    new = save(tmp_path, "new", samples(), **here)
    newer = save(tmp_path, "newer", samples(), tier="any")
    for one, other in ((old, new), (new, newer)):
        assert compare.compare(savedrun.any_result(one), savedrun.any_result(other)).lines


def test_across_versions(tmp_path: Path) -> None:
    """Other versions are compared when asked for, and only those; otherwise the message says how to ask."""
    old = save(tmp_path, "old", samples())
    new = save(tmp_path, "new", samples(), versions={"vllm": "0.33.0"})
    other = save(tmp_path, "other", samples(), versions={"vllm": "0.33.0"}, chunk_size=64)
    refused = run("compare", old, new)
    assert refused.returncode == 2
    assert "--across versions" in refused.stderr
    assert run("compare", old, new, "--across", "versions").returncode == 0
    assert run("compare", old, other, "--across", "versions").returncode == 2
    assert run("compare", old, new, "--across", "models").returncode == 2


@pytest.mark.parametrize(
    ("factors", "code", "said"),
    [
        ({}, 0, "Nothing is worse by more than 10 %"),
        ({"reuse": 1.4}, 3, "reuse is 40 % longer"),
        ({"reuse": 1.4}, 3, "speed-up of reuse is 28.6 % smaller (20x to 14.3x"),
        ({"reuse": 1.08}, 0, "Nothing is worse"),
        ({"again": 2.0}, 3, "again is 100 % longer"),
        ({"reuse": 0.5}, 0, "Nothing is worse"),
        ({"cold": 0.5}, 3, "speed-up of reuse is 50 % smaller"),
    ],
)
def test_the_gate(tmp_path: Path, factors: dict[str, float], code: int, said: str) -> None:
    """--max-regress exits 3 if a TTFT or the speed-up is worse by more, and says in one sentence what."""
    old, new = save(tmp_path, "old", samples()), save(tmp_path, "new", samples(3, **factors))
    done = run("compare", old, new, "--max-regress", "10%")
    assert done.returncode == code, done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())


def test_the_gate_wants_to_be_sure(tmp_path: Path) -> None:
    """A worse median whose interval holds "no change" does not fail the gate."""
    old, new = (
        [replace(s, ttft=times[s.trial - 1]) if s.arm == "reuse" else s for s in samples()]
        for times in ((0.2, 0.6, 1.5), (0.3, 0.9, 1.5))
    )
    found = both(tmp_path, new, old)
    assert any((line.change or 0) > 1.2 for line in found.lines)
    assert compare.gate(found, 0.1).startswith("Nothing")


@pytest.mark.parametrize(
    ("arm", "changes", "said"),
    [
        ("reuse", {"cached_tokens": 0, "sources": Sources(PROMPT, 0, 0)}, "reuse is MISS now"),
        ("reuse", {"sources": None}, "the new run proves no reuse"),
        ("reuse", {"token_ids": (7, 7)}, "gives another answer"),
        ("cold", {"error": "HTTP 500", "ttft": None}, "cold (baseline) is FAILED now"),
    ],
)
def test_lost_proof_fails_the_gate(tmp_path: Path, arm: str, changes: dict[str, Any], said: str) -> None:
    """A new run that no longer proves what the old one did is worse, however quick it is."""
    found = both(tmp_path, [replace(s, **changes) if s.arm == arm else s for s in samples()])
    assert said in words.text(found)
    with pytest.raises(GateError) as error:
        compare.gate(found, 0.5)
    assert said in str(error.value)


def test_summaries_have_no_intervals(tmp_path: Path) -> None:
    """A .json without its .jsonl is compared by medians; the gate refuses to judge; with it the samples are used."""
    old, new = save(tmp_path, "old", samples()), save(tmp_path, "new", samples(reuse=2.0))
    summaries = [path.with_suffix(".json") for path in (old, new)]
    with_samples = compare.compare(*map(savedrun.any_result, summaries))
    assert any(line.ratio for line in with_samples.lines)
    old.unlink()
    found = compare.compare(*map(savedrun.any_result, summaries))
    assert not any(line.ratio for line in found.lines)
    assert {line.name: line.change for line in found.lines}["reuse"] == pytest.approx(2.0, rel=0.001)
    assert "only a summary" in words.text(found)
    with pytest.raises(UsageError, match="3 samples"):
        compare.gate(found, 0.1)


@CALM
@given(values, values, st.floats(0.1, 10))
def test_intervals(old: list[float], new: list[float], factor: float) -> None:
    """The interval of a ratio is repeatable, ordered, positive, and scales with the values."""
    ratio, difference = compare.change(old, new)
    assert ratio is not None
    assert difference is not None
    assert 0 < ratio.low <= ratio.high
    assert min(new) / max(old) <= ratio.low * (1 + 1e-9)
    assert ratio.high <= max(new) / min(old) * (1 + 1e-9)
    assert compare.change(old, new) == (ratio, difference)
    scaled, _ = compare.change(old, [value * factor for value in new])
    assert scaled is not None
    assert scaled.low == pytest.approx(ratio.low * factor)
    same, none = compare.change(old, old)
    assert same is not None
    assert none is not None
    assert (same.median, none.median) == (1.0, 0.0)


def test_too_few_for_an_interval() -> None:
    """Two values carry no interval."""
    assert compare.change([1.0, 2.0], [1.0, 2.0, 3.0]) == (None, None)


def test_a_result_of_vllm_bench(tmp_path: Path) -> None:
    """`vllm bench serve` is one side for one arm's TTFT: seconds become ms, failures do not count, doubts are said."""
    ours, theirs = save(tmp_path, "ours", samples()), foreign(tmp_path / "theirs.json")
    found = compare.compare(savedrun.any_result(ours), savedrun.any_result(theirs))
    (line,) = found.lines
    assert line.name == "reuse"
    assert line.old == pytest.approx(510.0)
    assert line.new == pytest.approx(505.0)
    assert line.sizes == (3, 3)
    said = words.text(found)
    for phrase in ("cannot be checked", "./models/tiny", "1 of its requests failed"):
        assert phrase in said
    assert "at once" not in said
    turned = compare.compare(savedrun.any_result(theirs), savedrun.any_result(ours), arm="cold").lines[0]
    assert turned.name == "cold (baseline)"
    assert turned.new == pytest.approx(10200.0)


def test_what_vllm_bench_does_not_tell(tmp_path: Path) -> None:
    """Without single times there is no interval; with requests at once the TTFT means something else; both are said."""
    ours = save(tmp_path, "ours", samples())
    theirs = foreign(tmp_path / "theirs.json", ttfts=None, errors=None, max_concurrency=None)
    done = run("compare", theirs, ours)
    assert done.returncode == 0, done.stderr
    assert "no single times" in done.stdout
    assert "any number of requests at once" in done.stdout
    assert run("compare", theirs, theirs).returncode == 2
    assert run("compare", theirs, ours, "--arm", "leg").returncode == 2
    assert run("compare", foreign(tmp_path / "none.json", ttfts=[0.0], median_ttft_ms=0.0), ours).returncode == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"rows": 1}', '{"median_ttft_ms": "x"}', "\udcff", "[" * 10**5]
)
def test_foreign_files_are_refused(tmp_path: Path, content: str) -> None:
    """What is neither a run nor a result of vllm bench is refused with the file's name."""
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"x\.json"):
        savedrun.any_result(path)
    with pytest.raises(UsageError, match="missing"):
        savedrun.any_result(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.1", 0.1), (" 2.5 % ", 0.025), (".5", 0.5), ("150%", 1.5), ("0", 0)]
)
def test_shares(text: str, share: float) -> None:
    """A share is written as a percentage or as a fraction."""
    assert compare.percentage(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["10", "1", "-5%", "ten", "nan", "", "%", "1e-1", "inf"])
def test_what_is_no_share(text: str) -> None:
    """Ten is not ten percent: what could mean two things is refused."""
    with pytest.raises(UsageError, match="not a share"):
        compare.percentage(text)
