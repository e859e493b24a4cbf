"""What the fake engine and the fake cache have in common: an HTTP server process that misbehaves on request.

Both behave like vLLM 0.32 and LMCache 0.5.6 as far as kvdemo looks at them. Variables of their environment
(``engines.NAME.env`` in a profile) change that; ``POST /fake`` with a JSON object of the same variables replaces
the ones of *requests* while the process runs, ``{}`` takes them all back.

Of the process, engine and cache:
    FAKE_DIE=TEXT          write TEXT to the log at start and exit with FAKE_DIE_CODE (default 1)
    FAKE_KILL=1            be killed (SIGKILL) at start
    FAKE_BIND_S=X          take X seconds until the ports answer
    FAKE_START_S=X         take X seconds until healthy; FAKE_NEVER_HEALTHY=1: for ever
    FAKE_CHILD=1           fork a child in the same session that ignores SIGTERM and outlives its parent
    FAKE_IGNORE_SIGTERM=1  go on after SIGTERM
    FAKE_LEAK=NAME         leave a file NAME in /dev/shm, mapped; {pid} in it is the process id
    FAKE_CACHE_PATIENCE_S=X engine: end if its cache server does not answer within X seconds (10)
Of every request, engine:
    FAKE_MODEL_ID=NAME     offer this model instead of --served-model-name
    FAKE_BEARER=WORD        answer 401 below /v1 without this API key
    FAKE_CANNOT_GENERATE=1 answer completions with 500
    FAKE_TOKEN_US=X        prefill time per computed token, in microseconds (default 20); FAKE_DECODE_MS=X per token (1)
    FAKE_WRONG_SOURCES=1   count fewer prompt tokens by source than the prompt has
    FAKE_WARM=1            half of every prompt was cached before
    FAKE_TEXT=TEXT         the text of every token
    FAKE_EOS_AFTER=N       the model ends every answer after N tokens, unless it is told to ignore that
    FAKE_WRONG_REUSE=1     another answer whenever tokens came from the shared cache
    FAKE_NO_STORE=1        never store anything in the cache
    FAKE_NO_METRICS=1      no /metrics
    FAKE_KV_USAGE=X        the share of its KV blocks that is said to be in use (0)
Of *streamed* requests only, so that ``up`` still finds the engine ready:
    FAKE_STATUS=N          answer with this status instead of a stream (503)
    FAKE_DELAY_S=X         wait X seconds before answering
    FAKE_ERROR_EVENT=N     after N tokens send an error event inside the 200 stream, then [DONE]
    FAKE_DIE_AFTER=N       after N tokens die, with FAKE_LAST_WORDS=TEXT in the log and FAKE_DIE_CODE
    FAKE_STALL_AFTER=N     after N tokens go silent, the connection stays open
    FAKE_CUT_AFTER=N       after N tokens close the connection
    FAKE_NO_TOKEN=1        a whole stream without any token
    FAKE_REASONING=N       the first N tokens are reasoning, not content (chat), in the field FAKE_REASONING_FIELD
                           (default "reasoning"; older engines: "reasoning_content")
    FAKE_WHITESPACE=N      the text of the first N tokens is white space
    FAKE_WORDLESS=1        no token has a text, as special tokens have none: only their log-probabilities show them
Of the cache:
    FAKE_STORE_DELAY_S=X   what is stored becomes visible X seconds later
    FAKE_NOT_REGISTERED=1  know no engine, whoever registers
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BORN = time.monotonic()
STARTED = time.time()
FAULTS = {name.removeprefix("FAKE_"): value for name, value in os.environ.items() if name.startswith("FAKE_")}


def fault(name: str) -> str:
    """The value of a variable without its FAKE_; empty if it is not set."""
    return FAULTS.get(name, "")


def number(name: str, default: float) -> float:
    """A variable as a number."""
    return float(FAULTS.get(name, default))


def flags(argv: list[str]) -> dict[str, str]:
    """``--name value`` and ``--name`` of a command line, taken as they come."""
    found: dict[str, str] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name, _, found[name] = word[2:].partition("=")
        elif name:
            found[name] = f"{found[name]} {word}".strip()
    return found


def say(text: str) -> None:
    """A line of the log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Server(ThreadingHTTPServer):
    """A port; ``routes`` maps "METHOD /path" to a function of the handler and the request's JSON."""

    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = True

    def __init__(self, host: str, port: int, routes: Mapping[str, Callable[[Handler, Any], None]]) -> None:
        self.routes = routes
        super().__init__((host, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no news."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        """Answer by route."""
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "{}") if length else {}
        if self.path == "/fake":
            FAULTS.clear()
            FAULTS.update({name.removeprefix("FAKE_"): str(value) for name, value in body.items()})
            self.reply({})
            return
        key = fault("BEARER")
        if key and self.path.startswith("/v1/") and self.headers.get("Authorization") != f"Bearer {key}":
            self.reply({"error": "Unauthorized"}, 401)
            return
        route = self.server.routes.get(f"{self.command} {self.path.partition('?')[0]}")
        if route is None:
            self.fail(404, "Not Found")
        else:
            route(self, body)

    do_POST = do_GET

    def reply(self, document: Any, status: int = 200) -> None:
        """Answer with JSON, or with text as it is."""
        data = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        kind = "text/plain" if isinstance(document, str) else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status: int, message: str) -> None:
        """Answer with an error as vLLM words it."""
        self.reply({"error": {"message": message, "type": "Error", "param": None, "code": status}}, status)

    def start_stream(self) -> None:
        """Begin an answer in server-sent events."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, document: Any) -> None:
        """One server-sent event."""
        data = f"data: {document if isinstance(document, str) else json.dumps(document)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def end_stream(self) -> None:
        """The end of a chunked answer."""
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ARG002 (the name is the base class's)
        """As uvicorn does."""
        say(f'INFO:     {self.client_address[0]} - "{self.requestline}" {args[1] if len(args) > 1 else ""}')


def healthy() -> bool:
    """Whether the start is over."""
    return not fault("NEVER_HEALTHY") and time.monotonic() - BORN >= number("START_S", 0)


def begin() -> None:
    """The faults of a process before it listens."""
    if fault("CHILD") and not os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    if fault("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(number("BIND_S", 0))
    if fault("DIE"):
        say(fault("DIE"))
        sys.exit(int(number("DIE_CODE", 1)))


def segment(name: str) -> Path:
    """A page of shared memory, mapped for as long as the process lives."""
    path = Path("/dev/shm") / name.replace("{pid}", str(os.getpid()))
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("r+b") as file:
        _held.append(mmap.mmap(file.fileno(), 0))
    return path


_held: list[mmap.mmap] = []


def serve(servers: list[Server], leave: Callable[[], None] = lambda: None) -> None:
    """Answer until SIGTERM; ``leave`` is called before the end."""
    if fault("LEAK"):
        segment(fault("LEAK"))

    def stop(*_: object) -> None:
        say("INFO:     Shutting down")
        if not fault("IGNORE_SIGTERM"):
            leave()
            os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 3600}, daemon=True).start()
    while not healthy():
        time.sleep(0.02)
    say(f"INFO:     Started server process [{os.getpid()}]\nINFO:     Application startup complete.")
    while True:
        signal.pause()
