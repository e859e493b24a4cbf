"""``kvdemo bench`` on real engines: the disk tier, KV corrupted between write and read, the matrix, the noise."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guarding import until
from kvdemo.bench import workload
from kvdemo.bench.client import Client
from kvdemo.host import health, process
from real_fleet import START, Real, needs_engines

pytestmark = needs_engines

L1 = 2 * 1024**3
KV = "*@kvdemo-*.data"
OUTSIDE = ("vllm-b", "lmcache-a", "lmcache-b")
EVERY = 64
"""Of every so many bytes one is flipped."""


def bench(real: Real, name: str, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Measure; how it ended, and the result judged again from its samples."""
    given = ("--context", "short.txt", "--result-dir", name, "--no-limit")
    done = real.run("bench", *given, *options)
    assert "Traceback" not in done.stderr
    (samples,) = (real.path / name).glob("*.jsonl")
    return done, json.loads(real.do("report", "--json", samples))


def row(document: dict[str, Any], arm: str) -> dict[str, Any]:
    """The row of an arm."""
    found: dict[str, Any] = next(r for r in document["rows"] if r["arm"] == arm)
    return found


def files(real: Real) -> list[Path]:
    """The KV files in the store of the runs' own."""
    return list(Path(real.plan.service("shared").store).glob(KV))


def flip(file: Path) -> None:
    """Flip a bit in one of every so many bytes, in place: the size stays."""
    data = bytearray(file.read_bytes())
    for at in range(EVERY // 2, len(data), EVERY):
        data[at] ^= 0x40
    with file.open("r+b") as stream:
        stream.write(data)


def cut(file: Path) -> None:
    """Leave half of it."""
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


@contextmanager
def vandal(real: Real, harm: Callable[[Path], None]) -> Iterator[list[Path]]:
    """Harm every KV file as soon as it is whole; the files."""
    ended = threading.Event()
    harmed: list[Path] = []

    def work() -> None:
        while not ended.is_set():
            for file in set(files(real)) - set(harmed):
                try:
                    harm(file)
                except FileNotFoundError:
                    continue
                harmed.append(file)
            time.sleep(0.0005)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield harmed
    finally:
        ended.set()
        thread.join()


def test_the_disk_tier_is_proved(ready: Real) -> None:
    """--tier l2: what the reader loads came from files, all of it, and it answers the same; no file stays."""
    done, document = bench(ready, "l2", "--tier", "l2", "--trials", "1")
    assert done.returncode == 0, done
    reuse = row(document, "reuse")
    assert reuse["verdicts"] == {"SHARED": 1}
    assert reuse["tiers"] == {"l1": 0, "l2": document["expected_hit_tokens"]}
    assert document["answer"]["same"] is True
    assert not files(ready)


def test_corrupted_files_are_caught(ready: Real) -> None:
    """Bits flipped in the store between write and read: the answer is NO, with the first difference, exit code 1."""
    with vandal(ready, flip) as harmed:
        done, document = bench(ready, "flipped", "--tier", "l2", "--trials", "1")
    assert harmed
    assert done.returncode == 1
    assert row(document, "reuse")["verdict"] == "SHARED"
    assert document["answer"]["same"] is False
    assert "NO: 1 of 1 reuses differ" in done.stdout
    assert "another answer than computing: NO" in done.stderr
    assert not files(ready)


def test_truncated_files_are_never_a_hit(ready: Real) -> None:
    """Files cut in half are not loaded: MISS or PARTIAL with the reason, no speed-up, and never a wrong answer."""
    with vandal(ready, cut) as harmed:
        done, document = bench(ready, "cut", "--tier", "l2", "--trials", "1")
    assert harmed
    assert done.returncode == 1
    reuse = row(document, "reuse")
    assert reuse["verdict"] in {"MISS", "PARTIAL"}
    assert "in L2 some could not be read" in reuse["why"]
    assert document["speedup"] is None
    assert document["answer"]["same"] is not False
    assert not files(ready)


def regions(pid: int) -> list[tuple[int, int]]:
    """Where L1 may lie: written memory of about its size that is no file's and no engine's."""
    found: list[tuple[int, int]] = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights, _, _, _, *name = line.split()
        begin, end = (int(word, 16) for word in span.split("-"))
        fits = L1 <= end - begin < 1.5 * L1
        if rights.startswith("rw") and fits and not any("lmcache_kv_" in word for word in name):
            found.append((begin, end))
    return found


def test_corrupted_memory_is_caught(ready: Real) -> None:
    """L1 harmed in the cache server's own memory between write and read: caught like files.

    Every 64th byte that is not zero is flipped in the mappings of about its size, through /proc/PID/mem. Where that
    harms the server itself, it dies: then nothing is loaded, nothing is claimed, and the reason is said.
    """
    server = ready.records["shared"].leader
    assert server
    pids = [member.pid for member in process.members(ready.records["shared"])]
    spans = [(pid, span) for pid in pids for span in regions(pid)]
    if not spans:
        pytest.skip("no mapping as large as L1 in the cache server")
    try:
        done, document = harmed_in_memory(ready, spans)
    except PermissionError as error:
        pytest.skip(f"the memory of the cache server is not ours to write: {error}")
    assert done.returncode == 1, done
    assert document["speedup"] is None
    if row(document, "reuse")["verdict"] == "MISS":
        assert "does not answer any more" in row(document, "reuse")["why"]
        return
    assert document["answer"]["same"] is False
    assert "NO: 1 of 1 reuses differ" in done.stdout


def harmed_in_memory(
    real: Real, spans: list[tuple[int, tuple[int, int]]]
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Bench, stopped (SIGSTOP) between write and read while L1 is harmed."""
    argv = [sys.executable, "-m", "kvdemo", "bench", "--context", "short.txt", "--result-dir", "memory"]
    argv += ["--no-limit", "--trials", "1"]
    running = subprocess.Popen(
        argv, cwd=real.path, env=real.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr
    said = []
    for line in running.stderr:
        said.append(line)
        if "lmcache-b reuse" in line:
            running.send_signal(signal.SIGSTOP)
            break
    try:
        for pid, span in spans:
            harm_memory(pid, span)
    finally:
        running.send_signal(signal.SIGCONT)
        out, err = running.communicate(timeout=START)
    (samples,) = (real.path / "memory").glob("*.jsonl")
    done = subprocess.CompletedProcess(argv, running.returncode, out, err)
    return done, json.loads(real.do("report", "--json", samples))


def harm_memory(pid: int, span: tuple[int, int]) -> None:
    """Flip a bit in every so many bytes of what has been written (pages of zeros stay)."""
    block = 1024**2
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:  # noqa: PTH123 (a path cannot be opened unbuffered)
        for at in range(span[0], span[1], block):
            memory.seek(at)
            data = memory.read(min(block, span[1] - at))
            if not data.strip(b"\0"):
                continue
            harmed = bytearray(data)
            for position in range(EVERY // 2, len(harmed), EVERY):
                harmed[position] ^= 0x40
            memory.seek(at)
            memory.write(harmed)


def test_the_matrix(ready: Real) -> None:
    """LOCAL on the diagonal, SHARED between the cached engines, COLD elsewhere."""
    done, document = bench(ready, "matrix", "--matrix", "--trials", "1")
    assert done.returncode == 0, done
    cells = {(cell["writer"], cell["reader"]): cell["verdict"] for cell in document["matrix"]["cells"]}
    engines = ("vllm-a", "vllm-b", "lmcache-a", "lmcache-b")
    cached = {"lmcache-a", "lmcache-b"}
    assert cells == {
        (w, r): "LOCAL" if w == r else "SHARED" if {w, r} <= cached else "COLD" for w in engines for r in engines
    }


def test_the_same_from_outside(ready: Real) -> None:
    """--target: addresses alone, in a state directory where nothing was ever up; what the project proves is proved."""
    urls = [word for name in OUTSIDE for word in ("--target", f"{name}={ready.plan.service(name).url}")]
    given = ("--context", "short.txt", "--result-dir", "outside", "--no-limit", "--trials", "1", "--json")
    nothing = str(ready.path / "nothing")
    done = ready.run("bench", *given, *urls, "--chunk-size", "128", KVDEMO_STATE_DIR=nothing)
    assert done.returncode == 0, done
    document = json.loads(done.stdout)
    found = {(r["engine"], r["arm"]): r["verdict"] for r in document["rows"]}
    cold = dict.fromkeys([("vllm-b", "cold"), ("lmcache-a", "store")], "COLD")
    assert found == cold | {("lmcache-b", "reuse"): "SHARED", ("lmcache-b", "again"): "LOCAL"}
    assert row(document, "reuse")["cached_tokens"] == document["expected_hit_tokens"]
    assert document["answer"]["same"] is True
    births = {health.counters(ready.plan.service(name).url)["generation_tokens_created"] for name in OUTSIDE}
    assert len(births) == 3  # by which a router's counters would be told from one engine's
    # What no project is there to delete: nobody else can ever hit it.
    for file in files(ready):
        file.unlink()


def test_cold_against_cold(ready: Real) -> None:
    """Two plain engines are held against each other, trial by trial; and what caching costs is told."""
    done, document = bench(ready, "noise", "--trials", "2", "--costs")
    assert done.returncode == 0, done
    assert document["noise_floor"]["n"] == 2
    assert {"store_tax", "lookup_tax", "visibility_lag", "decode_tax"} <= set(document["costs"])
    until(lambda: not files(ready), 30)


def test_sharing_serves_more_requests_a_second(ready: Real) -> None:
    """Under one schedule engines that share keep a limit at over three times the rate; every token is accounted for.

    The rates are multiples of what this machine computes: a third of one engine's time, and five times of it.
    """
    spec, document = ready.plan.service("vllm-a"), (ready.path / "context.txt").read_text()
    with Client(spec.url) as client:
        asked = [workload.body(spec.model, {"prompt": document}, max_tokens=1, salt=f"pace-{n}") for n in range(3)]
        cold = min(client.stream("/v1/completions", body).ttft or 0 for body in asked)
    assert cold
    rates, limit, duration = f"{0.35 / cold:.3g},{5 / cold:.3g}", f"{2 * cold:.3g}s", f"{6 * cold:.3g}s"
    given = ("--context", "context.txt", "--documents", "10", "--max-tokens", "4", "--result-dir", "load")
    done = ready.run("load", *given, "--rate", rates, "--slo-ttft", limit, "--duration", duration)
    assert done.returncode == 0, done
    (saved,) = (ready.path / "load").glob("*.jsonl")
    result = json.loads(ready.do("report", "--json", saved))
    points = {(point["side"], index % 2): point for index, point in enumerate(result["points"])}
    assert (points["plain", 0]["kept"], points["plain", 1]["kept"]) == (1, 0)
    assert points["shared", 1]["kept"] == 1
    assert points["shared", 1]["sources"]["shared"] > 0
    assert all(point["accounted"] for point in points.values() if not point["cut"])
    assert result["gains"][0]["ratio"]["median"] > 3


def test_a_foreign_answer_is_noticed(ready: Real) -> None:
    """Another client asks the plain engine during the cold request: that sample proves nothing."""
    stop = threading.Event()

    def pester() -> None:
        spec = ready.plan.service("vllm-a")
        with Client(spec.url) as client:
            while not stop.is_set():  # without a pause: whenever the cold request comes, one of these is in flight
                salt = f"foreign-{time.monotonic_ns()}"
                body = workload.body(spec.model, {"prompt": salt}, max_tokens=1, salt=salt, logprobs=1)
                client.stream("/v1/completions", body)

    thread = threading.Thread(target=pester)
    thread.start()
    try:
        done, document = bench(ready, "foreign", "--trials", "1")
    finally:
        stop.set()
        thread.join()
    found = next(r for r in document["rows"] if (r["engine"], r["arm"]) == ("vllm-a", "cold"))
    assert found["verdict"] == "UNPROVEN"
    assert "another client used the engine" in found["why"]
    assert done.returncode == 0 or document["baseline"] == "vllm-a"
