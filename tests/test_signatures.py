"""Known causes, each with a line as vLLM, PyTorch, LMCache, NCCL, Hugging Face or a compiler prints it."""

# ruff: noqa: E501 (lines as programs print them)
from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvdemo.fleet import diagnose, signatures

STAMP = "11-24 02:28:39 [core.py:9]"

KNOWN = [
    (
        "gpu-occupied",
        "ValueError: Free memory on device cuda:0 (1.0/79.1 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 71.2 GiB).",
        "free the GPU",
    ),
    ("gpu-memory-moved", "AssertionError: Error in memory profiling. Initial free memory 3.1 GiB", "set kv_cache"),
    ("kv-cache-too-small", "ValueError: No available memory for the cache blocks. Try increasing", "raise `memory`"),
    (
        "kv-cache-too-small",
        "ValueError: To serve at least one request with the model's max seq len (32768), (4 GiB KV cache is needed",
        "lower max_model_len",
    ),
    ("gpu-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "kv_cache"),
    ("gpu-memory", "torch.AcceleratorError: CUDA error: out of memory", "lower `memory`"),
    (
        "gpu-memory",
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please",
        "max-num-seqs",
    ),
    (
        "gpu-unsupported",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "holds no code for this GPU",
    ),
    (
        "gpu-driver",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
        "calling NumCudaDevices()? Error 803: system has unsupported display driver / cuda driver combination",
        "driver",
    ),
    (
        "gpu-driver",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020)",
        "update the driver",
    ),
    (
        "gpu-fabric",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        "fabricmanager",
    ),
    ("gpu-absent", "RuntimeError: No CUDA GPUs are available", "check gpus"),
    ("gpu-absent", "torch.AcceleratorError: CUDA error: invalid device ordinal", "check gpus"),
    ("gpu-uuid", "ValueError: invalid literal for int() with base 10: 'MIG-5ba1'", "by index"),
    ("gpu-lost", "RuntimeError: CUDA error: uncorrectable ECC error encountered", "Xid"),
    ("gpu-kernel", "torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "enforce-eager"),
    ("gpu-kernel", "RuntimeError: CUDA error: device-side assert triggered", "attention-backend"),
    ("cublas", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "`memory`"),
    ("pinned-memory", "RuntimeError: CUDA error: invalid argument (while pinning host memory)", "ulimit -l"),
    ("gpu-ipc", "RuntimeError: Device UUID GPU-77 not found in the discovered devices. Please make sure", "same GPUs"),
    (
        "bfloat16",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
        "dtype: half",
    ),
    (
        "quantization-gpu",
        "Value error, The quantization method fp8 is not supported for the current GPU. Minimum",
        "other gpus",
    ),
    (
        "attention-backend",
        "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size",
        "attention-backend",
    ),
    (
        "shm-too-small",
        "RuntimeError: unable to write to file </torch_1_2>: No space left on device (28) in /dev/shm",
        "--shm-size",
    ),
    ("disk-full", "OSError: [Errno 28] No space left on device", "a disk is full"),
    (
        "host-memory",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 9 bytes",
        "out of memory",
    ),
    ("host-memory", "OSError: [Errno 12] Cannot allocate memory", "lower l1"),
    ("host-memory", "MemoryError", "lower l1"),
    (
        "host-memory",
        "ValueError: Available memory on node 0 (3.0/23.5 GiB) on kv cache allocation is less than requested "
        "memory for kv (8.0 GiB).",
        "kv_cache",
    ),
    ("open-files", "OSError: [Errno 24] Too many open files: '/proc/self/maps'", "ulimit -n"),
    ("too-many-threads", "RuntimeError: can't start new thread", "ulimit -u"),
    ("permission", "PermissionError: [Errno 13] Permission denied: '/home/u/.cache/vllm'", "VLLM_CACHE_ROOT"),
    (
        "socket-path",
        'zmq.error.ZMQError: ipc path "/x" is longer than 107 characters (sizeof(sockaddr_un.sun_path))',
        "TMPDIR",
    ),
    (
        "vllm-port",
        "ValueError: VLLM_PORT 'tcp://10.0.0.1:8000' appears to be a URI. This may be caused by",
        "Kubernetes",
    ),
    ("mooncake-library", "ImportError: libibverbs.so.1: cannot open shared object file: No such file", "libibverbs1"),
    ("mooncake-missing", "ImportError: Please install mooncake by following the instructions at", "requirements"),
    ("mooncake-ended", "ChildProcessError: mooncake_client ended by itself (-9)", "the lines before it"),
    ("mooncake-unreachable", "RuntimeError: Initialize MooncakeDistributedStore failed.", "kvdemo logs"),
    ("torchvision", "RuntimeError: operator torchvision::nms does not exist", "uninstall torchvision"),
    ("lmcache-incomplete", "RuntimeError: No supported cpu connector found.", "numba"),
    (
        "glibc",
        "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by /x/_C.so)",
        "container",
    ),
    (
        "fp8-gpu",
        "ValueError: type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e5',)",
        "kv-cache-dtype",
    ),
    (
        "kernel-too-large",
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 163840, "
        "Hardware limit: 101376. Reducing block sizes or `num_stages` may help.",
        "attention-backend",
    ),
    ("attention-backend", "RuntimeError: FlashAttention only supports Ampere GPUs or newer.", "attention-backend"),
    ("redis", "redis.exceptions.AuthenticationError: Authentication required.", "secrets"),
    (
        "glibcxx",
        "ImportError: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by c_ops.so)",
        "LD_LIBRARY_PATH",
    ),
    ("versions", "ImportError: libcudart.so.12: cannot open shared object file: No such file", "do not fit together"),
    ("versions", "ImportError: /x/c_ops.so: undefined symbol: _ZN3c104cuda9SetDeviceEa", "do not fit together"),
    ("versions", "ImportError: cannot import name 'KVConnectorBase_V1' from 'vllm.distributed'", "do not fit together"),
    ("package-missing", "ModuleNotFoundError: No module named 'lmcache.cli'", "lacks a package"),
    ("no-c-compiler", "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.", "gcc"),
    ("nvcc", "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", "CUDA_HOME"),
    ("ninja", "RuntimeError: Ninja is required to load C++ extensions (pip install ninja to get it)", "ninja"),
    ("compile", "RuntimeError: Error building extension 'page': [1/2]", "enforce-eager"),
    ("nccl", "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)", "NCCL_DEBUG"),
    ("gloo-interface", "RuntimeError: Unable to find address for: eth7", "GLOO_SOCKET_IFNAME"),
    (
        "rendezvous",
        "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms while trying to "
        "connect to (10.0.0.1, 47111).",
        "VLLM_HOST_IP",
    ),
    (
        "engine-ready-timeout",
        "TimeoutError: Timed out waiting for engines to send initial message on input socket.",
        "start_timeout",
    ),
    ("step-timeout", "TimeoutError: RPC call to execute_model timed out.", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"),
    (
        "cache-unreachable",
        "ConnectionError: LMCache server did not respond to register_kv_caches within 10.0s.",
        "kvdemo logs CACHE",
    ),
    (
        "cache-unreachable",
        "ConnectionError: Cannot reach the LMCache MP server at 'tcp://127.0.0.1:5555' within 10s.",
        "kvdemo logs CACHE",
    ),
    (
        "cache-timeout",
        "lmcache.v1.mp_observability.errors.LMCacheTimeoutError: PREPARE_STORE timed out for instance_id=1 after 10.0s",
        "kvdemo restart CACHE",
    ),
    ("cache-restarted", "ValueError: non-GPU context not registered (or reaped) for instance ID 7", "kvdemo restart"),
    ("cache-l1", "RuntimeError: Failed to allocate huge pages. ", "lower l1"),
    (
        "redis",
        "redis.exceptions.AuthenticationError: WRONGPASS invalid username-password pair or user is disabled.",
        "secrets",
    ),
    (
        "redis-unreachable",
        "redis.exceptions.ConnectionError: Error 111 connecting to 127.0.0.1:6379. Connection refused.",
        "address in l2",
    ),
    ("cache-mode", "ValueError: MP transfer mode 'lmcache_driven' is not supported for device type 'xpu'", "transfer"),
    ("connector-unknown", "ValueError: Unsupported connector type: LMCacheMPConnector", "pinned"),
    (
        "hybrid-kv",
        "ValueError: Hybrid KV cache manager is disabled but failed to convert the KV cache specs to one unified type.",
        "hybrid model",
    ),
    (
        "hma",
        "ValueError: Connector LMCacheMPConnector does not support HMA but HMA is enabled. Please set `--x`.",
        "disable-hybrid-kv-cache-manager: true",
    ),
    (
        "expandable-segments",
        "ValueError: KV connector LMCacheMPConnector is incompatible with PYTORCH_CUDA_ALLOC_CONF="
        "expandable_segments:True unless",
        "expandable_segments",
    ),
    (
        "max-model-len",
        "Value error, User-specified max_model_len (40960) is greater than the derived max_model_len "
        "(max_position_embeddings=32768)",
        "lower max_model_len",
    ),
    (
        "batched-tokens",
        "Value error, max_num_batched_tokens (2048) is smaller than max_model_len (32768). This",
        "max-num-batched-tokens",
    ),
    (
        "tensor-parallel",
        "Value error, Total number of attention heads (64) must be divisible by tensor parallel size (3).",
        "gpus",
    ),
    (
        "world-size",
        "Value error, World size (4) is larger than the number of available GPUs (2) in this node. If",
        "more gpus",
    ),
    (
        "architecture",
        "ValueError: The checkpoint you are trying to load has model type `x9` but Transformers does not "
        "recognize this architecture. This could be",
        "older than the model",
    ),
    (
        "architecture",
        "ValueError: Model architectures ['NewForCausalLM'] are not supported for now. Supported",
        "upgrade",
    ),
    (
        "custom-code",
        "ValueError: The repository org/m contains custom code which must be executed to correctly load the "
        "model. You can",
        "trust-remote-code: true",
    ),
    ("gated", "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-2)", "licence"),
    ("gated", "OSError: You are trying to access a gated repo.", "HF_TOKEN in secrets"),
    (
        "hub-token",
        "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co/x",
        "HF_TOKEN",
    ),
    ("hub-rate", "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: x", "limits"),
    (
        "hub-offline",
        "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/x: offline mode is "
        "enabled. To disable it, please unset the `HF_HUB_OFFLINE` environment variable.",
        "HF_HUB_OFFLINE",
    ),
    ("hub-network", "OSError: We couldn't connect to 'https://huggingface.co' to load the files", "network"),
    ("hub-network", "huggingface_hub.errors.LocalEntryNotFoundError: An error happened", "network"),
    (
        "model-unknown",
        "OSError: x/y is not a local folder and is not a valid model identifier listed on",
        "check `model`",
    ),
    ("weight-damaged", "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", "LFS"),
    ("model-incomplete", "RuntimeError: Cannot find any model weights with `/models/x`", "incomplete"),
    ("model-incomplete", "OSError: /models/x does not appear to have a file named config.json. Checkout", "incomplete"),
    ("tokenizer", "ValueError: Couldn't instantiate the backend tokenizer from one of:", "tokenizer"),
    (
        "weight-mismatch",
        "ValueError: There is no module or parameter named 'lm_head.bias' in LlamaForCausalLM",
        "not those of the config",
    ),
    (
        "quantization",
        "Value error, Quantization method specified in the model config (awq) does not match the "
        "quantization method specified in the `quantization` argument (fp8).",
        "quantization",
    ),
    (
        "chat-template",
        "ValueError: The supplied chat template (t.jinja) looks like a file path, but it failed to be opened.",
        "absolute path",
    ),
    ("port-taken", "OSError: [Errno 98] Address already in use", "leave `port` out"),
    ("nccl-version", "ImportError: /x/libtorch_cuda.so: undefined symbol: ncclCommWindowRegister", "NCCL"),
    (
        "nccl-timeout",
        "torch.distributed.DistBackendError: [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(",
        "disable-custom-all-reduce",
    ),
    (
        "gpu-busy-mode",
        "torch.AcceleratorError: CUDA error: all CUDA-capable devices are busy or unavailable",
        "exclusive",
    ),
    (
        "quantization-tp",
        "ValueError: The input size is not aligned with the quantized weight shape. This can be caused by "
        "too large tensor parallel size.",
        "fewer gpus",
    ),
    ("lora", "ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "max-lora-rank"),
]

USAGE = [
    ("flag-unknown", "api_server.py: error: unrecognized arguments: --frobnicate", "correct `args`"),
    (
        "flag-value",
        "api_server.py: error: argument --dtype: invalid choice: 'f' (choose from 'auto')",
        "correct `args`",
    ),
    ("flag-value", "lmcache server: error: argument --l1-size-gb: invalid float value: 'x'", "correct `args`"),
    ("package-missing", "/venv/bin/python3.11: No module named lmcache.cli", "lacks a package"),
]


def test_at_least_forty_causes_have_a_remedy() -> None:
    """Each remedy is words for people, and every code in the tests is one of the table."""
    codes = {signature.code for signature in signatures.SIGNATURES}
    assert len(codes) >= 40
    assert all(len(signature.remedy) > 15 for signature in signatures.SIGNATURES)
    assert {code for code, _, _ in (*KNOWN, *USAGE)} <= codes


def test_every_cause_is_tried() -> None:
    """No signature stands in the table without a line that proves it (here, or in the logs of test_reports)."""
    tried = {code for code, _, _ in (*KNOWN, *USAGE)}
    elsewhere = {
        "illegal-instruction",
        "segfault",
        "child-failed",
        "python-headers",
        "transfer-aborted",
    }  # never words of an exception
    assert {signature.code for signature in signatures.SIGNATURES} - tried <= elsewhere


@pytest.mark.parametrize(("code", "line", "fix"), KNOWN)
def test_known_causes(code: str, line: str, fix: str) -> None:
    """Each is known between noise, whatever process and time stand in front of it."""
    log = f"(EngineCore pid=7) INFO {STAMP} noise\n(EngineCore pid=7) ERROR {STAMP} {line}\n"
    cause = diagnose.root_cause(
        log + "RuntimeError: Engine core initialization failed. See root cause above.\n", code=1
    )
    assert (cause.code, cause.line, fix in cause.fix) == (code, line.strip(), True)


@pytest.mark.parametrize(("code", "line", "fix"), USAGE)
def test_refused_arguments(code: str, line: str, fix: str) -> None:
    """A program that refuses its command line says so without a traceback, below its usage."""
    cause = diagnose.root_cause(f"usage: api_server.py [-h]\n                     [--x X]\n{line}\n", code=2)
    assert (cause.code, line.endswith(cause.line), fix in cause.fix) == (code, True, True)


INNOCENT = {
    "a record at level INFO": "(EngineCore pid=7) INFO {stamp} {line}\n",
    "a record at level WARNING": "(EngineCore pid=7) WARNING {stamp} {line}\n",
    "LMCache's INFO": "\x1b[32;20m[2026-11-24 02:39:32,646] LMCache INFO:\x1b[0m {line} \x1b[3m(a.py:3:lmcache)\x1b[0m\n",
    "LMCache's INFO of two lines": "[2026-11-24 02:39:32,646] LMCache INFO: told\n{line}\n",
    "an attempt": "ERROR {stamp} Failed to import the kernels, going on without. Error: {line}\n",
    "a request that is logged": "INFO {stamp} Received request cmpl-1: prompt: '{line}', params: SamplingParams(n=1)\n",
    "vLLM's dump": "ERROR {stamp} Dumping input data for V1 LLM engine (v0) with config: model='m', x='{line}'\n",
    "a quoted source line": 'Traceback (most recent call last):\n  File "/x/a.py", line 1, in f\n    raise X("{line}")\n'
    "ZeroDivisionError: division by zero\n",
    "what a message quotes": "ERROR {stamp} ZeroDivisionError: division by zero in '{line}'\n",
    "a thread's end that was survived": "(EngineCore pid=7) ERROR {stamp} {line}\n"
    "(EngineCore pid=7) INFO 11-24 02:28:41 [core.py:8] Avg prompt throughput: 9 tokens/s\n",
    "before it was ready": "(EngineCore pid=7) ERROR {stamp} {line}\nINFO:     Application startup complete.\n",
}


@pytest.mark.parametrize("place", INNOCENT)
@pytest.mark.parametrize(("code", "line", "fix"), KNOWN)
def test_the_same_words_elsewhere_are_no_cause(code: str, line: str, fix: str, place: str) -> None:
    """A remedy belongs to the exception that ended the process, never to a word anywhere in the log."""
    del fix
    quoted = line.replace('"', "").replace("'", "")
    told = line if place.startswith(("a record", "a thread", "before", "LMCache's INFO")) else quoted
    cause = diagnose.root_cause(INNOCENT[place].format(stamp=STAMP, line=told), code=1)
    assert (cause.code in (diagnose.UNKNOWN, diagnose.STATUS), cause.fix) == (True, ""), (code, cause)


def test_a_word_of_several_signatures_has_one_meaning() -> None:
    """No two signatures that are not general claim one line of the table."""
    for code, line, _ in KNOWN:
        match = re.match(r"([\w.]+): (.*)", line)
        name, message = (match[1], match[2]) if match and not line.startswith("Value error") else (line, "")
        name, message = ("ValueError", line) if line.startswith("Value error") else (name, message)
        codes = {s.code for s, _ in signatures.find(name, message) if not s.general}
        assert len(codes | {code}) == 1, (line, codes)


def test_the_page_of_causes_is_the_table() -> None:
    """docs/failures.md lists every code with its remedy, and no other."""
    page = (Path(__file__).parents[1] / "docs" / "failures.md").read_text()
    remedies: dict[str, str] = {}
    for signature in signatures.SIGNATURES:
        remedies.setdefault(signature.code, signature.remedy)
    assert dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", page, re.MULTILINE)) == remedies
    told = set(re.findall(r"`([\w-]+)`", page))
    assert {code for code, _, _ in signatures.SIGNALS.values()} <= told
