"""What logs tell: real logs of vLLM 0.32 and LMCache 0.5.6 in tests/logs, and lines of their sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvdemo.fleet import diagnose

LOGS = Path(__file__).parent / "logs"


def phases(text: str) -> list[str]:
    """Every phase that a log passes through, in order."""
    seen = ["import"]
    for line in text.splitlines():
        now = diagnose.phase(line, seen[-1])
        if now != seen[-1]:
            seen.append(now)
    return seen


def test_phases_of_a_real_start_without_a_gpu() -> None:
    """Nothing is compiled with --enforce-eager, whatever the configuration in the log mentions."""
    found = phases((LOGS / "engine-start.log").read_text())
    assert found == ["import", "load weights", "profile", "warm up", "answer"]


def test_phases_of_a_start_that_compiles() -> None:
    """The messages of a GPU build, in the order of its sources."""
    log = """
(EngineCore pid=7) INFO 11-24 02:28:39 [gpu_model_runner.py:1] Starting to load model org/model...
(EngineCore pid=7) INFO 11-24 02:28:40 [default_loader.py:501] Loading weights took 0.50 seconds
(EngineCore pid=7) INFO 11-24 02:28:41 [gpu_model_runner.py:1] Model loading took 13.5 GiB memory and 9.1 seconds
(EngineCore pid=7) INFO 11-24 02:28:42 [backends.py:1] Using cache directory: /c for vLLM's torch.compile
(EngineCore pid=7) INFO 11-24 02:28:43 [backends.py:1] Compiling a graph for compile range (1, 2048) takes 9.03 s
(EngineCore pid=7) INFO 11-24 02:28:44 [monitor.py:1] torch.compile took 12.00 s in total
(EngineCore pid=7) INFO 11-24 02:28:45 [kv_cache_utils.py:1] GPU KV cache size: 131,072 tokens
Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):   3%|  | 2/67 [00:00<00:05]
(EngineCore pid=7) INFO 11-24 02:28:46 [gpu_model_runner.py:1] Graph capturing finished in 5 secs, took 0.50 GiB
(EngineCore pid=7) INFO 11-24 02:28:48 [core.py:402] init engine (profile, create kv cache, warmup model) took 30 s
"""
    expected = [
        "import",
        "load weights",
        "profile",
        "compile",
        "profile",
        "warm up",
        "capture graphs",
        "warm up",
        "answer",
    ]
    assert phases(log) == expected


def test_a_cache_server_only_imports() -> None:
    """LMCache's start knows no phases of vLLM's."""
    assert phases((LOGS / "cache-start.log").read_text()) == ["import"]


def test_the_cause_of_a_real_failure() -> None:
    """The line of the validation error, not the last line; with what to do."""
    cause = diagnose.root_cause((LOGS / "engine-context.log").read_text(), code=1)
    assert cause.line.startswith("Value error, User-specified max_model_len (40960) is greater than the derived")
    assert cause.fix == "lower max_model_len to what the model supports"


@pytest.mark.parametrize("name", ["engine-start.log", "cache-start.log"])
def test_a_good_start_holds_no_cause(name: str) -> None:
    """Warnings about open files, NUMA and deprecations explain no death: then its exit status is told."""
    cause = diagnose.root_cause((LOGS / name).read_text(), signal=9)
    assert (cause.line, "memory" in cause.fix) == ("ended by signal 9", True)


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        (
            "ValueError: Free memory on device (1/79 GiB) on startup is less than desired GPU memory utilization",
            "free the GPU",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", "raise `memory`"),
        ("ValueError: To serve at least one request with the models's max seq len (32768)", "lower max_model_len"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "another GPU"),
        ("OSError: [Errno 98] Address already in use", "leave `port` out"),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error", "accept the model's licence"),
        ("requests.exceptions.HTTPError: 401 Client Error: Unauthorized", "set HF_TOKEN"),
        ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files", "check the network"),
        ("OSError: x/y is not a local folder and is not a valid model identifier", "check `model`"),
        ("api_server.py: error: unrecognized arguments: --frobnicate", "correct `args`"),
        ("api_server.py: error: argument --dtype: invalid choice: 'f' (choose from 'auto')", "correct `args`"),
        ("RuntimeError: LMCache server did not respond", "kvdemo logs CACHE"),
        ("OSError: [Errno 28] No space left on device", "free it"),
        ("ImportError: libcudart.so.12: cannot open shared object file: No such file", "do not fit together"),
        ("/venv/bin/python: No module named lmcache.cli", "lacks a package"),
        ("RuntimeError: operator torchvision::nms does not exist", "uninstall torchvision"),
        ("RuntimeError: No supported cpu connector found.", "numba"),
        ("RuntimeError: can't allocate memory: you tried to allocate 9 bytes", "out of memory"),
    ],
)
def test_known_causes(line: str, fix: str) -> None:
    """Each signature is found between noise, whatever process and time stand in front of it."""
    stamp = "11-24 02:28:39 [core.py:9]"
    log = f"(EngineCore pid=7) INFO {stamp} noise\n(EngineCore pid=7) ERROR {stamp} {line}\n"
    cause = diagnose.root_cause(
        log + "RuntimeError: Engine core initialization failed. See root cause above.\n", code=1
    )
    assert (cause.line, fix in cause.fix) == (line, True)


def test_an_unknown_error_is_told_without_a_fix() -> None:
    """The first exception counts; those that only point at it do not."""
    log = """
(EngineCore pid=7) ERROR 11-24 02:28:40 [core.py:9] KeyError: 'layers.0.weight'
(APIServer pid=6) ERROR 11-24 02:28:41 [x.py:9] vllm.EngineDeadError: EngineCore encountered an issue. See stack trace
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
    assert diagnose.root_cause(log, code=1) == diagnose.Cause("KeyError: 'layers.0.weight'")


def test_a_message_on_several_lines() -> None:
    """What pydantic says: it tells the reason on the lines after the exception."""
    log = "pydantic_core.ValidationError: 1 validation error for VllmConfig\n  Value error, TP 3 is odd\n  see more\n"
    assert "Value error, TP 3 is odd" in diagnose.root_cause(log, code=1).line


def test_warnings_of_lmcache_are_no_cause() -> None:
    """Coloured levels count as levels."""
    log = "\x1b[33;20m[2026-11-24] LMCache WARNING:\x1b[0m LMCache server did not respond\nlast words\n"
    assert diagnose.root_cause(log, code=0).line == "exit code 0; its last line: last words"


@pytest.mark.parametrize(
    ("code", "number", "line"),
    [
        (None, 11, "ended by signal 11"),
        (3, None, "exit code 3; its last line: it wrote nothing"),
        (None, None, "it wrote nothing"),
    ],
)
def test_an_empty_log(code: int | None, number: int | None, line: str) -> None:
    """Without a log the exit status is all there is."""
    assert diagnose.root_cause("", code, number).line == line


def test_redact() -> None:
    """Values of secrets and whatever looks like a token; short values would blank ordinary words."""
    text = "key=correct-horse t=hf_abcdefghijklmnopqrst o=sk-abcdefghijklmnopqrst a b"
    found = diagnose.redact(text, {"KEY": "correct-horse", "SHORT": "a"})
    assert found == "key=${KEY} t=hf_*** o=sk-*** a b"
