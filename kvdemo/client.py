"""One timed, streamed request. The clock is the whole point of this module.

``perf_counter_ns``; the body is serialised before it starts and the connection is open; it stops at the first event
with content (text, reasoning or a tool call), not at the role-only one before it; nothing is ever retried; a stream
without a token is a failure, never a zero.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

FIRST_TOKEN_PATIENCE = 600.0
"""Seconds without any byte before a request counts as stalled."""


@dataclass
class Reply:
    """What came back: times in seconds since the request was sent, and the engine's own words about it."""

    started: float = 0.0
    first_chunk: float | None = None
    ttft: float | None = None
    e2el: float | None = None
    itl: list[float] = field(default_factory=list)
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Client:
    """A connection to one engine, kept open between requests; use it under ``with``."""

    def __init__(self, url: str, key: str = "", patience: float = FIRST_TOKEN_PATIENCE) -> None:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        timeout = httpx.Timeout(patience, connect=10.0)
        # trust_env: a proxy variable of the user's must not stand between us and a server on this machine.
        self.http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def tokenize(self, model: str, prompt: Mapping[str, Any]) -> list[int]:
        """The token ids that the engine makes of these messages (``messages``) or this text (``prompt``).

        Raises httpx.HTTPError if it does not answer.
        """
        answer = self.http.post("/tokenize", json={"model": model, **prompt})
        answer.raise_for_status()
        return [int(token) for token in answer.json()["tokens"]]

    def stream(self, path: str, body: Mapping[str, Any]) -> Reply:
        """Send one request and time its stream. Never raises for what the server does: ``error`` tells it."""
        content = json.dumps(body).encode()
        reply = Reply()
        try:
            # vLLM closes idle connections after seconds: open it again now rather than inside the measurement.
            self.http.get("/v1/models")
            request = self.http.build_request("POST", path, content=content)
            reply.started = time.time()
            began = time.perf_counter_ns()
            response = self.http.send(request, stream=True)
            try:
                self._consume(response, began, reply)
            finally:
                response.close()
        except httpx.TimeoutException:
            reply.error = reply.error or "stalled: nothing came for too long"
        except httpx.HTTPError as error:
            reply.error = reply.error or f"the connection broke: {str(error) or type(error).__name__}"
        return reply

    def _consume(self, response: httpx.Response, began: int, reply: Reply) -> None:
        if response.status_code != httpx.codes.OK:
            reply.error = f"HTTP {response.status_code}: {response.read()[:300].decode(errors='replace')}"
            return
        last: float | None = None
        done = False
        for at, data in _events(response, began):
            if data == "[DONE]":
                done = True
                break
            last = _take(json.loads(data), at, last, reply)
            if reply.error:
                return
        reply.e2el = last
        if not done:
            reply.error = "the stream ended early"
        elif reply.ttft is None:
            reply.error = "the stream held no token"


def _events(response: httpx.Response, began: int) -> Iterator[tuple[float, str]]:
    """(seconds, data) of each server-sent event, stamped when its last byte arrived."""
    pending = b""
    for piece in response.iter_raw():
        at = (time.perf_counter_ns() - began) / 1e9
        *events, pending = (pending + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            data = b"\n".join(line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
            if data:
                yield at, data.decode()


def _take(event: dict[str, Any], at: float, last: float | None, reply: Reply) -> float | None:
    """Add one event to the reply; the time of the latest token."""
    if "error" in event:
        error = event["error"]
        reply.error = f"the engine reports: {error.get('message', error) if isinstance(error, dict) else error}"[:300]
        return last
    reply.usage = event.get("usage") or reply.usage
    reply.metrics = event.get("metrics") or reply.metrics
    for choice in event.get("choices", []):
        if reply.first_chunk is None:
            reply.first_chunk = at
        delta = choice.get("delta") or {}
        text = (
            choice.get("text") or delta.get("content") or delta.get("reasoning") or delta.get("reasoning_content") or ""
        )
        if not (text or delta.get("tool_calls")):
            continue
        reply.text += text
        _tokens(choice.get("logprobs") or {}, reply)
        if last is None:
            reply.ttft = at
        else:
            reply.itl.append(at - last)
        last = at
    return last


def _tokens(logprobs: Mapping[str, Any], reply: Reply) -> None:
    """Token ids and log-probabilities, in the chat form or the completions form."""
    chat = [(entry["token"], entry["logprob"]) for entry in logprobs.get("content") or []]
    plain = zip(logprobs.get("tokens") or [], logprobs.get("token_logprobs") or [], strict=False)
    for token, logprob in (*chat, *plain):
        if token.startswith("token_id:"):
            reply.token_ids.append(int(token.removeprefix("token_id:")))
            reply.logprobs.append(float(logprob))
