"""``kvdemo bench`` as its user sees it, on fake engines that misbehave on request: what it proves, and what it refuses.

One fleet for all tests; whatever a test breaks is mended after it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import Lab
from guarding import sigkill, until
from kvdemo.host import health, survey
from kvdemo.host.procfs import alive

WORDS = 980
CHUNK = 64
ENGINES = ("plain", "other", "a", "b")
PATIENCE = 100
"""Seconds for a run that takes a few on a quiet machine."""


class Bench:
    """The fleet, and the command put to it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        engines: dict[str, dict[str, str]] = {
            "plain": {},
            "other": {},
            "a": {"cache": "shared"},
            "b": {"cache": "shared"},
        }
        caches = {"shared": {"l1": "16MiB", "chunk_size": CHUNK}}
        self.profile = lab.profile(engines, caches)
        self.write("context.txt", WORDS)
        self.runs = 0
        self.touched = True

    def write(self, name: str, words: int) -> None:
        """A document of this many tokens."""
        (self.lab.path / name).write_text(" ".join(f"word{n}" for n in range(words)))

    def mend(self) -> None:
        """Take all faults back; start what has died."""
        living = {name for name, record in self.lab.project().records().items() if alive(record.leader)}
        if not self.touched and living == {*ENGINES, "shared"}:
            return
        self.lab.up(self.profile)
        plan = survey.saved_plan(self.lab.project())
        assert plan is not None
        self.plan = plan
        for name in (*ENGINES, "shared"):
            self.break_(name)
        self.touched = False

    def break_(self, service: str, **faults: object) -> None:
        """Give a service these faults and no other."""
        self.touched = True
        body = {f"FAKE_{name}": str(value) for name, value in faults.items()}
        status, _ = health.request(self.plan.service(service).url, "/fake", body=body)
        assert status == 200

    def register(self, service: str, what: str) -> None:
        """Register an engine with the cache, or ``unregister`` it."""
        self.touched = True
        cache = self.plan.service("shared")
        leader = self.lab.project().records()[service].leader
        assert leader
        zmq = next(port for port in cache.ports if port != cache.port)
        others = health.report(cache)["registered_gpu_ids"] if what == "unregister" else []
        for pid in {leader.pid, *others[1:]}:  # an engine that died is registered for ever
            body = {"id": pid, "model": self.plan.service(service).model}
            assert health.request(f"http://{cache.host}:{zmq}", f"/fake/{what}", body=body)[0] == 200

    def start(self, *options: object, trials: int = 1, context: str = "context.txt") -> subprocess.Popen[str]:
        """The command, running."""
        self.runs += 1
        given = ("--context", context, "--trials", trials, "--result-dir", self.results, "--no-limit")
        return self.lab.start("bench", *map(str, (*given, *options)))

    def run(self, *options: object, **settings: Any) -> subprocess.CompletedProcess[str]:
        """The command to its end."""
        process = self.start(*options, **settings)
        out, err = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def judged(self, *options: object, code: int = 0, **settings: Any) -> dict[str, Any]:
        """The result, and nothing else on stdout; the exit code is ``code``."""
        done = self.run("--json", *options, **settings)
        assert done.returncode == code, done
        document: dict[str, Any] = json.loads(done.stdout)
        assert document["valid"] == (code in {0, 3}), done
        return document

    @property
    def results(self) -> Path:
        """Where the latest run saved."""
        return self.lab.path / f"results{self.runs}"

    @property
    def samples(self) -> Path:
        """The latest run's samples."""
        (found,) = self.results.glob("*.jsonl")
        return found

    def report(self) -> dict[str, Any]:
        """The latest run judged again."""
        done = self.lab.run("report", "--json", self.samples)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def hear(self, process: subprocess.Popen[str], what: str) -> None:
        """Wait until the running command says this."""
        assert process.stderr
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if what in line:
                return
        raise AssertionError(f"never said {what}: {said}")


@pytest.fixture(scope="module")
def fleet(shared_lab: Lab) -> Iterator[Bench]:
    """All four engines and their cache."""
    one = Bench(shared_lab)
    one.mend()
    yield one
    shared_lab.down()


@pytest.fixture
def bench(fleet: Bench) -> Iterator[Bench]:
    """The fleet without faults, before and after."""
    yield fleet
    fleet.mend()


def row(document: Mapping[str, Any], arm: str, engine: str = "") -> dict[str, Any]:
    """The row of an arm."""
    found: dict[str, Any] = next(
        r for r in document["rows"] if r["arm"] == arm and r["engine"] == (engine or r["engine"])
    )
    return found


def test_a_good_run_is_proved(bench: Bench) -> None:
    """COLD, SHARED and LOCAL where they belong, whole chunks, the same answer, and a speed-up where it is proved."""
    document = bench.judged(trials=2)
    verdicts = {(r["engine"], r["arm"]): r["verdict"] for r in document["rows"]}
    assert verdicts == {
        ("plain", "cold"): "COLD",
        ("other", "cold"): "COLD",
        ("a", "store"): "COLD",
        ("b", "reuse"): "SHARED",
        ("b", "again"): "LOCAL",
    }
    reuse = row(document, "reuse")
    assert (
        reuse["external_cached_tokens"] == document["expected_hit_tokens"] == document["prompt_tokens"] // CHUNK * CHUNK
    )
    assert document["speedup"]["median"] > 1
    assert document["answer"]["same"] is True
    assert "2 of 2 reuses equal" in document["answer"]["text"]
    assert document["noise_floor"]["n"] == 2
    assert (document["trials_run"], document["failed"]) == (2, 0)
    assert not any(r["dropped"] or r["why"] for r in document["rows"])


def test_the_table_says_it_in_words(bench: Bench) -> None:
    """The same for people: the verdicts, the ratio, the answer, the noise, and where it was saved."""
    done = bench.run("--verbose")
    assert done.returncode == 0
    for said in ("SHARED", "b answers", "than a plain engine about what only a has read", "Same answer? Yes"):
        assert said in done.stdout
    assert "Noise: cold against cold" in done.stdout
    assert f"Saved: {bench.samples.with_suffix('.json')}" in done.stdout
    assert {file.suffix for file in bench.results.iterdir()} == {".jsonl", ".json", ".html"}
    assert "trial 1 of 1" in done.stderr


def test_judged_again_it_is_the_same(bench: Bench) -> None:
    """From the saved samples, without a server: the bytes that the run itself printed, each time."""
    done = bench.run("--json", "--question", "Is :fire: [bold]hot[/]?\t\u2028☃")
    again = [bench.lab.run("report", "--json", bench.samples).stdout for _ in range(2)]
    assert again == [done.stdout, done.stdout]
    assert json.loads(done.stdout)["question"] == "Is :fire: [bold]hot[/]?\t\u2028☃"
    assert json.loads(bench.samples.with_suffix(".json").read_text()) == json.loads(done.stdout)


@pytest.mark.parametrize(
    ("faults", "engine", "arm", "verdict", "why"),
    [
        ({"b": {"STATUS": 503}}, "b", "reuse", "FAILED", "HTTP 503: not now"),
        ({"b": {"ERROR_EVENT": 10}}, "b", "reuse", "FAILED", "the engine reports after token 10"),
        ({"b": {"CUT_AFTER": 10}}, "b", "reuse", "FAILED", "after token 10"),
        ({"b": {"NO_TOKEN": 1}}, "b", "reuse", "FAILED", "no token"),
        ({"b": {"DIE_AFTER": 10}}, "b", "reuse", "FAILED", "after token 10"),
        ({"a": {"STATUS": 503}}, "b", "reuse", "MISS", "the writer's request failed (HTTP 503: not now)"),
        ({"a": {"NO_STORE": 1}}, "b", "reuse", "MISS", "only 0 of the writer's 15 chunks had been stored"),
        ({"a": {"NO_STORE": 1}, "b": {"WARM": 1}}, "b", "reuse", "PARTIAL", "only 0 of the writer's 15 chunks"),
        ({"b": {"WRONG_SOURCES": 1}}, "b", "reuse", "UNPROVEN", "the counters are late or incomplete"),
        ({"b": {"WARM": 1}}, "b", "reuse", "LOCAL", "tokens came from its own cache"),
        ({"other": {"WARM": 1}}, "other", "cold", "LOCAL", "tokens came from its own cache"),
    ],
    ids=lambda value: "-".join(f"{n}{''.join(f)}" for n, f in value.items()) if isinstance(value, dict) else None,
)
def test_what_is_not_proved_gets_no_ratio(
    bench: Bench, faults: dict[str, dict[str, int]], engine: str, arm: str, verdict: str, why: str
) -> None:
    """Each fault gets its verdict and its reason, in the result and in the error; no speed-up, exit code 1."""
    for name, given in faults.items():
        bench.break_(name, **given)
    done = bench.run("--json")
    document = json.loads(done.stdout)
    found = row(document, arm, engine)
    assert (found["verdict"], found["speedup"]) == (verdict, None), found["why"]
    assert why in found["why"]
    assert document["speedup"] is None
    assert not document["valid"]
    assert done.returncode == 1
    assert f"{engine} {arm}: {verdict}: {found['why']}" in done.stderr
    page = bench.samples.with_suffix(".html").read_text()
    assert "Nothing proved" in page


def test_a_table_without_proof_has_no_ratio(bench: Bench) -> None:
    """For people too: the row says why, and nobody answers faster than anybody."""
    bench.break_("b", ERROR_EVENT=10)
    done = bench.run()
    assert done.returncode == 1
    assert "b reuse: FAILED: the engine reports" in done.stdout
    assert "b answers" not in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("b ") and "reuse" in line)
    assert line.split()[-2:] == ["-", "FAILED"]


def test_an_unregistered_engine_is_named_as_the_reason(bench: Bench) -> None:
    """A MISS since an engine lost its registration with the cache says so, with the number of those that have one."""
    bench.register("b", "unregister")
    bench.break_("a", NO_STORE=1)
    try:
        assert (
            "only 1 of 2 engines have their KV cache registered with shared"
            in row(bench.judged(code=1), "reuse")["why"]
        )
    finally:
        bench.register("b", "register")


def test_a_small_l1_is_named_as_the_reason(bench: Bench) -> None:
    """A MISS of a prompt whose KV is larger than L1 gives both sizes."""
    bench.write("large.txt", 3000)
    bench.break_("a", NO_STORE=1)
    document = bench.judged(code=1, context="large.txt")
    assert "KV (25 MB) does not fit into L1 (17 MB): raise `l1` of shared" in row(document, "reuse")["why"]


def test_an_engine_that_dies_is_told_with_its_cause(bench: Bench) -> None:
    """How far its answer came, and the root cause from its log, in the error and in the sample; the others go on."""
    bench.break_("b", DIE_AFTER=10)
    done = bench.run()
    assert done.returncode == 1
    why = row(bench.report(), "reuse", "b")["why"]
    for words in ("after token 10", "the fake was told to die"):
        assert words in why
        assert words in done.stderr
    assert "See stack trace" not in done.stderr
    assert row(bench.report(), "cold", "plain")["verdict"] == "COLD"


@pytest.mark.parametrize("how", ["restart", "up"])
def test_another_process_of_an_engine_ends_the_run(bench: Bench, how: str) -> None:
    """Whoever restarts or replaces an engine ends the run: exit 1 and the name, what came before saved and marked."""
    bench.break_("b", DELAY_S=2)
    running = bench.start(trials=9)
    bench.hear(running, "trial 1 of 9: b reuse")
    if how == "up":
        sigkill(bench.lab.project().records()["plain"].leader)
        done = bench.lab.run("up", bench.profile)
    else:
        done = bench.lab.run("restart", "plain")
    assert done.returncode == 0, done
    out, err = running.communicate(timeout=60)
    assert running.returncode == 1, (out, err)
    assert "plain is another process than when the run began" in err
    assert "Traceback" not in err
    document = bench.report()
    assert (document["interrupted"], document["trials_run"] < 9) == (True, True)


def test_a_baseline_that_failed_is_none(bench: Bench) -> None:
    """One failed request of the baseline, and no speed-up is told, although other trials have both times."""
    bench.break_("other", STATUS=503, DELAY_S=1)
    running = bench.start(trials=3)
    bench.hear(running, "trial 2 of 3")
    bench.break_("other")
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1
    assert "other cold: FAILED: HTTP 503" in err
    document = bench.report()
    assert (document["speedup"], document["valid"]) == (None, False)
    assert row(document, "reuse")["verdict"] == "SHARED"
    assert row(document, "reuse")["speedup"] is None


def test_a_request_of_somebody_else_is_noticed(bench: Bench) -> None:
    """Its tokens are in the engine's counters: that sample proves nothing, and the others still do."""
    bench.break_("plain", DELAY_S=0.5)
    running = bench.start(trials=2)
    plain, over = bench.plan.service("plain"), threading.Event()

    def pester() -> None:
        while not over.is_set():
            health.generates(plain.url, plain.model, 5)

    thread = threading.Thread(target=pester)
    bench.hear(running, "trial 1 of 2: plain cold")
    thread.start()
    bench.hear(running, "")  # whatever comes next
    over.set()
    thread.join()
    running.communicate(timeout=PATIENCE)
    found = row(bench.report(), "cold", "plain")
    assert found["verdicts"] == {"COLD": 1, "UNPROVEN": 1}
    assert [(one["trial"], one["verdict"]) for one in found["dropped"]] == [(1, "UNPROVEN")]
    assert "another client used the engine meanwhile" in found["why"]


def test_a_contaminated_sample_is_dropped_counted_and_named(bench: Bench) -> None:
    """A cold request that was not cold takes no part in the ratio; the table names its trial."""
    bench.break_("other", WARM=1, DELAY_S=1)
    running = bench.start(trials=2)
    bench.hear(running, "trial 2 of 2")
    bench.break_("other")
    out, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, out
    document = bench.report()
    found = row(document, "cold", "other")
    assert found["verdicts"] == {"COLD": 1, "LOCAL": 1}
    assert [(one["trial"], one["verdict"]) for one in found["dropped"]] == [(1, "LOCAL")]
    assert document["speedup"]["n"] == 1
    assert "other cold: trial 1 is not counted: LOCAL: " in out


def test_a_cache_killed_between_write_and_read(bench: Bench) -> None:
    """The reader's MISS is blamed on the server that has gone; the run ends, and soon."""
    bench.break_("b", DELAY_S=1)
    running = bench.start(trials=2)
    bench.hear(running, "trial 1 of 2: b reuse")
    sigkill(bench.lab.project().records()["shared"].leader)
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 1
    found = row(bench.report(), "reuse")
    assert found["verdict"] == "MISS"
    assert found["why"] == "the cache server shared does not answer any more"


def test_a_wrong_answer_is_an_error(bench: Bench) -> None:
    """Whatever it gains: another answer than that of a local hit ends with 1, and shows where it begins to differ."""
    bench.break_("b", WRONG_REUSE=1)
    done = bench.run(trials=2)
    assert done.returncode == 1
    assert (
        "NO: 2 of 2 reuses differ from a local prefix hit of the same length; first in trial 1, in token 1"
        in done.stdout
    )
    assert "another answer than computing: NO: 2 of 2" in done.stderr
    assert bench.report()["answer"]["same"] is False


def test_late_stores_are_waited_for(bench: Bench) -> None:
    """The reader is asked once everything is stored; how long that took is the visibility lag."""
    bench.break_("shared", STORE_DELAY_S=0.5)
    document = bench.judged()
    assert row(document, "reuse")["verdict"] == "SHARED"
    assert document["costs"]["visibility_lag"]["median"] > 400


def test_ctrl_c_keeps_what_there_is(bench: Bench) -> None:
    """Exit 130; the samples until then are saved, marked, shown, and can be judged again."""
    running = bench.start(trials=5)
    bench.hear(running, "trial 2 of 5")
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert f"what was measured is in {bench.samples}" in err
    assert "1 trial, interrupted" in out or "2 trials, interrupted" in out
    document = bench.report()
    assert document["interrupted"] is True
    assert document == json.loads(bench.samples.with_suffix(".json").read_text())
    assert document["trials_run"] < 5


def test_ctrl_c_ends_a_stalled_stream(bench: Bench) -> None:
    """An engine that goes silent does not keep the command from ending; there need not be a single sample."""
    for engine in ENGINES:
        bench.break_(engine, STALL_AFTER=10)
    running = bench.start()
    bench.hear(running, "trial 1 of 1")
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert "Traceback" not in out + err
    assert json.loads(bench.samples.read_text().splitlines()[-1])["interrupted"] is True


@pytest.mark.parametrize("spare", [1500, 12000], ids=["samples", "report"])
def test_a_full_disk(bench: Bench, spare: int) -> None:
    """What fits is kept and can be judged again; the error names the file (the limit is the process's own)."""
    bench.run()
    first = len(bench.samples.read_text().splitlines()[0])
    running = bench.start()
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (first + spare, first + spare))
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1, err
    assert "Traceback" not in err
    assert "Exception" not in err
    assert f"cannot write {bench.results}/" in err
    assert "File too large" in err
    assert ("b answers" in out) == (spare == 12000)
    assert not list(bench.results.glob("*.tmp"))
    assert bench.report()["rows"]


def requests(bench: Bench) -> float:
    """Prompt tokens that the engines have seen."""
    return sum(health.counters(spec.url).get("prompt_tokens", 0) for spec in bench.plan.engines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--result-dir", "context.txt"), "cannot write"),
        (("--result-dir", "/proc/none/results"), "cannot write"),
        (("--lengths", "1k,many"), "'many' is not a number of tokens"),
        (("--lengths", "0"), "'0' is not a number of tokens"),
        (("--lengths", "0.0001"), "is not a number of tokens"),
        (("--lengths", "-5"), "is not a number of tokens"),
        (("--lengths", "9" * 400), "is not a number of tokens"),
        (("--lengths", ","), "names no length"),
        (("--lengths", "50"), "50 tokens cannot be measured: a chunk is 64"),
        (("--lengths", "200,9k"), "9,000 tokens cannot be measured"),
        (("--tier", "l2"), "there is no L2"),
        (("--tier", "l3"), "l3"),
        (("--drop-page-cache",), "--drop-page-cache needs --tier l2"),
        (("--matrix", "--lengths", "200"), "--matrix cannot be combined"),
        (("--matrix", "--concurrency", "2"), "--matrix cannot be combined"),
        (("--expected-ttft-gain", "nan"), "nan is not a factor"),
        (("--expected-ttft-gain", "-1"), "-1 is not a factor"),
        (("--max-trials", "-1"), "--max-trials: expected a number of trials of at least 0, got -1"),
        (("--concurrency", "0"), "--concurrency"),
        (("--question", os.fsdecode(b"caf\xe9?")), "--question: is not UTF-8"),
    ],
    ids=lambda value: "=".join(map(str, value))[:40] if isinstance(value, tuple) else "",
)
def test_what_cannot_work_is_refused(bench: Bench, options: tuple[str, ...], said: str) -> None:
    """Exit code 2 and the reason, before anything is generated."""
    before = requests(bench)
    done = bench.run(*options)
    assert done.returncode == 2, done
    assert said in done.stderr
    assert requests(bench) == before
    assert not bench.results.exists() or not list(bench.results.iterdir())


def test_a_prompt_shorter_than_a_chunk_is_refused(bench: Bench) -> None:
    """Nothing of it could be shared."""
    bench.write("tiny.txt", 5)
    done = bench.run(context="tiny.txt")
    assert done.returncode == 2
    assert "too short to share" in done.stderr


def kill(bench: Bench, service: str) -> None:
    """End a service the hard way, and wait until nobody answers."""
    sigkill(bench.lab.project().records()[service].leader)
    until(lambda: health.request(bench.plan.service(service).url, "/health")[0] == 0)


@pytest.mark.parametrize(("missing", "options"), [("b", ()), ("shared", ()), ("other", ("--baseline", "other"))])
def test_a_fleet_of_which_something_needed_is_down(bench: Bench, missing: str, options: tuple[str, ...]) -> None:
    """Exit code 7, with the service that is missing."""
    kill(bench, missing)
    done = bench.run(*options)
    assert done.returncode == 7
    assert missing in done.stderr


def test_what_is_up_is_measured_if_it_suffices(bench: Bench) -> None:
    """A plain engine is missing: the run takes the other one as baseline, and says what it uses and what is not up."""
    kill(bench, "other")
    done = bench.run()
    assert done.returncode == 0, done
    assert "Measured with what is up: plain, a, b. Not up: other." in done.stderr
    assert bench.report()["baseline"] == "plain"
    kill(bench, "plain")
    done = bench.run()
    assert done.returncode == 0, done
    assert "Measured with what is up: a, b. Not up: other, plain." in done.stderr
    assert bench.report()["baseline"] == "a"


@pytest.mark.parametrize(("gain", "code"), [("1.01", 0), ("100000", 3)])
def test_the_gate(bench: Bench, gain: str, code: int) -> None:
    """A proved speed-up below the expected one ends with 3."""
    bench.break_("plain", TOKEN_US=100)
    bench.break_("other", TOKEN_US=100)
    document = bench.judged("--expected-ttft-gain", gain, code=code)
    assert document["speedup"]["median"] > 1.01


def test_the_matrix(bench: Bench) -> None:
    """LOCAL on the diagonal, SHARED between the cached engines, COLD elsewhere; in the table too."""
    done = bench.run("--matrix")
    assert done.returncode == 0, done
    cells = {(c["writer"], c["reader"]): c for c in bench.report()["matrix"]["cells"]}
    cached = {"a", "b"}
    assert len(cells) == len(ENGINES) ** 2
    for (writer, reader), cell in cells.items():
        promised = "LOCAL" if writer == reader else "SHARED" if {writer, reader} <= cached else "COLD"
        assert cell["verdict"] == cell["expected"] == promised
        assert cell["n"] == 1
    assert "writer \\ reader" in done.stdout


def test_a_broken_cell_of_the_matrix(bench: Bench) -> None:
    """It says what is there instead of what should be, and why; the run ends with 1."""
    bench.break_("b", STATUS=503)
    bench.break_("other", WARM=1)
    done = bench.run("--matrix")
    assert done.returncode == 1
    assert "a to b: FAILED instead of SHARED: HTTP 503: not now" in done.stderr
    assert "plain to other: LOCAL instead of COLD" in done.stderr
    broken = next(c for c in bench.report()["matrix"]["cells"] if (c["writer"], c["reader"]) == ("a", "b"))
    assert broken["speedup"] is None


def test_the_sweep_over_lengths(bench: Bench) -> None:
    """Every length once, in order, each with its own cold and reuse; the answer is checked at the longest."""
    document = bench.judged("--lengths", "0.5k,200,200,201")
    points = document["lengths"]["points"]
    assert [point["prompt_tokens"] for point in points] == sorted({point["prompt_tokens"] for point in points})
    assert all(point["reuse_ms"] and point["cold_ms"] for point in points)
    assert document["answer"]["same"] is True


def test_several_readers_at_once(bench: Bench) -> None:
    """Each has a document of its own; the sources of all add up. Batched answers round differently: not compared."""
    document = bench.judged("--concurrency", 3)
    assert row(document, "reuse")["verdicts"] == {"SHARED": 3}
    assert row(document, "cold", "plain")["verdicts"] == {"COLD": 3}
    assert row(document, "store")["verdicts"] == {"COLD": 3}
    assert document["answer"]["same"] is None


def test_every_arm_is_asked_alike(bench: Bench) -> None:
    """With --concurrency the writer and the plain engines get as many at once as the reader: each waits for others."""
    for engine in ENGINES:
        bench.break_(engine, TOKEN_US=100)
    bench.judged("--concurrency", 3)
    samples = [json.loads(line) for line in bench.samples.read_text().splitlines() if '"kind": "sample"' in line]
    for arm in ("cold", "store", "reuse"):
        waits = sorted(sample["queue"] for sample in samples if sample["arm"] == arm and sample["engine"] != "plain")
        assert len(waits) == 3
        assert waits[0] + 0.05 < waits[-1] or arm == "reuse"


def test_costs(bench: Bench) -> None:
    """Store tax, visibility lag and decode tax, each with its spread."""
    for engine in ("plain", "other", "a"):
        bench.break_(engine, TOKEN_US=100)
    costs = bench.judged("--costs")["costs"]
    assert {"store_tax", "visibility_lag", "decode_tax"} <= set(costs)
    assert all(cost["low" if "low" in cost else "min"] <= cost["median"] for cost in costs.values())


def test_trials_end_when_the_ratio_is_known(bench: Bench) -> None:
    """--max-trials is a limit: fewer are run once the interval is within 5 %, and the table says how many."""
    bench.break_("other", DELAY_S=0.5)
    bench.break_("b", DELAY_S=0.25)
    document = bench.judged("--max-trials", 60, trials=3)  # a busy machine needs more of them than a quiet one
    assert 6 <= document["trials_run"] < 60
    speedup = document["speedup"]
    assert speedup["n"] == document["trials_run"]
    assert (speedup["high"] - speedup["low"]) / 2 <= 0.05 * speedup["median"] + 0.001


def test_completions_endpoint(bench: Bench) -> None:
    """The other endpoint proves the same."""
    assert row(bench.judged("--endpoint", "completions", "--tier", "l1"), "reuse")["verdict"] == "SHARED"


def kept(document: Mapping[str, Any], arm: str) -> dict[str, tuple[str, int]]:
    """Verdict and tokens from the shared cache of every engine that was asked again."""
    return {r["engine"]: (r["verdict"], r["external_cached_tokens"]) for r in document["rows"] if r["arm"] == arm}


@pytest.mark.parametrize("flooded", [False, True])
def test_what_an_emptied_engine_finds_outside(bench: Bench, flooded: bool) -> None:
    """Told to forget, or flooded with as much as it holds: the plain engine computes again, the other one loads."""
    if flooded:
        for name in ("other", "b"):
            bench.break_(name, NO_RESET=1, BLOCKS=128)
    document = bench.judged("--evicted", trials=2)
    hit = document["expected_hit_tokens"]
    assert kept(document, "evicted") == {"other": ("COLD", 0), "b": ("SHARED", hit)}
    assert row(document, "evicted", "b")["speedup"]["n"] == 2
    assert document["answer"]["same"] is True
    assert bench.report() == document


def test_an_engine_that_was_not_emptied_proves_nothing(bench: Bench) -> None:
    """It says that it forgot, and did not: LOCAL, no ratio, exit code 1."""
    bench.break_("b", FALSE_RESET=1)
    document = bench.judged("--evicted", code=1)
    assert row(document, "evicted", "b")["verdict"] == "LOCAL"
    assert row(document, "evicted", "b")["speedup"] is None


def test_an_engine_that_nobody_can_empty_is_refused(bench: Bench) -> None:
    """Before anything is generated: it neither forgets when told, nor says how much would flood it."""
    bench.break_("b", NO_RESET=1)
    done = bench.run("--evicted")
    assert done.returncode == 2
    assert "--evicted: b does not tell the size of its KV cache" in done.stderr


def test_what_a_restarted_engine_finds_outside(bench: Bench) -> None:
    """Another process, and the tokens are still in the cache; the run goes on with it, and the fleet is whole."""
    before = bench.lab.project().records()
    document = bench.judged("--restarted")
    hit = document["expected_hit_tokens"]
    assert kept(document, "restarted") == {"other": ("COLD", 0), "b": ("SHARED", hit)}
    after = bench.lab.project().records()
    assert {name for name in after if after[name].leader != before[name].leader} == {"other", "b"}
    assert "after it was restarted" in bench.lab.run("report", bench.samples).stdout


def test_a_restart_that_is_cut_short_is_told(lab: Lab) -> None:
    """Ctrl-C amid it: what was measured is saved, and how the engines come back is said."""
    (lab.path / "context.txt").write_text(" ".join(f"w{number}" for number in range(WORDS)))
    lab.up(lab.profile())
    before = lab.project().records()["b"]
    running = lab.start("bench", "--restarted", "--context", "context.txt", "--no-limit")
    assert running.stderr
    next(line for line in running.stderr if line.startswith("restarting plain, b"))
    until(lambda: lab.project().records().get("b") != before)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert f"their restart was cut short: kvdemo start plain b -p {lab.name}" in errors
    assert "what was measured is in results/" in errors
    done = lab.run("start", "plain", "b")
    assert done.returncode == 0, done
    assert lab.run("ps", "--check").returncode == 0


def test_modes_of_retention_stand_alone(bench: Bench) -> None:
    """What would be left out silently is refused."""
    for other in ("--matrix", "--lengths=500", "--tier=l2", "--restarted"):
        done = bench.run("--evicted", other)
        assert (done.returncode, "cannot be combined" in done.stderr) == (2, True), done.stderr


def test_a_matrix_of_two_caches(lab: Lab) -> None:
    """What a reader should find is cut by the chunks of its own cache, whichever pair the run would measure."""
    (lab.path / "context.txt").write_text(" ".join(f"w{number}" for number in range(580)))
    engines = {"p": {}, "a": {"cache": "one"}, "b": {"cache": "one"}, "c": {"cache": "two"}, "d": {"cache": "two"}}
    caches = {"one": {"l1": "64MiB", "chunk_size": 64}, "two": {"l1": "64MiB", "chunk_size": 128}}
    lab.up(lab.profile(engines, caches, bench={"context": "context.txt"}))
    done = lab.run("bench", "--matrix", "--trials", "1", "--no-limit", "--json")
    assert done.returncode == 0, done.stderr
    cells = {(one["writer"], one["reader"]): one for one in json.loads(done.stdout)["matrix"]["cells"]}
    assert {cells[pair]["verdict"] for pair in (("a", "b"), ("c", "d"))} == {"SHARED"}
    assert (cells["a", "b"]["cached_tokens"], cells["c", "d"]["cached_tokens"]) == (576, 512)
    assert cells["a", "c"]["verdict"] == "COLD"
