"""One timed, streamed request. The clock is the whole point of this module.

``perf_counter_ns``; the body is serialised before it starts and the connection is open and warm; it stops at the first
event that holds a token: text (whitespace too), reasoning, a tool call, or the token's own name beside an empty text
(half of a multi-byte character has none yet). The role-only event before it is not one. Nothing is ever retried, and
whatever a server does ends as ``Reply.error``: a stream without a token is a failure, never a zero.

The measured request goes through ``http.client`` (see ``wire``): httpx took nearly twice as long for itself over the
same connection, httpcore below it half as much again (``kvdemo.bench.calibrate`` measures what is left of it).

Limit: an event is stamped when its last byte was read, so tokens that share an event count as one.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from kvdemo.bench.wire import BUFFER, CONNECT_PATIENCE, Event, Line, events, without_gc
from kvdemo.errors import UsageError
from kvdemo.host import health

FIRST_TOKEN_PATIENCE = 600.0
"""Seconds from the request to its first token before it counts as stalled."""

NEXT_TOKEN_PATIENCE = 60.0
"""Seconds from one token to the next, or to the end of the stream."""

WARM_UP_PATIENCE = 60.0
LAST_BYTES_PATIENCE = 1.0
ERROR = "error"
LONGEST_MESSAGE = 300
"""Characters of a server's own words that an error quotes."""


Unreachable = httpx.HTTPError
"""What ``Client.tokenize`` raises when the engine does not answer."""


@dataclass
class Reply:
    """What came back: times in seconds since the request was sent, and the engine's own words about it.

    With an ``error`` the rest is what had come until then; ``e2el``, up to the last token, is of whole answers only.
    ``together`` is the number of token events that one read of the socket brought at most, the first token among them:
    what comes in one read had been waiting for it. ``finish_reason`` is empty if the engine gave none.
    ``on_token`` is called with what there is: just before the clock starts, and after the stamp of each token.
    """

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
    together: int = 0
    finish_reason: str = ""
    error: str = ""
    on_token: Callable[[Reply], object] = field(default=lambda _: None, repr=False)

    @property
    def tokens(self) -> int:
        """Token events that have come."""
        return 0 if self.ttft is None else 1 + len(self.itl)

    @property
    def progress(self) -> str:
        """How far the stream came, for an error: "before the first token", "after token 3"."""
        return f"after token {self.tokens}" if self.tokens else "before the first token"


class Client:
    """A connection to one engine, kept open between requests; use it under ``with``, one request at a time.

    ``patience`` and ``pause`` are the seconds to wait for the first token and for each later one. Raises UsageError
    for a key that no HTTP header can carry.
    """

    def __init__(
        self, url: str, key: str = "", patience: float = FIRST_TOKEN_PATIENCE, pause: float = NEXT_TOKEN_PATIENCE
    ) -> None:
        if why := health.unusable(key):
            raise UsageError(f"the API key {why}", "check where it was set")
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.patience, self.pause = patience, pause
        self.prefix = urlsplit(url).path.rstrip("/")
        self.line = Line(url)
        self.url = url

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()

    def tokenize(self, model: str, prompt: Mapping[str, Any]) -> list[int]:
        """The token ids that the engine makes of these messages (``messages``) or this text (``prompt``).

        Raises httpx.HTTPError if it does not answer.
        """
        # trust_env: a proxy variable of the user's must not stand between us and a server on this machine.
        answer = httpx.post(
            f"{self.url.rstrip('/')}/tokenize",
            json={"model": model, **prompt},
            headers=self.headers,
            timeout=httpx.Timeout(self.patience, connect=CONNECT_PATIENCE),
            trust_env=False,
            verify=self.line.tls or True,
        )
        answer.raise_for_status()
        return [int(token) for token in answer.json()["tokens"]]

    def stream(self, path: str, body: Mapping[str, Any], reply: Reply | None = None) -> Reply:
        """Send one request and time its stream. Never raises for what the server does: ``error`` tells it."""
        content, reply = json.dumps(body).encode(), reply or Reply()
        try:
            self._warm_up()
        except (OSError, http.client.HTTPException) as error:
            self.line.close()
            reply.error = f"no connection: {_words(error)}"
            return reply
        with without_gc():
            self._measure(path, content, reply)
        return reply

    def send(self, path: str, content: bytes, reply: Reply) -> None:
        """As ``stream``, for a body that is serialised already, and at once: no small question comes before it.

        The clock starts with the connection open, if it still is; else the server's next word is an error.
        """
        try:
            if self.line.sock is None:
                self.line.connect()
        except OSError as error:
            self.line.close()
            reply.error = f"no connection: {_words(error)}"
            return
        self._measure(path, content, reply)

    def _warm_up(self) -> None:
        """A small question first: vLLM closes connections that idle for seconds; it is opened again now, unmeasured."""
        was_open = self.line.sock is not None
        try:
            self._ask_models()
        except (OSError, http.client.HTTPException):
            self.line.close()
            if not was_open:
                raise
            self._ask_models()
        if self.line.sock is None:
            self.line.connect()

    def _ask_models(self) -> None:
        self.line.allow(WARM_UP_PATIENCE)
        self.line.request("GET", f"{self.prefix}/v1/models", headers=self.headers)
        self.line.getresponse().read()

    def _measure(self, path: str, content: bytes, reply: Reply) -> None:
        sending, whole = True, False
        try:
            self.line.allow(self.patience)
            reply.started = time.time()
            reply.on_token(reply)
            began = time.perf_counter_ns()
            # A server may refuse before it has read everything: its answer says why, the broken pipe does not.
            with suppress(BrokenPipeError):
                self.line.request("POST", self.prefix + path, content, self.headers)
            sending = False
            response = self.line.getresponse()
            self._consume(response, began, reply)
            whole = not reply.error and self._ends(response)
        except TimeoutError:
            waited = self.patience if reply.ttft is None else self.pause
            where = "while sending the request" if sending else reply.progress
            reply.error = f"stalled {where}: waited {waited:g} s for the next"
        except http.client.IncompleteRead:
            reply.error = f"the stream ended early, {reply.progress}"
        except (OSError, http.client.HTTPException) as error:
            reply.error = f"the connection broke {reply.progress}: {_words(error)}"
        finally:
            if not whole:
                self.line.close()

    def _ends(self, response: http.client.HTTPResponse) -> bool:
        """Whether the answer ends after its last event, so that the connection can be used again."""
        self.line.allow(LAST_BYTES_PATIENCE)
        with suppress(OSError, http.client.HTTPException):
            return not response.read(BUFFER)
        return False

    def _consume(self, response: http.client.HTTPResponse, began: int, reply: Reply) -> None:
        """Read events until the end of the answer or the first error."""
        kind = response.headers.get_content_type()
        if response.status != http.HTTPStatus.OK or kind != "text/event-stream":
            what = f"HTTP {response.status}" if response.status != http.HTTPStatus.OK else f"no stream but {kind}"
            reply.error = f"{what}: {_message(response.read(BUFFER))}"
            return
        last: float | None = None
        first_read = 0
        for event in events(response, began):
            if event.data == b"[DONE]" and event.name != ERROR:
                reply.e2el = last
                if last is None:
                    reply.error = "the stream held no token"
                return
            before, last = reply.tokens, _take(event, last, reply)
            if reply.error:
                return
            if reply.tokens > before:
                first_read = first_read or self.line.reads
                reply.together += self.line.reads == first_read
                self.line.allow(self.pause)
                reply.on_token(reply)
        reply.error = f"the stream ended early, {reply.progress}"


def _take(event: Event, last: float | None, reply: Reply) -> float | None:
    """Add one event to the reply; the time of the latest token."""
    try:
        document = json.loads(event.data.decode())
    except (ValueError, RecursionError) as error:
        document = _unreadable(event, error, reply)
    if not reply.error and (complaint := _complaint(document, event.name)):
        reply.error = f"the engine reports {reply.progress}: {complaint}"
    if reply.error:
        return last
    try:
        return _add(document, event.at, last, reply)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        _unreadable(event, error, reply)
    return last


def _unreadable(event: Event, error: Exception, reply: Reply) -> Any:
    """What an event holds that is no JSON: the words of an error, or an error itself."""
    words = event.data[:LONGEST_MESSAGE].decode(errors="replace")
    if event.name != ERROR:
        reply.error = f"an event {reply.progress} is not what an OpenAI server sends ({error}): {words}"
    return words


def _add(event: dict[str, Any], at: float, last: float | None, reply: Reply) -> float | None:
    """Add the tokens of one event to the reply; the time of the latest token."""
    reply.usage = event.get("usage") or reply.usage
    reply.metrics = event.get("metrics") or reply.metrics
    for choice in event.get("choices") or []:
        if reply.first_chunk is None:
            reply.first_chunk = at
        reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
        text = (choice.get("text") or "") + reasoning + (delta.get("content") or "")
        tokens = _tokens(choice.get("logprobs") or {}, reply)
        if not (text or tokens or delta.get("tool_calls")):
            continue
        reply.text += text
        if last is None:
            reply.ttft = at
        else:
            reply.itl.append(at - last)
        last = at
    return last


def _tokens(logprobs: Mapping[str, Any], reply: Reply) -> bool:
    """Token ids and log-probabilities, in the chat form or the completions form. Was any token named?"""
    chat = [(entry["token"], entry["logprob"]) for entry in logprobs.get("content") or []]
    plain = zip(logprobs.get("tokens") or [], logprobs.get("token_logprobs") or [], strict=False)
    tokens = [*chat, *plain]
    for token, logprob in tokens:
        if token.startswith("token_id:"):
            reply.token_ids.append(int(token.removeprefix("token_id:")))
            reply.logprobs.append(float(logprob))
    return bool(tokens)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _complaint(document: Any, name: str = "") -> str:
    """The words of an error that an event holds; empty if it holds none.

    Gateways have their own forms of it: an event that is called error, or one without choices and usage that has a
    ``detail`` or a ``message`` (FastAPI, Envoy, Kong), or ``errors``.
    """
    if not isinstance(document, dict):
        return str(document)[:LONGEST_MESSAGE] if name == ERROR else ""
    kinds = {name, document.get("object"), document.get("type")}
    parts = [document[key] for key in ("error", "errors", "detail", "message") if document.get(key)]
    plain = not ("choices" in document or document.get("usage"))
    if not (ERROR in kinds or document.get("error") or (plain and (parts or "error" in document))):
        return ""
    return _words_in(parts[0] if parts else document)[:LONGEST_MESSAGE]


def _words_in(error: Any) -> str:
    """The sentence in an error object, whatever its form."""
    while isinstance(error, list | dict) and error:
        if isinstance(error, list):
            error = error[0]
        elif not (inner := error.get("message") or error.get("detail") or error.get("msg")):
            return json.dumps(error, ensure_ascii=False)
        else:
            error = inner
    return str(error)


def _message(answer: bytes) -> str:
    """The same of an answer that may be anything."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        document = None
    return (
        _complaint(document, ERROR) if isinstance(document, dict) else answer[:LONGEST_MESSAGE].decode(errors="replace")
    )
