"""How much the client itself adds to a time to first token, on this machine, now.

A null server in a process of its own answers as vLLM does: headers and a role-only chunk at once, one token after a
short delay that it measures itself, then usage, metrics and [DONE]. What the client measured minus that delay is the
client's (with the kernel's, and with reading the request on the server's side). Run as a script, this file is that
server; it needs the standard library only.
"""

from __future__ import annotations

import http.server
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

DELAY = 0.01
"""Seconds of the server's pause before its token."""

PATIENCE = 10.0
"""Seconds for an answer that takes some milliseconds."""

ENDPOINT = "/v1/chat/completions"


@dataclass(frozen=True)
class Calibration:
    """What the client added over ``n`` requests of ``prompt_bytes`` each: seconds."""

    n: int
    p50: float
    p90: float
    max: float
    prompt_bytes: int

    def __str__(self) -> str:
        size = f"{self.prompt_bytes / 1024:.0f} KiB prompts"
        return f"client overhead p50 {self.p50 * 1e3:.1f} ms, p90 {self.p90 * 1e3:.1f} ms (n = {self.n}, {size})"


def calibrate(prompt_bytes: int, n: int = 50) -> Calibration:
    """Measure this machine's client overhead with ``n`` requests whose document has so many bytes.

    Takes about 15 ms per request. Raises ServiceError if the null server does not start or answer.
    """
    # The server runs this file without kvdemo and its libraries.
    from kvdemo.bench.client import Client  # noqa: PLC0415
    from kvdemo.errors import ServiceError  # noqa: PLC0415

    body = {"messages": [{"role": "user", "content": "x" * prompt_bytes}], "stream": True}
    overheads = []
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None  # noqa: S101 (a pipe was asked for)
        port = server.stdout.readline().strip()
        if not port:
            raise ServiceError("the null server that measures the client did not start")
        with Client(f"http://127.0.0.1:{port}", patience=PATIENCE, pause=PATIENCE) as client:
            for _ in range(n + 1):
                reply = client.stream(ENDPOINT, body)
                if reply.error or reply.ttft is None:
                    raise ServiceError(f"the null server that measures the client failed: {reply.error}")
                overheads.append(reply.ttft - reply.metrics["time_to_first_token_ms"] / 1e3)
    finally:
        server.kill()
        server.communicate()
    return _summary(overheads[1:], prompt_bytes)


def _summary(overheads: list[float], prompt_bytes: int) -> Calibration:
    """The first request, which pays for the code paths, has been left out."""
    tenths = statistics.quantiles(overheads, n=10, method="inclusive") if len(overheads) > 1 else overheads * 9
    return Calibration(len(overheads), statistics.median(overheads), tenths[8], max(overheads), prompt_bytes)


class _Null(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 1 << 16

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        received = time.perf_counter_ns()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._send(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        time.sleep(DELAY)
        own = (time.perf_counter_ns() - received) / 1e6
        self._send(choices=[{"index": 0, "delta": {"content": "x"}}])
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._send(choices=[], usage=usage, metrics={"time_to_first_token_ms": own})
        self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def _send(self, **event: Any) -> None:
        data = f"data: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_: object) -> None:
        pass


def _serve() -> None:
    """Answer until killed, or until whoever started this is gone: then standard input ends."""
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    server = http.server.HTTPServer(("127.0.0.1", 0), _Null)
    print(server.server_port, flush=True)
    server.serve_forever()


def _leave_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve()
