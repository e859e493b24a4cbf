"""stop, start, wait and events with real engines: what was killed and stopped comes back, and shares what it stored."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

from guarding import sigkill, until
from real_fleet import HANDBOOK, NOTICE, Real, needs_engines, stored

pytestmark = needs_engines

TEXT, SALT = HANDBOOK.read_text()[:4000], "kept"


def test_a_cache_that_was_killed_comes_back_with_its_engines(ready: Real) -> None:
    """`ps` shows it, the plain engines go on. `stop` ends its engines and no other; `start` brings all back.

    At their ports, and KV is shared again, even what was stored before: the new server has it from disk. `events` has
    seen it, `wait` waits for it, `logs --since` dates real lines, `bench` tells GitHub and JUnit.
    """
    wrote = ready.ask("lmcache-a", TEXT, SALT)
    assert wrote.local == wrote.shared == 0
    until(lambda: len(stored(ready, SALT)) == wrote.computed // 128, 30)
    before, ports = ready.records, {spec.name: spec.ports for spec in ready.plan.services}
    with ready.start("events", "--json") as events:
        assert events.stdout is not None
        seen = [json.loads(events.stdout.readline()) for _ in before]
        assert {row["state"] for row in seen} == {"ready"}
        sigkill(before["shared"].leader)
        until(lambda: ready.states()["shared"] != "ready", NOTICE)
        assert {ready.states()[name] for name in ("vllm-a", "vllm-b")} == {"ready"}
        ready.do("stop", "shared")
        gone = {"shared", "lmcache-a", "lmcache-b"}
        assert {name for name, state in ready.states().items() if state == "absent"} == gone
        while {row["service"] for row in seen if row["state"] == "absent"} < gone:
            seen.append(json.loads(events.stdout.readline()))
        events.terminate()
    assert ready.run("wait").returncode == 7
    ready.do("start")
    ready.do("wait", "--timeout", "60")
    assert set(ready.states().values()) == {"ready"}
    assert ready.replaced_since(before) == gone
    assert {spec.name: spec.ports for spec in ready.plan.services} == ports
    assert "Application startup complete" in ready.do("logs", "lmcache-a", "--since", "10m")
    assert ready.do("logs", "lmcache-a", "--since", "2999-01-01").strip() == ""
    loaded, again = ready.ask("lmcache-b", TEXT, SALT), ready.ask("lmcache-b", TEXT, SALT)
    assert (loaded.local, loaded.shared) == (0, wrote.computed // 128 * 128)
    assert again.local == loaded.shared
    assert loaded.answer == again.answer
    assert loaded.token_ids == wrote.token_ids
    shown = ready.do(
        "bench", "--context", "short.txt", "--trials", "1", "--no-limit", "--format", "github", "--junit", "junit.xml"
    )
    assert "| lmcache-b | reuse |" in shown
    suite = ET.parse(ready.path / "junit.xml").getroot()[0]  # noqa: S314 (written by what is tested)
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "0")


def test_what_is_outside_outlives_the_engines(ready: Real) -> None:
    """A plain and a cached engine are restarted: one computes again, the other finds what it had stored."""
    result = ready.bench(
        "--restarted", "--context", "short.txt", "--trials", "1", "--no-limit", "--result-dir", "again"
    )
    verdicts = {(row["engine"], row["arm"]): row["verdict"] for row in result["rows"]}
    assert verdicts == {
        ("vllm-b", "cold"): "COLD",
        ("lmcache-b", "store"): "COLD",
        ("vllm-b", "restarted"): "COLD",
        ("lmcache-b", "restarted"): "SHARED",
    }
    assert result["answer"]["same"] is True
