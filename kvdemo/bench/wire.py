"""The bytes of a timed stream: a connection whose reads all end at one deadline, and the events in what it reads.

``http.client`` because it adds least to what is measured, and because it shows every read: a deadline checked there is
exact for one poll, while a liveness thread would compete with the measured one, and a timeout per read never ends for
a server that sends a comment line now and then. HTTP/1.1.
"""

from __future__ import annotations

import gc
import http.client
import io
import math
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

CONNECT_PATIENCE = 10.0
BUFFER = 1 << 16


class Line(http.client.HTTPConnection):
    """A connection to a server (http or https) with a deadline instead of a timeout: set it with ``allow``."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (http.client.HTTPS_PORT if self.tls else http.client.HTTP_PORT)
        super().__init__(parts.hostname or "", port, timeout=CONNECT_PATIENCE)
        self.deadline = math.inf
        self.reads = 0
        """How often something was read from the socket: what one read brings had been waiting together."""
        self.response_class = cast("type[http.client.HTTPResponse]", partial(_Response, self))

    def connect(self) -> None:
        """Open it, and agree on the encryption."""
        super().connect()
        if self.tls:
            self.sock = self.tls.wrap_socket(self.sock, server_hostname=self.host)

    def allow(self, seconds: float) -> None:
        """From now on, everything together may take this long; then TimeoutError."""
        self.deadline = time.monotonic() + seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)


class _Response(http.client.HTTPResponse):
    def __init__(self, line: Line, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Reader(line, sock, self.fp.detach()), BUFFER)


class _Reader(io.RawIOBase):
    def __init__(self, line: Line, sock: socket.socket, raw: Any) -> None:
        self.line, self.sock, self.raw = line, sock, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self.line.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self.sock.settimeout(remaining)
        self.line.reads += 1
        return cast("int | None", self.raw.readinto(buffer))

    def close(self) -> None:
        self.raw.close()
        super().close()


class Event(NamedTuple):
    """A server-sent event; ``at`` is in seconds since the request was sent, ``name`` is empty if it has none."""

    at: float
    name: str
    data: bytes


def events(response: http.client.HTTPResponse, began: int) -> Iterator[Event]:
    """Yield each server-sent event, stamped when its last byte had been read.

    ``began`` is of ``perf_counter_ns``. Raises what reading raises: OSError, http.client.HTTPException.
    """
    pending, name, data = b"", "", list[bytes]()
    while piece := response.read1(BUFFER):
        at = (time.perf_counter_ns() - began) / 1e9
        *lines, pending = (pending + piece).split(b"\n")
        for complete_line in lines:
            line = complete_line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"event:"):
                name = line[6:].strip().decode(errors="replace")
            elif not line:
                if data:
                    yield Event(at, name, b"\n".join(data))
                name, data = "", []


@contextmanager
def without_gc() -> Iterator[None]:
    """Without the garbage collector: one full collection takes longer than all else that the client does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
