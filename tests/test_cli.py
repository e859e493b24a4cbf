"""The installed command as a user meets it: exit codes, messages, signals, two of them at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import forking
from conftest import PATIENCE, Lab
from guarding import gone, until

NEVER = {"env": {"FAKE_NEVER_HEALTHY": "1"}}


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    """Here every command is a new interpreter, as for a user."""
    with forking.never():
        yield


@pytest.fixture(scope="module")
def fleet(shared_lab: Lab) -> Lab:
    """A fleet that is up for all tests that only look at it."""
    shared_lab.environ |= {"MY_SECRET": "correct-horse"}
    engines: dict[str, dict[str, str]] = {"plain": {}, "a": {"cache": "shared"}}
    caches = {"shared": {"l1": "16MiB"}}
    done = shared_lab.run("up", shared_lab.profile(engines, caches, secrets=["MY_SECRET"]))
    assert done.returncode == 0, done.stderr
    assert "Ready. Next: kvdemo bench -p" in done.stdout
    with shared_lab.project().log("plain").open("a") as log:
        log.write("it said correct-horse and hf_aaaaaaaaaaaaaaaaaaaaaaaa\n")
    return shared_lab


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The output up to the line that holds this text."""
    assert process.stdout is not None
    said = ""
    liveness = threading.Timer(PATIENCE, process.kill)
    liveness.start()
    try:
        for line in process.stdout:
            said += line
            if text in line:
                return said
    finally:
        liveness.cancel()
    raise AssertionError(f"never said {text!r}: {said}")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "Start vLLM engines"),
        (["--version"], 0, "kvdemo "),
        (["nonsense"], 2, "No such command"),
        (["init", "nonsense"], 2, "Invalid value for 'kind': 'nonsense' is not one of 'cpu'"),
        (["bench", "--tier", "l3"], 2, "Invalid value for '--tier': 'l3' is not one of 'any', 'l1', 'l2'."),
        (["up"], 2, "PROFILE"),
        (["up", "missing.yaml"], 4, "missing.yaml"),
        (["ps"], 7, "nothing is up"),
        (["logs"], 7, "nothing is up"),
        (["restart"], 7, "nothing is up"),
        (["restart", "one"], 7, "nothing is up"),
        (["ps", "-p", "nobody"], 7, "project nobody is not up"),
        (["logs", "-f", "-p", "nobody"], 7, "project nobody is not up and has no logs"),
        (["ps", "-p", "Not A Name"], 2, "is not a name"),
        (["down"], 0, "Nothing was running."),
        (["down", "--all"], 0, "Nothing was running."),
        (["ps", "--all", "--check"], 2, "--all cannot be combined with SERVICE, --watch or --check"),
        (["ps", "--watch", "--json"], 2, "kvdemo events --json tells every change"),
        (["down", "-p", "nobody"], 0, "Nothing was running."),
        # Not to be waited for: poll() would overflow in the middle of the work.
        *((verb, 2, "less than or equal to 864000") for verb in (["wait", "--timeout", "inf"], ["down", "-t", "1e9"])),
        (["top", "-d", "1e300"], 2, "less than or equal to 864000"),
        (["logs", "-n", "99999999999999999999"], 2, "less than or equal to 1000000000"),
    ],
)
def test_without_a_fleet(lab: Lab, arguments: list[str], code: int, said: str) -> None:
    """What each verb says where nothing runs; it leaves no trace either."""
    done = lab.run(*arguments)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done
    assert "Traceback" not in done.stderr
    assert not (lab.path / "state").exists()


def test_up_refuses_a_broken_profile(lab: Lab) -> None:
    """Exit 4, with the line."""
    path = lab.profile({"one": {"gpu": [0]}})
    done = lab.run("up", path)
    assert done.returncode == 4
    assert "unknown key 'gpu' (did you mean 'gpus'?)" in done.stderr


def test_up_refuses_what_this_machine_lacks(lab: Lab) -> None:
    """Exit 5, everything that is missing at once; `plan` shows the same and succeeds."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        path = lab.profile({"one": {"port": port}, "two": {"gpus": [97], "kv_cache": None}}, secrets=["NOT_SET"])
        done = lab.run("up", path)
        plan = lab.run("plan", path)
    assert done.returncode == 5
    for text in (f"port {port} (one) is taken: pid {os.getpid()}", "GPU 97 is not here", "secret NOT_SET is not set"):
        assert text in done.stderr
        assert text in plan.stdout
    assert plan.returncode == 0
    assert not lab.project().records()


def test_plan_formats(lab: Lab) -> None:
    """Text for people, JSON that reads back as the same plan."""
    from kvdemo.planning.plan import Plan

    path = lab.profile()
    text = lab.run("plan", path)
    assert "nothing is missing" in text.stdout
    document = lab.run("plan", path, "--format", "json")
    assert Plan.from_json(json.loads(document.stdout)) == lab.plan(path)


def test_a_failure_names_the_cause(lab: Lab) -> None:
    """Exit 1; cause, fix and log on standard error; the log can still be read after `down`."""
    done = lab.run("up", lab.profile({"one": {"env": {"FAKE_DIE": "ValueError: CUDA out of memory. Tried"}}}))
    assert done.returncode == 1
    assert "error: one: out of GPU memory\n" in done.stderr
    assert "it says: ValueError: CUDA out of memory. Tried" in done.stderr
    assert "lower `memory`" in done.stderr
    assert "one.log" in done.stderr
    assert "ready" not in done.stdout.lower()
    assert lab.run("down").returncode == 0
    assert lab.run("logs", "one", "--no-log-prefix").stdout == "ValueError: CUDA out of memory. Tried\n"


def test_a_timeout_exits_6(lab: Lab) -> None:
    """Exit 6 after --timeout, and what was started is stopped."""
    done = lab.run("up", lab.profile({"one": NEVER}), "--timeout", "1")
    assert (done.returncode, "not ready in time: health check not answered" in done.stderr) == (6, True), done
    assert not lab.project().records()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_stops_what_it_started(lab: Lab, number: signal.Signals) -> None:
    """Exit 130 while an engine starts; the one that was ready already is stopped, too."""
    process = lab.start("up", lab.profile({"one": {}, "two": NEVER}))
    read_until(process, "one            ready")
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "interrupted" in err, "Traceback" in err) == (130, True, False), err
    assert not lab.project().records()
    until(lambda: not lab.pids())


@pytest.mark.parametrize("moment", ["lock", "first record"])
def test_up_interrupted_early(lab: Lab, moment: str) -> None:
    """Ctrl-C before anything runs, and in the middle of the first start."""
    process = lab.start("up", lab.profile({"one": NEVER}))
    where = lab.project().dir / ("project.lock" if moment == "lock" else "services/one.json")
    until(where.exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    until(lambda: not lab.pids())


@pytest.mark.parametrize("moment", ["lock", "first record", "starting", "ready"])
def test_down_after_a_killed_up(lab: Lab, moment: str) -> None:
    """SIGKILL of `up` at any moment: `down` finds everything it had started."""
    process = lab.start("up", lab.profile({"one": {}, "two": NEVER, "a": {"cache": "c"}}, {"c": {"l1": "16MiB"}}))
    if moment in ("starting", "ready"):
        # A look may miss the start of an engine that is soon ready, not that of one that never is.
        read_until(process, f"{'two' if moment == 'starting' else 'one'}            {moment}")
    else:
        until((lab.project().dir / ("project.lock" if moment == "lock" else "services/one.json")).exists)
    process.kill()
    process.communicate()
    done = lab.run("down")
    assert done.returncode == 0, done
    until(lambda: not lab.pids())
    assert not lab.project().records()


def test_one_verb_at_a_time(lab: Lab) -> None:
    """Exit 9 while another kvdemo works on the project, which is named."""
    with lab.project().lock("restart"):
        done = lab.run("up", lab.profile({"one": {}}))
    assert done.returncode == 9
    assert f"in use by `kvdemo restart` (pid {os.getpid()}, since " in done.stderr


def test_two_projects_at_once(lab: Lab) -> None:
    """They start side by side on ports of their own; a verb asks which one is meant; one ends without the other."""
    paths = [lab.profile({"one": {}}, name=f"{lab.name}{n}") for n in "xy"]
    starts = [lab.start("up", path) for path in paths]
    for process in starts:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    asked = lab.run("ps")
    assert asked.returncode == 2
    assert f"{lab.name}x, {lab.name}y" in asked.stderr
    assert lab.run("down", "-p", f"{lab.name}x").returncode == 0
    left = lab.run("ps", "--json", "--check")
    assert (left.returncode, json.loads(left.stdout)["project"]) == (0, f"{lab.name}y")
    assert lab.run("down", "--all").returncode == 0


def test_up_twice_then_down_twice(lab: Lab) -> None:
    """The second `up` changes nothing; `down` proves that nothing is left; the second one has nothing to do."""
    path = lab.profile()
    assert lab.run("up", path).returncode == 0
    again = lab.run("up", path)
    assert again.returncode == 0
    assert again.stdout.count(" unchanged") == 4
    done = lab.run("down")
    assert done.returncode == 0
    assert "Nothing is left: 4 services ended" in done.stdout
    assert not lab.pids()
    twice = lab.run("down", "-p", lab.name)
    assert (twice.returncode, twice.stdout) == (0, "Nothing was running.\n")


def test_down_v_after_down_deletes_its_own_store_only(lab: Lab) -> None:
    """The project remembers its store; one of another project under the same directory stays."""
    path = lab.profile({"a": {"cache": "shared"}}, {"shared": {"l1": "16MiB", "l2": "./kv"}})
    assert lab.run("up", path).returncode == 0
    store = Path(lab.plan(path).service("shared").store)
    other = store.parent / "0123456789abcdef"
    other.mkdir()
    (other / ".kvdemo-store").write_text("{}")
    assert lab.run("down").returncode == 0
    done = lab.run("down", "-v")
    assert (done.returncode, "Deleted the KV store (it was empty)." in done.stdout) == (0, True), done
    assert not store.exists()
    assert other.exists()


def test_down_deletes_the_store_when_asked(lab: Lab) -> None:
    """`down` keeps the KV files, `down -v` deletes them."""
    path = lab.profile({"a": {"cache": "shared"}}, {"shared": {"l1": "16MiB", "l2": "./kv"}})
    assert lab.run("up", path).returncode == 0
    store = Path(lab.plan(path).service("shared").store)
    assert lab.run("down").returncode == 0
    assert store.exists()
    assert lab.run("up", path).returncode == 0
    (store / "chunk.data").write_bytes(bytes(1536))
    done = lab.run("down", "-v")
    assert (done.returncode, "Deleted the KV store (1.50 KiB of KV)." in done.stdout) == (0, True), done
    assert not (lab.path / "kv").exists()


def test_down_says_what_it_could_not_end(lab: Lab) -> None:
    """Exit 8 while somebody who cannot be told from a service holds its port; afterwards it succeeds."""
    path = lab.profile({"one": {}})
    assert lab.run("up", path).returncode == 0
    (port,) = lab.plan(path).service("one").ports
    leader = lab.project().records()["one"].leader
    assert leader is not None
    os.kill(leader.pid, signal.SIGKILL)
    until(lambda: lab.project().records()["one"].exit)
    code = f"import socket; s = socket.create_server(('127.0.0.1', {port})); print(flush=True); s.accept()"
    nameless = subprocess.Popen([sys.executable, "-S", "-c", code], env={}, stdout=subprocess.PIPE)
    try:
        assert nameless.stdout is not None
        nameless.stdout.readline()
        done = lab.run("down")
        assert done.returncode == 8
        assert f"still there: port {port}" in done.stderr
    finally:
        nameless.kill()
        nameless.communicate()
    assert lab.run("down").returncode == 0


def test_ps(fleet: Lab) -> None:
    """A table for people, one JSON document for programs, a gate for scripts."""
    table = fleet.run("ps")
    assert [line.split()[:3] for line in table.stdout.splitlines()[1:]] == [
        ["shared", "cache", "ready"],
        ["plain", "engine", "ready"],
        ["a", "engine", "ready"],
    ]
    document = json.loads(fleet.run("ps", "plain", "--json").stdout)
    assert [(row["service"], row["state"]) for row in document["services"]] == [("plain", "ready")]
    assert document["services"][0]["memory"] > 0
    assert fleet.run("ps", "--check").returncode == 0
    assert fleet.run("ps", "nobody").returncode == 2


def test_ps_check_fails_for_a_lame_engine(lab: Lab) -> None:
    """Exit 7 names the service that is not ready."""
    assert lab.run("up", lab.profile({"one": NEVER}), "--no-wait").returncode == 0
    done = lab.run("ps", "--check")
    assert (done.returncode, "not ready: one" in done.stderr) == (7, True)
    assert "unhealthy" in done.stdout


def test_logs(fleet: Lab) -> None:
    """All services with their names in front, or one without; the last lines; secrets blanked."""
    every = fleet.run("logs").stdout
    assert {line.split(" | ")[0].strip() for line in every.splitlines()} == {"shared", "plain", "a"}
    assert "correct-horse" not in every
    assert "it said ${MY_SECRET} and hf_***\n" in fleet.run("logs", "plain", "--no-log-prefix").stdout
    assert fleet.run("logs", "-n", "1").stdout.count(" | ") == 3
    assert fleet.run("logs", "plain", "-n", "0").stdout == ""
    unknown = fleet.run("logs", "nobody")
    assert (unknown.returncode, "there are: a, plain, shared" in unknown.stderr) == (2, True)
    assert fleet.run("logs", "--previous", "a").returncode == 2
    assert "no service of project" in fleet.run("logs", "--previous").stderr


def test_logs_into_a_closed_pipe(fleet: Lab) -> None:
    """`kvdemo logs | head -1` ends in silence."""
    process = fleet.start("logs", "-f")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    with fleet.project().log("a").open("a") as log:
        log.write("one more line\n" * 2000)
    assert process.wait(PATIENCE) in (0, 1)
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_logs_follow_a_restart(lab: Lab) -> None:
    """`logs -f` goes on with the file of the next start; --previous shows the one before it; Ctrl-C ends it."""
    assert lab.run("up", lab.profile({"one": {}})).returncode == 0
    process = lab.start("logs", "-f", "one", "-n", "1")
    read_until(process, "one | ")
    assert lab.run("restart", "one").returncode == 0
    said = read_until(process, "Application startup complete")
    assert "Shutting down" in said
    assert "Starting to load model" in said
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert "Shutting down" in lab.run("logs", "--previous", "one").stdout


def test_a_restart_of_a_dead_engine(lab: Lab) -> None:
    """`ps` shows how it ended, `restart` brings it back; an unknown service is refused."""
    assert lab.run("up", lab.profile({"one": {}})).returncode == 0
    leader = lab.project().records()["one"].leader
    assert leader is not None
    os.kill(leader.pid, signal.SIGKILL)
    until(lambda: gone(leader.pid) and lab.project().records()["one"].exit)
    assert "exited with signal 9" in lab.run("ps").stdout
    assert lab.run("restart", "nobody").returncode == 2
    assert lab.run("restart", "one").returncode == 0
    assert lab.run("ps", "--check").returncode == 0


def test_ps_watch_ends_with_ctrl_c(fleet: Lab) -> None:
    """`ps --watch` redraws until Ctrl-C, which is not an error."""
    process = fleet.start("ps", "--watch")
    read_until(process, "SERVICE")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in err) == (0, False), err
