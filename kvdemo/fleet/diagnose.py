"""Why did a service die, and what is it doing? Pure functions over the text of its log.

vLLM's last line is "Engine core initialization failed. See root cause above."; the cause stands hundreds of lines
earlier, among records that were survived. ``root_cause`` cuts what came before a service was ready, takes the
exceptions that were not survived, those of the failure first, and lets the signature of that one line decide the
remedy. What the guardian recorded (a signal, processes killed for memory) goes before an error that stands elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from signal import Signals
from typing import TYPE_CHECKING

from kvdemo.fleet import evidence, excerpts, logtext, signatures
from kvdemo.fleet.evidence import Evidence
from kvdemo.fleet.logtext import Fault, LoggedException
from kvdemo.fleet.signature import GPU_MEMORY, INTERNAL_PORT, KILLED, OFFLINE, PORT_TAKEN, Signature

if TYPE_CHECKING:
    from kvdemo.planning.plan import ServiceSpec

UNKNOWN = "unknown"
STATUS = "exit-status"
SHELL = 128
"""What a shell adds to the number of the signal that ended its command."""


@dataclass(frozen=True)
class Cause:
    """The line that says what went wrong, what to do about it (empty for an unknown cause), its code, a plain title."""

    line: str
    fix: str = ""
    code: str = UNKNOWN
    title: str = ""
    logged: bool = True
    """Whether the log tells it; else only how the process ended is known."""

    @property
    def words(self) -> str:
        """The cause for people: its title, where there is one, because the line alone would not say it."""
        return self.title or self.line


RECORDS = 50
"""Records at level ERROR that are read, from the end."""

_STATUS = re.compile(r"exit ?code:? (?P<code>-?\d+)|: (?P<core>-\d+)[,}]|(?:signal|sent) (?P<signal>SIG[A-Z]+)")
_TOOLS = ("compile", "nccl")
_COMPILER = re.compile(r": (?:fatal )?error: |: (?:command )?not found|^nvcc fatal|^(?:\S*ld|collect2): ")
_LOOKUPS = re.compile(
    r"(?:Key|Index|Attribute|Name|Import|ModuleNotFound|FileNotFound|Stop\w*|StopIteration)(?:Error)?$"
)


def root_cause(
    log: str,
    code: int | None = None,
    signal: int | None = None,
    *,
    spec: ServiceSpec | None = None,
    oom_kills: int = 0,
    oom_ours: bool = True,
) -> Cause:
    """Why a service ended: from its log, its exit ``code`` or ``signal``, and what kvdemo knows of it (``spec``).

    ``oom_kills`` counts what the kernel killed for want of memory while it ran: processes of its control group
    (``oom_ours``), or of the whole machine.
    """
    clues = Evidence(logtext.parse(log))
    memory = _memory(oom_kills, oom_ours)
    causes = (
        _explain(evidence.of_the_failure(clues), spec, clues),
        _by_record(clues, spec, dying=True),
        _killed_child(clues, memory),
        _by_signal(code, signal, memory, spec),
        _explain(evidence.other_faults(clues), spec, clues),
        _by_record(clues, spec),
        _by_kernel(memory, oom_ours),
        _explain(evidence.secondary(clues), spec, clues),
        _by_pointer(clues),
        _by_status(clues, code),
    )
    cause = next(cause for cause in causes if cause)
    return replace(cause, line=excerpts.excerpt(cause.line))


def _explain(faults: Iterable[Fault], spec: ServiceSpec | None, clues: Evidence) -> Cause | None:
    """The cause that the first of these faults is."""
    for fault in faults:
        return _chain(fault, spec, clues)
    return None


def _chain(fault: Fault, spec: ServiceSpec | None, clues: Evidence) -> Cause:
    """Of chained exceptions the one with a signature, the least general and the first; else the one that explains."""
    matches = [
        (signature.general, number, signature, text, exception)
        for number, exception in enumerate(fault.chain)
        if not evidence.points(exception)
        for signature, text in signatures.find(exception.name, exception.message, exception.output, exception.frame)
    ]
    if matches:
        _, _, signature, text, exception = min(matches, key=lambda entry: entry[:2])
        above = _tool_output_before(signature, fault, clues) if signature.code in _TOOLS else None
        signature, text = above or (signature, text)
        return _with_remedy(signature, _line(exception, text), exception, spec, clues.served)
    exception = _explaining(
        [exception for exception in fault.chain if not evidence.points(exception)] or list(fault.chain)
    )
    return Cause(_line(exception, ""))


def _tool_output_before(signature: Signature, fault: Fault, clues: Evidence) -> tuple[Signature, str] | None:
    """What a compiler or NCCL wrote by itself just before an exception that says no more than that it failed."""
    lines_before = [line for line in clues.lines if fault.first - evidence.NEAR <= line.number < fault.first]
    texts = [
        line.text for line in lines_before if line.level == "NCCL" or (not line.level and _COMPILER.search(line.text))
    ]
    for text in reversed(texts):
        for other, _ in signatures.find("", text):
            if not other.general:
                return other, text
    return (signature, texts[-1]) if texts else None


def _explaining(chain: Sequence[LoggedException]) -> LoggedException:
    """The first, unless it was a mere failed look-up that something more telling followed."""
    first, last = chain[0], chain[-1]
    caught = any(exception.link in ("context", "next") for exception in chain[1:])
    if caught and last.message and (_LOOKUPS.match(first.short) or evidence.follows(first) or not first.message):
        return last
    return first


def _line(exception: LoggedException, text: str) -> str:
    """An exception as it is told: name and message, then the line below it that bears the cause, or where it was."""
    message = exception.message
    if re.match(r"\d+ validation errors? for", message):
        output = [line.strip() for line in exception.output if line.strip() and "For further information" not in line]
        value = next((line for line in output if line.startswith(("Value error", "Assertion failed"))), "")
        return re.sub(
            r" \[type=\w+, input_value=.*", "", value or f"{exception.short}: {message} {' '.join(output[:2])}"
        )
    if message.startswith(("Value error, ", "Assertion failed, ", "error: ")) or not exception.name:
        return message
    line = f"{exception.name}: {message}" if message else exception.name
    if text and text != message:
        return f"{line} {text}" if message.endswith(":") else f"{line}: {text}"
    if message.endswith(":") and exception.output:
        return f"{line} {' '.join(part.strip() for part in exception.output[:2])}"
    bare = not message or _LOOKUPS.match(exception.short)
    return f"{line} ({exception.frame})" if bare and exception.frame else line


def _with_remedy(
    signature: Signature, line: str, exception: LoggedException, spec: ServiceSpec | None, served: bool
) -> Cause:
    """The cause with a remedy that fits this service."""
    code, fix, title = signature.code, signature.remedy, signature.title
    if code == PORT_TAKEN:
        code, fix = _port(line, exception, spec)
    if code == OFFLINE and spec and spec.env.get("HF_HUB_OFFLINE") == "1":
        fix = (
            "kvdemo starts engines offline (HF_HUB_OFFLINE=1) once `model` is here; what this engine looks for beside "
            "it (tokenizer, draft model, adapter, code) is not: download it first (hf download NAME), give its local "
            "path in args, or set HF_HUB_OFFLINE: '0' in env"
        )
    if code == GPU_MEMORY:
        size = re.search(r"[Tt]ried to allocate ([\d.]+ [KMGT]iB)", line)
        when = " while computing" if served and title == "out of GPU memory" else ""
        title = f"{title}{when}" + (f" (tried to allocate {size[1]})" if size else "")
    return Cause(line, fix.format(cache=spec.cache if spec and spec.cache else "CACHE"), code, title)


def _port(line: str, exception: LoggedException, spec: ServiceSpec | None) -> tuple[str, str]:
    """A port of the profile, or one that vLLM chose for itself."""
    number = re.search(r"port:? (\d{2,5})|', (\d{2,5})\)|:(\d{2,5})\b", line)
    port = int(next(group for group in number.groups() if group)) if number else 0
    own = exception.short.startswith("Dist") or exception.message.startswith("The server socket has failed")
    internal = port not in spec.ports if spec and port else own
    if internal:
        return INTERNAL_PORT, (
            "a port that the engine chooses for its own processes was taken between choosing and binding: try again, "
            "or set VLLM_PORT (and MASTER_PORT) in env, apart for each engine"
        )
    what = f"port {port}" if port else "the port"
    return PORT_TAKEN, f"another program took {what} since it was checked: leave `port` out, or free it"


def _killed_child(clues: Evidence, memory: str) -> Cause | None:
    """A process of the service that ended without a word of its own."""
    lines = [line for line in clues.lines if line.level not in ("INFO", "DEBUG") and evidence.CHILD.match(line.text)]
    if not lines:
        return None
    statuses = [_status(match) for line in lines for match in [_STATUS.search(line.text)] if match]
    line = next((line for line in lines if _STATUS.search(line.text)), lines[0])
    number = -min(statuses, default=-9)
    if number <= 0:
        return Cause(line.text, code="child-failed")
    code, words, fix = signatures.SIGNALS.get(number, (f"signal-{number}", f"signal {number}", ""))
    message = f"ended by {words}" if statuses else "ended without a word"
    if number == 9:
        fix = memory or (
            "most often the kernel killed it for want of host memory (dmesg tells), or somebody did; lower l1, "
            "kv_cache or the number of engines"
        )
    return Cause(line.text, fix.format(name="NAME"), code, f"a process of the engine {message}")


def _status(match: re.Match[str]) -> int:
    """The exit status that a record tells, negative for a signal as Python's."""
    if match["signal"]:
        return -int(Signals.__members__.get(match["signal"], 0))
    return int(match["code"] or match["core"])


def _memory(oom_kills: int, oom_ours: bool) -> str:
    """The remedy when the kernel counted kills for memory; empty if it did not."""
    if not oom_kills:
        return ""
    whose = "its control group" if oom_ours else "this machine"
    many = f"{oom_kills} processes" if oom_kills > 1 else "a process"
    return (
        f"the kernel killed {many} of {whose} for want of memory while it ran (its count oom_kill): lower l1, kv_cache "
        "or the number of engines, or raise the limit of memory"
    )


def _by_signal(code: int | None, signal: int | None, memory: str, spec: ServiceSpec | None) -> Cause | None:
    """What ended the service itself; a shell in between adds 128 to the number of the signal."""
    if signal is None and code and code - SHELL in signatures.SIGNALS:
        cause = _by_signal(None, code - SHELL, memory, spec)
        return replace(cause, line=f"exit code {code}: {cause.line}") if cause else None
    if not signal:
        return None
    signal_code, _, fix = signatures.SIGNALS.get(signal, (f"signal-{signal}", "", ""))
    fix = (memory if signal == 9 else "") or fix
    return Cause(f"ended by signal {signal}", fix.format(name=spec.name if spec else "NAME"), signal_code, logged=False)


def _by_kernel(memory: str, oom_ours: bool) -> Cause | None:
    """A service that ended without any other cause, while the kernel killed processes of its control group."""
    if not memory or not oom_ours:
        return None
    line = "it ended while the kernel killed processes of its control group for want of memory"
    return Cause(line, memory, KILLED, logged=False)


def _by_record(clues: Evidence, spec: ServiceSpec | None, *, dying: bool = False) -> Cause | None:
    """A record at level ERROR that names a known cause, if nothing was done after it; ``dying``: of a dead child's."""
    records = [
        line for line in clues.lines if line.level in ("ERROR", "CRITICAL") and not evidence.NO_CAUSE.search(line.text)
    ]
    if dying:
        deaths = [line.number for line in records if evidence.CHILD.match(line.text)]
        records = [line for line in records if deaths and deaths[0] - evidence.NEAR <= line.number < deaths[0]]
    for line in records[-RECORDS:]:
        if not clues.alive_after(line.process, line.number):
            for signature, _ in signatures.find("", line.text):
                return _with_remedy(signature, line.text, LoggedException("", line.text), spec, clues.served)
    return None


def _by_pointer(clues: Evidence) -> Cause | None:
    """VLLM points at a cause above that its log does not hold: the core ended before it could write one."""
    for line in clues.lines:
        if line.level not in ("INFO", "DEBUG") and evidence.DEAD.search(line.text):
            fix = (
                "its log says no more: often the kernel killed it for want of host memory (dmesg tells); lower l1, "
                "kv_cache or the number of engines"
            )
            return Cause(line.text, fix, "child-failed", "the engine's core ended without a word")
    return None


def _by_status(clues: Evidence, code: int | None) -> Cause:
    last = clues.lines[-1].text.strip() if clues.lines else ""
    if code is None:
        return Cause(last or "it wrote nothing", code=STATUS, logged=False)
    words = f"its last line: {last}" if last else "it wrote nothing"
    return Cause(f"exit code {code}; {words}", code=STATUS, logged=False)


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
    latest = current
    for line in log.splitlines():
        for pattern, name in PHASES:
            if re.search(pattern, line[: excerpts.LINE]):
                latest = name
    return latest
