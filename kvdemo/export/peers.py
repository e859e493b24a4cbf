"""The exact commands by which other benchmarks measure this fleet: what kvdemo does not do (load at a rate, datasets).

Pure. Every peer is given the same small load: a few requests, one after the other, about documents that repeat, so that
later requests can reuse what earlier ones computed. Seeds are fixed: each engine gets the same documents, and a cached
one finds what another stored; the second run of a command therefore starts warm. Each command was run against a real
engine with vllm 0.32.0, lmcache 0.5.6, guidellm 0.8.1 and aiperf 0.13.0.
"""

from __future__ import annotations

import shlex
from typing import Literal

from kvdemo.planning.engines import GIB
from kvdemo.planning.plan import Plan, ServiceSpec

Peer = Literal["vllm-bench", "lmcache-bench", "guidellm", "aiperf"]

REQUESTS = 8
DOCUMENTS = 2
DOCUMENT = 4000
"""Tokens of a document, if the engine's context is at least twice as long; else half of that."""
QUESTION = 100
ANSWER = 16
KEY = "$VLLM_API_KEY"
"""The engine's key as the user's shell knows it: the only word that a shell must expand."""

# `vllm bench serve` without the vllm program: that of the CPU build looks for a distribution called vllm and fails.
VLLM_BENCH = (
    "from vllm.benchmarks import serve; from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser; "
    "parser = Parser('vllm bench serve'); serve.add_cli_args(parser); serve.main(parser.parse_args())"
)


def commands(plan: Plan, peer: Peer) -> list[str]:
    """One command line for each engine, with a comment line before it."""
    return [line for spec in plan.engines for line in (f"# {spec.name}", _line(spec, peer))]


def _line(spec: ServiceSpec, peer: Peer) -> str:
    make = {"vllm-bench": _vllm, "lmcache-bench": _lmcache, "guidellm": _guidellm, "aiperf": _aiperf}[peer]
    words = [*_environment(spec, peer), *make(spec)]
    return " ".join(f'"{word}"' if word.endswith(KEY) else shlex.quote(word) for word in words)


def _environment(spec: ServiceSpec, peer: Peer) -> list[str]:
    """Where the engine needs no network, its peers need none; where it wants a key, they bring it."""
    words = []
    if peer == "aiperf" and _tokenizer(spec).startswith("/"):
        # AIPerf 0.13.0 takes every tokenizer for a Hub id when told to be offline; a directory is not looked up anyway.
        words += ["-u", "HF_HUB_OFFLINE", "-u", "TRANSFORMERS_OFFLINE"]
    elif spec.env.get("HF_HUB_OFFLINE") == "1":
        words += ["HF_HUB_OFFLINE=1"]
    if "VLLM_API_KEY" in spec.secrets and peer != "aiperf":  # AIPerf wants it as an argument
        words += [("GUIDELLM__SPEC__BACKEND__API_KEY=" if peer == "guidellm" else "OPENAI_API_KEY=") + KEY]
    return ["env", *words] if words else []


def _tokenizer(spec: ServiceSpec) -> str:
    """The tokenizer as the engine was given it, by default with the model: a directory or a Hugging Face id.

    Of an engine that something else started the name of the model is all there is.
    """
    return spec.tokenizer or spec.source or spec.model


def _python(spec: ServiceSpec) -> str:
    """The engine's own interpreter, or that of the user's shell where something else started the engine."""
    return spec.python or "python3"


def _document(spec: ServiceSpec) -> int:
    return min(DOCUMENT, spec.context // 2) if spec.context else DOCUMENT


def _vllm(spec: ServiceSpec) -> list[str]:
    return [
        *(_python(spec), "-c", VLLM_BENCH, "--backend", "openai", "--base-url", spec.url),
        *("--endpoint", "/v1/completions", "--model", spec.model, "--tokenizer", _tokenizer(spec)),
        *("--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes", str(DOCUMENTS)),
        *("--prefix-repetition-prefix-len", str(_document(spec)), "--prefix-repetition-suffix-len", str(QUESTION)),
        *("--prefix-repetition-output-len", str(ANSWER), "--num-prompts", str(REQUESTS), "--max-concurrency", "1"),
        *("--save-result", "--result-dir", "results", "--label", spec.name),
    ]


def _lmcache(spec: ServiceSpec) -> list[str]:
    # It counts words, of one or two tokens each. How many documents follows from the volume: 100 GB unless told.
    length = _document(spec) // 2
    per_gb = GIB // spec.kv_bytes_per_token if spec.kv_bytes_per_token else DOCUMENT
    volume = (DOCUMENTS + 0.5) * length / per_gb
    return [
        *(_python(spec), "-m", "lmcache.cli.main", "bench", "engine", "--engine-url", spec.url, "--model", spec.model),
        *("--workload", "long-doc-qa", "--ldqa-document-length", str(length)),
        *("--tokens-per-gb-kvcache", str(per_gb), "--kv-cache-volume", f"{volume:.4g}"),
        *("--ldqa-query-per-document", str(REQUESTS // DOCUMENTS), "--ldqa-num-inflight-requests", "1"),
        *("--ldqa-max-output-length", str(ANSWER), "--no-interactive", "--no-csv"),
    ]


def _guidellm(spec: ServiceSpec) -> list[str]:
    load = f"prefix_count={DOCUMENTS},prefix_tokens={_document(spec)},prompt_tokens={QUESTION},output_tokens={ANSWER}"
    return [
        *("guidellm", "run", "--backend", f"kind=openai_http,target={spec.url},model={spec.model}"),
        *("--tokenizer", f"kind=huggingface_auto,model={_tokenizer(spec)}", "--data", f"kind=synthetic_text,{load}"),
        *("--profile", "kind=synchronous", "--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--output", f"kind=json,path=guidellm-{spec.name}.json"),
    ]


def _aiperf(spec: ServiceSpec) -> list[str]:
    key = ("--api-key", KEY) if "VLLM_API_KEY" in spec.secrets else ()
    return [
        *("aiperf", "profile", "--model", spec.model, "--url", spec.url, "--endpoint-type", "chat", "--streaming"),
        *("--tokenizer", _tokenizer(spec), "--concurrency", "1", "--request-count", str(REQUESTS)),
        *("--num-prefix-prompts", str(DOCUMENTS), "--prefix-prompt-length", str(_document(spec))),
        *("--synthetic-input-tokens-mean", str(QUESTION), "--output-tokens-mean", str(ANSWER)),
        *("--random-seed", "0", "--artifact-dir", f"results/aiperf-{spec.name}", *key),
    ]
