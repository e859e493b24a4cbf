#!/usr/bin/env python3
"""Put kvdemo load's client beside ``vllm bench serve --request-rate``: one engine, one rate, prompts of one length.

    scripts/compare_load.py URL [--rate 1] [--requests 60] [--characters 4000] [--repetitions 2] [--bench VLLM]

Every request has a prompt of its own, so that nothing comes from a cache. The clients take turns; each draws Poisson
arrivals of its own, so two repetitions of one client differ as the clients may: that is the noise of the comparison.
The engine must have read something before, or the first requests pay for what comes once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kvdemo.host import health
from kvdemo.judge import stats
from kvdemo.judge.traffic import Limit
from kvdemo.load import runner, schedule
from kvdemo.planning.plan import ServiceSpec

ANSWER = 8
"""Tokens of every answer."""

PATIENT = Limit(600.0, 0.5)
"""No rate is cut: both clients send everything."""

OWN, VLLM = "kvdemo load", "vllm bench serve"


def prompt(asked: argparse.Namespace, number: str) -> str:
    """A text that no other request begins with."""
    filler = "The lamp was lit at dusk and put out at dawn. " * (asked.characters // 40 + 1)
    return f"Document {number}. {filler}"[: int(asked.characters)]


def of_kvdemo(asked: argparse.Namespace, engine: ServiceSpec, repetition: int) -> list[float]:
    """TTFTs (s) from the scheduled arrival."""
    wanted = schedule.Traffic(0, reuse=0.0)
    arrivals = schedule.arrivals(wanted, asked.rate, 10 * asked.requests / asked.rate, repetition)[: asked.requests]

    def body(spec: ServiceSpec, arrival: schedule.Arrival) -> dict[str, Any]:
        text = prompt(asked, f"k{repetition}-{arrival.document}")
        return {
            "model": spec.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": ANSWER,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    ready = runner.flights(arrivals, [engine], "", 0, body)
    phase = runner.run("plain", asked.rate, repetition, arrivals[-1].at, ready, PATIENT, "")
    errors = [request.error for request in phase.requests if request.error]
    if errors:
        sys.exit(f"{OWN}: {len(errors)} requests failed: {errors[0]}")
    late = stats.percentile([request.late for request in phase.requests], 0.99) or 0.0
    print(f"  {OWN}: sent at most {1000 * late:.1f} ms late (p99)")
    return [request.ttft for request in phase.requests if request.ttft is not None]


def of_vllm(asked: argparse.Namespace, engine: ServiceSpec, repetition: int) -> list[float]:
    """TTFTs (s) from the moment of sending, as it saves them."""
    with tempfile.TemporaryDirectory() as directory:
        data, result = Path(directory, "prompts.jsonl"), Path(directory, "result.json")
        lines = [json.dumps({"prompt": prompt(asked, f"v{repetition}-{n}")}) for n in range(asked.requests)]
        data.write_text("\n".join(lines) + "\n")
        options = {
            "backend": "openai-chat",
            "endpoint": "/v1/chat/completions",
            "base-url": engine.url,
            "model": engine.model,
            "tokenizer": asked.tokenizer,
            "dataset-name": "custom",
            "dataset-path": data,
            "custom-output-len": ANSWER,
            "num-prompts": asked.requests,
            "num-warmups": 0,
            "request-rate": asked.rate,
            "seed": repetition,
            "result-filename": result,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        flags = ["--skip-chat-template", "--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
        done = subprocess.run(
            [asked.bench, "bench", "serve", *words, *flags], capture_output=True, text=True, check=False
        )
        if done.returncode or not result.exists():
            sys.exit(f"{VLLM} failed:\n{done.stdout[-500:]}\n{done.stderr[-1500:]}")
        held = json.loads(result.read_text())
        if held["failed"]:
            sys.exit(f"{VLLM}: {held['failed']} requests failed")
        return [float(value) for value in held["ttfts"]]


def main() -> None:
    """Print a row for each repetition of each client."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--characters", type=int, default=4000)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--bench", default=str(Path(sys.executable).with_name("vllm")), metavar="VLLM")
    parser.add_argument("--tokenizer", required=True, metavar="DIRECTORY")
    asked = parser.parse_args()
    model = json.loads(health.request(asked.url, "/v1/models")[1])["data"][0]["id"]
    engine = ServiceSpec("engine", "engine", (), {}, "", 0, (), 0.0, 0.0, model=model, address=asked.url)
    rows = []
    for repetition in range(1, asked.repetitions + 1):
        for name, client in ((OWN, of_kvdemo), (VLLM, of_vllm)):
            times = client(asked, engine, repetition)
            median, most = (1000 * (stats.percentile(times, share) or 0.0) for share in (0.5, 0.9))
            rows.append(f"| {name} | {repetition} | {len(times)} | {median:.0f} | {most:.0f} |")
    print(f"\n{model}, {asked.rate:g} requests/s (Poisson)\n")
    print("| Client | Repetition | n | TTFT p50 (ms) | p90 (ms) |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
