"""stop, start, wait, events and down SERVICE with real engines: what is stopped comes back and shares again."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

from real_fleet import Real, needs_engines

pytestmark = needs_engines


def test_what_was_stopped_shares_again(ready: Real) -> None:
    """`stop` ends engine and cache in order and no other; `start` brings both back, at their ports, and KV is shared.

    `events` has seen it, `wait` waits for it, `logs --since` dates real lines, `bench` tells GitHub and JUnit.
    """
    before, ports = ready.records, {spec.name: spec.ports for spec in ready.plan.services}
    with ready.start("events", "--json") as events:
        assert events.stdout is not None
        seen = [json.loads(events.stdout.readline()) for _ in before]
        assert {row["state"] for row in seen} == {"ready"}
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
    shown = ready.do(
        "bench", "--context", "short.txt", "--trials", "1", "--no-limit", "--format", "github", "--junit", "junit.xml"
    )
    assert "| lmcache-b | reuse |" in shown
    suite = ET.parse(ready.path / "junit.xml").getroot()[0]  # noqa: S314 (written by what is tested)
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "0")


def test_down_of_a_service_leaves_the_others(ready: Real) -> None:
    """One engine goes, the rest stays ready and is not replaced."""
    before = ready.records
    assert "Nothing is left: 1 service ended" in ready.do("down", "vllm-b")
    states = ready.states()
    assert states.pop("vllm-b") == "absent"
    assert set(states.values()) == {"ready"}
    ready.do("start", "vllm-b")
    assert ready.replaced_since(before) == {"vllm-b"}
