from __future__ import annotations

import gc
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guarding import until
from kvdemo.bench.client import Client, Reply
from kvdemo.errors import UsageError
from sse_server import HELLO, LAST, ROLE, Step

ROOT = Path(__file__).parents[1]
PATH = "/v1/chat/completions"
PAUSE: Step = ["wait", 0.02]


def named_event(name: str, data: str) -> Step:
    """An event with a name of its own."""
    return ["text", f"event: {name}\ndata: {data}\n\n"]


class Null:
    """The scripted server, running."""

    def __init__(self, url: str) -> None:
        self.url = url

    def log(self) -> list[dict[str, Any]]:
        """Every POST so far."""
        return list(httpx.get(f"{self.url}/log", trust_env=False).json())

    def ask(self, *script: Step, **options: Any) -> Reply:
        """One request of a new client that the server answers by this script."""
        with Client(self.url, **options) as client:
            return client.stream(PATH, {"script": script})


@pytest.fixture(scope="module")
def null() -> Iterator[Null]:
    """The scripted server in a process of its own."""
    argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("sse_server.py"))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Null(f"http://127.0.0.1:{int(process.stdout.readline())}")
        process.kill()


def event(document: Any) -> str:
    """A server-sent event as text."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def content(text: str) -> dict[str, Any]:
    """A chat chunk."""
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "Hello"},
        {"content": "\n"},
        {"content": " "},
        {"reasoning": "Hm"},
        {"reasoning_content": "Hm"},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
    ],
    ids=str,
)
def test_the_clock_stops_at_the_first_content(null: Null, delta: dict[str, Any]) -> None:
    """Text, whitespace, reasoning and a tool call are tokens; the empty and the role-only events before are not."""
    empty: Step = ["delta", {"content": ""}]
    reply = null.ask(["delta", {"role": "assistant"}], ROLE, empty, PAUSE, ["delta", delta], PAUSE, HELLO, *LAST)
    assert not reply.error
    assert reply.ttft is not None
    assert reply.first_chunk is not None
    assert reply.e2el is not None
    assert reply.ttft - reply.first_chunk > 0.01
    # The client's clock runs before and after the server's.
    assert reply.ttft > null.log()[-1]["own"]
    assert len(reply.itl) == 1
    assert reply.e2el == pytest.approx(reply.ttft + reply.itl[0])
    assert reply.usage["completion_tokens"] == 2
    assert reply.started > 0


def test_completions_stop_the_clock_too(null: Null) -> None:
    """The completions endpoint's ``text`` counts like the chat's content; its empty first text does not."""
    texts = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in ("", "Hel", "lo")]
    reply = null.ask(["event", texts[0]], PAUSE, ["event", texts[1]], ["event", texts[2]], *LAST)
    assert (reply.error, reply.text, len(reply.itl)) == ("", "Hello", 1)
    assert reply.ttft is not None
    assert reply.first_chunk is not None
    assert reply.ttft > reply.first_chunk


def test_a_named_token_without_text_is_a_token(null: Null) -> None:
    """A token that is half a character has no text yet; the log-probabilities beside it prove it, and none is lost."""
    named = [
        {"delta": {"content": text}, "logprobs": {"content": [{"token": f"token_id:{n}", "logprob": -n}]}}
        for n, text in ((5, ""), (7, "é"))
    ]
    reply = null.ask(ROLE, *(["event", {"choices": [choice]}] for choice in named), *LAST)
    assert (reply.error, reply.text, len(reply.itl)) == ("", "é", 1)
    assert (reply.token_ids, reply.logprobs) == ([5, 7], [-5.0, -7.0])
    plain = {"text": "", "logprobs": {"tokens": ["token_id:3"], "token_logprobs": [-0.5]}}
    reply = null.ask(["event", {"choices": [plain]}], *LAST)
    assert (reply.error, reply.token_ids, reply.logprobs) == ("", [3], [-0.5])


NO_STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
FAILURES: list[tuple[list[Step], str, bool]] = [
    ([ROLE, *LAST], "the stream held no token", False),
    ([["event", "[DONE]"]], "the stream held no token", False),
    ([ROLE, HELLO], "the stream ended early, after token 1", True),
    ([["wait", 0]], "the stream ended early, before the first token", False),
    ([["text", ""]], "the stream ended early, before the first token", False),
    ([ROLE, HELLO, ["text", "data: [DO"]], "the stream ended early, after token 1", True),
    ([ROLE, HELLO, HELLO, ["close"]], "the stream ended early, after token 2", True),
    ([["raw", f"{NO_STREAM}\r\ndata: "], ["close"]], "the stream ended early, before the first token", False),
    ([["raw", f"{NO_STREAM}Content-Length: 9\r\n\r\n: p"], ["close"]], "ended early, before the first", False),
    ([ROLE, ["reset"]], "the connection broke before the first token", False),
    ([ROLE, HELLO, ["wait", 0.05], ["reset"]], "the connection broke after token 1", True),
    ([["close"]], "the connection broke before the first token", False),
    ([["raw", "220 smtp\r\n"], ["close"]], "the connection broke before the first token: 220 smtp", False),
    ([["raw", "HTTP/1.1 200 OK\r\nX: " + "x" * 99999], ["close"]], "the connection broke before", False),
    ([["status", 503, '{"error": {"message": "overloaded"}}']], "HTTP 503: overloaded", False),
    ([["status", 500, "<html>no"]], "HTTP 500: <html>no", False),
    ([["status", 404, '["no"]']], 'HTTP 404: ["no"]', False),
    ([["status", 307, ""]], "HTTP 307", False),
    ([["status", 200, '{"choices": []}']], "no stream but application/json", False),
    ([ROLE, ["event", {"error": {"message": "it died"}}]], "reports before the first token: it died", False),
    ([HELLO, ["event", {"error": "it died"}], ["event", "[DONE]"]], "reports after token 1: it died", True),
    ([["event", {"object": "error", "message": "it died"}], HELLO, *LAST], "reports before the first", False),
    ([HELLO, ["event", '{"choices": ['], *LAST], "after token 1 is not what an OpenAI server sends", True),
    (
        [HELLO, named_event("error", '{"detail": "upstream timed out"}'), *LAST],
        "after token 1: upstream timed out",
        True,
    ),
    ([HELLO, named_event("error", "upstream timed out"), *LAST], "after token 1: upstream timed out", True),
    ([HELLO, named_event("error", '"upstream timed out"'), *LAST], "after token 1: upstream timed out", True),
    ([HELLO, named_event("error", "[DONE]")], "after token 1: [DONE]", True),
    ([HELLO, named_event("error", "{}"), *LAST], "reports after token 1: {}", True),
    ([HELLO, ["event", {"detail": [{"msg": "field required"}]}], *LAST], "after token 1: field required", True),
    ([HELLO, ["event", {"errors": [{"message": "no upstream"}]}], *LAST], "after token 1: no upstream", True),
    ([HELLO, ["event", {"type": "error", "error": {"message": "overloaded"}}], *LAST], "token 1: overloaded", True),
    ([HELLO, ["event", {"code": 504, "message": "no upstream"}], *LAST], "after token 1: no upstream", True),
    ([["event", "null"]], "is not what an OpenAI server sends", False),
    ([["event", "[1]"]], "is not what an OpenAI server sends", False),
    ([["event", '{"choices": 1}']], "is not what an OpenAI server sends", False),
    ([["event", '{"choices": [{"delta": {"content": 1}}]}']], "is not what an OpenAI server sends", False),
    ([["event", "[" * 99999]], "is not what an OpenAI server sends", False),
]


@pytest.mark.parametrize(("script", "words", "token"), FAILURES, ids=[words for _, words, _ in FAILURES])
def test_whatever_goes_wrong_is_an_error_in_words(null: Null, script: list[Step], words: str, token: bool) -> None:
    """A broken answer is no exception and no zero: the error says what happened and how far the stream had come."""
    before = len(null.log())
    reply = null.ask(*script)
    assert words in reply.error
    assert (reply.ttft is not None) is token
    assert reply.ttft != 0
    # Never retried.
    assert len(null.log()) == before + 1


@pytest.mark.parametrize(
    "harmless",
    [
        named_event("ping", "{}"),
        named_event("completion", json.dumps(content("!"))),
        ["event", {"error": None, **content("!")}],
        ["event", {"choices": [], "message": "usage follows"}],
    ],
    ids=str,
)
def test_only_errors_are_errors(null: Null, harmless: Step) -> None:
    """An event of another name, an empty ``error`` beside the choices, or words beside usage are no failure."""
    assert null.ask(HELLO, harmless, *LAST).error == ""


def test_what_arrives_together_is_counted(null: Null) -> None:
    """Tokens that one read of the socket brought had been waiting for it; tokens that come one by one had not."""
    piece = "".join(event(content(text)) for text in "abcd")
    assert null.ask(["text", piece], *LAST).together == 4
    apart = null.ask(HELLO, PAUSE, HELLO, PAUSE, HELLO, *LAST)
    assert (apart.together, apart.finish_reason) == (1, "stop")


def test_a_broken_event_of_bad_bytes_is_an_error_in_words() -> None:
    """Bytes that are not UTF-8 are no event, and no exception either."""
    head = f"{NO_STREAM}Content-Length: 12\r\n\r\n"
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=_answer_twice, args=(listener, head.encode() + b"data: \xff\xfe\n\n\n\n")).start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", patience=5) as client:
            reply = client.stream(PATH, {})
    assert "is not what an OpenAI server sends" in reply.error


def _answer_twice(listener: socket.socket, answer: bytes) -> None:
    """The first request of one connection gets an empty answer, the second this one."""
    line, _ = listener.accept()
    with line:
        line.recv(1 << 16)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        line.recv(1 << 16)
        line.sendall(answer)
        line.recv(1)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ([["hang"]], "stalled before the first token: waited 0.4 s"),
        ([ROLE, ["hang"]], "stalled before the first token: waited 0.4 s"),
        ([ROLE, ["pings", 0.02]], "stalled before the first token: waited 0.4 s"),
        ([ROLE, HELLO, HELLO, ["hang"]], "stalled after token 2: waited 0.2 s"),
        ([ROLE, HELLO, ["pings", 0.02]], "stalled after token 1: waited 0.2 s"),
        ([ROLE, HELLO, *LAST[:2], ["hang"]], "stalled after token 1: waited 0.2 s"),
    ],
)
def test_a_stall_ends_and_says_where(null: Null, script: list[Step], words: str) -> None:
    """The first token and each later one have a patience of their own; comments are no tokens and win no time."""
    assert words in null.ask(*script, patience=0.4, pause=0.2).error


def test_a_pause_within_the_first_patience_is_none(null: Null) -> None:
    """The short patience holds between tokens only: a first token may take longer."""
    assert null.ask(ROLE, ["wait", 0.4], HELLO, *LAST, pause=0.2).error == ""


def test_a_server_that_reads_nothing_is_a_stall() -> None:
    """Sending a large prompt to a server that stopped reading ends too."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        done = threading.Event()

        def answer_once() -> None:
            line, _ = listener.accept()
            with line:
                line.recv(1 << 16)
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                done.wait(30)

        thread = threading.Thread(target=answer_once)
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", patience=0.3) as client:
            reply = client.stream(PATH, {"prompt": "x" * (1 << 25)})
        done.set()
        thread.join()
    assert "stalled while sending the request: waited 0.3 s" in reply.error


def test_an_end_without_an_end_is_good(null: Null) -> None:
    """After [DONE] the answer is whole, even if the server never ends it; the next request gets a new connection."""
    with Client(null.url) as client:
        for _ in range(2):
            reply = client.stream(PATH, {"script": [ROLE, HELLO, *LAST, ["hang"]]})
            assert (reply.error, reply.text) == ("", "Hello")
    first, second = (entry["client"] for entry in null.log()[-2:])
    assert first != second


@pytest.mark.parametrize("step", ["text", "bytewise"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_events_survive_any_framing(null: Null, step: str, end: str) -> None:
    """Many events in a chunk or a byte at a time, comments, other fields, split characters: the same answer."""
    stream = (
        ": hello\n\nevent: message\nid: 1\n" + event(content("")) + event(content("Grüß")) + ":\n\n\n"
        'data:{"choices": [{"delta": {"content":\ndata: " dich 🎈"}}]}\n\n' + event({"choices": [], "usage": {"n": 1}})
    )
    reply = null.ask([step, (stream + "data: [DONE]\n\n").replace("\n", end)])
    assert (reply.error, reply.text, reply.usage) == ("", "Grüß dich 🎈", {"n": 1})
    assert len(reply.itl) == 1


def _events(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = ["choices", "delta", "content", "text", "error", "usage", "metrics", "logprobs", "token", "tokens"]
    return st.dictionaries(st.sampled_from(names), inner)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stream=st.lists(
        st.sampled_from(
            ["data:", " ", "\n", "\r\n", "\n\n", "{", "}", '"error"', "[DONE]", "null", '"choices"', ":", "["]
        )
        | st.text(max_size=5)
        | st.recursive(
            st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner) | _events(inner)
        ).map(event)
    ).map("".join)
)
def test_nothing_a_stream_holds_is_an_exception(null: Null, stream: str) -> None:
    """Any text as a stream: a token or an error, never both missing, never an exception."""
    reply = null.ask(["text", stream])
    assert reply.error or reply.ttft is not None


def test_who_listens_hears_every_token(null: Null) -> None:
    """Once before the clock, then after each token, with what there is so far."""
    told: list[tuple[bool, str]] = []
    listening = Reply(on_token=lambda reply: told.append((reply.ttft is None, reply.text)))
    with Client(null.url) as client:
        script = [ROLE, ["delta", {"content": "a"}], PAUSE, ["delta", {"content": "b"}], *LAST]
        reply = client.stream(PATH, {"script": script}, listening)
    assert reply is listening
    assert not reply.error
    assert told == [(True, ""), (False, "a"), (False, "ab")]


def test_the_connection_is_kept(null: Null) -> None:
    """Requests of one client share a connection; after a failure, or when the server has left, there is a new one."""
    good, bad = [ROLE, HELLO, *LAST], [ROLE, ["reset"]]
    closed = f"{NO_STREAM}Connection: close\r\n\r\n{event(content('Hello'))}data: [DONE]\n\n"
    scripts = [good, good, bad, good, [["raw", closed], ["close"]], good, good]
    with Client(null.url) as client:
        errors = [bool(client.stream(PATH, {"script": script}).error) for script in scripts]
    assert errors == [False, False, True, False, False, False, False]
    a, b, c, d, e, f, g = (entry["client"] for entry in null.log()[-7:])
    assert a == b == c != d == e != f == g


def test_an_unreachable_server_is_an_error_in_words() -> None:
    """Nobody listens: an error, no exception."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client:
        reply = client.stream(PATH, {})
    assert "no connection: " in reply.error
    assert reply.ttft is None


def test_the_key_is_sent_and_never_shown(null: Null) -> None:
    """The key travels as a bearer token; one that cannot is refused without being quoted."""
    assert null.ask(ROLE, HELLO, *LAST, key="sesame").error == ""
    assert null.log()[-1]["key"] == "Bearer sesame"
    with pytest.raises(UsageError) as caught:
        Client(null.url, "ses\name")
    assert "ses" not in str(caught.value)


def test_tokenize_gives_ids_or_an_http_error(null: Null) -> None:
    """The engine's token ids, or httpx's error if it refuses."""
    with Client(null.url) as client:
        assert client.tokenize("m", {"prompt": "a", "script": [["status", 200, '{"tokens": [1, 2]}']]}) == [1, 2]
        with pytest.raises(httpx.HTTPError):
            client.tokenize("m", {"prompt": "a", "script": [["status", 400, "no"]]})


def test_the_garbage_collector_works_again(null: Null) -> None:
    """Paused while a request is measured, as it was before afterwards, whatever came."""
    null.ask(["reset"])
    assert gc.isenabled()
    gc.disable()
    try:
        null.ask(ROLE, HELLO, *LAST)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_interrupt_passes_through(null: Null) -> None:
    """Ctrl-C during a request is no failed request: it ends the program at once."""
    before = len(null.log())
    program = f"""
from kvdemo.bench.client import Client
Client({null.url!r}).stream("/x", {{"script": [["hang"]]}})
print("no")
"""
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: len(null.log()) > before or process.poll() is not None)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (out, process.returncode) == ("", -signal.SIGINT)
    assert "KeyboardInterrupt" in err
