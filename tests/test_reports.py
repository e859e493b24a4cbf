"""Failures that people reported, as logs in our own words: the right line, and what to do about it.

Each names its report. The strings that programs print are theirs; paths, hosts, models and what surrounds them are made up.
"""

# ruff: noqa: E501 (lines as programs print them)
from __future__ import annotations

from dataclasses import dataclass

import pytest

from kvdemo.fleet import diagnose
from printed import CHAINED, DURING, POINTER, READY, each, traceback

STAMP = "11-24 02:28:40"
CORE = f"(EngineCore_DP0 pid=7) ERROR {STAMP} [core.py:1100] "
WORKER = f"(Worker pid=8) (Worker_TP1 pid=8) ERROR {STAMP} [multiproc_executor.py:880] "
API = "(APIServer pid=6) "
OLD = f"ERROR {STAMP} [core.py:515] "
DEAD = f"{API}ERROR {STAMP} [core_client.py:564] Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.\n"
ENGINE_DEAD = traceback(
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
    "async_llm.py:375 outputs = await engine_core.get_output_async()",
    prefix=f"{API}ERROR {STAMP} [async_llm.py:480] ",
)
CUDA_NOTES = "\nSearch for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda\nCUDA kernel errors might be asynchronously reported\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"


@dataclass(frozen=True)
class Report:
    """A log, how its process ended, and what is right."""

    log: str
    code: str
    line: str
    fix: str = ""
    status: int | None = 1
    signal: int | None = None


REPORTS = {
    "SystemPanic/vllm-windows#72: a worker's kernel failed, the core only reports it": Report(
        f"{WORKER}WorkerProc hit an exception.\n"
        + traceback(
            f"torch.AcceleratorError: CUDA error: an illegal memory access was encountered{CUDA_NOTES}",
            "a.py:3 x.sum()",
            prefix=WORKER,
        )
        + f"{CORE}EngineCore failed to start.\n"
        + traceback(
            "RuntimeError: Worker failed with error 'CUDA error: an illegal memory access was encountered', please check the stack trace above for the root cause",
            prefix=CORE,
        )
        + POINTER,
        "gpu-kernel",
        "torch.AcceleratorError: CUDA error: an illegal memory access",
        "enforce-eager",
    ),
    "flashinfer-ai/flashinfer#1532: nvcc is older than the kernels; two prefixes, one with a comma": Report(
        each(
            "(vllm-test, pid=2150) (EngineCore_0 pid=39) ERROR 08-21 07:45:43 [core.py:700] ",
            "EngineCore failed to start.\n"
            + traceback(
                "subprocess.CalledProcessError: Command '['ninja', '-v', '-C', '/c']' returned non-zero exit status 1.",
                "s.py:9 raise CalledProcessError(",
            )
            + CHAINED
            + traceback(
                "RuntimeError: Ninja build failed. Ninja output:\nninja: Entering directory `/c'\n[1/4] nvcc -c a.cu\nFAILED: a.o\nnvcc fatal   : Unknown option '-static-global-template-stub=false'\nninja: build stopped: subcommand failed.",
                "j.py:3 raise RuntimeError(msg) from e",
            ),
        ),
        "nvcc",
        "nvcc fatal   : Unknown option".replace("   ", " "),
        "CUDA_HOME",
    ),
    "vllm-project/vllm#19656: the compiler's own line stands above the exception": Report(
        "/tmp/tmp23/main.c:3:10: fatal error: stddef.h: No such file or directory\ncompilation terminated.\n"
        + f"{OLD}EngineCore failed to start.\n"
        + traceback(
            "torch._inductor.exc.InductorError: CalledProcessError: Command '['/usr/bin/gcc', '/tmp/tmp23/main.c', '-O3']' returned non-zero exit status 1.\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace",
            "s.py:413 raise CalledProcessError(retcode, cmd)",
            prefix=OLD,
        )
        + "Process EngineCore_0:\n"
        + traceback(
            "torch._inductor.exc.InductorError: CalledProcessError: Command '['/usr/bin/gcc']' returned non-zero exit status 1."
        ),
        "python-headers",
        "fatal error: stddef.h: No such file",
        "gcc",
    ),
    "LMCache/LMCache#1063: only the line of code says that memory was to be pinned": Report(
        traceback(
            f"RuntimeError: CUDA error: invalid argument{CUDA_NOTES}",
            "memory_management.py:1285 buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)",
        ),
        "pinned-memory",
        "RuntimeError: CUDA error: invalid argument",
        "lower l1",
    ),
    "vllm-project/vllm#43226: a client hung up while its KV was on its way": Report(
        READY
        + f"{CORE}EngineCore encountered a fatal error.\n"
        + traceback(
            "AssertionError",
            "core.py:681 engine_core_outputs = self.scheduler.update_from_output(",
            "scheduler.py:3234 assert req_id in self.requests",
            prefix=CORE,
        )
        + ENGINE_DEAD,
        "transfer-aborted",
        "AssertionError (scheduler.py:3234 assert req_id in self.requests)",
        "clients wait",
        status=0,
    ),
    "LMCache/LMCache-Ascend#242: another driver's words for the same": Report(
        f"{CORE}EngineCore failed to start.\n"
        + traceback(
            "RuntimeError: register ptr failed", "memory.py:5 ptr = lmc_ops.alloc_pinned_ptr(size, 0)", prefix=CORE
        )
        + POINTER,
        "pinned-memory",
        "RuntimeError: register ptr failed",
        "ulimit -l",
    ),
    "vllm-project/vllm#5360: NCCL's liveness ends the process in C++": Report(
        "(Worker_TP0 pid=8) terminate called after throwing an instance of 'c10::DistBackendError'\n"
        "(Worker_TP0 pid=8)   what():  [PG 0 Rank 0] Process group liveness thread terminated with exception: [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE) ran for 600091 milliseconds\n"
        + f"{CORE}Worker proc VllmWorker-0 died unexpectedly (exit code: -6), shutting down executor.\n"
        + POINTER,
        "nccl-timeout",
        "Watchdog caught collective operation timeout",
        "NCCL_P2P_DISABLE",
    ),
    "vllm-project/vllm#2682: the GPU failed; only a record of C++ tells it": Report(
        f"{READY}(Worker_TP7 pid=53) [E ProcessGroupNCCL.cpp:916] [Rank 7] NCCL liveness thread terminated with exception: CUDA error: unknown error\n"
        + f"{CORE}Worker proc VllmWorker-7 died unexpectedly (exit code: -6), shutting down executor.\n{DEAD}",
        "gpu-lost",
        "CUDA error: unknown error",
        "Xid",
        0,
    ),
    "vllm-project/vllm#26161: pydantic's reason, without the settings it dumps": Report(
        each(
            API,
            traceback(
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, Expecting value: line 1 column 1 (char 0) [type=value_error, input_value=ArgsKwargs((), {'model': ...n': None}), input_type=ArgsKwargs]\n    For further information visit https://errors.pydantic.dev/2.12/v/value_error",
                "arg_utils.py:963 return ModelConfig(",
            ),
        ),
        "unknown",
        "Value error, Expecting value: line 1 column 1 (char 0)",
    ),
    "vllm-project/vllm#7716: the arguments are printed before, with every flag's name": Report(
        "INFO 08-21 03:42:51 api_server.py:401] args: Namespace(trust_remote_code=False, tensor_parallel_size=3, max_model_len=None)\n"
        "Process SpawnProcess-1:\n"
        + traceback(
            "ValueError: Total number of attention heads (32) must be divisible by tensor parallel size (3).",
            "config.py:299 raise ValueError(",
        ),
        "tensor-parallel",
        "ValueError: Total number of attention heads (32)",
        "gpus",
    ),
    "vllm-project/vllm#3719: offline, and the last exception speaks of the network": Report(
        each(
            API,
            traceback(
                "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models/b/s: offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE` environment variable.",
                "_http.py:9 raise OfflineModeIsEnabled(",
            )
            + CHAINED
            + traceback(
                "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub and we cannot find the requested files in the local cache.",
                "file_download.py:9 raise LocalEntryNotFoundError(",
            )
            + CHAINED
            + traceback(
                "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.",
                "hub.py:9 raise OSError(",
            ),
        ),
        "hub-offline",
        "huggingface_hub.errors.OfflineModeIsEnabled",
        "HF_HUB_OFFLINE",
    ),
    "vllm-project/vllm#1986: no network": Report(
        traceback(
            "requests.exceptions.ConnectionError: (MaxRetryError('HTTPSConnectionPool(host=\\'huggingface.co\\', port=443): Max retries exceeded with url: /api/models/x'), '(Request ID: 1)')",
            "adapters.py:519 raise ConnectionError(e, request=request)",
        ),
        "hub-network",
        "requests.exceptions.ConnectionError",
        "local path",
    ),
    "LMCache/LMCache#638: an older vLLM, whose records have no process": Report(
        each(
            f"ERROR {STAMP} [engine.py:598] ",
            traceback("ValueError: Unsupported connector type: LMCacheConnectorV1", "factory.py:60 raise ValueError("),
        )
        + "RuntimeError: Engine process failed to start. See stack trace for the root cause.\n",
        "connector-unknown",
        "ValueError: Unsupported connector type",
        "scripts/setup",
    ),
    "vllm-project/vllm#15960: an assertion without a word, and warnings after it": Report(
        each(
            f"{CORE}",
            "EngineCore failed to start.\n"
            + traceback("AssertionError", "factory.py:63 assert issubclass(connector_cls, KVConnectorBase_V1)"),
        )
        + "[rank0]:[W428 18:01:26.726953847 ProcessGroupNCCL.cpp:1496] Warning: WARNING: destroy_process_group() was not called before program exit, which can leak resources.\n"
        + traceback(
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_0': 1}",
            "api_server.py:1130 uvloop.run(run_server(args))",
        ),
        "unknown",
        "AssertionError (factory.py:63 assert issubclass(connector_cls, KVConnectorBase_V1))",
    ),
    "vllm-project/vllm#16446: the processor lacks an instruction": Report(
        f"{API}INFO {STAMP} [model.py:3] Using max model len 4096\n"
        + each(
            API,
            traceback(
                "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': -4}",
                "utils.py:9 raise RuntimeError(",
            ),
        ),
        "illegal-instruction",
        "Failed core proc(s): {'EngineCore_DP0': -4}",
        "AVX",
    ),
    "vllm-project/vllm#27549: killed while serving; the server ends in good order": Report(
        f'{READY}{API}INFO:     10.0.0.1:9 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n{DEAD}{ENGINE_DEAD}'
        f'{API}INFO:     10.0.0.1:9 - "POST /v1/chat/completions HTTP/1.1" 500 Internal Server Error\n{API}INFO:     Shutting down\n{API}INFO:     Finished server process [6]\n',
        "killed",
        "Engine core proc EngineCore_DP0 died unexpectedly",
        "memory",
        0,
    ),
    "vllm-project/vllm#44985: a compiler's complaint at level WARNING was survived": Report(
        each(
            f"(Worker_TP0 pid=8) WARNING {STAMP} [flashinfer_all_reduce.py:74] ",
            "RuntimeError: Ninja build failed. Ninja output:\n/bin/sh: 1: nvcc: not found",
        )
        + f"(Worker_TP0 pid=8) INFO {STAMP} [gpu_worker.py:3] Loading weights took 3.1 seconds\n{WORKER}WorkerProc failed to start.\n"
        + traceback(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB. GPU 1 has a total capacity of 23.6 GiB",
            "a.py:2 y",
            prefix=WORKER,
        )
        + POINTER,
        "gpu-memory",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB",
        "kv_cache",
    ),
    "llm-d/llm-d#352: NCCL's warning above tells why": Report(
        "gpu2:2143:2561 [1] include/shm.h:28 NCCL WARN Call to posix_fallocate failed : No space left on device\n"
        + f"{WORKER}WorkerProc failed to start.\n"
        + traceback(
            "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
            "pynccl_wrapper.py:223 raise RuntimeError(",
            prefix=WORKER,
        )
        + POINTER,
        "shm-too-small",
        "posix_fallocate failed : No space left",
        "--shm-size",
    ),
    "vllm-project/vllm#6732: ranks in front of every line": Report(
        each(
            "[rank0]: ",
            traceback(
                "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
                'pynccl_wrapper.py:223 raise RuntimeError(f"NCCL error: {error_str}")',
            ),
        ),
        "nccl",
        "RuntimeError: NCCL error: unhandled cuda error",
        "NCCL_DEBUG",
    ),
    "LMCache/LMCache#2502: the scheduler fails while serving; a dump and a request come between": Report(
        f"{READY}(EngineCore_DP0 pid=7) ERROR {STAMP} [dump_input.py:72] Dumping input data for V1 LLM engine (v0.11.0) with config: model='m', trust_remote_code=True, NewRequestData(prompt='No space left on device')\n"
        f"{CORE}EngineCore encountered a fatal error.\n"
        + traceback("KeyError: 'chatcmpl-78534'", "scheduler.py:31 request = self.requests[req_id]", prefix=CORE)
        + ENGINE_DEAD
        + each(
            "(EngineCore_DP0 pid=7) ",
            "Process EngineCore_DP0:\n"
            + traceback("KeyError: 'chatcmpl-78534'", "scheduler.py:31 request = self.requests[req_id]"),
        ),
        "unknown",
        "KeyError: 'chatcmpl-78534' (scheduler.py:31 request = self.requests[req_id])",
        "",
        0,
    ),
    "LMCache/LMCache#3326: the engine waits for a cache that does not answer": Report(
        f"{CORE}EngineCore failed to start.\n"
        + traceback("TimeoutError", "mq.py:9 raise TimeoutError", prefix=CORE)
        + each(CORE, DURING.rstrip("\n"))
        + traceback(
            "ConnectionError: LMCache server did not respond to register_kv_caches within 10.0s. Is the server running?",
            "adapter.py:1676 raise ConnectionError(",
            prefix=CORE,
        )
        + POINTER,
        "cache-unreachable",
        "ConnectionError: LMCache server did not respond",
        "kvdemo logs CACHE",
    ),
    "LMCache/LMCache#796: one request after another failed in the cache, and it went on; then it was killed": Report(
        READY
        + "".join(
            f"[2026-11-24 02:39:3{n},646] LMCache ERROR: Store failed (server.py:3:lmcache.v1.server)\n"
            + traceback("OSError: [Errno 28] No space left on device: '/kv/x'", "fs.py:3 f.write(x)")
            + f"[2026-11-24 02:39:3{n},700] LMCache INFO: Stored 256 tokens (server.py:9:lmcache.v1.server)\n"
            for n in range(3)
        ),
        "killed",
        "ended by signal 9",
        "memory",
        None,
        9,
    ),
    "huggingface: a gated model behind three exceptions": Report(
        each(
            API,
            traceback(
                "httpx.HTTPStatusError: Client error '401 Unauthorized' for url 'https://huggingface.co/m/resolve/main/config.json'",
                "_models.py:9 raise HTTPStatusError(",
            )
            + CHAINED
            + traceback(
                "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6)\n\nCannot access gated repo for url https://huggingface.co/m/resolve/main/config.json.",
                "_http.py:9 raise _format(",
            )
            + CHAINED
            + traceback(
                "OSError: You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/m.",
                "hub.py:9 raise OSError(",
            ),
        ),
        "gated",
        "huggingface_hub.errors.GatedRepoError",
        "licence",
    ),
    "ray-project: a worker of Ray, named in the exception": Report(
        each(
            "(RayWorkerWrapper pid=77, ip=10.0.0.2) ",
            traceback(
                "ray.exceptions.RayTaskError(OutOfMemoryError): ray::RayWorkerWrapper.execute_method() (pid=77)\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
                "w.py:3 x",
            ),
        ),
        "gpu-memory",
        "torch.OutOfMemoryError: CUDA out of memory",
        "lower `memory`",
    ),
    "uvicorn: the port was taken while the model loaded": Report(
        f"{READY}ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): [errno 98] address already in use\nINFO:     Waiting for application shutdown.\n",
        "port-taken",
        "[Errno 98] error while attempting to bind",
        "another program took port 8000",
    ),
    "a group of exceptions: what is inside counts": Report(
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/venv/a.py", line 3, in f\n  |     raise group\n  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)\n'
        "  +-+---------------- 1 ----------------\n    | Traceback (most recent call last):\n"
        "    |   File \"/venv/b.py\", line 4, in g\n    |     open(path)\n    | PermissionError: [Errno 13] Permission denied: '/root/.cache'\n    +------------------------------------\n",
        "permission",
        "PermissionError: [Errno 13]",
        "HF_HOME",
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reported_failures(name: str) -> None:
    """The line that explains and the remedy that belongs to it."""
    report = REPORTS[name]
    cause = diagnose.root_cause(report.log, report.status, report.signal)
    assert (cause.code, report.line in cause.line, report.fix in cause.fix) == (report.code, True, True), cause


@pytest.mark.parametrize("name", REPORTS)
def test_noise_around_a_failure_changes_nothing(name: str) -> None:
    """Progress bars, records of other processes and colours between the lines leave the cause as it is."""
    report = REPORTS[name]
    noise = "Loading safetensors checkpoint shards:  50% Completed | 1/2\r"
    before = f"(EngineCore_DP3 pid=99) INFO {STAMP} [x.py:1] RuntimeError: CUDA error: out of memory\n{noise}\n"
    coloured = "".join(f"\x1b[36m{row}\x1b[0m\n" for row in report.log.splitlines())
    cause = diagnose.root_cause(before + coloured, report.status, report.signal)
    assert (cause.code, report.line in cause.line) == (report.code, True), cause
