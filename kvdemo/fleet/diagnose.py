"""Why did a service die, and what is it doing? Pure functions over the text of its log.

vLLM's last line is "Engine core initialization failed. See root cause above."; the cause stands hundreds of lines
earlier. ``root_cause`` finds it, and for known signatures says what to do. The strings were read in the sources of
vLLM 0.26 to 0.32 and LMCache 0.5.3 to 0.5.6, or seen in their logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """The line that says what went wrong, and what to do about it (empty for an unknown cause)."""

    line: str
    fix: str = ""


UNREACHABLE = "Cannot reach the LMCache MP server|LMCache server did not respond"
"""What an engine says when it ends because its cache server does not answer."""

SIGNATURES: tuple[tuple[str, str], ...] = (
    (
        r"Free memory on device .* is less than desired GPU memory utilization",
        "another process holds the GPU, or `memory` is too large: free the GPU (kvdemo ps, nvidia-smi) or lower it",
    ),
    (
        r"Error in memory profiling",
        "another process freed GPU memory while vLLM measured it: try again, or set kv_cache (bytes) so that nothing "
        "is measured",
    ),
    (
        r"No available memory for the cache blocks|To serve at least one request with",
        "weights and context do not fit in this engine's share: raise `memory` or kv_cache, or lower max_model_len",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError",
        "lower `memory`, kv_cache or max-num-seqs, or give the engine another GPU",
    ),
    (
        r"max_model_len .* is greater than the derived|larger than the maximum model length",
        "lower max_model_len to what the model supports",
    ),
    (r"[Aa]ddress already in use|Errno 98", "another program took the port since it was checked: leave `port` out"),
    (r"GatedRepoError|gated repo", "accept the model's licence on huggingface.co and set HF_TOKEN"),
    (r"401 Client Error|Invalid user token", "the Hugging Face token is missing or wrong: set HF_TOKEN"),
    (r"429 Client Error|Too Many Requests", "Hugging Face limits the rate: wait, and set HF_TOKEN"),
    (
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to 'https://huggingface",
        "the model is not complete on this machine and cannot be fetched: check the network or give a local path",
    ),
    (
        r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError|"
        r"Can't load the configuration|does not appear to have a file named|No such file or directory: .*safetensors",
        "the model directory is incomplete or misspelt: check `model`",
    ),
    (r"trust_remote_code", "the model brings code of its own: if you trust it, add `trust-remote-code: true` to args"),
    (r"unrecognized arguments?:", "this vLLM or LMCache does not know the flag: correct `args`"),
    (r"invalid choice:|error: argument", "a flag's value is wrong: correct `args`"),
    (
        rf"{UNREACHABLE}|Failed to connect to .*LMCache|entering degraded mode",
        "the cache server is not answering: kvdemo logs CACHE",
    ),
    (r"No registered GPU context|Device UUID .* not found", "the cache server was restarted: kvdemo restart CACHE"),
    (
        r"No space left on device",
        "a disk, or /dev/shm, is full: free it, or set the directory elsewhere",
    ),
    (
        r"undefined symbol|cannot open shared object file",
        "vllm, lmcache and torch in this interpreter do not fit together: install the pinned versions",
    ),
    (
        r"ModuleNotFoundError|No module named",
        "the engine's interpreter lacks a package: run scripts/setup, or set runtime.python",
    ),
    (
        r"operator torchvision::nms does not exist",
        "a CUDA build of torchvision beside a CPU torch: pip uninstall torchvision",
    ),
    (
        r"No supported cpu connector|CLI-only",
        "this LMCache installation is incomplete (numba missing?): run scripts/setup",
    ),
    (r"longer than 107 characters", "a socket path is too long: set TMPDIR to a short directory"),
    (r"Bus error", "/dev/shm is too small: in a container start it with a larger --shm-size"),
    (r"MemoryError|Cannot allocate memory|can't allocate memory", "the machine is out of memory: lower l1 or kv_cache"),
)

_SIGNALS = {
    4: "illegal instruction: this build of vLLM needs a newer processor (AVX-512 or AVX2)",
    7: "bus error: /dev/shm is too small",
    9: "killed: by the kernel for want of memory (dmesg tells), or by somebody",
    11: "segmentation fault in native code",
}

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_HARMLESS = re.compile(r"(?:^|\s)(?:(?:INFO|DEBUG|WARNING):?|[A-Za-z]*Warning:)\s")
_RAISED = re.compile(r"(?:^|[\s\]])((?:[\w]+\.)*\w*(?:Error|Exception|Exit)(?:: .+))$")
_EMPTY = re.compile(r"Engine core initialization failed|See root cause above|Failed core proc|See stack trace")


def root_cause(log: str, code: int | None = None, signal: int | None = None) -> Cause:
    """The first error that explains an exit; with nothing in the log, what the exit status itself says."""
    lines = [line.rstrip() for line in _COLOUR.sub("", log).splitlines() if line.strip()]
    for pattern, fix in SIGNATURES:
        for line in lines:
            if re.search(pattern, line) and not _HARMLESS.search(line):
                return Cause(_clean(line), fix)
    for number, line in enumerate(lines):
        if (found := _RAISED.search(line)) and not _EMPTY.search(line) and not _HARMLESS.search(line):
            # A message that ends in a number of errors, or in nothing, continues on the next lines (pydantic's do).
            more = lines[number + 1 : number + 3] if re.search(r"validation errors? for|:$", line) else []
            return Cause(" ".join([found[1].strip(), *(_clean(after) for after in more)]))
    if signal:
        return Cause(f"ended by signal {signal}", _SIGNALS.get(signal, ""))
    last = _clean(lines[-1]) if lines else "it wrote nothing"
    return Cause(f"exit code {code}; its last line: {last}" if code is not None else last)


def _clean(line: str) -> str:
    """The message of a log line, without process prefix, level, time and file."""
    line = re.sub(r"^\((?:EngineCore|APIServer|Worker)[^)]*\)\s*", "", line)
    line = re.sub(r"^(?:ERROR|CRITICAL|WARNING|INFO)\s+[\d-]+ [\d:.,]+ (?:\[[^\]]*\]\s*)?", "", line)
    return line.strip()[:400]


# A line that ends one phase names the next; the last one seen in the log is the phase. vLLM mentions torch.compile also
# where it compiles nothing (its configuration, warnings): only the lines of a running compiler count.
PHASES: tuple[tuple[str, str], ...] = (
    (r"Starting to load model|Loading model from scratch", "load weights"),
    (r"Loading weights took|Model loading took|torch\.compile (?:took|takes)", "profile"),
    (r"for vLLM's torch\.compile|Dynamo bytecode transform|Compiling a graph for", "compile"),
    (r"[CG]PU KV cache size:|Graph capturing finished", "warm up"),
    (r"Capturing CUDA graphs \(", "capture graphs"),
    (r"init engine \(profile|Starting vLLM (?:API )?server", "answer"),
)


def phase(log: str, current: str = "import") -> str:
    """Which phase of starting this piece of log shows; ``current`` if it shows none."""
    found = current
    for line in log.splitlines():
        for pattern, name in PHASES:
            if re.search(pattern, line):
                found = name
    return found


def redact(text: str, secrets: dict[str, str]) -> str:
    """Replace secret values, and whatever looks like a token of Hugging Face or OpenAI, by their names."""
    for name, value in secrets.items():
        if len(value) >= 4:
            text = text.replace(value, f"${{{name}}}")
    return re.sub(r"\b(hf_|sk-)[A-Za-z0-9_-]{16,}", r"\1***", text)
