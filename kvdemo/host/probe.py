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
from functools import partial
from typing import Any

COPY_BYTES = 256 * 1024**2
SECONDS = 0.5  # of each measurement
SUSTAINED = 2.0  # a GPU lowers its clock under load: a prefill takes longer than a single product makes believe
OUT = os.fdopen(os.dup(1), "w")  # libraries write to standard output what they like


def report(**values: Any) -> None:
    """One finding."""
    print(json.dumps(values), file=OUT, flush=True)


def imports(gpu: bool, backends: list[dict[str, Any]]) -> None:
    """Load what an engine loads; each step is announced first, so that a crash has a name.

    A backend is a ``package``, compiled ``parts`` of it (none: those of LMCache for this device), a ``connector``.
    """
    steps: list[tuple[str, Callable[[], str]]] = [("torch", lambda: _torch(gpu)), ("vllm", lambda: _vllm(gpu))]
    for one in backends:
        package, name, parts = one["package"], one["connector"], tuple(one["parts"]) or _lmcache_parts(gpu)
        if package != "vllm":
            steps.append((package, partial(_load_parts, package, parts)))
        steps.append(("connector", partial(_connector, name)))
    for name, step in steps:
        report(step=name)
        try:
            report(step=name, text=step())
        except BaseException as error:
            last = " ".join(str(error).split())[-300:]
            report(step=name, error=f"{type(error).__name__}: {last}")
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
    device = "cuda" if gpu else "cpu"
    if platform.device_type != device:
        raise RuntimeError(f"this vLLM runs on {platform.device_type or 'no device'}, not on {device}")
    choose = getattr(platform, "import_kernels", None)
    parts = (
        _load_parts("vllm", ("_C", "_C_stable_libtorch", "_moe_C")) if gpu or not choose else _load_extension(choose)
    )
    return f"platform {platform.device_type}, {parts}"


def _load_extension(choose: Callable[[], None]) -> str:
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
        names = {line.split()[-1].rpartition("/")[2] for line in maps if f" {folder}/_C" in line}
    if not names:
        raise RuntimeError("; ".join(complaints) or "vllm loaded none of its compiled parts")
    return f"loaded {', '.join('vllm.' + name.partition('.')[0] for name in sorted(names))}"


def _lmcache_parts(gpu: bool) -> tuple[str, ...]:
    return ("c_ops", "cuda_ops") if gpu else ("lmcache_native", "native_storage_ops")


def _load_parts(package: str, parts: tuple[str, ...]) -> str:
    """Load those of a package's compiled parts that it has.

    A package may put a module of its own in the place of a part (LMCache 0.5.3 does, and hides a part that does not
    load): what counts is that the file itself is mapped into this process.
    """
    folders = importlib.import_module(package).__path__
    specs = [(part, importlib.machinery.PathFinder.find_spec(part, folders)) for part in parts]
    files = {part: str(spec.origin) for part, spec in specs if spec}
    for part, file in files.items():
        importlib.import_module(f"{package}.{part}")
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            if file.endswith(".so") and file not in maps.read():
                ctypes.CDLL(file)  # says why not
                raise RuntimeError(f"{package} did without {file}")
    if not files:
        raise RuntimeError(f"{package} has none of its compiled parts ({', '.join(parts)})")
    return "loaded " + ", ".join(f"{package}.{part}" for part in files)


def _connector(name: str) -> str:
    factory = importlib.import_module("vllm.distributed.kv_transfer.kv_connector.factory").KVConnectorFactory
    connector = factory.get_connector_class_by_name(name)
    return f"{connector.__module__}.{connector.__qualname__}"


def rates(
    gpu: bool, shape: dict[str, int] | None, tokenizer: str, document: str, dtype: str = "bfloat16", batch: int = 0
) -> None:
    """Copies in bytes a second, a layer's products and attention in FLOP/s; the document's tokens, seconds for them.

    ``batch`` is how many tokens an engine computes at once; 0 is as many as are usual.
    """
    for name, rate in _copies(gpu):
        report(**{name: rate})
    if shape:
        report(**_layers(gpu, shape, dtype, batch))
    if tokenizer and document:
        report(**_tokens(tokenizer, document))


def _copies(gpu: bool) -> Iterator[tuple[str, float]]:
    import torch

    host = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=gpu)
    buffer = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda" if gpu else "cpu")
    yield "load", COPY_BYTES / _seconds(gpu, lambda: buffer.copy_(host, non_blocking=True), rounds=9)
    if gpu:
        yield "store", COPY_BYTES / _seconds(gpu, lambda: host.copy_(buffer, non_blocking=True), rounds=9)


def _seconds(gpu: bool, work: Callable[[], Any], rounds: int) -> float:
    """Median duration of some work, of so many rounds."""
    import torch

    times: list[float] = []
    work()  # allocations and the choice of a kernel
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def _layers(gpu: bool, shape: dict[str, int], dtype: str, batch: int) -> dict[str, float]:
    """A layer as a prefill runs it, again and again: its products with norms and activation, then its attention.

    FLOPs of either a second, as the median of the second half of the rounds: by then the device is as warm as in a
    long prefill. A batch attends to twice as many keys, as in the middle of a prompt.
    """
    import torch

    tokens = batch or (8192 if gpu else 1024)
    keys = 2 * tokens if gpu else 8192
    hidden, inner, heads, kv, head = (shape[name] for name in ("hidden", "inner", "heads", "kv_heads", "head"))
    kind: dict[str, Any] = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, dtype)}
    sizes = ((hidden, (heads + 2 * kv) * head), (heads * head, hidden), (hidden, 2 * inner), (inner, hidden))
    weights = [torch.rand(*size, **kind) for size in sizes]
    inputs = [torch.rand(tokens, size[0], **kind) for size in sizes]
    query, key = torch.rand(1, heads, tokens, head, **kind), torch.rand(1, heads, keys, head, **kind)
    functional = torch.nn.functional

    def products() -> None:
        functional.rms_norm(inputs[0], (hidden,)) @ weights[0]
        inputs[1] @ weights[1]
        wide = functional.rms_norm(inputs[2], (hidden,)) @ weights[2]
        (functional.silu(wide[:, :inner]) * wide[:, inner:]) @ weights[3]

    def attention() -> None:
        functional.scaled_dot_product_attention(query, key, key)

    with torch.inference_mode():
        times = _alternating(gpu, (products, attention))
    work = 2.0 * tokens * sum(rows * columns for rows, columns in sizes)
    return {"matmul": work / times[0], "attention": 4.0 * heads * head * tokens * keys / times[1]}


def _alternating(gpu: bool, parts: tuple[Callable[[], None], ...]) -> list[float]:
    """Median duration of each part in the second half of the rounds."""
    import torch

    durations: list[list[float]] = [[] for _ in parts]
    for part in parts:
        part()  # allocations and the choice of a kernel
    began = time.perf_counter()
    while len(durations[0]) < 3 or time.perf_counter() - began < (SUSTAINED if gpu else SECONDS):
        for part, times in zip(parts, durations, strict=True):
            if gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            part()
            if gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    return [sorted(half)[len(half) // 2] for half in (times[len(times) // 2 :] for times in durations)]


def _tokens(path: str, document: str) -> dict[str, float]:
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(path)
    with open(document, encoding="utf-8-sig") as stream:  # noqa: PTH123
        text = stream.read()
    times = []
    count = 0
    for _ in range(3):  # one alone came out as 69 and as 104 ms within a minute
        began = time.perf_counter()
        count = len(tokenizer.encode(text).ids)
        times.append(time.perf_counter() - began)
    return {"tokens": count, "tokenizing": sorted(times)[1]}


def main() -> None:
    """``imports`` or ``rates``, and their arguments as JSON."""
    what, parameters = sys.argv[1], json.loads(sys.argv[2])
    if what == "imports":
        imports(**parameters)
    else:
        rates(**parameters)


if __name__ == "__main__":
    main()
