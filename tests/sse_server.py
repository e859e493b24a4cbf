"""A null server of OpenAI streams that follows scripts. Run as a script it prints its port (standard library only).

A request carries its script in its body (``"script": [step, ...]``), or names one of SCENARIOS anywhere in its prompt
(``scenario:stall``); without either it gets ``plain``. Steps:

    ["status", 503, "text"]       a whole answer that is no stream
    ["delta", {"content": "a"}]   one chat event; the first with content is the token whose delay goes into the log
    ["event", {...} or "text"]    one event of any data
    ["text", "data: ..."]         this text as one HTTP chunk
    ["bytewise", "data: ..."]     this text, each byte an HTTP chunk of its own
    ["raw", "HTTP/1.1 ..."]       this text to the socket as it is
    ["wait", 0.1]                 seconds
    ["hang"]                      send nothing until the client goes away
    ["pings", 0.02]               comment lines at this interval until the client goes away
    ["reset"], ["close"]          end the connection, with TCP's RST or in peace

GET /log tells every POST so far: its scenario, its key, the client's port, and ``own``: the seconds from its last byte
to the first token, by the server's clock. Standard input is the leash: the server leaves when it ends.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import select
import socket
import struct
import sys
import threading
import time
from typing import Any

Step = list[Any]

ROLE: Step = ["delta", {"role": "assistant", "content": ""}]
LAST: list[Step] = [
    ["event", {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}],
    ["event", {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}],
    ["event", "[DONE]"],
]
NOTHING: list[Step] = [
    ["event", {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}],
    ["event", {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}}],
    ["event", "[DONE]"],
]
HELLO: Step = ["delta", {"content": "Hello"}]
FAILURE: Step = ["event", {"error": {"message": "the engine died", "type": "InternalServerError", "code": 500}}]
PAUSE: Step = ["wait", 0.1]

SCENARIOS: dict[str, list[Step]] = {
    "plain": [ROLE, PAUSE, HELLO, *LAST],
    "quick": [["wait", 0.01], HELLO, *LAST],
    "empty-first": [["delta", {"content": ""}], PAUSE, HELLO, *LAST],
    "role-only": [["delta", {"role": "assistant"}], PAUSE, HELLO, *LAST],
    "reasoning-first": [ROLE, PAUSE, ["delta", {"reasoning": "Hm"}], PAUSE, HELLO, *LAST],
    "whitespace-first": [ROLE, PAUSE, ["delta", {"content": "\n\n"}], PAUSE, HELLO, *LAST],
    "stall": [ROLE, PAUSE, HELLO, ["hang"]],
    "reset": [ROLE, PAUSE, HELLO, ["wait", 0.05], ["reset"]],
    "early-end": [ROLE, PAUSE, HELLO],
    "unavailable-once": [["status", 503, '{"error": {"message": "overloaded", "code": 503}}']],
    "error-event": [ROLE, PAUSE, HELLO, FAILURE, ["event", "[DONE]"]],
    "no-token": [ROLE, PAUSE, *NOTHING],
}


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 1 << 16
    log: list[dict[str, Any]] = []  # noqa: RUF012 (the whole server's)
    received = 0
    streaming = False

    def do_GET(self) -> None:
        """The log, or what any server of models answers."""
        models = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "nobody"}]}
        self._answer(200, json.dumps(self.log if self.path.endswith("/log") else models))

    def do_POST(self) -> None:
        """Follow the request's script."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received = time.perf_counter_ns()
        named = re.search(rb"scenario:([a-z-]+)", body)
        name = named[1].decode() if named else "plain"
        script = json.loads(body)["script"] if b'"script":' in body else SCENARIOS[name]
        if name == "unavailable-once" and any(entry["scenario"] == name for entry in self.log):
            script = SCENARIOS["plain"]
        self.entry: dict[str, Any] = {"scenario": name, "client": self.client_address[1], "own": None}
        self.entry["key"] = self.headers.get("Authorization", "")
        self.log.append(self.entry)
        self.streaming = False
        try:
            for step, *arguments in script:
                getattr(self, f"step_{step}")(*arguments)
            if self.streaming:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def step_status(self, code: int, text: str) -> None:
        """A whole answer."""
        self._answer(code, text)

    def step_delta(self, delta: dict[str, Any]) -> None:
        """One chat event."""
        if any(value for key, value in delta.items() if key != "role") and self.entry["own"] is None:
            self.entry["own"] = (time.perf_counter_ns() - self.received) / 1e9
        self.step_event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def step_event(self, event: dict[str, Any] | str) -> None:
        """One event, with the fields around it that vLLM sends."""
        if isinstance(event, dict) and "choices" in event:
            event = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", **event}
        self.step_text(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n")

    def step_text(self, text: str) -> None:
        """One HTTP chunk."""
        self._chunk(text.encode())

    def step_bytewise(self, text: str) -> None:
        """One HTTP chunk per byte."""
        for byte in text.encode():
            self._chunk(bytes([byte]))

    def step_raw(self, text: str) -> None:
        """No HTTP at all, or some of the script's own."""
        self.wfile.write(text.encode())

    def step_wait(self, seconds: float) -> None:
        """Send the headers, then nothing for a while."""
        self._begin()
        time.sleep(seconds)

    def step_hang(self) -> None:
        """Until the client goes away."""
        self._begin()
        select.select([self.connection], [], [])
        self.close_connection = True
        raise ConnectionError

    def step_pings(self, interval: float) -> None:
        """Comments, which are no tokens."""
        while not select.select([self.connection], [], [], interval)[0]:
            self.step_text(": ping\n\n")
        raise ConnectionError

    def step_reset(self) -> None:
        """TCP's RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # At once, before anybody says farewell with a FIN.
        os.close(self.connection.detach())
        raise ConnectionError

    def step_close(self) -> None:
        """Just go."""
        raise ConnectionError

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, code: int, text: str) -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _begin(self) -> None:
        if self.streaming:
            return
        self.streaming = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self._begin()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


class Server(http.server.ThreadingHTTPServer):
    """Quiet about clients that go away."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that went away is none."""


def leave_with_the_parent() -> None:
    """End with standard input."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=leave_with_the_parent, daemon=True).start()
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
