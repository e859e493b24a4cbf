"""Causes that lie in what was installed or asked for: packages, compilers, the cache, the model, the flags."""

from __future__ import annotations

from kvdemo.fleet.signature import CACHE_UNREACHABLE, OFFLINE, Signature

_PYTHON_REMEDY = "install the pinned pair of vllm and lmcache (scripts/setup), or set runtime.python"

PYTHON = (
    Signature(
        "torchvision",
        r"operator torchvision::nms does not exist",
        "a CUDA build of torchvision beside a CPU torch: pip uninstall torchvision",
    ),
    Signature(
        "lmcache-incomplete",
        r"No supported \w+ connector found|~CLI-only",
        "this LMCache installation is incomplete (numba missing?): run scripts/setup",
    ),
    Signature(
        "glibcxx",
        r"~version `(?:GLIBCXX|CXXABI)_[\d.]+' not found",
        "the C++ library of this system or environment is older than the one lmcache or vllm was built with: put a "
        "newer libstdc++ first in LD_LIBRARY_PATH (env), or install builds for this system",
    ),
    Signature(
        "glibc",
        r"~version `GLIBC_[\d.]+' not found",
        "the C library of this system is older than the one vllm or lmcache was built for, and cannot be replaced "
        "alone: use a newer system or container, or install builds for this one",
    ),
    Signature(
        "versions",
        r"~(?:undefined symbol(?!: nccl)|(?<!libibverbs\.so\.1: )cannot open shared object file)|"
        r"cannot import name|DLL load failed|"
        r"module '[\w.]+' has no attribute|~(?:has no attribute '_C\w*'|takes \d+ positional arguments? but)|"
        r"~version mismatch between the lmcache client and lmcache server|"
        r"__init__\(\) got an unexpected keyword argument",
        "vllm, lmcache and torch in this interpreter do not fit together: " + _PYTHON_REMEDY,
    ),
    Signature(
        "package-missing",
        r"No module named|~is not installed|~requires the .* (?:package|library)",
        "the engine's interpreter lacks a package: run scripts/setup, or set runtime.python",
        general=True,
    ),
    Signature(
        "no-c-compiler",
        r"Failed to find C compiler|No working C\+\+ compiler found|Compiler: .* is not found|~\b(?:gcc|g\+\+|cc): "
        r"(?:command )?not found|~No such file or directory: '(?:gcc|g\+\+|cc)'",
        "install gcc and g++, or set CC and CXX in env (or add `enforce-eager: true` to args)",
    ),
    Signature(
        "python-headers",
        r".*fatal error: (?:Python|stddef|stdio|stdlib|string|stdint)\.h: No such file",
        "Triton compiles at first use: install gcc with its headers, and those of the engine's Python (python3-dev)",
    ),
    Signature(
        "nvcc",
        r"~nvcc: (?:command )?not found|Could not find nvcc|~CUDA_HOME environment variable is not set|"
        r"~No such file or directory: '[^']*nvcc'|nvcc fatal|~unsupported GNU version|~cannot find -lcuda(?:rt)?\b|"
        r"~fatal error: (?:cuda|cublas|curand|nv)\w*\.h(?:pp)?: No such file",
        "FlashInfer compiles at first use: set CUDA_HOME in env to a complete CUDA toolkit that fits torch and the "
        "compiler, or do without it (env: VLLM_USE_FLASHINFER_SAMPLER: '0', another attention-backend in args)",
        title="the CUDA compiler is missing or does not fit",
    ),
    Signature(
        "ninja",
        r"Ninja is required to load C\+\+ extensions|~No such file or directory: 'ninja'",
        "a kernel is compiled at first use and ninja is missing: pip install ninja in the engine's interpreter",
    ),
    Signature(
        "compile",
        r"Ninja build failed|Error building extension|~CppCompileError|~C\+\+ compile error|PassManager::run failed|"
        r"(?:CalledProcessError: )?Command '\[.*(?:ninja|nvcc|gcc|g\+\+|clang|/cc\b).*returned non-zero",
        "a kernel could not be compiled (the lines below it in the log say why): check CUDA_HOME and the compiler, or "
        "add `enforce-eager: true` to args",
        general=True,
    ),
)

CACHE = (
    Signature(
        "mooncake-library",
        r"~libibverbs\.so\.1: cannot open shared object file|~error while loading shared libraries: libibverbs",
        "Mooncake loads it whatever it moves KV by: apt-get install libibverbs1",
    ),
    Signature(
        "mooncake-missing",
        r"Please install mooncake|~Mooncake is not installed",
        "install what requirements-mooncake.lock names into the engine's interpreter",
    ),
    Signature(
        "mooncake-unreachable",
        r"Initialize MooncakeDistributedStore failed",
        "the engine did not reach its store: kvdemo logs {cache}",
    ),
    Signature(
        "mooncake-ended",
        r"mooncake_(?:master|client) ended by itself",
        "one half of the store ended, and took the other with it: the lines before it in its log say why (a port that "
        "is taken, or too little memory for l1)",
    ),
    Signature(
        CACHE_UNREACHABLE,
        r"Cannot reach the LMCache MP server|LMCache server did not respond|Failed to connect to .*LMCache|"
        r"LMCache .*entering degraded mode",
        "the cache server is not answering: kvdemo logs {cache}",
    ),
    Signature(
        "transfer-aborted",
        r"",
        "this vLLM ends when a request is aborted whose KV is on its way to or from a cache (vllm-project/vllm#43226): "
        "restart it, and let clients wait for their answers",
        exception=r"AssertionError",
        frame=r"assert req_id in self\.requests",
        title="a request was aborted during its KV transfer",
    ),
    Signature(
        "cache-timeout",
        r"",
        "the cache server did not answer in time: kvdemo logs {cache}, then kvdemo restart {cache}",
        exception=r"LMCacheTimeoutError",
    ),
    Signature(
        "cache-restarted",
        r"No registered GPU context|~context not registered \(or reaped\)",
        "the cache server was restarted: kvdemo restart {cache}",
    ),
    Signature(
        "cache-l1",
        r"Failed to allocate memory (?:block|for)|Failed to allocate huge pages|~l1[_-]size\w* .*(?:exceed|larger|"
        r"more)",
        "the cache's memory cannot be had: lower l1",
    ),
    Signature(
        "redis",
        r"~(?:NOAUTH|WRONGPASS|invalid username-password pair|Authentication required)",
        "Redis wants a password, or another one: name it in the cache's secrets",
    ),
    Signature(
        "redis-unreachable",
        r"~(?:Error \d+ connecting to|[Rr]edis.*(?:refused|not reachable|connect failed)|RESP.*connect)",
        "the Redis server of l2 does not answer: check its address in l2, and whether it runs",
    ),
    Signature(
        "cache-mode",
        r"MP transfer mode 'lmcache_driven' is not|Invalid MP transfer mode|"
        r"engine-driven transfer does not support",
        "this LMCache cannot share KV on this device in this way: leave the transfer mode out of args, or do without "
        "`cache` for this engine",
    ),
    Signature(
        "connector-unknown",
        r"Unsupported connector type",
        "this vLLM does not know the connector: install the pinned vllm and lmcache (scripts/setup)",
    ),
    Signature(
        "hybrid-kv",
        r"Hybrid KV cache manager is disabled but failed|Failed to promote local KV cache specs|"
        r"~does not support hybrid KV cache",
        "this connector cannot serve a hybrid model: leave disable-hybrid-kv-cache-manager out of args, or do without "
        "`cache` for this engine",
    ),
    Signature(
        "hma",
        r"Connector \w+ does not support HMA",
        "add `disable-hybrid-kv-cache-manager: true` to args, or do without `cache` for this engine",
    ),
    Signature(
        "expandable-segments",
        r"KV connector .* is incompatible with PYTORCH_CUDA_ALLOC_CONF",
        "take expandable_segments:True out of PYTORCH_CUDA_ALLOC_CONF (env)",
    ),
)

MODEL = (
    Signature(
        "max-model-len",
        r"User-specified max_model_len .* is greater than the derived|~larger than the maximum model "
        r"length",
        "lower max_model_len to what the model supports",
    ),
    Signature(
        "batched-tokens",
        r"max_num_batched_tokens \(\d+\) (?:is smaller than|must be greater)",
        "raise max-num-batched-tokens in args, or lower max_model_len or max-num-seqs",
    ),
    Signature(
        "tensor-parallel",
        r"Total number of attention heads .* must be divisible by|~ is not divisible by "
        r"(?:tensor|tp)",
        "give the engine another number of gpus: one that divides the model's attention heads",
    ),
    Signature(
        "quantization-tp",
        r"The (?:input|output)[ _]size\b.*not divisible by .*quantiz|The input size is not aligned",
        "the quantized weights cannot be split that often: give the engine fewer gpus",
    ),
    Signature(
        "world-size",
        r"World size \(\d+\) is larger than the number of available GPUs",
        "the engine wants more GPUs than it has: give it more gpus, or take parallel sizes out of args",
    ),
    Signature(
        "architecture",
        r"The checkpoint you are trying to load has model type|Model architectures "
        r".* (?:are not supported|failed to be inspected)|~has no vLLM implementation",
        "this transformers or vLLM is older than the model: upgrade it, or choose another `model`",
    ),
    Signature(
        "custom-code",
        r"(?:Loading this model requires you to execute|The repository .* contains custom code|"
        r"Loading .* requires you to execute the|Failed to load the (?:model config|tokenizer)\. If the)",
        "the model brings code of its own: if you trust it, add `trust-remote-code: true` to args",
    ),
    Signature(
        "gated",
        r"(?:\d+ Client Error.*)?~(?:Cannot access gated repo|You are trying to access a gated repo)",
        "accept the model's licence on huggingface.co and name HF_TOKEN in secrets",
    ),
    Signature(
        "gated",
        r"",
        "accept the model's licence on huggingface.co and name HF_TOKEN in secrets",
        exception="GatedRepoError",
    ),
    Signature(
        "hub-token",
        r"(?:\(Request ID.*\) ?)?401 Client Error|Invalid user token|~Invalid credentials in Authorization|"
        r"Client error '401",
        "the Hugging Face token is missing or wrong: name HF_TOKEN in secrets",
        general=True,
    ),
    Signature(
        "hub-rate",
        r"429 Client Error|Client error '429|~(?:Too Many Requests|rate limit)",
        "Hugging Face limits the rate: wait, and name HF_TOKEN in secrets",
    ),
    Signature(
        OFFLINE,
        r"Cannot reach .*: offline mode is enabled|~outgoing traffic has been disabled|Cannot access file since "
        r"'local_files_only=True'",
        "the model is not complete on this machine and HF_HUB_OFFLINE keeps it from being fetched: unset it, or give a "
        "local path",
    ),
    Signature(
        "hub-network",
        r"(?:We )?couldn't connect to 'https://huggingface|\(?(?:MaxRetryError|ProtocolError)\(|"
        r"HTTPSConnectionPool\(host='[\w.-]*huggingface|~(?:Max retries exceeded|Failed to resolve|"
        r"Name or service not known).*|An error happened while trying to locate the file",
        "Hugging Face cannot be reached: check the network and its proxy, or give `model` as a local path",
        general=True,
    ),
    Signature(
        "hub-network",
        r"",
        "the model is not complete on this machine and cannot be fetched: check the network or give a local path",
        exception="LocalEntryNotFoundError",
        general=True,
    ),
    Signature(
        "hub-network",
        r"\[Errno -[235]\]|~(?:Temporary failure in name resolution|timed out)",
        "Hugging Face cannot be reached: check the network and its proxy, or give `model` as a local path",
        exception=r"Connect(?:ion)?(?:Error|Timeout)|ReadTimeout|NameResolutionError|gaierror",
        general=True,
    ),
    Signature(
        "model-unknown",
        r"~is not a local folder and is not a valid model identifier|(?:404 Client Error.*)?~Repository Not Found|"
        r"Invalid repository ID or local directory|Repo id must",
        "there is no such model: check `model`",
    ),
    Signature(
        "model-unknown",
        r"",
        "there is no such model: check `model`",
        exception="RepositoryNotFoundError|RevisionNotFoundError|HFValidationError",
    ),
    Signature(
        "weight-damaged",
        r"Error while deserializing header|~(?:HeaderTooLarge|HeaderTooSmall|InvalidHeader|MetadataIncompleteBuffer)|"
        r"invalid load key, 'v'|~git-lfs|PytorchStreamReader failed",
        "a weight file is damaged or a Git LFS pointer: download the model again",
        title="a weight file is damaged",
    ),
    Signature(
        "model-incomplete",
        r"~does not appear to have (?:a file|files) named|Can't load the configuration|Cannot find any "
        r"(?:safetensors )?model weights|~No such file or directory: .*(?:safetensors|config\.json|tokenizer)|"
        r"Unrecognized model in|~Error no file named",
        "the model directory is incomplete or misspelt: check `model`",
    ),
    Signature(
        "tokenizer",
        r"~(?:Can't load tokenizer|Couldn't instantiate the backend tokenizer|Couldn't build a tokenizer|"
        r"Tokenizer class \w+ does not exist)",
        "the model's tokenizer cannot be loaded: check the files beside the weights, or add `tokenizer: ...` to args",
    ),
    Signature(
        "weight-mismatch",
        r"There is no module or parameter named|Following weights were not initialized|"
        r"~The size of tensor a \(\d+\) must match.*(?:weight|param)",
        "the weights are not those of the config: download the model again, or take hf-overrides out of args",
    ),
    Signature(
        "quantization",
        r"(?:Quantization method specified in the model config|Unknown quantization method|"
        r"\S+ is not supported for quantization method|The quantization method \S+ is deprecated)",
        "take quantization and dtype out of args, so that the model's own count",
    ),
    Signature(
        "chat-template",
        r"The supplied chat template .* looks like a file path|~chat template .*does(?:n't| "
        r"not) exist",
        "give chat-template in args as an absolute path",
    ),
    Signature(
        "lora",
        r"(?:Call to add_lora method failed: )?LoRA rank \d+ is greater than|~max_lora_rank",
        "raise max-lora-rank in args",
    ),
)

ARGUMENTS = (
    Signature(
        "flag-unknown",
        r"error: unrecognized arguments?:|No such option",
        "this vLLM or LMCache does not know the flag: correct `args`",
    ),
    Signature(
        "flag-value",
        r"error: argument|error: .*(?:invalid choice|expected one argument|the following arguments are required|"
        r"ambiguous option)|error: ",
        "a flag or its value is wrong: correct `args`",
    ),
)

LAST = (
    Signature(
        "child-failed",
        r"~\bKilled$",
        "a process was killed: most often by the kernel for want of host memory (dmesg tells); lower l1 or kv_cache",
    ),
)
