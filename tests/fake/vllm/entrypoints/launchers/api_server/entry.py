"""A fake vLLM engine: ``python -m vllm.entrypoints.launchers.api_server.entry --model M --port P ...``.

Words are tokens. A prefill takes time per token that neither the engine's own prefix cache (blocks of 16) nor the
shared cache (whole chunks) holds; the answer is a function of the prompt alone. Everything it can do wrong is in
``fakeserver``.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fakeserver as fake
from fakeserver import Handler

BLOCK = 16
VOCABULARY = 50000
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
BUCKETS = ("0.001", "0.01", "0.1", "0.25", "0.5", "1.0", "2.5", "+Inf")
"""Upper bounds of the histogram of times to first token, in seconds: some of vLLM's."""


def tokenize(body: dict[str, Any]) -> list[int]:
    """Token ids of a prompt (text or ids) or of chat messages."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return [int(token) for token in prompt]
    if prompt is None:
        turns = [f"<|{m['role']}|> {_text(m.get('content'))}" for m in body.get("messages", [])]
        prompt = " ".join([*turns, "<|assistant|>"] if body.get("add_generation_prompt", True) else turns)
    return [zlib.crc32(word.encode()) % VOCABULARY for word in str(prompt).split()]


def _text(content: Any) -> str:
    return " ".join(part.get("text", "") for part in content) if isinstance(content, list) else str(content or "")


def hashes(tokens: list[int], size: int, salt: str) -> list[str]:
    """One hash for each whole block of ``size`` tokens, which also covers all blocks before it."""
    running = hashlib.sha256(f"{size} {salt}".encode())
    found = []
    for end in range(size, len(tokens) + 1, size):
        running.update(json.dumps(tokens[end - size : end]).encode())
        found.append(running.hexdigest()[:24])
    return found


@dataclass
class Prefill:
    """A prompt whose KV is there, and where its tokens came from."""

    tokens: list[int]
    local: int
    external: int
    queue_ms: float
    seconds: float

    @property
    def cached(self) -> int:
        """Tokens that were not computed."""
        return self.local + self.external


@dataclass
class Shared:
    """The engine's side of an LMCache server; without an address, or when nobody answers, there is none."""

    host: str
    port: int
    model: str
    chunk_size: int = 0

    def ask(self, what: str, **body: Any) -> dict[str, Any]:
        """One question; empty if the server does not answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request("POST", f"/fake/{what}", json.dumps({"id": os.getpid(), "model": self.model, **body}))
            return dict(json.loads(connection.getresponse().read()))
        except OSError:
            return {}
        finally:
            connection.close()

    def register(self) -> None:
        """Tell the server about this engine and learn its chunk size; end if nobody answers in time, as vLLM does."""
        patience = fake.number("CACHE_PATIENCE_S", 10)
        until = time.monotonic() + patience
        while not self.chunk_size:
            self.chunk_size = self.ask("register").get("chunk_size", 0)
            if not self.chunk_size and time.monotonic() >= until:
                fake.say(
                    f"ConnectionError: Cannot reach the LMCache MP server at 'tcp://{self.host}' within {patience}s."
                )
                sys.exit(1)
            time.sleep(0 if self.chunk_size else 0.02)


@dataclass
class Engine:
    """The model, its caches and its counters."""

    given: dict[str, str]
    shared: Shared | None
    blocks: dict[str, None] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def model(self) -> str:
        """Its name towards clients."""
        return fake.fault("MODEL_ID") or self.given.get("served-model-name") or self.given["model"]

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer together."""
        given = self.given.get("max-model-len", "auto")
        return 40960 if given == "auto" else int(given)

    def prefill(self, tokens: list[int], salt: str) -> Prefill:
        """Compute what is in no cache, and fill the caches. The last token is always computed."""
        arrived = time.perf_counter()
        with self.lock:  # one prefill at a time: the others queue
            began = time.perf_counter()
            mine = hashes(tokens, BLOCK, salt)
            hits = sum(1 for _ in itertools.takewhile(self.blocks.__contains__, mine))
            local = min(hits, (len(tokens) - 1) // BLOCK) * BLOCK
            if fake.fault("WARM"):
                local = max(local, len(tokens) // 2)
            external = self.look_up(tokens, salt, local)
            computed = len(tokens) - local - external
            time.sleep((computed + external / 50) * fake.number("TOKEN_US", 20) / 1e6)
            self.keep(mine)
            self.book(len(tokens), computed, local, external, time.perf_counter() - arrived)
        return Prefill(tokens, local, external, (began - arrived) * 1e3, time.perf_counter() - began)

    def keep(self, mine: list[str]) -> None:
        """Blocks go into the engine's own prefix cache, the least recently used ones out of it."""
        for block in mine:
            self.blocks.pop(block, None)
            self.blocks[block] = None
        while len(self.blocks) > fake.number("BLOCKS", 1 << 30):
            del self.blocks[next(iter(self.blocks))]

    def look_up(self, tokens: list[int], salt: str, local: int) -> int:
        """How many tokens beyond the ``local`` ones the shared cache has; what it lacks is stored there."""
        if not (self.shared and self.shared.chunk_size):
            return 0
        size = self.shared.chunk_size
        chunks = hashes(tokens, size, salt)
        found = self.shared.ask("lookup", chunks=chunks, salt=salt).get("found", 0) if chunks else 0
        if chunks[found:] and not fake.fault("NO_STORE"):
            self.shared.ask("store", chunks=chunks[found:], salt=salt)
        return max(0, min(found * size, len(tokens) - 1) - local)

    def book(self, total: int, computed: int, local: int, external: int, ttft: float) -> None:
        """Count a prompt as vLLM does: at once, so that no reading sees half of it."""
        wrong = total // 3 if fake.fault("WRONG_SOURCES") else 0
        counted: dict[str, float] = {
            f'prompt_tokens_by_source_total{{engine="0",source="{source}"}}': value
            for source, value in zip(SOURCES, (computed - min(wrong, computed), local, external), strict=True)
        }
        counted |= {"prompt_tokens_total": total, "prefix_cache_queries_total": total, "prefix_cache_hits_total": local}
        if self.shared:
            counted["external_prefix_cache_queries_total"] = total - local
            counted["external_prefix_cache_hits_total"] = external
        histogram = "time_to_first_token_seconds"
        counted |= {f'{histogram}_bucket{{engine="0",le="{bound}"}}': ttft <= float(bound) for bound in BUCKETS}
        counted |= {f"{histogram}_count": 1, f"{histogram}_sum": ttft}
        before = self.counters
        self.counters = before | {name: before.get(name, 0) + value for name, value in counted.items()}

    def answer(self, prefill: Prefill, length: int) -> list[tuple[int, str, float]]:
        """(token id, text, log-probability) of each generated token: the same for the same prompt."""
        seed = zlib.crc32(json.dumps(prefill.tokens).encode())
        if fake.fault("WRONG_REUSE") and prefill.external:
            seed += 1
        tokens = [zlib.crc32(f"{seed} {position}".encode()) % VOCABULARY for position in range(length)]
        blank = int(fake.number("WHITESPACE", 0))
        said = fake.fault("TEXT")
        texts = ["" if fake.fault("WORDLESS") else " " if i < blank else said or f" w{t}" for i, t in enumerate(tokens)]
        return [(t, text, -(t % 1000) / 1000) for t, text in zip(tokens, texts, strict=True)]

    def metrics(self, handler: Handler, _: Any) -> None:
        """Prometheus text."""
        if fake.fault("NO_METRICS"):
            handler.fail(404, "Not Found")
            return
        rows = {
            'num_requests_running{engine="0"}': float(self.running),
            'num_requests_waiting{engine="0"}': 0.0,
            'kv_cache_usage_perc{engine="0"}': fake.number("KV_USAGE", 0),
            **self.counters,
        }
        if fake.fault("BLOCKS"):
            rows[f'cache_config_info{{block_size="{BLOCK}",engine="0",num_gpu_blocks="{fake.fault("BLOCKS")}"}}'] = 1.0
        lines = [f"vllm:{name} {float(value)}\n" for name, value in rows.items()]
        lines += [f"vllm:generation_tokens_created {fake.STARTED}\n", "process_start_time_seconds 1.0\n"]
        handler.reply("".join(lines))


class Api:
    """The HTTP faces of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def health(self, handler: Handler, _: Any) -> None:
        """Ready, or not yet."""
        if fake.healthy():
            handler.reply("")
        else:
            handler.fail(503, "starting")

    def models(self, handler: Handler, _: Any) -> None:
        """What is offered."""
        if self.allowed(handler):
            card = {"id": self.engine.model, "object": "model", "max_model_len": self.engine.longest}
            handler.reply({"object": "list", "data": [card]})

    def tokens(self, handler: Handler, body: Any) -> None:
        """The ids of a text or of messages."""
        found = tokenize(body)
        handler.reply({"count": len(found), "max_model_len": self.engine.longest, "tokens": found})

    def reset(self, handler: Handler, _: Any) -> None:
        """Forget the engine's own prefix cache."""
        if fake.fault("NO_RESET"):
            handler.fail(404, "Not Found")
            return
        if not fake.fault("FALSE_RESET"):
            self.engine.blocks.clear()
        handler.reply("")

    def allowed(self, handler: Handler) -> bool:
        """Whether the API key is right, if the engine has one."""
        key = os.environ.get("VLLM_API_KEY")
        if not key or handler.headers.get("Authorization") == f"Bearer {key}":
            return True
        handler.fail(401, "Unauthorized")
        return False

    def refused(self, handler: Handler, body: dict[str, Any], tokens: list[int]) -> bool:
        """Answer what must not or cannot be generated."""
        if not self.allowed(handler):
            return True
        if fake.fault("CANNOT_GENERATE"):
            handler.fail(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
        elif body.get("stream") and fake.fault("STATUS"):
            handler.fail(int(fake.fault("STATUS")), "not now")
        elif body.get("model") not in (None, self.engine.model):
            handler.fail(404, f"The model `{body.get('model')}` does not exist.")
        elif not tokens or len(tokens) + _wanted(body) > self.engine.longest:
            handler.fail(400, f"This model's maximum context length is {self.engine.longest} tokens.")
        else:
            return False
        return True

    def completions(self, handler: Handler, body: Any) -> None:
        """Text completion."""
        self.generate(handler, body, chat=False)

    def chat(self, handler: Handler, body: Any) -> None:
        """Chat completion."""
        self.generate(handler, body, chat=True)

    def generate(self, handler: Handler, body: dict[str, Any], *, chat: bool) -> None:
        """One answer, streamed or whole."""
        tokens = tokenize(body)
        if self.refused(handler, body, tokens):
            return
        streamed = bool(body.get("stream"))
        if streamed:
            time.sleep(fake.number("DELAY_S", 0))
        self.engine.running += 1
        try:
            prefill = self.engine.prefill(tokens, str(body.get("cache_salt") or ""))
            ends = int(fake.number("EOS_AFTER", 1 << 30)) if not body.get("ignore_eos") else 1 << 30
            answer = self.engine.answer(prefill, min(_wanted(body), ends))
            if streamed:
                Stream(self.engine, handler, body, chat).send(prefill, answer)
            else:
                handler.reply(_whole(self.engine, body, chat, prefill, answer))
        finally:
            self.engine.running -= 1


def _wanted(body: dict[str, Any]) -> int:
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)


def _usage(prefill: Prefill, generated: int) -> dict[str, Any]:
    prompt = len(prefill.tokens)
    details = {"prompt_tokens_details": {"cached_tokens": prefill.cached}}
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated} | details


def _head(engine: Engine, chat: bool, *, streamed: bool) -> dict[str, Any]:
    kind = ("chat.completion" + (".chunk" if streamed else "")) if chat else "text_completion"
    name = f"{'chatcmpl' if chat else 'cmpl'}-{next(engine.numbers)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": engine.model}


def _whole(
    engine: Engine, body: dict[str, Any], chat: bool, prefill: Prefill, answer: list[tuple[int, str, float]]
) -> dict[str, Any]:
    text = "".join(piece for _, piece, _ in answer)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    if body.get("return_token_ids"):
        choice["token_ids"] = [token for token, _, _ in answer]
    return {**_head(engine, chat, streamed=False), "choices": [choice], "usage": _usage(prefill, len(answer))}


class Stream:
    """One streamed answer, chunk by chunk as vLLM sends it, and the places where it can break."""

    def __init__(self, engine: Engine, handler: Handler, body: dict[str, Any], chat: bool) -> None:
        self.handler, self.body, self.chat = handler, body, chat
        self.head = _head(engine, chat, streamed=True)

    def send(self, prefill: Prefill, answer: list[tuple[int, str, float]]) -> None:
        """The whole stream."""
        answer = [] if fake.fault("NO_TOKEN") else answer
        pace = fake.number("DECODE_MS", 1) / 1e3
        self.handler.start_stream()
        if self.chat:
            self.chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None}, self.prompt_ids(prefill))
        for position, generated in enumerate(answer):
            if self.broken(position):
                return
            if position:
                time.sleep(pace)
            last = position == len(answer) - 1
            if not (generated[1] or last or self.body.get("logprobs")):
                continue  # vLLM has nothing to send
            choice = self.piece(position, *generated) | {"finish_reason": "length" if last else None}
            if not (position or self.chat):
                choice |= self.prompt_ids(prefill)
            self.chunk(choice)
        if self.broken(len(answer)):
            return
        if not answer:
            empty: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
            self.chunk(empty | {"finish_reason": "stop"})
        if (self.body.get("stream_options") or {}).get("include_usage"):
            metrics = {
                "time_to_first_token_ms": prefill.seconds * 1e3,
                "generation_time_ms": len(answer) * pace * 1e3,
                "queue_time_ms": prefill.queue_ms,
                "mean_itl_ms": pace * 1e3,
            }
            usage = {"usage": _usage(prefill, len(answer)), "metrics": metrics}
            self.handler.event({**self.head, "choices": [], **usage})
        self.handler.event("[DONE]")
        self.handler.end_stream()

    def prompt_ids(self, prefill: Prefill) -> dict[str, Any]:
        """The prompt's token ids, if they were asked for."""
        return {"prompt_token_ids": prefill.tokens} if self.body.get("return_token_ids") else {}

    def chunk(self, choice: dict[str, Any], extra: dict[str, Any] | None = None) -> None:
        """One chunk with one choice."""
        self.handler.event({**self.head, "choices": [{"index": 0, "logprobs": None, **choice}], **(extra or {})})

    def piece(self, position: int, token: int, text: str, logprob: float) -> dict[str, Any]:
        """The choice that carries one token."""
        choice: dict[str, Any] = {"text": text}
        asked = self.body.get("logprobs") not in (None, False)
        name = f"token_id:{token}" if self.body.get("return_tokens_as_token_ids") else text
        if self.chat:
            thinking = position < fake.number("REASONING", 0)
            choice = {"delta": {fake.fault("REASONING_FIELD") or "reasoning" if thinking else "content": text}}
            entry = {"token": name, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
            choice |= {"logprobs": {"content": [entry]}} if asked else {}
        elif asked:
            lists = {"tokens": [name], "token_logprobs": [logprob], "top_logprobs": [{name: logprob}]}
            choice["logprobs"] = lists | {"text_offset": [0]}
        if self.body.get("return_token_ids"):
            choice["token_ids"] = [token]
        return choice

    def broken(self, position: int) -> bool:
        """Whether the stream ends here in a way it should not."""
        at = str(position)
        if fake.fault("DIE_AFTER") == at:
            told = "ERROR: EngineCore encountered a fatal error: RuntimeError: the fake was told to die"
            fake.say(fake.fault("LAST_WORDS") or told)
            os._exit(int(fake.number("DIE_CODE", 1)))
        if fake.fault("STALL_AFTER") == at:
            threading.Event().wait()
        if fake.fault("CUT_AFTER") == at:
            self.handler.close_connection = True
            return True
        if fake.fault("ERROR_EVENT") == at:
            error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
            self.handler.event({"error": error})
            self.handler.event("[DONE]")
            self.handler.end_stream()
            return True
        return False


def main() -> None:
    """Serve until SIGTERM."""
    given = fake.flags(sys.argv[1:])
    fake.begin()
    shared = None
    if config := json.loads(given.get("kv-transfer-config", "{}")):
        place = {key.rpartition(".")[2]: value for key, value in config["kv_connector_extra_config"].items()}
        shared = Shared(str(place["host"]).removeprefix("tcp://"), int(place["port"]), given["model"])
    engine = Engine(given, shared)
    api = Api(engine)
    routes = {
        "GET /health": api.health,
        "GET /v1/models": api.models,
        "POST /tokenize": api.tokens,
        "POST /v1/completions": api.completions,
        "POST /v1/chat/completions": api.chat,
        "POST /reset_prefix_cache": api.reset,
        "GET /metrics": engine.metrics,
        "GET /version": lambda handler, _: handler.reply({"version": "0.32.0"}),
    }
    server = fake.Server(given.get("host", "127.0.0.1"), int(given["port"]), routes)
    fake.say(f"(EngineCore pid={os.getpid()}) INFO Starting to load model {given['model']}...")
    pool = None
    if shared:
        shared.register()
        pool = fake.segment(f"lmcache_kv_{os.getpid()}_0")

    def leave() -> None:
        if shared and pool:
            shared.ask("unregister")
            pool.unlink(missing_ok=True)

    fake.serve([server], leave)


if __name__ == "__main__":
    main()
