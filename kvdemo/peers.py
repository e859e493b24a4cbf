"""The exact commands by which other benchmarks measure this fleet: what kvdemo does not do (load at a rate, datasets).

Pure. Flags were checked against vllm 0.32.0, lmcache 0.5.6, guidellm 0.8.1 and aiperf 0.13.0.
"""

from __future__ import annotations

import shlex
from typing import Literal

from kvdemo.plan import Plan, ServiceSpec

Peer = Literal["vllm-bench", "lmcache-bench", "guidellm", "aiperf"]


def commands(plan: Plan, peer: Peer) -> list[str]:
    """One command line for each engine, with a comment line before it."""
    return [line for spec in plan.engines for line in (f"# {spec.name}", shlex.join(_command(spec, peer)))]


def _tokenizer(spec: ServiceSpec) -> str:
    """The model as the engine was given it: a directory or a Hugging Face id."""
    return spec.argv[spec.argv.index("--model") + 1]


def _command(spec: ServiceSpec, peer: Peer) -> list[str]:
    python, model = spec.argv[0], _tokenizer(spec)
    if peer == "vllm-bench":
        # A prefix that repeats: its later requests are what reuse within one engine is about.
        return [
            *(python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai"),
            *("--base-url", spec.url, "--endpoint", "/v1/completions"),
            *("--model", spec.model, "--tokenizer", model, "--dataset-name", "prefix_repetition"),
            *("--prefix-repetition-prefix-len", "4000", "--prefix-repetition-suffix-len", "100"),
            *("--prefix-repetition-num-prefixes", "2", "--prefix-repetition-output-len", "16"),
            *("--num-prompts", "8", "--max-concurrency", "1", "--save-result"),
        ]
    if peer == "lmcache-bench":
        return [
            *(python, "-m", "lmcache.cli.main", "bench", "engine", "--engine-url", spec.url),
            *("--model", spec.model, "--workload", "long-doc-qa", "--no-interactive"),
        ]
    if peer == "guidellm":
        return [
            *("guidellm", "benchmark", "--target", spec.url, "--model", spec.model, "--processor", model),
            *("--rate-type", "synchronous", "--max-requests", "8", "--data", "prompt_tokens=4000,output_tokens=16"),
        ]
    return [
        *("aiperf", "profile", "--model", spec.model, "--url", spec.url, "--endpoint-type", "chat", "--streaming"),
        *("--tokenizer", model, "--concurrency", "1", "--request-count", "8"),
        *("--synthetic-input-tokens-mean", "4000", "--output-tokens-mean", "16"),
    ]
