"""Requests in OpenAI batch files, vLLM's logs, Mooncake traces, LMCache's lookup logs and plain prompts. Pure.

Each format is one function from a line to the requests in it (a line of a log mostly has none). What it raises is a
ValueError that says what was expected. Sources: OpenAI's batch API and vLLM's ``run-batch``; vLLM 0.9 to 0.32
(``RequestLogger.log_inputs``); Mooncake's FAST'25 traces; LMCache 0.5.6 (``--lookup-hash-log-dir``).
"""

from __future__ import annotations

import ast
import json
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

Format = Literal["openai", "vllm", "mooncake", "lmcache", "prompts"]

TITLES: Mapping[Format, str] = {
    "openai": "an OpenAI batch file",
    "vllm": "a vLLM request log",
    "mooncake": "a Mooncake trace",
    "lmcache": "an LMCache lookup log",
    "prompts": "plain prompts",
}
LOOKS: Mapping[Format, str] = {
    "openai": '{"custom_id": ..., "url": "/v1/chat/completions", "body": {"model": ..., "messages": [...]}}',
    "vllm": "... Request ID details: prompt: '...', prompt_token_ids: [...]",
    "mooncake": '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, ...]}',
    "lmcache": '{"timestamp": 0.5, "seq_len": 1000, "chunk_size": 256, "chunk_hashes": ["0x1f...", ...]}',
    "prompts": '{"timestamp": 0.5, "prompt": "...", "session": "..."}',
}
LONGEST = 10**8
"""Tokens of a prompt; more is a mistake."""
LATEST = 10**15
"""Milliseconds since 1970, in thirty thousand years."""


class Text(NamedTuple):
    """A prompt to tokenize: ``prompt`` as it is, or ``messages`` by the chat template with its ``options``."""

    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = {}


class Blocks(NamedTuple):
    """A prompt of which only the names of its whole blocks of ``size`` tokens are known."""

    names: Sequence[Any]
    tokens: int
    size: int


class Request(NamedTuple):
    """One request. ``time`` in seconds; ``seed`` keeps prompts apart whose KV is not shared; ``answer`` in tokens."""

    prompt: Text | Blocks | array[int]
    time: float | None = None
    session: str | None = None
    seed: str = ""
    answer: int = 0


def detect(line: str) -> Format | None:
    """The format that a file with this line has; None if the line does not tell."""
    if REQUEST.search(line) or BARE.search(line):
        return "vllm"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    keys: tuple[tuple[str, Format], ...] = (
        ("hash_ids", "mooncake"),
        ("chunk_hashes", "lmcache"),
        ("custom_id", "openai"),
        ("body", "openai"),
        ("prompt", "prompts"),
        ("messages", "prompts"),
    )
    return next((format for key, format in keys if key in record), None)


def parse(line: str, format: Format, block: int) -> Sequence[Request]:
    """The requests in a line. ``block`` is how many tokens one of a Mooncake trace's hash ids stands for."""
    if format == "vllm":
        return _of_log(line)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON object ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    if format == "mooncake":
        return (_of_mooncake(record, block),)
    return PARSERS[format](record)


def _of_mooncake(record: Mapping[str, Any], block: int) -> Request:
    tokens, names = _count(record, "input_length", 1), record.get("hash_ids")
    if type(names) is not list or not all(type(name) is int for name in names):
        raise ValueError("hash_ids: a list of whole numbers was expected")
    whole, rest = divmod(tokens, block)
    if len(names) - whole not in (0, bool(rest)):
        size = f"{whole + bool(rest)} of {block} tokens were expected for an input_length of {tokens:,}"
        raise ValueError(f"hash_ids: {size}, {len(names)} are there (--trace-block-size)")
    answer = _count(record, "output_length", 0) if "output_length" in record else 0
    time = _time(record, 1000)
    return Request(Blocks(names[:whole], tokens, block), time, _session(record), "", answer)


def _of_lmcache(record: Mapping[str, Any]) -> Sequence[Request]:
    tokens, size, names = _count(record, "seq_len", 1), _count(record, "chunk_size", 1), record.get("chunk_hashes")
    if not isinstance(names, list) or len(names) != tokens // size or not all(isinstance(n, str) for n in names):
        raise ValueError(f"chunk_hashes: the hashes of {tokens // size} whole chunks were expected")
    seed = f"{record.get('model_name')}"
    return (Request(Blocks(names, tokens, size), _time(record), _session(record), seed),)


def _of_prompts(record: Mapping[str, Any]) -> Sequence[Request]:
    key = next((key for key in ("output_length", "output_tokens") if isinstance(record.get(key), int)), "")
    answer = _count(record, key, 0) if key else 0
    prompts: Sequence[Text | array[int]]
    prompts = [Text(messages=_messages(record["messages"]))] if "messages" in record else _prompts(record.get("prompt"))
    return [Request(prompt, _time(record), _session(record), "", answer) for prompt in prompts]


def _of_openai(record: Mapping[str, Any]) -> Sequence[Request]:
    url, body = record.get("url"), record.get("body")
    if not isinstance(body, dict):
        raise ValueError("body: a JSON object was expected")
    prompts: Sequence[Text | array[int]]
    if isinstance(url, str) and url.endswith("/chat/completions"):
        prompts = [Text(messages=_messages(body.get("messages")), options=_options(body))]
    elif isinstance(url, str) and url.endswith("/completions"):
        prompts = _prompts(body.get("prompt"))
    else:
        raise ValueError(f"url: /v1/chat/completions or /v1/completions was expected, not {str(url)[:60]!r}")
    session = next((str(body[key]) for key in ("prompt_cache_key", "user") if body.get(key)), None)
    seed = f"{body.get('model', '')}\0{body.get('cache_salt') or ''}"
    return [Request(prompt, _time(record), session or _session(record), seed) for prompt in prompts]


PARSERS: Mapping[Format, Callable[[Mapping[str, Any]], Sequence[Request]]] = {
    "lmcache": _of_lmcache,
    "openai": _of_openai,
    "prompts": _of_prompts,
}

REQUEST = re.compile(r"(?:Received request|Request) (\S+?)(?: details)?: prompt: ")
BARE = re.compile(r"Received request \S+?: params: ")
STAMP = re.compile(r"\b(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)\b")
LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
IDS = re.compile(r"prompt_token_ids: (\[[0-9, ]*\]|None)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
DAYS_BEFORE = (0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335)


def _of_log(line: str) -> Sequence[Request]:
    if not REQUEST.search(line):
        return ()
    if line.lstrip().startswith("{"):  # vLLM's JSON formatter
        record = json.loads(line)
        line = f"{record.get('asctime', '')} {record.get('message', '')}"
    match = REQUEST.search(line)
    if not match:
        return ()
    plain = COLOUR.sub("", line[: match.start()])
    stamp = STAMP.search(plain)
    time = None
    if stamp:
        month, day, hours, minutes, seconds = map(int, stamp.groups())
        days = DAYS_BEFORE[(month - 1) % 12] + day
        time = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    text = LITERAL.match(line, match.end())
    ids = IDS.search(line, text.end() if text else match.end())
    if ids and ids[1] != "None":
        return (Request(_tokens(json.loads(ids[1])), time),)
    if text:
        with suppress(SyntaxError):
            return (Request(Text(ast.literal_eval(text[0])), time),)
    raise ValueError("prompt_token_ids or a prompt was expected")


def _prompts(prompts: Any) -> list[Text | array[int]]:
    """One prompt, or several: text, or token ids."""
    if isinstance(prompts, str):
        return [Text(prompts)]
    if isinstance(prompts, list) and prompts and all(type(one) is int for one in prompts):
        return [_tokens(prompts)]
    if isinstance(prompts, list) and prompts and all(isinstance(one, str | list) and one for one in prompts):
        return [Text(one) if isinstance(one, str) else _tokens(one) for one in prompts]
    raise ValueError("prompt: text, a list of token ids, or a list of these was expected")


def _tokens(ids: Sequence[Any]) -> array[int]:
    try:
        return array("I", ids)
    except (TypeError, OverflowError):
        raise ValueError("token ids: whole numbers from 0 to 4294967295 were expected") from None


def _messages(entries: Any) -> list[dict[str, Any]]:
    """Messages with their text in one piece, as vLLM gives it to a template that expects strings."""
    if not isinstance(entries, list) or not entries:
        raise ValueError("messages: a list of messages was expected")
    messages = []
    for message in entries:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError("messages: objects with a role were expected")
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(_part(part) for part in content)
        elif content is not None and not isinstance(content, str):
            raise ValueError("content: text or a list of parts was expected")
        messages.append({**message, "content": content if content is not None else ""})
    return messages


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else part
        raise ValueError(f"content: parts of text were expected, not {str(kind)[:40]!r}")
    return text


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a chat request goes into its template."""
    keys = ("add_generation_prompt", "continue_final_message", "tools", "documents")
    values = {key: body[key] for key in keys if body.get(key) is not None}
    extra = body.get("chat_template_kwargs")
    return {**values, **(extra if isinstance(extra, dict) else {})}


def _count(record: Mapping[str, Any], key: str, least: int) -> int:
    value = record.get(key)
    if type(value) is not int or not least <= value <= LONGEST:
        raise ValueError(f"{key}: a whole number from {least} to {LONGEST:,} was expected")
    return value


def _time(record: Mapping[str, Any], divisor: int = 1) -> float | None:
    value = record.get("timestamp")
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < LATEST:
        raise ValueError("timestamp: a number was expected")
    return float(value / divisor)


def _session(record: Mapping[str, Any]) -> str | None:
    value = next((record[key] for key in ("session", "session_id") if record.get(key) is not None), None)
    return None if value is None else str(value)
