from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_rounds.py"


def test_random_kills_leave_nothing_and_touch_nobody() -> None:
    """Whatever signal hits whichever process at whatever moment: `down` leaves nothing, and strangers are untouched."""
    argv = [sys.executable, str(SCRIPT), "--rounds", "6", "--seed", "7000", "--jobs", "2"]
    run = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "6 rounds: 0 with leftovers, 0 with strangers touched"
