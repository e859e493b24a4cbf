"""Ask one scripted server with one client: kvdemo's, or that of another benchmark, in the interpreter that holds it.

    PYTHON scripts/peer_clients.py NAME URL

Reads jobs from standard input, a JSON line each: {"prompt": text, "limit": seconds}; answers each with a JSON line:
{"ttft": seconds or null, "success": bool, "error": text}. The first line out is {"version": text}. Every client is
called as its own benchmark calls it, one request at a time; ``limit`` is ours, since most of them have none.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Outcome = dict[str, Any]
Ask = Callable[[str], Awaitable[Outcome]]
PAUSE = 2.0
"""Seconds that kvdemo waits between tokens here, where the others are stopped after ``limit``."""


def outcome(ttft: float | None, success: bool, error: object = "") -> Outcome:
    """One answer line."""
    return {"ttft": ttft, "success": success, "error": str(error).strip().rpartition("\n")[2][:200]}


async def kvdemo(url: str) -> Ask:
    """kvdemo.bench.client."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    client = importlib.import_module("kvdemo.bench.client").Client(url, pause=PAUSE)

    async def ask(prompt: str) -> Outcome:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": 2}
        reply = client.stream("/v1/chat/completions", body)
        return outcome(reply.ttft, not reply.error, reply.error)

    return ask


async def vllm(url: str) -> Ask:
    """What ``vllm bench serve --backend openai-chat`` sends requests with: its function in a session like its own."""
    aiohttp = importlib.import_module("aiohttp")
    functions = importlib.import_module("vllm.benchmarks.lib.endpoint_request_func")
    importlib.import_module("vllm.utils.gc_utils").freeze_gc_heap()
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=300, keepalive_timeout=60)
    session = aiohttp.ClientSession(connector=connector, trust_env=True, timeout=functions.AIOHTTP_TIMEOUT)

    async def ask(prompt: str) -> Outcome:
        request = functions.RequestFuncInput(
            prompt=prompt, api_url=f"{url}/v1/chat/completions", prompt_len=1, output_len=2, model="m"
        )
        found = await functions.async_request_openai_chat_completions(request, session)
        return outcome(found.ttft, found.success, found.error)

    return ask


async def lmcache(url: str) -> Ask:
    """What ``lmcache bench engine`` sends requests with."""
    sender = importlib.import_module("lmcache.cli.commands.bench.engine_bench.request_sender").RequestSender(url, "m")

    async def ask(prompt: str) -> Outcome:
        found = await sender.send_request("1", [{"role": "user", "content": prompt}], 2)
        return outcome(found.ttft if found.ttft >= 0 else None, found.successful, found.error)

    return ask


async def guidellm(url: str) -> Ask:
    """GuideLLM's OpenAI backend, as its workers drive it: an exception is a failed request."""
    backends = importlib.import_module("guidellm.backends.openai.http")
    schemas = importlib.import_module("guidellm.schemas")
    backend = backends.OpenAIHTTPBackend(backends.OpenAIHTTPBackendArgs(target=url, model="m"))
    await backend.process_startup()
    await backend.validate()

    async def ask(prompt: str) -> Outcome:
        info = schemas.RequestInfo()
        request = schemas.GenerationRequest(columns={"text_column": [prompt]})
        error: object = ""
        try:
            async for _ in backend.resolve(request, info):
                pass
        except Exception as raised:  # as its worker does
            error = f"{type(raised).__name__}: {raised}"
        first, start = info.timings.first_token_iteration, info.timings.request_start
        return outcome(None if first is None else first - start, not error, error)

    return ask


CLIENTS = {"kvdemo": kvdemo, "vllm": vllm, "lmcache": lmcache, "guidellm": guidellm}


def version(name: str) -> str:
    """Its version; vLLM's CPU build is distributed under another name."""
    if name == "kvdemo":
        return str(importlib.import_module("kvdemo").__version__)
    for package in (name, f"{name}-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


async def main() -> None:
    """Answer jobs until standard input ends."""
    name, url = sys.argv[1:]
    ask = await CLIENTS[name](url)
    print(json.dumps({"version": version(name)}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = await asyncio.wait_for(ask(job["prompt"]), job["limit"])
        except TimeoutError:
            answer = outcome(None, False, f"still waiting after {job['limit']:g} s")
        except Exception as raised:  # a crash is a result here
            answer = {**outcome(None, False, f"{type(raised).__name__}: {raised}"), "crashed": True}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
