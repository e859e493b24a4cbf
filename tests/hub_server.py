"""A Hugging Face hub of one model on a local port, for huggingface_hub itself: it serves, refuses, and keeps a log."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" * 6 + "cafe"


class Hub(ThreadingHTTPServer):
    """``files`` of the model ``name``; ``refusal`` (status, headers) is the answer where it is set.

    ``gated``: everybody sees the model's card, the files only who has the token ``secret``.
    """

    daemon_threads = True

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.files = name, files
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.gated = False
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must say."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        """Answer as the hub does."""
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        if hub.refusal:
            self._send(hub.refusal[0], b"{}", hub.refusal[1])
        elif path.startswith(f"/api/models/{hub.name}"):
            self._send(200, json.dumps(self._card(path)).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/{hub.name}/resolve/"):
            self._file(path.split("/resolve/")[1].partition("/")[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    do_HEAD = do_GET

    def _card(self, path: str) -> Any:
        if "/tree/" in path:
            return [{"type": "file", "path": n, "size": len(b), "oid": _etag(b)} for n, b in self.server.files.items()]
        siblings = [{"rfilename": name, "size": len(body)} for name, body in self.server.files.items()]
        return {"id": self.server.name, "modelId": self.server.name, "sha": COMMIT, "siblings": siblings}

    def _file(self, name: str) -> None:
        if self.server.gated and self.headers.get("Authorization") != "Bearer secret":
            self._send(403 if self.headers.get("Authorization") else 401, b"", {"X-Error-Code": "GatedRepo"})
        elif name not in self.server.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            body = self.server.files[name]
            self._send(200, body, {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _etag(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


@contextmanager
def serve(name: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that runs."""
    with Hub(name, files) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
