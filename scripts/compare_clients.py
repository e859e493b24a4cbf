"""Put kvdemo's client beside those of other benchmarks: what each reports for the same streams, and what it adds.

    python scripts/compare_clients.py --engine-python .venv/bin/python [--rounds 3] [--requests 20] [--output FILE.md]

vLLM's and LMCache's clients come from the engines' interpreter. GuideLLM and AIPerf are installed with pip, each into
an environment of its own below .cache/peers (3 GB together); what cannot be had is left out, with the reason. The
server is tests/sse_server.py: its own delay is taken off every TTFT, what remains is the client's overhead.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from peer_setup import ROOT, AIPerf, Driven, NotHereError, Outcome, install

SIZES = {"4 KiB": 4 << 10, "100 KiB": 100 << 10, "1 MiB": 1 << 20}

STREAMS = {
    "plain": "a role-only chunk, then a token",
    "empty-first": "a chunk with empty text, then a token",
    "role-only": "a role-only chunk without text, then a token",
    "reasoning-first": "reasoning, then text 0.1 s later",
    "whitespace-first": "a blank line, then text 0.1 s later",
    "stall": "a token, then silence",
    "reset": "a token, then a TCP reset",
    "early-end": "a token, then the end without [DONE]",
    "unavailable-once": "503 to the first request only",
    "error-event": "a token, then an error event (status 200)",
    "no-token": "a whole answer without any token",
}


def clients(engine_python: str, tokenizer: Path, stack: ExitStack) -> tuple[dict[str, Driven | AIPerf], list[str]]:
    """Every client that can be had here, by its name in the table; and why the others cannot."""
    makers: dict[str, Callable[[], Driven | AIPerf]] = {
        "kvdemo": lambda: Driven("kvdemo", sys.executable, stack),
        "vllm bench serve": lambda: Driven("vllm", engine_python, stack),
        "lmcache bench engine": lambda: Driven("lmcache", engine_python, stack),
        "GuideLLM": lambda: Driven("guidellm", install("guidellm"), stack),
        "AIPerf": lambda: AIPerf(install("aiperf"), tokenizer, stack),
    }
    found: dict[str, Driven | AIPerf] = {}
    missing = []
    for title, make in makers.items():
        try:
            client = make()
        except (NotHereError, OSError) as error:
            missing.append(f"Left out: {title}: {error}")
        else:
            found[f"{title} {client.version}"] = client
    return found, missing


def conformance(client: Driven | AIPerf) -> dict[str, str]:
    """What this client says about each stream."""
    client.ask(["scenario:quick"])
    together = [name for name in STREAMS if name != "stall"]
    prompts = [f"scenario:{name}" for name in together]
    said = dict(zip(together, client.ask(prompts), strict=False))
    said |= dict(zip(["stall"], client.ask(["scenario:stall"]), strict=False))
    return {name: cell(said.get(name), client.null.log(name)) for name in STREAMS}


def cell(said: Outcome | None, log: list[Outcome]) -> str:
    """An outcome in words; more requests than one were not its user's."""
    if said is None:
        return "no record"
    first = "no TTFT" if said["ttft"] is None else f"TTFT {said['ttft'] * 1e3:.0f} ms"
    if said["success"]:
        hidden = f" after {len(log) - 1} hidden retry" if len(log) > 1 else ""
        return f"success, {first}{hidden}"
    if said["error"].startswith("still waiting"):
        return str(said["error"])
    word = "crashed" if said.get("crashed") else "failure"
    reason = str(said["error"]).replace("|", "/").replace("\n", " ")
    return f"{word}: {reason[:90] or '(no reason given)'}"


def overheads(client: Driven | AIPerf, requests: int) -> dict[str, list[float]]:
    """Seconds that this client added to each request, by prompt size; the first of each size only warms up.

    No role-only chunk comes before the token: every client stops its clock at the same event.
    """
    already = len(client.null.log("quick"))
    prompts = [f"scenario:quick {'x' * size}" for size in SIZES.values() for _ in range(requests + 1)]
    said = client.ask(prompts)
    own = [entry["own"] for entry in client.null.log("quick")[already:]]
    if len(said) != len(prompts) or len(own) != len(prompts):
        return {}
    added = [one["ttft"] - delay for one, delay in zip(said, own, strict=True)]
    starts = range(0, len(prompts), requests + 1)
    return {name: added[start + 1 : start + 1 + requests] for name, start in zip(SIZES, starts, strict=True)}


def figures(rounds: list[dict[str, list[float]]], size: str) -> str:
    """Medians over the rounds of each round's p50 and p90, in milliseconds."""
    each = [found[size] for found in rounds if size in found]
    if not each:
        return "not measured"
    tenths = [statistics.quantiles(values, n=10, method="inclusive") for values in each]
    p50, p90 = (statistics.median(one[place] for one in tenths) * 1e3 for place in (4, 8))
    return f"{p50:.2f} / {p90:.2f}"


def table(head: str, rows: dict[str, list[str]], columns: list[str]) -> str:
    """Markdown."""
    lines = [[head, *columns], ["---"] * (len(columns) + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine-python", default=str(ROOT / ".venv" / "bin" / "python"))
    parser.add_argument("--tokenizer", type=Path, default=ROOT / ".cache" / "tiny-llama", help="for AIPerf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20, help="per prompt size, client and round")
    parser.add_argument("--output", type=Path, help="save the tables there as Markdown")
    options = parser.parse_args()
    with ExitStack() as stack:
        there, missing = clients(options.engine_python, options.tokenizer, stack)
        said = {name: conformance(client) for name, client in there.items()}
        rows = {text: [said[name][key] for name in there] for key, text in STREAMS.items()}
        text = table("The server sends", rows, list(there))
        print(text, flush=True)
        rounds: dict[str, list[dict[str, list[float]]]] = {name: [] for name in there}
        loads = []
        for _ in range(options.rounds):
            loads.append(os.getloadavg()[0])
            for name, client in there.items():
                rounds[name].append(overheads(client, options.requests))
        sizes = {f"{size} prompt": [figures(rounds[name], size) for name in there] for size in SIZES}
        text += "\n\n" + table("p50 / p90, ms", sizes, list(there))
        text += f"\n\nMedians of {options.rounds} rounds of {options.requests} requests each; Python "
        text += (
            f"{platform.python_version()}, {os.cpu_count()} cores, load {', '.join(f'{load:.1f}' for load in loads)}"
        )
        text += "".join(f"\n\n{line}" for line in missing)
        print(text.partition("\n\n")[2])
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
