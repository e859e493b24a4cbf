#!/usr/bin/env python3
"""Put kvdemo load's client beside ``vllm bench serve --request-rate``: one engine, the same requests at the same times.

    scripts/compare_load.py URL --tokenizer DIRECTORY [--rate 1] [--requests 60] [--input-len 1000] [--draws 1]

vLLM's client draws random prompts and Poisson arrivals. kvdemo's sends the same prompts, each at the moment at which
vLLM's sent it, counted from the first; what is left between the two is what a client adds, and chance. They take turns
as vLLM, kvdemo, kvdemo, vLLM, each under a salt of its own, so that nothing comes from a cache. The noise is what two
runs of one client differ by. TTFT counts from the sending in vLLM's client, which does not tell how late it sent, and
from the scheduled arrival in kvdemo's. The engine's own mean TTFT of the same requests is told beside both.

``--python`` is the interpreter that holds vLLM. Nothing else is needed: no network, none of vLLM's extras.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from kvdemo.backends import series
from kvdemo.bench.client import Client
from kvdemo.host import health
from kvdemo.judge import stats
from kvdemo.judge.traffic import Limit
from kvdemo.load import runner
from kvdemo.load.schedule import Arrival
from kvdemo.planning.plan import ServiceSpec

ANSWER = 8
"""Tokens of every answer."""

PATIENT = Limit(600.0, 0.5)
"""No rate is cut: both clients send everything."""

OWN, VLLM = "kvdemo load", "vllm bench serve"

BENCH_SERVE = """
import json, sys
from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser

def recorded(*asked):
    samples = draw(*asked)
    with open(sys.argv[1], "w") as file:
        json.dump([sample.prompt for sample in samples], file)
    return samples

draw, serve.get_samples = serve.get_samples, recorded
parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args(sys.argv[2:]))
"""
"""``vllm bench serve`` as its subcommand runs it, but its prompts are written down."""


@dataclass(frozen=True)
class Run:
    """One client, once: TTFTs (s) by request, the engine's own mean (s), prompt tokens, and those from its cache."""

    client: str
    ttfts: Sequence[float]
    engine_mean: float
    prompt_tokens: int
    cached_tokens: int
    load: float

    def percentile(self, share: float) -> float:
        """In ms."""
        return 1000 * (stats.percentile(self.ttfts, share) or 0.0)

    def row(self) -> str:
        """Of the table."""
        tokens = f"{self.prompt_tokens / len(self.ttfts):,.0f}"
        own = mean(self.ttfts)
        times = f"{self.percentile(0.5):.1f} | {self.percentile(0.9):.1f} | {1000 * own:.1f}"
        added = f"{1000 * (own - self.engine_mean):.1f}"
        counts = f"{len(self.ttfts)} | {tokens} | {self.cached_tokens}"
        return f"| {self.client} | {counts} | {times} | {added} | {self.load:.1f} |"


@dataclass(frozen=True)
class Requests:
    """What vLLM's client drew: the prompts, and when it sent each (s since the first)."""

    prompts: Sequence[str]
    times: Sequence[float]


class Watched:
    """The engine's counters around a run."""

    def __init__(self, engine: ServiceSpec) -> None:
        self.engine, self.load, self.before = engine, os.getloadavg()[0], health.counters(engine.url)

    def run(self, client: str, ttfts: Sequence[float]) -> Run:
        """All that is known of it. Ends the program if the engine served others meanwhile."""
        after = health.counters(self.engine.url)

        def counted(name: str) -> float:
            return after[name] - self.before.get(name, 0.0)

        if (served := counted("time_to_first_token_seconds_count")) != len(ttfts):
            sys.exit(f"{client} sent {len(ttfts)} requests, the engine served {served:g}: somebody else uses it")
        own = counted("time_to_first_token_seconds_sum") / len(ttfts)
        computed, *cached = (int(counted(series.BY_SOURCE.at(source))) for source in series.SOURCES)
        return Run(client, ttfts, own, computed + sum(cached), sum(cached), self.load)


def body(engine: ServiceSpec, prompt: str, salt: str) -> dict[str, Any]:
    """A request of kvdemo's."""
    return {
        "model": engine.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": ANSWER,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_salt": salt,
    }


def warm_up(engine: ServiceSpec, tokens: int) -> None:
    """The first requests pay for what comes once: they are not among those measured."""
    with Client(engine.url) as client:
        for _ in range(3):
            reply = client.stream(runner.PATH, body(engine, "word " * tokens, secrets.token_hex(6)))
            if reply.error:
                sys.exit(f"{engine.url}: {reply.error}")


def of_kvdemo(engine: ServiceSpec, requests: Requests) -> Run:
    """Send them at their times."""
    salt = secrets.token_hex(6)
    watched = Watched(engine)
    arrivals = [Arrival(at, number, 0) for number, at in enumerate(requests.times)]
    ready = runner.flights(
        arrivals, [engine], "", 0, lambda spec, arrival: body(spec, requests.prompts[arrival.document], salt)
    )
    phase = runner.run("plain", 0.0, 1, requests.times[-1], ready, PATIENT, "")
    errors = [request.error for request in phase.requests if request.error]
    if errors:
        sys.exit(f"{OWN}: {len(errors)} requests failed: {errors[0]}")
    late = stats.percentile([request.late for request in phase.requests], 0.99) or 0.0
    print(f"{OWN}: sent at most {1000 * late:.1f} ms late (p99)", file=sys.stderr)
    return watched.run(OWN, [request.ttft or 0.0 for request in phase.requests])


def of_vllm(asked: argparse.Namespace, engine: ServiceSpec, seed: int) -> tuple[Run, Requests]:
    """Let vLLM's client draw and send; what it saves, and the prompts."""
    with tempfile.TemporaryDirectory() as directory:
        prompts, result = Path(directory, "prompts.json"), Path(directory, "result.json")
        options = {
            "backend": "openai-chat",
            "endpoint": "/v1/chat/completions",
            "base-url": engine.url,
            "model": engine.model,
            "tokenizer": asked.tokenizer,
            "dataset-name": "random",
            "random-input-len": asked.input_len,
            "random-output-len": ANSWER,
            "num-prompts": asked.requests,
            "num-warmups": 0,
            "request-rate": asked.rate,
            "temperature": 0,
            "extra-body": json.dumps({"cache_salt": secrets.token_hex(6)}),
            "seed": seed,
            "result-filename": result,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        flags = ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
        watched = Watched(engine)
        argv = [asked.python, "-c", BENCH_SERVE, str(prompts), *words, *flags]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode or not result.exists():
            sys.exit(f"{VLLM} failed:\n{done.stdout[-500:]}\n{done.stderr[-1500:]}")
        held = json.loads(result.read_text())
        if held["failed"]:
            sys.exit(f"{VLLM}: {held['failed']} requests failed")
        first = held["start_times"][0]
        times = [start - first for start in held["start_times"]]
        return watched.run(VLLM, held["ttfts"]), Requests(json.loads(prompts.read_text()), times)


def comparison(runs: Sequence[Run]) -> str:
    """Four runs of the same requests, two of each client: how far the clients are apart, and two runs of one."""
    groups = {name: [run for run in runs if run.client == name] for name in (OWN, VLLM)}
    lines = []
    for share in (0.5, 0.9):
        own, other = ([run.percentile(share) for run in group] for group in groups.values())
        noise = max(abs(one - two) for one, two in (own, other))
        apart = mean(own) - mean(other)
        word = "within" if abs(apart) <= noise else "BEYOND"
        lines.append(f"p{100 * share:.0f}: {OWN} {apart:+.1f} ms, {word} the noise of two runs ({noise:.1f} ms)")
    own_times, others = (zip(*(run.ttfts for run in group), strict=True) for group in groups.values())
    pairs = [1000 * (mean(one) - mean(other)) for one, other in zip(own_times, others, strict=True)]
    lines.append(f"paired by request: {median(pairs):+.1f} ms (median of {len(pairs)})")
    return "\n".join(lines)


def main() -> None:
    """Print a table and a comparison for each draw of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--tokenizer", required=True, metavar="DIRECTORY")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--requests", type=int, default=60, help="of each run")
    parser.add_argument("--input-len", type=int, default=1000, help="tokens of a prompt, without the chat template")
    parser.add_argument("--draws", type=int, default=1, help="each of other prompts and arrivals, four runs each")
    parser.add_argument("--python", default=sys.executable)
    asked = parser.parse_args()
    code, models = health.models(asked.url)
    if not models:
        sys.exit(f"{asked.url}: no model (HTTP {code})")
    engine = ServiceSpec("engine", "engine", (), {}, "", 0, (), 0.0, 0.0, model=models[0], address=asked.url)
    warm_up(engine, asked.input_len)
    for draw in range(1, asked.draws + 1):
        first, requests = of_vllm(asked, engine, draw)
        runs = [first, *(of_kvdemo(engine, requests) for _ in range(2)), of_vllm(asked, engine, draw)[0]]
        print(f"\n{models[0]}, {asked.rate:g} requests/s (Poisson), draw {draw}, {os.cpu_count()} cores\n")
        print("| Client | n | Prompt tokens | Cached | TTFT p50 (ms) | p90 | Mean | Over the engine's | Load before |")
        print("|---" * 9 + "|")
        print("\n".join(run.row() for run in runs), comparison(runs), sep="\n\n", flush=True)


if __name__ == "__main__":
    main()
