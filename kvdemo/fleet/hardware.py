"""Causes that lie in the machine: GPUs, memory, limits, ports, and how processes reach each other."""

from __future__ import annotations

from kvdemo.fleet.signature import GPU_MEMORY, PORT_TAKEN, SHM, Signature

SHM_REMEDY = "give the container a larger /dev/shm (--shm-size=16g, or --ipc=host), or free what is in it"
MEMORY_REMEDY = "the host is out of memory: lower l1, kv_cache or the number of engines, or free some"

GPU = (
    Signature(
        GPU_MEMORY,
        r"CUDA out of memory occurred when warming up|HIP out of memory occurred when warming up",
        "lower max-num-seqs in args, or `memory`, which leaves too little beside the KV cache",
        title="out of GPU memory while warming up",
    ),
    Signature(
        GPU_MEMORY,
        r"(?:CUDA|HIP|XPU) out of memory|CUDA error: out of memory|Allocation on device|"
        r"Cuda failure (?:\d+ )?'out of memory'|Out of memory(?:$|[.!])",
        "lower `memory` or kv_cache, or max-num-batched-tokens or max-num-seqs in args, or give the engine another GPU",
        title="out of GPU memory",
        general=True,
    ),
    Signature(
        GPU_MEMORY,
        r"",
        "lower `memory` or kv_cache, or max-num-batched-tokens or max-num-seqs in args, or give the engine another GPU",
        exception=r"(?:CUDA)?OutOfMemoryError",
        title="out of GPU memory",
        general=True,
    ),
    Signature(
        "gpu-occupied",
        r"Free memory on device .*desired GPU memory utilization|Externally held weights on device",
        "another process holds the GPU, or `memory` is too large: free the GPU (kvdemo ps, nvidia-smi) or lower it",
    ),
    Signature(
        "gpu-memory-moved",
        r"Error in memory profiling",
        "another process freed GPU memory while vLLM measured it: try again, or set kv_cache (bytes) so that nothing "
        "is measured",
    ),
    Signature(
        "kv-cache-too-small",
        r"No available memory for the cache blocks|To serve at least one request with|Cannot auto-fit max_model_len|"
        r"The model's max seq len .* is larger than the maximum number of tokens",
        "weights and context do not fit in this engine's share: raise `memory` or kv_cache, or lower max_model_len",
    ),
    Signature(
        "gpu-unsupported",
        r"CUDA error: no kernel image is available|~sm_\d+\w* is not compatible with the current PyTorch|"
        r"CUDA error: the provided PTX was compiled with an unsupported toolchain",
        "this build of torch and vLLM holds no code for this GPU: install a build for it, or choose other gpus",
        title="no code for this GPU",
    ),
    Signature(
        "gpu-driver",
        r"(?:Unexpected error from cudaGetDeviceCount\(\).*)?~Error 80[34]|~The NVIDIA driver on your system is too "
        r"old|"
        r"CUDA error: (?:CUDA driver version is insufficient|forward compatibility|system has unsupported display)|"
        r"~system has unsupported display driver",
        "the NVIDIA driver and the CUDA libraries do not fit: update the driver, or install a torch for its CUDA "
        "version",
        title="driver and CUDA libraries do not fit",
    ),
    Signature(
        "gpu-fabric",
        r"~(?:Error 802|system not yet initialized)",
        "the GPUs' fabric is not up: start nvidia-fabricmanager in the driver's version, then try again",
        title="the GPUs' fabric (NVSwitch) is not initialized",
    ),
    Signature(
        "gpu-absent",
        r"No CUDA GPUs are available|~no CUDA-capable device is detected|CUDA error: invalid device ordinal|"
        r"Found no NVIDIA driver|Failed to infer device type|Device string must not be empty|Torch not compiled "
        r"with CUDA",
        "the engine sees no such GPU: check gpus, CUDA_VISIBLE_DEVICES, and whether the container was given GPUs",
    ),
    Signature(
        "gpu-uuid",
        r"invalid literal for int\(\) with base 10: '(?:MIG|GPU)-",
        "this vLLM cannot be pinned by UUID: give gpus by index, or install a newer vLLM",
    ),
    Signature(
        "gpu-lost",
        r"~(?:GPU is lost|fell off the bus|uncorrectable (?:NVLink|ECC) error|CUDA error: unknown error)|"
        r"CUDA error: (?:uncorrectable|device-side hardware|hardware stack error)",
        "the GPU or its driver failed (dmesg shows the Xid): reset or restart the machine, or choose other gpus",
        title="the GPU failed",
    ),
    Signature(
        "gpu-kernel",
        r"~CUDA error: (?:an illegal memory access|unspecified launch failure|device-side assert|misaligned address|"
        r"an illegal instruction)|~CUBLAS_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR)",
        "a GPU kernel failed, a bug in vLLM or the model's code: try `enforce-eager: true` or another "
        "attention-backend in args, or another version of vLLM",
        title="a GPU kernel failed",
    ),
    Signature(
        "gpu-busy-mode",
        r"CUDA error: (?:all CUDA-capable devices are busy|CUDA-capable device\(s\) is/are busy)",
        "the GPU is in exclusive mode and taken: nvidia-smi -c DEFAULT, or choose other gpus",
    ),
    Signature(
        "cublas",
        r"~CUBLAS_STATUS_(?:NOT_INITIALIZED|ALLOC_FAILED)",
        "no GPU memory was left for cuBLAS: lower `memory` or kv_cache",
        title="out of GPU memory for cuBLAS",
    ),
    Signature(
        "pinned-memory",
        r"CUDA error: invalid argument \(while pinning|~(?:cudaHostRegister|cudaHostAlloc|cudaMallocHost|mlock)\b.*"
        r"(?:fail|error)|Failed to (?:pin|allocate pinned)|~[Pp]inned memory.*(?:fail|not enough)",
        "the host's memory cannot be pinned: lower l1, or raise the limit (ulimit -l unlimited)",
    ),
    Signature(
        "pinned-memory",
        r"CUDA error: invalid argument|register ptr failed",
        "the host's memory cannot be pinned: lower l1, or raise the limit (ulimit -l unlimited)",
        frame=r"pin_memory|pinned|[Hh]ost_?[Rr]egister|[Hh]ost_?[Aa]lloc",
    ),
    Signature(
        "gpu-ipc",
        r"~(?:MapBufferObjectFailed|mapping of buffer object failed)|CUDA error: invalid resource handle|"
        r"Device UUID .* not found in the discovered|CUDA error: peer access is not supported",
        "the cache server cannot map the engine's GPU memory: both must see the same GPUs and share one IPC namespace "
        "(containers: --ipc=host and the same GPUs for both)",
    ),
    Signature(
        "bfloat16",
        r"Bfloat16 is only supported on GPUs",
        "this GPU has no bfloat16: add `dtype: half` to args",
    ),
    Signature(
        "quantization-gpu",
        r"The quantization method .* is not supported for the current GPU",
        "this GPU cannot run the model's quantization: choose another `model`, or other gpus",
    ),
    Signature(
        "fp8-gpu",
        r"type fp8\w+ not supported in this architecture",
        "this GPU cannot compute in the FP8 format that is asked for: take kv-cache-dtype and quantization out of "
        "args, choose a `model` in another format, or other gpus",
    ),
    Signature(
        "kernel-too-large",
        r"out of resource: shared memory",
        "a Triton kernel needs more shared memory than a block has on this GPU: try another attention-backend or "
        "version of vllm, or other gpus",
        title="a kernel does not fit this GPU",
    ),
    Signature(
        "attention-backend",
        r"No valid attention backend found|FlashAttention only supports|Selected backend .* is not valid for",
        "no attention kernel fits this model on this device: leave attention-backend and kv-cache-dtype out of args",
    ),
)

PORTS = (
    Signature(
        PORT_TAKEN,
        r"~(?:[Aa]ddress already in use|EADDRINUSE|\[[Ee]rrno 98\]|Only one usage of each socket address)",
        "another program took the port since it was checked: leave `port` out",
    ),
)

HOST = (
    Signature(
        SHM,
        r"~(?:/dev/shm/nccl|Error while creating shared memory segment|failed to extend /dev/shm|"
        r"posix_fallocate failed : No space left)|~unable to (?:mmap|allocate|open|write to) .*shared memory|"
        r"~No space left on device.*/dev/shm|(?:Fatal Python error: )?Bus error|~insufficient shared memory",
        SHM_REMEDY,
        title="/dev/shm is too small",
    ),
    Signature(
        "disk-full",
        r"\[Errno 28\]|~No space left on device|~Disk quota exceeded|\[Errno 122\]",
        "a disk is full: free it, or set HF_HOME, VLLM_CACHE_ROOT, TMPDIR or the cache's l2 to another place",
        general=True,
    ),
    Signature(
        "host-memory",
        r"\[Errno 12\]|~(?:Cannot allocate memory|can't allocate memory|cannot allocate memory)|std::bad_alloc|"
        r"Available memory on node .* less than|Unable to allocate [\d.]+ [KMGT]iB",
        MEMORY_REMEDY,
    ),
    Signature("host-memory", r"", MEMORY_REMEDY, exception=r"MemoryError|bad_alloc|_?ArrayMemoryError"),
    Signature(
        "open-files",
        r"\[Errno 24\]|~Too many open files",
        "the limit of open files is too low: ulimit -n 65535 before `kvdemo up`",
    ),
    Signature(
        "too-many-threads",
        r"can't start new thread|~Resource temporarily unavailable|\[Errno 11\]",
        "the limit of processes is reached: raise ulimit -u or the container's pids limit, or start fewer engines",
    ),
    Signature(
        "permission",
        r"\[Errno 13\]|\[Errno 30\]|~(?:Permission denied|Read-only file system)",
        "the engine may not write (or read) there: set HF_HOME, XDG_CACHE_HOME, VLLM_CACHE_ROOT or the cache's l2 to a "
        "place that this user owns",
    ),
    Signature(
        "socket-path",
        r"ipc path .* is longer than 107 characters|~(?:longer than 107 characters|AF_UNIX path too long)",
        "a socket path is too long: set TMPDIR to a short directory",
    ),
    Signature(
        "illegal-instruction",
        r"~Illegal instruction",
        "this build of vLLM needs a newer processor (AVX-512 or AVX2)",
    ),
    Signature(
        "segfault",
        r"(?:Fatal Python error: )?Segmentation fault|!+ *Segfault encountered",
        "a crash in native code: try another version of vllm, torch or the driver",
    ),
    Signature(
        "vllm-port",
        r"VLLM_PORT '.*' (?:appears to be a URI|must be a valid integer)",
        "VLLM_PORT comes from Kubernetes' service links: name the service otherwise, or set VLLM_PORT in env to a "
        "number",
    ),
)

NETWORK = (
    Signature(
        "nccl-version",
        r"~undefined symbol: nccl",
        "two versions of NCCL are mixed: unset LD_PRELOAD and VLLM_NCCL_SO_PATH, or install the pinned torch",
    ),
    Signature(
        "nccl",
        r"NCCL error|~(?:nccl\w*Error|NCCL WARN|ncclUnhandledCudaError)",
        "the GPUs of this engine could not talk to each other: set NCCL_DEBUG: INFO in env and read its log; often "
        "NCCL_P2P_DISABLE: '1', NCCL_IB_DISABLE: '1' or NCCL_SOCKET_IFNAME helps",
        general=True,
    ),
    Signature(
        "gloo-interface",
        r"~(?:Unable to resolve hostname|[Uu]nable to find (?:address for|interface)|makeDeviceFor)",
        "the host's own name cannot be resolved: add it to /etc/hosts, or set GLOO_SOCKET_IFNAME: lo in env",
        general=True,
    ),
    Signature(
        "rendezvous",
        r"~(?:The client socket has (?:timed out|failed to connect)|Timed out after .* waiting for clients|"
        r"wait timeout after \d+ms)",
        "the processes of this engine did not find each other: set VLLM_HOST_IP: 127.0.0.1 in env, and look for a "
        "firewall or proxy",
    ),
    Signature(
        "engine-ready-timeout",
        r"Timed out waiting for (?:engines?|engine core)|~did not (?:start|become ready) within|"
        r"Timeout waiting for .* to (?:start|be ready)",
        "raise start_timeout (and VLLM_ENGINE_READY_TIMEOUT_S in env)",
    ),
    Signature(
        "nccl-timeout",
        r"~Watchdog caught collective operation timeout",
        "the GPUs of this engine waited for each other in vain: look for another worker's error in its log; often "
        "NCCL_P2P_DISABLE: '1' or disable-custom-all-reduce: true helps",
        title="the GPUs of this engine waited for each other in vain",
    ),
    Signature(
        "step-timeout",
        r"RPC call to \w+ timed out|~execute_model timed out|~No available shared memory broadcast block",
        "a worker answered no more: raise VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS in env, or look at its GPU (nvidia-smi)",
        general=True,
    ),
)
