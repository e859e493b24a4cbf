"""Which faults of a log count: those of the failure, not what was survived, before the service was ready, or aside.

What counts is where it stands: after its process had said that it fails; uncaught, with nothing done after it; just
before the death of a child. The words of an exception decide nothing here, except that some only point at another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvdemo.fleet.logtext import Fault, Line, Log, LoggedException

_READY = re.compile(r"Application startup complete\.$")
_FAILURE = re.compile(
    r"EngineCore (?:failed to start|encountered a fatal error|hit an exception)|WorkerProc (?:failed to start|hit an "
    r"exception)|Exception in worker \w+|(?:AsyncLLM|Engine) output_handler failed|Engine background task "
    r"failed|Error executing method|Process \S+:$|Application startup failed"
)
"""Records after which a process of vLLM's ends."""

DEAD = re.compile(
    r"^(?:[\w.]*(?:Error|Exception): )?(?:EngineCore encountered an issue|Engine core initialization failed|"
    r"Engine process (?:failed to start|\(pid))"
)
"""What vLLM's server says when its core has ended."""

_POINTERS = re.compile(
    r"(?:Engine core|Frontend process failed during engine core) initialization|Engine core initialization failed|"
    r"EngineCore encountered an issue|WorkerProc initialization failed|Engine process (?:failed to start|\(pid)|"
    r"Executor failed|See (?:stack trace|root cause)|Background loop has errored|MQLLMEngine is already dead|"
    r"unhandled errors in a TaskGroup|Worker failed with error"
)
_POINTING = re.compile(
    r"(?:Async)?Engine(?:Dead|Generate)Error|MQEngineDeadError|CancelledError|KeyboardInterrupt|"
    r"SystemExit|(?:Base)?ExceptionGroup|RayTaskError|ActorDiedError|RayActorError"
)
_SECONDARY = re.compile(
    r"ChildProcessError|BrokenPipeError|Connection(?:Reset|Aborted)Error|EOFError|ContextTerminated|IncompleteReadError"
)
_PEER_LOST = re.compile(
    r".*(?:Connection closed by (?:remote )?peer|recvValue failed|Connection reset by peer|remote process exited|"
    r"cancelled|Broken pipe|failed to recv, got 0 bytes)"
)
_ASIDE = re.compile(
    r"Exception ignored in|Exception in thread|Task exception was never retrieved|Future exception was never retrieved|"
    r"Exception in ASGI application|Exception in callback|Failed to import|--- Logging error ---|Exception occurred in"
)
"""What stands before a traceback that ended nothing but a thread, a request or an attempt."""

_IGNORED = re.compile(r"Exception ignored in|--- Logging error ---")
_ENDING = re.compile(
    r"(?i)shut|terminat|exit|clean|destroy|stopp|finish|abort|clos|dead|died|kill|releas|unregister|dump|cancel|sigterm"
)
_HARMLESS = ("INFO", "DEBUG", "WARNING")
QUIET = ("", "INFO", "DEBUG")
NEAR = 200
"""Lines between an error and the record of a child's death that may belong together."""

DUMP = re.compile(
    r"Dumping (?:input data|scheduler)|non-default args|Initializing an? \S* ?(?:LLM )?engine|with config:"
)
NO_CAUSE = re.compile(rf"^\s|^Traceback|{DUMP.pattern}|{_ASIDE.pattern}|{_POINTERS.pattern}")
"""Records at level ERROR that are none: parts of a traceback, dumps, pointers, attempts."""

_ACCESS = re.compile(r'\S+ - "(?P<what>[A-Z]+ \S+) HTTP/[\d.]+" (?P<status>\d+)')
CHILD = re.compile(
    r".*(?:died unexpectedly|died, exit code: -?\d+|died with exit code -?\d+|engine core exited unexpectedly|"
    r"failed \(exitcode: -\d+\)|terminated with signal SIG[A-Z]+|was sent SIGKILL|"
    r"Failed core proc\(s\): \{[^}]*: -\d+)"
)


class Evidence:
    """What counts of a log: its lines and faults since the service was ready, and whether it ever was."""

    def __init__(self, log: Log) -> None:
        ready = max((line.number for line in log.lines if line.level == "INFO" and _READY.match(line.text)), default=-1)
        self.served = ready >= 0
        self.lines = [line for line in log.lines if line.number > ready]
        self.faults = [
            fault
            for fault in log.faults
            if fault.first > ready and fault.level not in _HARMLESS and not _IGNORED.search(fault.head)
        ]
        self.declared_at: dict[str, int] = {}
        """The line in which each process that failed says so for the first time."""
        self.works: list[int] = []
        self.healthy = -1
        """The last line in which the server answered that it, and the core of the engine, is well."""
        self.worked: dict[str, int] = {}
        """The last line in which each process, or (under "") anyone, tells of its work."""
        for line in self.lines:
            if line.level not in ("INFO", "DEBUG") and _FAILURE.match(line.text):
                self.declared_at.setdefault(line.process, line.number)
            elif _works(line):
                self.worked[line.process] = self.worked[""] = line.number
                self.works.append(line.number)
            elif _healthy(line):
                self.healthy = line.number

    def declared(self, fault: Fault) -> bool:
        """Whether its process had said that it fails."""
        return self.declared_at.get(fault.process, fault.last + 1) <= fault.last

    def uncaught(self, fault: Fault) -> bool:
        """Whether nobody caught it, as far as the log tells, and the process did nothing more."""
        raw = fault.kind == "traceback" and not fault.level and not _ASIDE.search(fault.head)
        return (raw or fault.kind == "usage") and not self.survived(fault)

    def survived(self, fault: Fault) -> bool:
        """Whether the process went on with its work after this fault."""
        return self.alive_after(fault.process, fault.last)

    def alive_after(self, process: str, number: int) -> bool:
        """Whether this process worked, or the server said that all is well, below this line."""
        return max(self.worked.get(process, -1), self.healthy) > number


def _works(line: Line) -> bool:
    """Whether only a living service writes this line."""
    if line.level not in ("INFO", "DEBUG"):
        return False
    if access := _ACCESS.match(line.text):
        return access["what"].startswith("POST ") and access["status"].startswith("2")
    return not _ENDING.search(line.text) and not DUMP.search(line.text)


def _healthy(line: Line) -> bool:
    """Whether the server answered well to a question for its health (vLLM: only while its core lives)."""
    access = _ACCESS.match(line.text) if line.level == "INFO" else None
    return bool(access and access["what"].startswith("GET /health") and access["status"] == "200")


def points(exception: LoggedException) -> bool:
    """Whether this exception only says that there was another one."""
    match = _POINTERS.match(exception.message) or CHILD.match(exception.message)
    return bool(match or _POINTING.fullmatch(exception.short))


def follows(exception: LoggedException) -> bool:
    """Whether this exception is what others see of a process that ended."""
    return bool(_SECONDARY.fullmatch(exception.short) or _PEER_LOST.match(exception.message))


def tells(fault: Fault) -> bool:
    """Whether one of its exceptions is more than a pointer, or what others saw of an end."""
    return any(not points(exception) and not follows(exception) for exception in fault.chain)


def of_the_failure(read: Evidence) -> Iterator[Fault]:
    """Faults of the failure itself in order of time, then what native code wrote before it died."""
    telling = [fault for fault in read.faults if tells(fault)]
    yield from (fault for fault in telling if fault.kind != "native" and read.declared(fault))
    yield from (fault for fault in telling if fault.kind != "native" and read.uncaught(fault))
    yield from (fault for fault in telling if fault.kind == "native" and not read.survived(fault))
    deaths = [line.number for line in read.lines if line.level not in QUIET and CHILD.match(line.text)][-1:]
    for fault in telling:
        close = any(0 <= number - fault.last <= NEAR for number in deaths)
        if close and fault.kind == "line" and fault.process.startswith(("EngineCore", "Worker")):
            yield fault


def other_faults(read: Evidence) -> list[Fault]:
    """Faults that nobody called fatal and nobody survived: of the last block (between works), the core's first."""
    faults = [fault for fault in read.faults if tells(fault) and not read.survived(fault)]
    last = faults[-1].first if faults else 0
    begin = max((number for number in read.works if number < last), default=-1)
    block = [fault for fault in faults if fault.first > begin]
    return sorted(block, key=lambda f: (bool(_ASIDE.search(f.head)), f.process.startswith("API"), f.first))


def secondary(read: Evidence) -> Iterator[Fault]:
    """What only shows that something else had ended: better than nothing."""
    yield from (f for f in read.faults if not read.survived(f) and any(not points(r) for r in f.chain))
