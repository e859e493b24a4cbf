"""The exported script really starts the fleet without kvdemo, and ends it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
from typing import Any

import pytest

from conftest import PATIENCE, Lab
from guarding import until
from kvdemo import export, health

BASH = shutil.which("bash") or ""


@pytest.fixture
def script(lab: Lab) -> str:
    """The script of a fleet with a cache, two engines and a secret."""
    engines: dict[str, dict[str, Any]] = {"plain": {}, "a": {"cache": "shared", "env": {"ODD": 'it\'s "$HOME"'}}}
    path = lab.profile(engines, {"shared": {"l1": "16MiB", "l2": "./kv store"}}, secrets=["MY_SECRET"])
    lab.environ |= {"MY_SECRET": "correct-horse"}
    text = export.shell(lab.plan(path))
    (lab.path / "fleet.sh").write_text(text)
    return text


def start(lab: Lab) -> subprocess.Popen[str]:
    """Run it."""
    process = subprocess.Popen(
        [BASH, "fleet.sh"], cwd=lab.path, env=lab.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lab.running.append(process)
    return process


def test_it_is_shell_without_secrets(lab: Lab, script: str) -> None:
    """A shell can parse it; secrets are names that must be set."""
    assert subprocess.run([BASH, "-n", lab.path / "fleet.sh"], check=False).returncode == 0
    assert "correct-horse" not in script
    assert 'MY_SECRET="${MY_SECRET:?set it first}"' in script


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_starts_and_stops_the_fleet(lab: Lab, number: signal.Signals) -> None:
    """Everything becomes ready, shares, and is gone after Ctrl-C."""
    process = start(lab)
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    said = [next(process.stdout) for _ in range(4)]
    watchdog.cancel()
    assert said[-1] == "all ready; Ctrl-C stops them\n"
    plan = lab.plan(lab.path / f"{lab.name}.yaml")
    body = {"model": "model", "prompt": "Hello", "max_tokens": 1}
    for spec in plan.engines:
        port = next(line for line in said if line.startswith(f"{spec.name} is ready")).rpartition(": ")[2].strip()
        assert health.request(port, "/v1/completions", body=body)[0] == 200
    assert len(lab.pids()) >= 3
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    until(lambda: not lab.pids())


def test_it_ends_what_it_started_when_a_cache_fails(lab: Lab) -> None:
    """The second cache dies before any engine started: the first one is ended, nothing hangs."""
    engines = {"a": {"cache": "good"}, "b": {"cache": "bad"}}
    caches: dict[str, dict[str, Any]] = {"good": {"l1": "16MiB"}, "bad": {"l1": "16MiB", "env": {"FAKE_DIE": "no"}}}
    (lab.path / "fleet.sh").write_text(export.shell(lab.plan(lab.profile(engines, caches))))
    process = start(lab)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "bad ended before it was ready" in err) == (1, True)
    until(lambda: not lab.pids())


def test_it_refuses_without_the_secret(lab: Lab, script: str) -> None:
    """An unset secret is an error of the shell, not an engine without a key."""
    assert script
    del lab.environ["MY_SECRET"]
    _, err = start(lab).communicate(timeout=PATIENCE)
    assert "set it first" in err
    until(lambda: not lab.pids())
