"""The cause of a death, wherever it is told: `ps`, `bench`, `logs` and `up` read a log in the same way."""

# ruff: noqa: E501 (lines as programs print them)
from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from conftest import Lab
from guarding import gone, until
from kvdemo.fleet import fleet
from kvdemo.fleet.watch import State
from kvdemo.host import health, logend

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.31 GiB. GPU 0 has a total capacity of 79.11 GiB"
STAMP = "11-24 02:28:39"
DEATH = f"""(EngineCore pid=7) ERROR {STAMP} [core.py:1512] EngineCore encountered a fatal error.
(EngineCore pid=7) ERROR {STAMP} [core.py:1512] Traceback (most recent call last):
(EngineCore pid=7) ERROR {STAMP} [core.py:1512]   File "/venv/vllm/v1/worker/gpu_model_runner.py", line 9, in forward
(EngineCore pid=7) ERROR {STAMP} [core.py:1512]     x = torch.empty(n)
(EngineCore pid=7) ERROR {STAMP} [core.py:1512] {OOM}
(APIServer pid=6) ERROR {STAMP} [async_llm.py:1] v.EngineDeadError: EngineCore encountered an issue. See stack trace (above)
(APIServer pid=6) INFO:     Finished server process [6]"""
TOLD = "out of GPU memory while computing (tried to allocate 20.31 GiB)"


def kill(lab: Lab, path: Path, service: str, words: str = DEATH) -> None:
    """Have an engine that serves die with exit code 0 in the middle of an answer."""
    url = lab.plan(path).service(service).url
    health.request(url, "/fake", body={"FAKE_DIE_AFTER": "0", "FAKE_DIE_CODE": "0", "FAKE_LAST_WORDS": words})


def test_an_engine_that_died_while_serving_is_told_with_its_cause(lab: Lab, tmp_path: Path) -> None:
    """`bench`, `ps`, `ps --json` and `logs`: the cause, not exit code 0 nor "See stack trace (above)"."""
    path = lab.profile()
    assert lab.run("up", path).returncode == 0
    text = tmp_path / "context.txt"
    text.write_text("word " * 4000)
    kill(lab, path, "plain")
    done = lab.run("bench", "--context", text, "--trials", "1", "--result-dir", tmp_path, "--no-limit")
    assert f"plain exited with code 0: {TOLD}: lower `memory`" in done.stdout.replace("\n", " ") + done.stderr
    assert "See stack trace" not in done.stdout + done.stderr
    until(lambda: (record := lab.project().record("plain")) and record.exit)
    shown = lab.run("ps").stdout
    assert f"exited with code 0: {TOLD}" in shown
    assert "-> lower `memory` or kv_cache" in shown
    (row,) = [row for row in json.loads(lab.run("ps", "--json").stdout)["services"] if row["service"] == "plain"]
    assert (row["state"], row["cause"], row["line"]) == ("exited", "gpu-memory", OOM)
    assert row["fix"].startswith("lower `memory`")
    logs = lab.run("logs", "plain", "--no-log-prefix")
    assert (OOM in logs.stdout, TOLD in logs.stderr, TOLD in logs.stdout) == (True, True, False)
    again = lab.run("bench", "--context", text, "--baseline", "plain")
    assert (again.returncode, TOLD in again.stderr) == (7, True)


def test_an_end_without_a_word_is_told_as_it_was(lab: Lab) -> None:
    """No cause is made up: the exit status and the last line."""
    path = lab.profile({"one": {}})
    lab.up(path)
    kill(lab, path, "one", "INFO:     Finished server process [6]")
    health.generates(lab.plan(path).service("one").url, "model", 5)
    health.request(
        lab.plan(path).service("one").url, "/v1/completions", body={"prompt": "x", "stream": True, "model": "model"}
    )
    until(lambda: (record := lab.project().record("one")) and record.exit)
    (event,) = fleet.status(lab.project(), lab.environ)
    assert (event.state, event.cause) == (State.EXITED, "exit-status")
    assert event.detail == "exit code 0; its last line: Finished server process [6]"


def test_logs_command_no_terminal(lab: Lab) -> None:
    """What an engine writes cannot colour, move or rename the terminal of whoever reads its log."""
    assert lab.run("up", lab.profile({"one": {"env": {"FAKE_DIE": "no"}}})).returncode == 1
    lab.project().log("one").write_text("\x1b]0;owned\x07\x1b[2J\u202eevil\x08\n")
    assert lab.run("logs", "one", "--no-log-prefix").stdout == "evil\n"


@pytest.mark.parametrize("size", [0, 1, logend.BLOCK - 1, logend.BLOCK, logend.BLOCK + 1, 3 * logend.BLOCK])
def test_the_end_of_a_file_is_read_backwards(tmp_path: Path, size: int) -> None:
    """Every line, however blocks cut them; of a long one its beginning."""
    path = tmp_path / "log"
    rows = [b"first", b"ValueError: the cause", b"x" * size, b"after " + b"y" * 9000, b"last"]
    path.write_bytes(b"\n".join(rows) + b"\n")
    assert logend.read(path) == b"\n".join(row[: logend.WIDTH] for row in [*rows, b""])


def test_the_end_of_a_file_is_bounded(tmp_path: Path) -> None:
    """By lines and by bytes read; what cannot be read is empty."""
    path = tmp_path / "log"
    path.write_bytes(b"a\n" * 50_000)
    assert logend.read(path).count(b"\n") == logend.LINES - 1
    assert logend.read(path, limit=100) == b"a\n" * 49  # the first may be the end of a longer line
    assert logend.read(tmp_path / "none") == b""
    path.write_bytes(b"x" * 5000)
    assert logend.read(path, limit=10) == b""


def test_an_end_that_nobody_saw_is_told_as_such(lab: Lab) -> None:
    """Guardian and engine killed together: no status is known, and the log's last line is not taken for one."""
    lab.up(lab.profile({"one": {}}))
    record = lab.project().record("one")
    assert record is not None
    assert record.leader is not None
    for pid in (record.guardian.pid, record.leader.pid):
        os.kill(pid, signal.SIGKILL)
    until(lambda: gone(record.guardian.pid) and record.leader is not None and gone(record.leader.pid))
    (event,) = fleet.status(lab.project(), lab.environ)
    assert (event.state, event.detail) == (State.EXITED, "gone without a trace (its guardian was killed too)")
