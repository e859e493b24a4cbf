"""``kvdemo top`` with fake engines: what it counts, what it says of those that do not answer, and how it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import nvml
from conftest import Lab
from guarding import until
from kvdemo.bench import attach
from kvdemo.fleet import gauges
from kvdemo.fleet.gauges import Gauges
from kvdemo.host import gpus, health
from kvdemo.judge.frame import Cache, Engine, Frame, PromptsSeen
from kvdemo.judge.rates import CacheRates, EngineRates, Prompts, Quantile, Ttft
from kvdemo.judge.sample import Sources
from kvdemo.planning.facts import GpuLoad
from kvdemo.planning.plan import Plan
from kvdemo.report import top as report
from kvdemo.words import top as words
from relay import relay

CHUNK = 64
PROMPT = 640
"""Words, so tokens, of a prompt: ten chunks, of which another engine loads all but the last token."""
NOW = datetime(2026, 11, 30, 10, 20, 30).astimezone()


class Fleet:
    """One plain engine, two that share a cache with L2, and questions to them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        cache = {"shared": {"l1": "16MiB", "chunk_size": CHUNK, "l2": str(lab.path / "store")}}
        self.path = lab.profile({"plain": {}, "a": {"cache": "shared"}, "b": {"cache": "shared"}}, cache)
        lab.up(self.path)
        self.plan: Plan = lab.plan(self.path)
        self.numbers = iter(range(1000))

    def salt(self) -> str:
        """A salt that makes a prompt cold."""
        return f"top-{next(self.numbers)}"

    def ask(self, engine: str, salt: str, tokens: int = PROMPT) -> None:
        """A prompt of so many tokens, answered."""
        spec = self.plan.service(engine)
        prompt = " ".join(f"w{number}" for number in range(tokens))
        body = {"model": spec.model, "prompt": prompt, "max_tokens": 2, "cache_salt": salt}
        assert health.request(spec.url, "/v1/completions", timeout=30, body=body)[0] == 200

    def fault(self, service: str, **faults: object) -> None:
        """Give a service these faults and no other."""
        body = {f"FAKE_{name}": str(value) for name, value in faults.items()}
        assert health.request(self.plan.service(service).url, "/fake", body=body)[0] == 200

    def gauges(self, *names: str) -> Gauges:
        """Its gauges, of which the first reading is taken."""
        made = gauges.of_project(self.lab.project(), self.lab.environ, names)
        made.look()
        return made


@pytest.fixture(scope="module")
def shared(shared_lab: Lab) -> Iterator[Fleet]:
    """The fleet of this file."""
    yield Fleet(shared_lab)
    shared_lab.down()


@pytest.fixture
def fleet(shared: Fleet) -> Iterator[Fleet]:
    """The same, all of it there and without faults before and after."""
    yield shared
    shared.lab.up(shared.path)
    for spec in shared.plan.engines:
        shared.fault(spec.name)


def engine(frame: Frame, name: str) -> Engine:
    """This engine of a frame."""
    return next(one for one in frame.engines if one.name == name)


def one_prompt(frame: Frame) -> Prompts:
    """The only prompt that is new in a frame."""
    (seen,) = frame.fresh
    return seen.prompts


def test_the_sources_of_each_prompt(fleet: Fleet) -> None:
    """A computes what B then loads and then has itself; every look shows the one prompt with its sources and tier."""
    made, salt = fleet.gauges(), fleet.salt()
    fleet.ask("a", salt)
    one = one_prompt(made.look())
    assert (one.engine, one.tokens, one.sources, one.tiers) == ("a", PROMPT, Sources(PROMPT, 0, 0), None)
    fleet.ask("b", salt)
    frame = made.look()
    one = one_prompt(frame)
    assert (one.sources, one.tiers) == (Sources(1, 0, PROMPT - 1), {"l1": PROMPT, "l2": 0})
    assert engine(frame, "b").rates.tokens == Sources(1, 0, PROMPT - 1)
    assert engine(frame, "a").rates.tokens == Sources(PROMPT, 0, 0)
    assert engine(frame, "plain").rates.tokens == Sources(0, 0, 0)
    fleet.ask("b", salt)
    local = (PROMPT - 1) // 16 * 16
    one = one_prompt(made.look())
    assert one.sources == Sources(1, local, PROMPT - 1 - local)
    assert [seen.prompts.engine for seen in made.recent] == ["b", "b", "a"]


def test_what_came_from_l2(fleet: Fleet) -> None:
    """Once L1 is emptied the same chunks come from L2, and the frame says so of the prompt and of the cache."""
    salt = fleet.salt()
    fleet.ask("a", salt)
    made = fleet.gauges()
    assert health.request(fleet.plan.service("shared").url, "/cache/clear", body={"all": True})[0] == 200
    fleet.ask("b", salt)
    frame = made.look()
    assert one_prompt(frame).tiers == {"l1": 0, "l2": PROMPT}
    (cache,) = frame.caches
    assert cache.rates.tiers == {"l1": 0, "l2": PROMPT}
    assert cache.rates.hit_rate == 1
    usage = cache.rates.usage
    assert (usage.l1_size, usage.has_l2, usage.engines) == (16 * 1024**2, True, 2)
    assert usage.l1 == PROMPT * 8192
    assert usage.l2 is not None
    assert usage.l2 >= usage.l1


def test_prompts_at_once_are_not_told_apart(fleet: Fleet) -> None:
    """Two of one engine between two looks: their sum, and of neither where it came from."""
    made = fleet.gauges()
    for _ in range(2):
        fleet.ask("plain", fleet.salt(), 100)
    one = one_prompt(made.look())
    assert (one.n, one.tokens, one.sources, one.ttft) == (2, 200, None, None)


def test_tiers_are_unknown_while_another_may_have_asked(fleet: Fleet) -> None:
    """Both engines of the cache had a prompt: each has its sources, neither its tier."""
    salt = fleet.salt()
    fleet.ask("a", salt)
    made = fleet.gauges()
    fleet.ask("b", salt)
    fleet.ask("a", fleet.salt())
    told = {seen.prompts.engine: seen.prompts for seen in made.look().fresh}
    assert told["b"].sources == Sources(1, 0, PROMPT - 1)
    assert told["a"].sources == Sources(PROMPT, 0, 0)
    assert (told["a"].tiers, told["b"].tiers) == (None, None)


def test_an_engine_that_ends_and_comes_back(fleet: Fleet) -> None:
    """It says that it does not answer and since when; the others go on; once it is back its restart is told."""
    made = fleet.gauges()
    fleet.lab.run("stop", "plain", "-p", fleet.lab.name)
    frame = made.look()
    assert "Connection refused" in engine(frame, "plain").problem
    assert engine(frame, "plain").rates == EngineRates()
    assert not engine(frame, "a").problem
    until(lambda: engine(made.look(), "plain").silent > 0.1)
    fleet.lab.run("start", "plain", "-p", fleet.lab.name)
    back = engine(made.look(), "plain")
    assert (back.problem, back.broken, back.silent) == ("", "restarted", 0)
    assert back.restarted is not None
    assert back.rates.window is None
    fleet.ask("plain", fleet.salt(), 100)
    assert engine(made.look(), "plain").rates.tokens == Sources(100, 0, 0)


def test_an_engine_that_hangs(fleet: Fleet) -> None:
    """A stopped process answers nobody: the look waits a second, says so, and goes on as soon as it runs again."""
    made = fleet.gauges()
    leader = fleet.lab.project().records()["plain"].leader
    assert leader is not None
    pid = leader.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        frame = made.look()
        assert time.monotonic() - began < gauges.PATIENCE + 10
        assert engine(frame, "plain").problem == "no answer yet: busy, or it hangs"
        assert not engine(frame, "a").problem
        assert engine(made.look(), "plain").silent > gauges.PATIENCE
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not engine(made.look(), "plain").problem)


def test_metrics_that_cannot_be_read(fleet: Fleet) -> None:
    """No /metrics, or those of something else: said with what came instead."""
    made = fleet.gauges("plain")
    fleet.fault("plain", NO_METRICS=1)
    assert engine(made.look(), "plain").problem == "does not answer (HTTP 404 at /metrics)"
    fleet.fault("plain")
    assert not engine(made.look(), "plain").problem
    cache = fleet.plan.service("shared").url
    frame = gauges.of_targets(attach.services([f"odd={cache}"]), "").look()
    assert engine(frame, "odd").problem == "its /metrics has no counters of vLLM"


def test_an_address_that_nobody_can_ask(fleet: Fleet) -> None:
    """It is a problem of that one service, at once, not of the others."""
    made = gauges.of_targets(attach.services([f"odd=http://{'x' * 70}.test", f"a={fleet.plan.service('a').url}"]), "")
    frame = made.look()
    assert engine(frame, "odd").problem.startswith(("cannot be asked", "does not answer"))
    assert not engine(frame, "a").problem


def test_a_late_answer_is_not_shown_as_of_now(fleet: Fleet) -> None:
    """What an engine answered after the look that asked is asked anew by the next: its reading is of that look."""
    made = fleet.gauges("plain")
    leader = fleet.lab.project().records()["plain"].leader
    assert leader is not None
    os.kill(leader.pid, signal.SIGSTOP)
    try:
        assert engine(made.look(), "plain").problem
    finally:
        os.kill(leader.pid, signal.SIGCONT)
    waiting = made.sources["plain"].question
    assert waiting is not None
    assert waiting.finished.wait(30)
    fleet.ask("plain", fleet.salt(), 77)
    assert one_prompt(made.look()).tokens == 77


def test_a_router_is_told(fleet: Fleet) -> None:
    """Engines that answer in turn at one address have no rates: that is said, and what to do."""
    with relay(*(fleet.plan.service(name).port for name in ("a", "b"))) as port:
        made = gauges.of_targets(attach.services([f"one=http://127.0.0.1:{port}"]), "")
        frames = [made.look() for _ in range(4)]
    assert engine(frames[-1], "one").problem == gauges.SEVERAL
    assert not any(frame.fresh for frame in frames)


def test_a_key_goes_with_it(lab: Lab) -> None:
    """An engine of a profile with an API key is asked with that; whether it guards /metrics or not."""
    lab.environ["VLLM_API_KEY"] = "correct-horse"
    lab.up(lab.profile({"a": {}}, {}, secrets=["VLLM_API_KEY"]))
    done = lab.run("top", "--count", "1", "--json", "--interval", "0.2")
    assert json.loads(done.stdout)["engines"][0]["answers"] is True
    assert "correct-horse" not in done.stdout + done.stderr


def test_json_lines(fleet: Fleet) -> None:
    """One object an interval, so many as were asked for; a request in between shows in the next, and only there."""
    process = fleet.lab.start("top", "--json", "--interval", "0.5", "--count", "4", "-p", fleet.lab.name)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    salt = fleet.salt()
    fleet.ask("a", salt)
    rest = [json.loads(line) for line in process.stdout.read().splitlines()]
    assert process.wait(30) == 0
    assert len(rest) == 3
    assert first["project"] == fleet.lab.name
    prompts = [prompt for line in rest for prompt in line["prompts"]]
    assert [(one["engine"], one["sources"]) for one in prompts] == [
        ("a", {"computed": PROMPT, "local": 0, "shared": 0})
    ]
    a = next(one for one in rest[-1]["engines"] if one["service"] == "a")
    assert a["prompt_tokens"] == {"computed": PROMPT, "local": 0, "shared": 0}
    assert a["ttft"]["n"] == 1
    assert a["ttft"]["p50_s"] == prompts[0]["ttft_s"]
    assert 1 < a["window_s"] < 10
    assert a["memory_bytes"] > 1024**2
    assert (a["requests_running"], a["requests_waiting"], a["hit_rate"]) == (0, 0, 0)


def test_json_ends_with_ctrl_c(fleet: Fleet) -> None:
    """As `kvdemo events` does: exit code 130, whole lines, no traceback."""
    process = fleet.lab.start("top", "--json", "--interval", "0.2", "-p", fleet.lab.name)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert all(json.loads(line) for line in out.splitlines())


def test_where_no_terminal_is_it_shows_one_interval(fleet: Fleet) -> None:
    """A program that forgets --count is not held up; every service has its line, none is wider than 80 columns."""
    done = fleet.lab.run("top", "--interval", "0.2", "-p", fleet.lab.name, COLUMNS="80")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if re.match(r"(plain|a|b|shared) ", line)] == [
        "plain",
        "a",
        "b",
        "shared",
    ]
    assert max(map(len, lines)) <= 80
    assert done.stdout.count("ENGINE RUN") == 1


def test_services_can_be_chosen(fleet: Fleet) -> None:
    """Only these; one that there is not is refused, as is everything that contradicts itself."""
    run = fleet.lab.run
    done = run("top", "a", "--count", "1", "--json", "-p", fleet.lab.name)
    line = json.loads(done.stdout)
    assert ([one["service"] for one in line["engines"]], line["caches"]) == (["a"], [])
    for wrong, said in (
        (["nobody", "-p", fleet.lab.name], "nobody"),
        (["a", "--target", "x=http://127.0.0.1:9"], "--target cannot be combined"),
        (["--target", "x"], "expected NAME=URL"),
        (["--target", "x=http://127.0.0.1:9", "--target", "x=http://127.0.0.1:9"], "two are called x"),
        (["--cache-url", "http://127.0.0.1:9"], "needs --target"),
    ):
        done = run("top", *wrong)
        assert (done.returncode, said in done.stderr) == (2, True), done
    assert run("top", "--count", "1", KVDEMO_STATE_DIR=str(fleet.lab.path / "nothing")).returncode == 7


def test_targets(fleet: Fleet) -> None:
    """Engines that nobody says anything of but their addresses show the same; memory and GPUs are unknown, not 0."""
    specs = [fleet.plan.service(name) for name in ("a", "b")]
    words = [word for spec in specs for word in ("--target", f"{spec.name}={spec.url}/v1")]
    cache = ["--cache-url", fleet.plan.service("shared").url]
    nothing = {"KVDEMO_STATE_DIR": str(fleet.lab.path / "nothing")}
    process = fleet.lab.start("top", *words, *cache, "--json", "--count", "3", "--interval", "0.5", **nothing)
    assert process.stdout is not None
    process.stdout.readline()
    salt = fleet.salt()
    fleet.ask("a", salt)
    fleet.ask("b", salt)
    last = [json.loads(line) for line in process.stdout][-1]
    assert process.wait(30) == 0
    a, b = last["engines"]
    assert b["prompt_tokens"] == {"computed": 1, "local": 0, "shared": PROMPT - 1}
    assert (a["memory_bytes"], a["gpus"]) == (None, [])
    assert last["caches"][0]["hit_tokens"] == {"l1": PROMPT, "l2": 0}
    alone = json.loads(fleet.lab.run("top", *words[:2], "--count", "1", "--json", **nothing).stdout)
    assert [one["service"] for one in alone["engines"]] == ["a"]


class Screen:
    """The command on a terminal of so many columns, with a keyboard."""

    def __init__(self, lab: Lab, *arguments: str, columns: int = 80) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (40, columns))
        self.before = termios.tcgetattr(self.slave)
        environ = {name: value for name, value in lab.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        environ |= {"PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm"}
        argv = [sys.executable, "-m", "kvdemo", "top", *arguments]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        self.process = subprocess.Popen(argv, cwd=lab.path, env=environ, start_new_session=True, **pipes)
        lab.running.append(self.process)
        self.written = b""

    def read_until(self, word: str) -> str:
        """What was written, once this is in it."""
        while word.encode() not in self.written:
            self.written += os.read(self.master, 65536)
        return self.written.decode()

    def end(self) -> tuple[int, bool]:
        """Its exit code, and whether the terminal is as it was."""
        code = self.process.wait(30)
        same = termios.tcgetattr(self.slave) == self.before
        os.close(self.master)
        os.close(self.slave)
        return code, same


@pytest.mark.parametrize("key", ["q", "Q"])
def test_q_quits(fleet: Fleet, key: str) -> None:
    """At once, whatever the interval; the terminal echoes again, and every line fits into 80 columns."""
    screen = Screen(fleet.lab, "--interval", "600", "-p", fleet.lab.name)
    said = screen.read_until("q quits")
    os.write(screen.master, b"x")  # another key does nothing
    os.write(screen.master, key.encode())
    assert screen.end() == (0, True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert max(len(line.rstrip("\r")) for line in plain.split("\n")) <= 80


def test_ctrl_c_quits(fleet: Fleet) -> None:
    """As q does, with the terminal as it was."""
    screen = Screen(fleet.lab, "--interval", "600", "-p", fleet.lab.name)
    screen.read_until("q quits")
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == (0, True)


def test_the_screen_is_drawn_anew(fleet: Fleet) -> None:
    """A prompt appears without anybody's doing; --count ends it there too."""
    screen = Screen(fleet.lab, "--interval", "0.5", "--count", "6", "-p", fleet.lab.name)
    screen.read_until("q quits")
    fleet.ask("plain", fleet.salt(), 123)
    screen.read_until("123 tokens = ")
    assert screen.end() == (0, True)


def test_many_engines_are_asked_together(fleet: Fleet) -> None:
    """A look costs as long as the slowest answer, and no request: the engines' own counters stay as they are."""
    made = fleet.gauges()
    before = [health.counters(spec.url) for spec in fleet.plan.engines]
    with ThreadPoolExecutor() as pool:
        frames = list(pool.map(lambda _: fleet.gauges().look(), range(3)))
    assert all(not one.problem for frame in [*frames, made.look()] for one in frame.services)
    assert [health.counters(spec.url) for spec in fleet.plan.engines] == before


def rendered(frame: Frame, width: int, encoding: str = "utf-8") -> str:
    """A frame on a terminal of so many columns, without colours."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    console.print(report.View(frame, ", every 2 s; q quits"))
    file.seek(0)
    return file.read()


BUSY = EngineRates(
    window=10.0,
    running=12,
    waiting=345,
    tokens=Sources(12_345_678, 0, 1),
    hit_rate=0.9951,
    hit_rate_ever=0.004,
    ttft=Ttft(1234, Quantile(61.5), None),
    kv_usage=0.999,
)
LONG = Frame(
    "a-project-with-a-long-name",
    NOW,
    10,
    [
        Engine("lmcache-with-a-name-that-is-far-too-long", rates=BUSY, memory=2**37, gpus=(GpuLoad(0, 75, 150, 0.35),)),
        Engine("b", rates=replace(BUSY, tokens=None, ttft=Ttft(1, Quantile(2560, at_least=True), Quantile(0.0123)))),
        Engine("c", problem="does not answer ([Errno 111] Connection refused)", silent=12.3),
        Engine("d", broken="counters went back", restarted=NOW),
    ],
    [Cache("shared", rates=CacheRates(10.0, 9999, {"l1": 99, "l2": 900}, 0.1, 0.2, 99999))],
    recent=[
        PromptsSeen(NOW, Prompts("b", 1, 2000, Sources(16, 0, 1984), 0.25, {"l1": 0, "l2": 1984})),
        PromptsSeen(NOW, Prompts("b", 1, 2000)),
        PromptsSeen(NOW, Prompts("b", 3, 6000)),
    ],
)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_it_fits(width: int) -> None:
    """No line is wider than the terminal, however long names and numbers are; at 80 columns no number is cut."""
    lines = rendered(LONG, width).splitlines()
    assert max(map(len, lines)) <= width
    if width >= 80:
        for piece in (">99%", "<1%", "1 min 2 s", "1,234", "345"):
            assert any(piece in line for line in lines), piece


def test_what_it_says_of_each() -> None:
    """Problems with their age, restarts with their time, prompts with what is known of them, what "?" means."""
    said = rendered(LONG, 160)
    for sentence in (
        "c: does not answer ([Errno 111] Connection refused) (for 12 s)",
        "d: counters went back: it was restarted, or reset; seen at 10:20:30, counted anew since",
        "10:20:30 b: 2,000 tokens = 16 computed + 1,984 shared (L2), TTFT 250 ms",
        "10:20:30 b: 2,000 tokens, sources unknown",
        "10:20:30 b: 3 prompts, together 6,000 tokens; sources of each unknown",
        "? = unknown: nobody tells",
        "> 42 min 40 s",
    ):
        assert sentence in said


def test_bars_without_colours_and_without_unicode() -> None:
    """Each source has a character of its own; a terminal that has not even those gets plain ones."""
    tokens = Sources(500, 250, 250)
    frame = Frame("demo", NOW, 10, [Engine("a", rates=replace(BUSY, tokens=tokens))])
    bar = re.search(r"[░▒█]+", next(line for line in rendered(frame, 100).splitlines() if line.startswith("a ")))
    assert bar is not None
    counts = [bar[0].count(glyph) for glyph in "░▒█"]
    assert counts[0] == pytest.approx(2 * counts[1], abs=1)
    assert counts[1] == pytest.approx(counts[2], abs=1)
    plain = rendered(frame, 100, encoding="ascii")
    assert plain.isascii()
    assert re.search(r"\.+-+#+", plain)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0%"), (0.001, "<1%"), (0.5, "50%"), (0.9951, ">99%"), (1.0, "100%"), (None, "?")],
)
def test_shares(value: float | None, said: str) -> None:
    """What is not all does not read as all, what is something not as nothing."""
    gauge = next(one for one in words.ENGINE_GAUGES if one.heading == "KV")
    assert gauge.cell(Engine("a", rates=EngineRates(kv_usage=value))).text == said


def test_nothing_asked_has_no_hit_rate() -> None:
    """Of no prompt there is none, and it says so otherwise than of prompts whose sources nobody tells."""
    engine = {one.heading: one.cell for one in words.ENGINE_GAUGES}
    cache = {one.heading: one.cell for one in words.CACHE_GAUGES}
    for tokens, said in ((0, "-"), (None, "?")):
        assert engine["EVER"](Engine("a", rates=EngineRates(tokens_ever=tokens))).text == said
        assert cache["EVER"](Cache("b", rates=CacheRates(requested_ever=tokens))).text == said
    assert engine["HIT"](Engine("a", rates=EngineRates(tokens=Sources(0, 0, 0)))).text == "-"
    assert engine["HIT"](Engine("a", rates=EngineRates())).text == "?"


def test_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bytes in use and how busy each is, in the order of CUDA; what an instance does not tell is unknown."""
    told = nvml.machine({"utilization": 35}, {})
    nvml.install(monkeypatch, tmp_path, told)
    first, second = gpus.loads({}).values()
    used = told["gpus"][0]["total"] - told["gpus"][0]["free"]
    assert (first, second.utilization) == (GpuLoad(0, used, told["gpus"][0]["total"], 0.35), None)
    assert list(gpus.loads({"CUDA_VISIBLE_DEVICES": "1"}).values()) == [replace(second, index=0)]


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        ([GpuLoad(0, 1, 2, 0.35)], "35%"),
        ([GpuLoad(0, 1, 2, 0.35), GpuLoad(1, 1, 2, 0.4)], "35-40%"),
        ([GpuLoad(0, 1, 2, 0.35), GpuLoad(1, 1, 2)], "?"),
    ],
)
def test_how_busy_gpus_are(loads: Sequence[GpuLoad], said: str) -> None:
    """One share, or the extent over an engine's GPUs, or unknown."""
    one = Engine("a", gpus=tuple(loads))
    assert {gauge.heading: gauge.cell(one).text for gauge in words.engine_gauges([one])}["GPU"] == said
    assert "GPU" not in {gauge.heading for gauge in words.engine_gauges([Engine("b")])}
