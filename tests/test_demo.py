"""scripts/demo: which steps it takes in which order, what it says of their time, and that it never leaves a fleet.

Set-up and kvdemo are small stand-ins that write down how they were called; the demonstration itself, with real engines,
is measured by scripts/measure_demo.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ".cache/demo/kvdemo.yaml"


class Demo:
    """A checkout of scripts/demo with its stand-ins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "demo", path / "scripts" / "demo")
        self.script("scripts/setup", 'echo "setup $*" >>calls; mkdir -p .cache')
        self.kvdemo()

    def script(self, name: str, text: str) -> None:
        """Write a stand-in."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)

    def kvdemo(self, **codes: int) -> None:
        """The command; a verb ends with its code."""
        failing = "\n".join(f"[[ $1 != {verb} ]] || exit {code}" for verb, code in codes.items())
        write = f'[[ $1 != init ]] || {{ mkdir -p .cache/demo; echo "name: ${{KIND:-cpu}}  # project" >{PROFILE}; }}'
        self.script(".venv/bin/kvdemo", f'echo "$*" >>calls\n{write}\n{failing}\nexit 0')

    def run(self, *arguments: str, gpus: int = 0) -> subprocess.CompletedProcess[str]:
        """The script to its end, on a machine with so many GPUs."""
        listed = "\n".join(f"echo 'GPU {number}: card (UUID: GPU-{number})'" for number in range(gpus))
        self.script("bin/nvidia-smi", listed or "exit 9")
        environ = {**os.environ, "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            [str(self.path / "scripts" / "demo"), *arguments],
            check=False,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[str]:
        """How set-up and kvdemo were called since this was last asked."""
        file = self.path / "calls"
        lines = [line.strip() for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    """A checkout."""
    return Demo(tmp_path)


def test_the_steps_come_in_order(demo: Demo) -> None:
    """Set up, choose, start, measure, stop; it says so before, and how long each took after."""
    done = demo.run()
    assert done.returncode == 0, done.stderr
    assert demo.calls == [
        "setup",
        f"init --output {PROFILE} --force",
        f"up {PROFILE} -p cpu",
        "bench -p cpu --no-limit",
        "down -p cpu",
    ]
    assert re.search(
        r"^install [\d.]+ s, start [\d.]+ s, measure [\d.]+ s, stop [\d.]+ s\.$", done.stdout, re.MULTILINE
    )


def test_times_are_those_of_the_last_run_here(demo: Demo) -> None:
    """A first run says that nothing was timed here; later ones say what was, each kind of fleet for itself."""
    first, second, smoke = demo.run(), demo.run(), demo.run("--smoke")
    assert first.stdout.count("not timed here yet") == 4
    assert re.findall(r"\(([\d.]+) s last time\)", second.stdout) == [
        line.split()[1] for line in first_times(first.stdout)
    ]
    assert smoke.stdout.count("not timed here yet") == 4


def first_times(text: str) -> list[str]:
    """``install 1.2``, ``start ...``: the times of a run, from its last lines."""
    match = re.search(r"^install .* s\.$", text, re.MULTILINE)
    assert match is not None
    return [part.removesuffix(" s") for part in match[0].rstrip(".").split(", ")]


@pytest.mark.parametrize(
    ("gpus", "arguments", "setup", "init"),
    [
        (0, [], "setup", "init --output"),
        (2, [], "setup --gpu", "init --output"),
        (2, ["--cpu"], "setup", "init cpu --output"),
        (2, ["--smoke"], "setup", "init smoke --output"),
    ],
)
def test_the_machine_decides_unless_told(demo: Demo, gpus: int, arguments: list[str], setup: str, init: str) -> None:
    """GPUs get the environment for GPUs; --cpu and --smoke the processor, whatever is there."""
    done = demo.run(*arguments, gpus=gpus)
    calls = demo.calls
    assert calls[0] == setup
    assert calls[1].startswith(init)
    assert ("2 GPU(s)" in done.stdout) == ("--gpu" in setup)


def test_the_environment_for_gpus_is_not_used_for_the_processor(demo: Demo) -> None:
    """A CUDA build cannot run there: the script says so before it does anything."""
    (demo.path / ".venv" / ".kvdemo-gpu").touch()
    done = demo.run("--cpu", gpus=1)
    assert (done.returncode, demo.calls) == (5, [])
    assert ".venv" in done.stderr


def test_smoke_has_a_gate(demo: Demo) -> None:
    """Reuse that gains too little fails the run with bench's own exit code, and the fleet is stopped."""
    demo.kvdemo(bench=3)
    done = demo.run("--smoke")
    assert done.returncode == 3
    calls = demo.calls
    assert "--expected-ttft-gain" in calls[-2]
    assert calls[-1].startswith("down")


@pytest.mark.parametrize(("verb", "code"), [("up", 1), ("up", 6), ("bench", 1), ("down", 8)])
def test_what_fails_is_stopped_and_its_code_kept(demo: Demo, verb: str, code: int) -> None:
    """Whatever fails after the start: down runs, and the exit code is that of the command that failed."""
    demo.kvdemo(**{verb: code})
    assert demo.run().returncode == code
    assert demo.calls[-1].startswith("down")


def test_a_fleet_of_somebody_else_is_left_alone(demo: Demo) -> None:
    """Exit code 9: another kvdemo is at work on this project; it is not this script's to stop."""
    demo.kvdemo(up=9)
    assert demo.run().returncode == 9
    assert not any(call.startswith("down") for call in demo.calls)


def test_keep_leaves_it_up(demo: Demo) -> None:
    """--keep says how to look at the fleet and how to stop it."""
    done = demo.run("--keep")
    assert done.returncode == 0
    assert not any(call.startswith("down") for call in demo.calls)
    assert ".venv/bin/kvdemo down -p cpu" in done.stdout
