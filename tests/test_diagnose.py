"""What logs tell: real logs of vLLM 0.32 and LMCache 0.5.6 in tests/logs, and lines of their sources."""

# ruff: noqa: E501 (lines as programs print them)
from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvdemo.fleet import diagnose, excerpts, logtext
from kvdemo.planning.plan import ServiceSpec
from printed import CHAINED, DURING, POINTER, READY, each, traceback

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


def test_a_real_core_that_was_killed() -> None:
    """SIGKILL of the engine core of a serving vLLM 0.32: it exits with 0, and only says that its core is gone."""
    cause = diagnose.root_cause((LOGS / "engine-killed.log").read_text(), code=0)
    assert (cause.code, cause.title) == ("killed", "a process of the engine ended without a word")
    assert "engine core exited unexpectedly" in cause.line
    assert "memory" in cause.fix


def test_a_real_refusal_of_arguments() -> None:
    """Of vLLM's usage, which fills two screens, the last line."""
    cause = diagnose.root_cause((LOGS / "engine-flag.log").read_text(), code=2)
    assert (cause.code, cause.line) == ("flag-unknown", "error: unrecognized arguments: --frobnicate")


@pytest.mark.parametrize("name", ["engine-start.log", "cache-start.log"])
def test_a_good_start_holds_no_cause(name: str) -> None:
    """Warnings about open files, NUMA and deprecations explain no death: then its exit status is told."""
    cause = diagnose.root_cause((LOGS / name).read_text(), signal=9)
    assert (cause.line, "memory" in cause.fix) == ("ended by signal 9", True)


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
        (3, None, "exit code 3; it wrote nothing"),
        (None, None, "it wrote nothing"),
    ],
)
def test_an_empty_log(code: int | None, number: int | None, line: str) -> None:
    """Without a log the exit status is all there is."""
    assert diagnose.root_cause("", code, number).line == line


CORE = "(EngineCore_DP0 pid=7) ERROR 11-24 02:28:40 [core.py:9] "
WORKER = "(Worker pid=8) (Worker_TP1 pid=8) ERROR 11-24 02:28:40 [multiproc_executor.py:880] "


@pytest.mark.parametrize("prefix", ["", CORE, "(EngineCore_0 pid=3) ", "[rank0]: ", WORKER])
def test_quoted_source_is_no_evidence(prefix: str) -> None:
    """Inside a traceback only the exception's own line counts, whatever the lines of code beside it contain."""
    log = traceback("OverflowError: too much", "a.py:3 load(trust_remote_code=trust_remote_code)", prefix=prefix)
    assert diagnose.root_cause(log, 1) == diagnose.Cause("OverflowError: too much")


@pytest.mark.parametrize(
    ("exception", "told"),
    [
        ("AssertionError", "AssertionError (b.py:4 assert x.size == y.size)"),
        ("lmcache.v1.errors.SlotsGone", "lmcache.v1.errors.SlotsGone (b.py:4 assert x.size == y.size)"),
        ("KeyError: 'layers.3'", "KeyError: 'layers.3' (b.py:4 assert x.size == y.size)"),
        ("NotImplementedError: ", "NotImplementedError (b.py:4 assert x.size == y.size)"),
    ],
)
def test_a_bare_exception_shows_its_frame(exception: str, told: str) -> None:
    """An exception without words, of whatever name, is told with the last frame and its expression."""
    log = CORE + "EngineCore failed to start.\n"
    log += traceback(exception, "a.py:3 g()", "b.py:4 assert x.size == y.size", prefix=CORE) + POINTER
    assert diagnose.root_cause(log, 1).line == told


def test_a_frame_without_source() -> None:
    """Of compiled code Python prints no line: file, line and function are left."""
    log = 'Traceback (most recent call last):\n  File "uvloop/loop.pyx", line 15, in uvloop.Loop.run\nAssertionError\n'
    assert diagnose.root_cause(log, 1).line == "AssertionError (loop.pyx:15 uvloop.Loop.run)"


def test_the_failure_before_what_was_survived() -> None:
    """A plugin that could not be loaded is logged with a traceback too; the engine went on, and died of something else."""
    plugin = "(EngineCore_DP0 pid=7) ERROR 11-24 02:28:39 [__init__.py:3] "
    log = plugin + "Failed to load plugin x\n" + traceback("ModuleNotFoundError: No module named 'x'", prefix=plugin)
    log += "(EngineCore_DP0 pid=7) INFO 11-24 02:28:39 [core.py:1] Initializing the cache\n"
    log += CORE + "EngineCore failed to start.\n" + traceback("ValueError: odd", prefix=CORE) + POINTER
    assert diagnose.root_cause(log, 1) == diagnose.Cause("ValueError: odd")


def test_processes_that_write_between_each_other() -> None:
    """Two workers' tracebacks in each other's lines are two tracebacks; the first in time counts."""
    one = traceback(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB.", "a.py:1 x", prefix=WORKER
    )
    two = traceback(
        "RuntimeError: Connection closed by peer", "b.py:2 y", prefix=WORKER.replace("TP1 pid=8", "TP0 pid=9")
    )
    rows = [row for pair in zip(two.splitlines(), one.splitlines(), strict=True) for row in pair]
    cause = diagnose.root_cause("\n".join([WORKER + "WorkerProc hit an exception.", *rows]) + "\n" + POINTER, 1)
    assert (cause.code, cause.line.startswith("torch.OutOfMemoryError")) == ("gpu-memory", True)


@pytest.mark.parametrize(
    ("first", "link", "second", "line"),
    [
        (
            "HTTPError: 401 Client Error: x",
            CHAINED,
            "GatedRepoError: 401 Client Error. Cannot access gated repo",
            "Gated",
        ),
        ("KeyError: 'new'", DURING, "ValueError: the config names no such type", "ValueError"),
        ("ValueError: the real one", DURING, "RuntimeError: while cleaning up", "ValueError: the real one"),
        ("ValueError: the real one", CHAINED, "RuntimeError: start failed", "ValueError: the real one"),
        ("BrokenPipeError: [Errno 32] Broken pipe", DURING, "ValueError: said", "ValueError: said"),
        (
            "ValueError: real",
            DURING,
            "vllm.v1.EngineDeadError: EngineCore encountered an issue. See stack",
            "ValueError",
        ),
        (
            "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://hf.co/x: offline mode is enabled.",
            CHAINED,
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
            "huggingface_hub.errors.OfflineModeIsEnabled",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB",
            CHAINED,
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 9 dummy requests.",
            "RuntimeError: CUDA out of memory occurred",
        ),
    ],
)
def test_chained_exceptions(first: str, link: str, second: str, line: str) -> None:
    """Of a chain the one that explains: with a remedy, the more special; else the first, unless it was a look-up."""
    log = traceback(first, "a.py:1 x") + link + traceback(second, "b.py:2 y")
    assert diagnose.root_cause(log, 1).line.startswith(line)
    told = "".join(f"{CORE}{row}\n" for row in log.splitlines())
    assert diagnose.root_cause(CORE + "EngineCore failed to start.\n" + told + POINTER, 1).line.startswith(line)


def test_what_a_compiler_printed_belongs_to_the_exception() -> None:
    """Ninja's lines below the exception, not the exception, tell the cause; other lines elsewhere do not."""
    log = WORKER + "WorkerProc failed to start.\n"
    log += traceback(
        "subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit status 1.", prefix=WORKER
    )
    log += "".join(f"{WORKER}{row}\n" for row in CHAINED.splitlines())
    ninja = (
        "RuntimeError: Ninja build failed. Ninja output:\nninja: Entering directory\n[1/9] nvcc -x a.cu\nFAILED: a.o\n"
    )
    ninja += "#error -- unsupported GNU version! gcc versions later than 13 are not supported!\nninja: build stopped."
    log += traceback(ninja, prefix=WORKER) + POINTER
    cause = diagnose.root_cause(log, 1)
    assert cause.code == "nvcc"
    assert "unsupported GNU version" in cause.line


def test_a_killed_core_is_told_whatever_the_server_exited_with() -> None:
    """An old error elsewhere is not the cause of a core that was killed, nor is the API server's own status."""
    log = READY + "(APIServer pid=6) ERROR:    Exception in ASGI application\n" + traceback("ValueError: old request")
    log += '(APIServer pid=6) INFO:     127.0.0.1:9 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    log += (
        "(APIServer pid=6) ERROR 11-24 02:29:40 [core_client.py:1] Engine core proc EngineCore_DP0 died unexpectedly.\n"
    )
    for code, signal in ((0, None), (1, None), (None, 9)):
        cause = diagnose.root_cause(log, code, signal)
        assert (cause.code, "died unexpectedly" in cause.line, "memory" in cause.fix) == ("killed", True, True)


@pytest.mark.parametrize(
    ("status", "code"), [(-9, "killed"), (-7, "shm-too-small"), (-11, "segfault"), (-4, "illegal-instruction")]
)
def test_how_a_child_ended(status: int, code: str) -> None:
    """The log says with which status a worker or the core ended; a negative one is a signal."""
    for row in (
        f"ERROR 11-24 02:28:40 [multiproc_executor.py:3] Worker proc VllmWorker-1 died unexpectedly (exit code: {status}), "
        "shutting down executor.",
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
        f"{{'EngineCore_DP0': {status}}}",
        f"(APIServer pid=6) RuntimeError: Process ApiServer_1 (PID: 9) died with exit code {status}",
    ):
        assert diagnose.root_cause(row + "\n", 1).code == code, row


def test_a_signal_before_an_error_that_stands_elsewhere() -> None:
    """Who was killed did not die of what a request raised before; a failure that was announced explains the signal."""
    request = traceback("ValueError: a request", prefix="ERROR 11-24 02:28:40 [serving.py:3] ")
    assert diagnose.root_cause(request, signal=9).code == "killed"
    log = CORE + "EngineCore encountered a fatal error.\n" + traceback("ValueError: fatal", prefix=CORE)
    assert diagnose.root_cause(log, signal=6).line == "ValueError: fatal"


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (
            "terminate called after throwing an instance of 'c10::AcceleratorError'\n"
            "  what():  CUDA error: an illegal memory access was encountered",
            "gpu-kernel",
        ),
        ("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc", "host-memory"),
        ("Fatal Python error: Bus error", "shm-too-small"),
        ("Fatal Python error: Segmentation fault", "segfault"),
        ("/venv/bin/python: symbol lookup error: /x/c_ops.so: undefined symbol: _ZN3c1", "versions"),
        ("Illegal instruction (core dumped)", "illegal-instruction"),
        ("Killed", "child-failed"),
    ],
)
def test_last_words_of_native_code(rows: str, code: str) -> None:
    """What is not Python raises nothing: its last line counts, also when vLLM only sees that the core died."""
    died = "(APIServer pid=6) ERROR 11-24 02:28:41 [a.py:3] Engine core proc EngineCore_DP0 died unexpectedly.\n"
    log = READY + "".join(f"(EngineCore_DP0 pid=7) {row}\n" for row in rows.split("\n")) + died
    cause = diagnose.root_cause(log, 0)
    assert cause.code == code
    assert cause.line


def test_out_of_memory_while_serving() -> None:
    """Told in plain words with the size, and with whether the engine had been serving."""
    error = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.31 GiB. GPU 0 has a total capacity of 79 GiB"
    )
    log = CORE + "EngineCore encountered a fatal error.\n" + traceback(error, prefix=CORE)
    told = diagnose.root_cause(READY + log, 0)
    assert told.title == "out of GPU memory while computing (tried to allocate 20.31 GiB)"
    assert told.words.startswith(told.title)
    assert diagnose.root_cause(log, 1).title == "out of GPU memory (tried to allocate 20.31 GiB)"


def spec(**changes: Any) -> ServiceSpec:
    """An engine on port 18000 with a cache called shared."""
    plain: dict[str, Any] = {"name": "a", "kind": "engine", "argv": (), "env": {}, "host": "127.0.0.1", "port": 18000}
    return ServiceSpec(
        **{**plain, "ports": (18000,), "start_timeout": 9, "stop_timeout": 9, "cache": "shared", **changes}
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (
            "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 18000): address already in use",
            "port-taken",
        ),
        (
            "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 18000): address already in use",
            "port-taken",
        ),
        (
            "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: "
            "29500, code: -98, name: EADDRINUSE, message: address already in use",
            "internal-port",
        ),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:31000')", "internal-port"),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:18000')", "port-taken"),
    ],
)
def test_a_port_is_compared_with_those_of_the_service(line: str, code: str) -> None:
    """`port` is the remedy for the profile's port only; what the engine chose for itself is tried again."""
    cause = diagnose.root_cause(f"{line}\n", 1, spec=spec())
    assert (cause.code, "`port`" in cause.fix) == (code, code == "port-taken")


def test_a_remedy_knows_what_kvdemo_set() -> None:
    """The cache by its name, and that kvdemo itself made the engine offline."""
    lost = "ConnectionError: LMCache server did not respond to register_kv_caches within 10s."
    assert diagnose.root_cause(lost, 1, spec=spec()).fix == "the cache server is not answering: kvdemo logs shared"
    offline = "OfflineModeIsEnabled: Cannot reach https://huggingface.co/x: offline mode is enabled."
    assert (
        "kvdemo starts engines offline" in diagnose.root_cause(offline, 1, spec=spec(env={"HF_HUB_OFFLINE": "1"})).fix
    )
    assert "kvdemo starts" not in diagnose.root_cause(offline, 1, spec=spec()).fix


def test_kills_for_memory_that_the_kernel_counted() -> None:
    """The count of the control group turns "most often" into a fact."""
    assert "the kernel killed 2 processes of its control group" in diagnose.root_cause("", signal=9, oom_kills=2).fix
    assert "of this machine" in diagnose.root_cause("", signal=9, oom_kills=1, oom_ours=False).fix
    assert "most often" in diagnose.root_cause("", signal=9).fix
    core = "ERROR 11-24 02:28:40 [a.py:3] Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.\n"
    assert "the kernel killed a process" in diagnose.root_cause(core, 0, oom_kills=1).fix
    assert diagnose.root_cause("", 1, oom_kills=1).code == "killed"
    assert diagnose.root_cause("", 1, oom_kills=1, oom_ours=False).code == "exit-status"
    assert diagnose.root_cause(traceback("ValueError: said"), 1, oom_kills=1).line == "ValueError: said"


def test_excerpts_are_safe_to_show() -> None:
    """No escape sequence, no control character, no text that turns around, nothing that looks like a secret."""
    evil = "ValueError: \x1b]0;owned\x07\x1b[2Ja\x08b\u202ec redis://u:pw12345@h:1 --api-key abcdef api_key='abcdef9' Bearer zzz"
    line = diagnose.root_cause(evil + " hf_abcdefghijklmnopqrst\n", 1).line
    assert line == "ValueError: abc redis://u:***@h:1 --api-key *** api_key='***' Bearer *** hf_***"
    assert len(diagnose.root_cause("ValueError: " + "x" * 9000, 1).line) == excerpts.LINE


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "Traceback (most recent call last):",
                '  File "/x.py", line 3, in f',
                "    raise X",
                "ValueError: x",
                "AssertionError",
                CORE,
                CORE + "EngineCore failed to start.",
                CORE + "ValueError: 1 validation error for X",
                CHAINED,
                DURING,
                READY,
                POINTER,
                "terminate called after throwing an instance of 'x'",
                "usage: x",
                "x: error: y",
                "h:1:1 [0] NCCL WARN x",
                "[2026-11-24 02:39:32,646] LMCache ERROR: x",
            ]
        )
        | st.text(max_size=40),
        max_size=12,
    ),
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, 64),
)
def test_any_log_has_a_cause(rows: list[str], code: int | None, number: int | None) -> None:
    """Whatever was written in whatever order: one line that can be shown, and never an exception."""
    cause = diagnose.root_cause("\n".join(rows), code, number)
    assert cause.line
    assert cause.line == excerpts.excerpt(cause.line)
    assert not {unicodedata.category(letter) for letter in cause.line} & {"Cc", "Zl", "Zp"}


def test_only_the_end_of_a_long_log_is_read() -> None:
    """The work is bounded by what is read, not by the log: one line of 100 million characters is a short one."""
    log = "noise\n" * 2_000_000 + traceback("ValueError: at last") + "x" * 20
    assert len(logtext.parse(log).lines) == logtext.LINES_LIMIT
    assert diagnose.root_cause(log, 1).line == "ValueError: at last"
    one = "y" * 100_000_000
    assert [len(line.text) for line in logtext.parse(one).lines] == [logtext.LINE_LIMIT]


def test_redact() -> None:
    """Values of secrets and whatever looks like a token; short values would blank ordinary words."""
    text = "key=correct-horse t=hf_abcdefghijklmnopqrst o=sk-abcdefghijklmnopqrst a b"
    found = excerpts.redact(text, {"KEY": "correct-horse", "SHORT": "a"})
    assert found == "key=${KEY} t=hf_*** o=sk-*** a b"


@pytest.mark.parametrize(
    "row",
    [
        "torch.multiprocessing.spawn.ProcessExitedException: process 0 terminated with signal SIGKILL",
        "E0909 07:11:16.569000 140533 torch/api.py:833] failed (exitcode: -9) local_rank: 0 (pid: 9292) of binary: /x",
        "[2026-11-24 02:00:00 +0000] [1] [ERROR] Worker (pid:77) was sent SIGKILL! Perhaps out of memory?",
        traceback(
            "RuntimeError: Process ApiServer_0 (PID: 9) died with exit code -9", "utils.py:588 raise RuntimeError("
        ),
    ],
)
def test_every_way_to_say_that_a_process_was_killed(row: str) -> None:
    """A record or an exception that only tells of another process's end is no cause of its own."""
    cause = diagnose.root_cause(f"{row.rstrip()}\n", 1)
    assert (cause.code, "memory" in cause.fix) == ("killed", True)


def test_a_status_that_a_shell_made() -> None:
    """A wrapper tells the signal of its command as 128 more; a real cause in the log goes before it."""
    cause = diagnose.root_cause("last words\n", 137)
    assert (cause.code, cause.line) == ("killed", "exit code 137: ended by signal 9")
    assert diagnose.root_cause(traceback("ValueError: real"), 137).line == "ValueError: real"
    assert diagnose.root_cause("last words\n", 129).code == "exit-status"


def test_an_error_that_a_healthy_server_survived() -> None:
    """A core that answers its health check well had not died of what was written before."""
    request = traceback("ValueError: a request", prefix="(APIServer pid=6) ERROR 11-24 02:28:40 [serving.py:3] ")
    health = '(APIServer pid=6) INFO:     127.0.0.1:5 - "GET /health HTTP/1.1" {}\n'
    assert diagnose.root_cause(request + health.format("200 OK"), 1).code == "exit-status"
    assert diagnose.root_cause(request + health.format("503 Service Unavailable"), 1).line == "ValueError: a request"


def test_the_last_block_of_errors_from_its_beginning() -> None:
    """Without a word of which one was fatal: what came after the last sign of work, first the core's, not an attempt."""
    one = "(EngineCore pid=7) ERROR 11-24 02:28:40 [a.py:1] "
    log = each(
        "ERROR 11-24 02:28:39 [b.py:1] ", "Failed to import x\n" + traceback("ModuleNotFoundError: No module named 'x'")
    )
    log += "(APIServer pid=6) INFO 11-24 02:28:39 [utils.py:1] version 0.32\n"
    log += (
        f"(APIServer pid=6) ERROR 11-24 02:28:39 [c.py:1] OSError: later\n{one}ValueError: real\n{one}TypeError: then\n"
    )
    assert diagnose.root_cause(log + POINTER, 1).line == "ValueError: real"


def test_requests_in_a_dump_raise_nothing() -> None:
    """A request that vLLM writes down at a crash may hold any line, at level ERROR."""
    dump = each(
        "(EngineCore pid=7) ERROR 11-24 02:28:40 [dump_input.py:79] ", "Dumping scheduler output\nMemoryError: please\n"
    )
    assert diagnose.root_cause(dump, 1).code == "exit-status"


def test_words_of_nccl_are_told_also_without_a_remedy() -> None:
    """NCCL's own warning says more than the exception that follows it."""
    log = "h:1:1 [0] init.cc:3 NCCL WARN Bootstrap : no socket interface found\n"
    log += traceback("RuntimeError: NCCL error: internal error - please report this issue to the NCCL developers")
    assert diagnose.root_cause(log, 1).line.endswith("Bootstrap : no socket interface found")
    below = "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"
    assert diagnose.root_cause(traceback(below), 1).code == "gpu-memory"


def test_a_message_that_begins_on_the_next_line() -> None:
    """The first line below an exception that ends in a colon is its message."""
    log = traceback("RuntimeError: \n    The model wants more.\n    Much more.", "a.py:3 raise RuntimeError(text)")
    assert diagnose.root_cause(log, 1).line == "RuntimeError: The model wants more."


def test_an_exception_that_repeats_another() -> None:
    """The repeated message has its own remedy."""
    log = traceback("torch._inductor.exc.InductorError: RuntimeError: Failed to find C compiler. Please specify via CC")
    assert diagnose.root_cause(log, 1).code == "no-c-compiler"


def test_a_cause_above_that_is_not_there() -> None:
    """A pointer of vLLM to a stack trace is never told as the cause; that the core ended without a word is."""
    dead = traceback(
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)",
        prefix="(APIServer pid=6) ERROR 11-24 02:28:40 [async_llm.py:1] ",
    )
    for log in (READY + dead, POINTER):
        cause = diagnose.root_cause(log, 0)
        assert (cause.code, cause.words) == ("child-failed", "the engine's core ended without a word")


def test_the_hub_out_of_reach() -> None:
    """A name that cannot be resolved is Hugging Face's where a client of HTTP failed."""
    log = traceback("httpx.ConnectError: [Errno -3] Temporary failure in name resolution")
    assert diagnose.root_cause(log, 1).code == "hub-network"
