#!/usr/bin/env python3
"""Measure what `kvdemo ui` costs: how soon its page can be used, and what it adds to the TTFT that bench measures.

    scripts/measure_ui.py [-p PROJECT] [--context FILE] [--rounds N] [--starts N]

For the fleet that is up. Usable: from the start of the command to the button that asks, in headless Chromium. Added:
in every round the page (asked in Chromium, on this machine too) and bench's own code put the same document to the
writer (store) and twice to the reader (reuse, again), in alternating order; ratios are taken within a round. Bench asks
the next at once and, as "paced", after a second without requests, which is what an engine sees of the page: engines
answer later after a rest. Exit code 3 if a goal is missed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from kvdemo.bench import trials
from kvdemo.bench.session import Session
from kvdemo.commands import scope
from kvdemo.config import benchmark
from kvdemo.fleet import fleet
from kvdemo.judge import record, stats
from kvdemo.judge.sample import Arm, Sample
from kvdemo.planning.plan import ServiceSpec

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
PORT = 8519
SECONDS, SHARE = 3.0, 0.05
TOKENS = 16
PACE = 1.0


@contextmanager
def served(project: str) -> Iterator[str]:
    """``kvdemo ui``, running; its URL."""
    argv = [sys.executable, "-m", "kvdemo", "ui", "-p", project, "--port", str(PORT)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{PORT}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=10).read()
                break
            except OSError:
                time.sleep(0.01)
        yield url
    finally:
        process.terminate()
        process.wait()


def starts(page: Page, project: str, count: int) -> tuple[list[float], list[float]]:
    """Seconds from the command to the first answer, and to a page that can be used."""
    answers, usable = [], []
    for _ in range(count):
        began = time.monotonic()
        with served(project) as url:
            answers.append(time.monotonic() - began)
            page.goto(url)
            page.locator("#ask").wait_for()
            usable.append(time.monotonic() - began)
            page.goto("about:blank")
    return answers, usable


def history(url: str, scratch: Path) -> list[Sample]:
    """Every request of the page."""
    with urllib.request.urlopen(f"{url}/history.jsonl") as answer:  # noqa: S310
        scratch.write_bytes(answer.read())
    return list(record.read(scratch).samples)


def ask(page: Page, *engines: str) -> None:
    """Ask these engines one after another, to the end."""
    for chip in page.locator(".chip").all():
        if (chip.get_attribute("aria-pressed") == "true") != (chip.get_attribute("data-engine") in engines):
            chip.click()
    before = page.locator(".turn").count()
    page.locator("#ask").click()
    expect(page.locator(".turn")).to_have_count(before + 1)
    expect(page.locator("#ask")).to_be_enabled(timeout=120_000)


def rounds(page: Page, url: str, session: Session, count: int, scratch: Path) -> list[dict[str, list[Sample]]]:
    """For each round the samples of every side, arm by arm."""
    writer, reader = session.roles.writer, session.roles.reader
    arms: dict[Arm, ServiceSpec] = {"store": writer, "reuse": reader, "again": reader}
    numbers = itertools.count(1)

    def by_bench(pause: float) -> list[Sample]:
        number, found = next(numbers), list[Sample]()
        for arm, engine in arms.items():
            time.sleep(pause)
            found += trials.ask(session, session.prompt, number, arm, engine, 0)
        return found

    def by_page() -> list[Sample]:
        page.locator("#cold").click()
        expect(page.locator(".known")).to_contain_text("Cold")
        ask(page, writer.name, reader.name)
        ask(page, reader.name)
        return history(url, scratch)[-3:]

    sides = {"bench": lambda: by_bench(0), "paced": lambda: by_bench(PACE), "page": by_page}
    found = []
    for number in range(1, count + 1):
        order = list(sides) if number % 2 else list(reversed(sides))
        found.append({side: sides[side]() for side in order})
        for side, samples in found[-1].items():
            for arm, sample in zip(arms, samples, strict=True):
                if sample.arm != arm or sample.error or sample.prompt_tokens != session.prompt.tokens:
                    raise SystemExit(f"round {number}: {side}: not the {arm} that was wanted: {sample}")
        print(f"round {number} of {count}", file=sys.stderr, flush=True)
    return found


def report(found: list[dict[str, list[Sample]]]) -> bool:
    """Print one line for each arm; whether all keep the goal."""
    kept = True
    for place, arm in enumerate(("store", "reuse", "again")):
        times = {side: [(one[side][place].ttft or 0) * 1000 for one in found] for side in found[0]}
        line = "   ".join(f"{side} {statistics.median(times[side]):.1f} ms" for side in ("bench", "paced", "page"))
        for base in ("bench", "paced"):
            ratios = [page / other for page, other in zip(times["page"], times[base], strict=True)]
            interval = stats.interval(ratios)
            sure = f" ({interval.low:.3f} to {interval.high:.3f})" if interval else ""
            line += f"   page/{base} {statistics.median(ratios):.3f}{sure}"
            kept &= base == "bench" or statistics.median(ratios) <= 1 + SHARE
        print(f"{arm:<6} {line}")
    return kept


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-p", "--project", default="", help="default: the one that is up")
    parser.add_argument("--context", type=Path, default=ROOT / "profiles" / "handbook.txt")
    parser.add_argument("--characters", type=int, default=30_000, help="of the context")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    project = scope.project(arguments.project)
    plan = fleet.load_plan(project)
    text = arguments.context.read_text()[: arguments.characters]
    options = benchmark.of_saved_plan(plan.bench).with_values({"max_tokens": TOKENS})
    key = fleet.key_of(plan.engines[0], os.environ)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="kvdemo-measure-") as directory:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page()
        answers, usable = starts(page, project.name, arguments.starts)
        for said, seconds in (("answers", answers), ("usable", usable)):
            print(
                f"{said:<8} {statistics.median(seconds):.2f} s after the command "
                f"({min(seconds):.2f} to {max(seconds):.2f}, n={len(seconds)})"
            )
        with served(project.name) as url, Session(plan, options, text, run_id=f"page{os.getpid()}", key=key) as session:
            session.connect()
            session.prepare()
            page.goto(url)
            page.locator("#another").click()
            page.get_by_label("Pasted text").fill(text)
            page.locator("#use").click()
            expect(page.locator(".paper h2")).to_have_text("pasted text")
            page.get_by_text("one after another").click()
            page.get_by_label("Length of the answer").click()
            page.get_by_text(f"up to {TOKENS} tokens").click()
            found = rounds(page, url, session, arguments.rounds, Path(directory) / "history.jsonl")
    return 0 if report(found) and statistics.median(usable) <= SECONDS else 3


if __name__ == "__main__":
    sys.exit(main())
