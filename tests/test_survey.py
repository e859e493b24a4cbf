"""Facts about this machine: ports above all, because two projects must never plan the same one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from subprocess import PIPE

import pytest

from conftest import Lab
from kvdemo.config import profile
from kvdemo.errors import PreflightError
from kvdemo.host import survey
from kvdemo.planning.facts import Facts


def facts(lab: Lab, **settings: object) -> Facts:
    """The facts for a profile with one engine and one cache."""
    engines = {"one": {"cache": "shared", **settings}}
    wanted = profile.load(lab.profile(engines, {"shared": {"l1": "16MiB"}}), lab.environ)
    return survey.survey(wanted, lab.project(), lab.environ)


@pytest.fixture
def holder() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_holder_of_a_port_is_one_line() -> None:
    """A program given in the command line itself has line breaks, which a line of `plan` must not."""
    program = "import socket\ns = socket.create_server(('', 0))\nprint(s.getsockname()[1], flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        words = survey.holder("127.0.0.1", int(process.stdout.readline()))
        process.communicate("\n")
    assert f"pid {process.pid} (" in words
    assert "-c import" in words
    assert "\n" not in words


def test_what_is_known(lab: Lab) -> None:
    """Interpreter, model, memory, sockets, secrets that are set; nothing is made on disk."""
    found = facts(lab)
    assert found.interpreters[str(lab.python)].versions["vllm"] == "0.32.0"
    assert found.models[str(lab.path / "model")].context == 65536
    assert found.memory is not None
    assert found.shm is not None
    assert len(found.sockets) < 60
    assert not (lab.path / "state").exists()


def test_chosen_ports(lab: Lab) -> None:
    """Different ones, below the kernel's own range, the same at every look."""
    found = facts(lab).ports
    assert set(found) == {"one", "shared", "shared.http"}
    assert len(set(found.values())) == 3
    assert all(18000 <= port < 28000 for port in found.values())
    assert facts(lab).ports == found


def test_a_taken_port_is_stepped_over(lab: Lab) -> None:
    """Somebody listens on the port that would be chosen."""
    first = facts(lab).ports["one"]
    with socket.create_server(("127.0.0.1", first)):
        found = facts(lab)
    assert found.ports["one"] != first
    assert not found.busy


def test_a_wanted_port_that_is_taken(lab: Lab, holder: int) -> None:
    """It stays the planned one, and who holds it is named."""
    found = facts(lab, port=holder)
    assert found.ports["one"] == holder
    assert found.busy[holder].startswith(f"pid {os.getpid()} (")


def test_an_address_of_another_machine(lab: Lab) -> None:
    """Nothing could ever listen there."""
    with pytest.raises(PreflightError, match=r"cannot bind 203\.0\.113\.9"):
        facts(lab, host="203.0.113.9")


def test_ports_of_a_running_fleet(lab: Lab) -> None:
    """It keeps its own; another project keeps away from them, also where it names one."""
    path = lab.profile({"one": {}})
    lab.up(path)
    (port,) = lab.plan(path).service("one").ports
    assert (lab.plan(path).service("one").port, lab.plan(path).missing) == (port, ())
    other = lab.plan(lab.profile({"one": {"port": port}}, name=f"{lab.name}x"))
    assert other.missing == (
        f"port {port} (one) is taken: service one of project {lab.name}; kvdemo down -p {lab.name}",
    )
    chosen = lab.plan(lab.profile({"one": {}}, name=f"{lab.name}x"))
    assert chosen.service("one").port != port


def test_sockets_are_private_and_short(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever TMPDIR says: ZMQ's socket paths may not exceed 107 characters; two projects do not share them."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", "/" + "very-long/" * 9)
    assert len(str(lab.project().sockets)) < 60
    assert lab.project().sockets != lab.project(f"{lab.name}x").sockets


def test_secrets_that_are_set(lab: Lab) -> None:
    """Names only; an empty value is none."""
    lab.environ |= {"ONE": "x", "TWO": ""}
    wanted = profile.load(lab.profile({"one": {}}, secrets=["ONE", "TWO", "THREE"]), lab.environ)
    assert survey.survey(wanted, lab.project(), lab.environ).secrets == {"ONE"}
