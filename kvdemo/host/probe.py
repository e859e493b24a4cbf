"""What only the engines' interpreter can tell: whether its compiled parts load together, and how fast this machine is.

``bandwidth`` sends the text of this file to that interpreter, which has no kvdemo: only the standard library, torch,
vllm, lmcache and tokenizers are used, each where it is needed. Every finding is one JSON line on standard output.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

COPY_BYTES = 256 * 1024**2
SECONDS = 0.5  # of each measurement
OUT = os.fdopen(os.dup(1), "w")  # libraries write to standard output what they like


def say(**found: Any) -> None:
    """One finding."""
    print(json.dumps(found), file=OUT, flush=True)


def imports(gpu: bool, cached: bool) -> None:
    """Load what an engine loads; each step is announced first, so that a crash has a name."""
    steps: list[tuple[str, Callable[[], str]]] = [("torch", lambda: _torch(gpu)), ("vllm", lambda: _vllm(gpu))]
    if cached:
        steps += [("lmcache", lambda: _compiled("lmcache", _lmcache_parts(gpu))), ("connector", _connector)]
    for name, step in steps:
        say(step=name)
        try:
            say(step=name, text=step())
        except BaseException as error:
            last = " ".join(str(error).split())[-300:]
            say(step=name, error=f"{type(error).__name__}: {last}")
            return


def _torch(gpu: bool) -> str:
    import torch

    if not gpu:
        return f"torch {torch.__version__}"
    if torch.version.cuda is None:
        raise RuntimeError("this torch is not built for CUDA")
    torch.zeros(1, device="cuda")
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}, sees {torch.cuda.device_count()} GPUs"


def _vllm(gpu: bool) -> str:
    importlib.import_module("vllm")
    platform = importlib.import_module("vllm.platforms").current_platform
    wanted = "cuda" if gpu else "cpu"
    if platform.device_type != wanted:
        raise RuntimeError(f"this vLLM runs on {platform.device_type or 'no device'}, not on {wanted}")
    choose = getattr(platform, "import_kernels", None)
    parts = _compiled("vllm", ("_C", "_C_stable_libtorch", "_moe_C")) if gpu or not choose else _chosen(choose)
    return f"platform {platform.device_type}, {parts}"


def _chosen(choose: Callable[[], None]) -> str:
    """Let vLLM load its compiled part: the CPU build has one for each instruction set, and a wrong one is a crash.

    vLLM only logs what does not load, and loads some in a way that Python takes for a failure: what is mapped counts.
    """
    complaints: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vllm").addHandler(listener)
    choose()
    folder = os.path.realpath(next(iter(importlib.import_module("vllm").__path__)))
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        found = {line.split()[-1].rpartition("/")[2] for line in maps if f" {folder}/_C" in line}
    if not found:
        raise RuntimeError("; ".join(complaints) or "vllm loaded none of its compiled parts")
    return f"loaded {', '.join('vllm.' + name.partition('.')[0] for name in sorted(found))}"


def _lmcache_parts(gpu: bool) -> tuple[str, ...]:
    return ("c_ops", "cuda_ops") if gpu else ("lmcache_native", "native_storage_ops")


def _compiled(package: str, parts: tuple[str, ...]) -> str:
    """Load those of a package's compiled parts that it has.

    A package may put a module of its own in the place of a part (LMCache 0.5.3 does, and hides a part that does not
    load): what counts is that the file itself is mapped into this process.
    """
    folders = importlib.import_module(package).__path__
    specs = [(part, importlib.machinery.PathFinder.find_spec(part, folders)) for part in parts]
    there = {part: str(spec.origin) for part, spec in specs if spec}
    for part, file in there.items():
        importlib.import_module(f"{package}.{part}")
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            if file.endswith(".so") and file not in maps.read():
                ctypes.CDLL(file)  # says why not
                raise RuntimeError(f"{package} did without {file}")
    if not there:
        raise RuntimeError(f"{package} has none of its compiled parts ({', '.join(parts)})")
    return "loaded " + ", ".join(f"{package}.{part}" for part in there)


def _connector() -> str:
    factory = importlib.import_module("vllm.distributed.kv_transfer.kv_connector.factory").KVConnectorFactory
    found = factory.get_connector_class_by_name("LMCacheMPConnector")
    return f"{found.__module__}.{found.__qualname__}"


def rates(gpu: bool, shape: dict[str, int] | None, tokenizer: str, document: str, dtype: str = "bfloat16") -> None:
    """Copies in bytes a second, matrix products and attention in FLOP/s; the document's tokens, seconds for them."""
    for name, rate in _copies(gpu):
        say(**{name: rate})
    if shape:
        say(matmul=_matmul(gpu, shape, dtype))
        say(attention=_attention(gpu, shape, dtype))
    if tokenizer and document:
        say(**_tokens(tokenizer, document))


def _copies(gpu: bool) -> Iterator[tuple[str, float]]:
    import torch

    host = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=gpu)
    there = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda" if gpu else "cpu")
    yield "load", COPY_BYTES / _seconds(gpu, lambda: there.copy_(host, non_blocking=True), rounds=9)
    if gpu:
        yield "store", COPY_BYTES / _seconds(gpu, lambda: host.copy_(there, non_blocking=True), rounds=9)


def _seconds(gpu: bool, work: Callable[[], Any], rounds: int = 0, *, best: bool = False) -> float:
    """Median (or best) duration of some work: of so many rounds, or of as many as go into half a second."""
    import torch

    taken: list[float] = []
    began = time.perf_counter()
    work()  # allocations and the choice of a kernel
    while len(taken) < (rounds or 3) or (not rounds and time.perf_counter() - began < SECONDS):
        started = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken) if best else sorted(taken)[len(taken) // 2]


def _matmul(gpu: bool, shape: dict[str, int], dtype: str) -> float:
    """A batch of tokens through one MLP matrix of the model."""
    import torch

    tokens, hidden, inner = 8192 if gpu else 2048, shape["hidden"], shape["inner"]
    kind: dict[str, Any] = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, dtype)}
    batch, weights = torch.rand(tokens, hidden, **kind), torch.rand(hidden, inner, **kind)
    return 2.0 * tokens * hidden * inner / _seconds(gpu, lambda: batch @ weights, best=True)


def _attention(gpu: bool, shape: dict[str, int], dtype: str) -> float:
    """A chunk of a prompt against the keys before it, as in the middle of a long prefill."""
    import torch

    queries, keys = (4096, 16384) if gpu else (512, 8192)
    heads, head = shape["heads"], shape["head"]
    kind: dict[str, Any] = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, dtype)}
    query, key = torch.rand(1, heads, queries, head, **kind), torch.rand(1, heads, keys, head, **kind)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        return 4.0 * heads * head * queries * keys / _seconds(gpu, lambda: attend(query, key, key), best=True)


def _tokens(path: str, document: str) -> dict[str, float]:
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(path)
    with open(document, encoding="utf-8-sig") as stream:  # noqa: PTH123
        text = stream.read()
    began = time.perf_counter()
    count = len(tokenizer.encode(text).ids)
    return {"tokens": count, "tokenizing": time.perf_counter() - began}


def main() -> None:
    """``imports`` or ``rates``, and their arguments as JSON."""
    what, given = sys.argv[1], json.loads(sys.argv[2])
    if what == "imports":
        imports(**given)
    else:
        rates(**given)


if __name__ == "__main__":
    main()
