"""``kvdemo estimate`` against real engines: 200 requests are predicted from their file, then asked and counted."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from guarding import until
from kvdemo.bench import cacheserver
from kvdemo.bench.client import Client
from kvdemo.host import health
from kvdemo.planning.services import ServiceSpec
from real_fleet import HANDBOOK, Real, needs_engines

pytestmark = needs_engines

READERS = ("lmcache-a", "lmcache-b")
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
CHUNK = 128


def traffic(salt: str) -> list[dict[str, Any]]:
    """Ten documents of 100 to 450 tokens, asked about again and again, as chat and as text; some end early."""
    chance = random.Random(5)  # noqa: S311 (which document, no secret)
    text = HANDBOOK.read_text()
    starts = [at * 3000 for at in range(10)]
    lines = []
    for number in range(200):
        start = chance.choice(starts)
        words = text[start : start + chance.choice((400, 800, 1200, 1800))]
        body: dict[str, Any] = {"model": "tiny", "cache_salt": salt, "max_tokens": 1, "stream": True}
        if number // 2 % 2:  # both engines get both
            url, body = "/v1/completions", body | {"prompt": words}
        else:
            url, body = "/v1/chat/completions", body | {"messages": [{"role": "user", "content": words}]}
        lines.append({"custom_id": str(number), "method": "POST", "url": url, "body": body})
    return lines


def counted(engines: Sequence[ServiceSpec]) -> list[int]:
    """Prompt tokens by source, of these engines together."""
    counters = [health.counters(spec.url) for spec in engines]
    return [int(sum(one.get(f"prompt_tokens_by_source{{{source}}}", 0) for one in counters)) for source in SOURCES]


def test_what_is_predicted_is_what_engines_count(ready: Real) -> None:
    """Computed, local and shared tokens of 200 requests, in turn on two engines: within 1 % of the prompts' tokens."""
    engines = [ready.plan.service(name) for name in READERS]
    cache = ready.plan.service("shared")
    lines = traffic("estimate")
    for line in lines:
        line["body"]["model"] = engines[0].model
    file = ready.path / "requests.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    predicted = json.loads(ready.do("estimate", file, ready.profile, "--json"))

    before, stored, objects = counted(engines), cacheserver.counters(cache), cacheserver.objects(cache)
    asked = new = 0
    with Client(engines[0].url) as one, Client(engines[1].url) as other:
        for client, line in zip(cycle((one, other)), lines, strict=False):
            reply = client.stream(line["url"], line["body"] | {"stream_options": {"include_usage": True}})
            assert not reply.error
            tokens, cached = reply.usage["prompt_tokens"], reply.usage["prompt_tokens_details"]["cached_tokens"]
            asked += tokens
            # The estimate takes it that whatever was asked can be loaded at once: whole chunks that nobody had.
            new += 0 if cached == tokens - 1 else tokens // CHUNK - cached // CHUNK
            assert cacheserver.wait_until_stored(cache, objects, stored, new) == new
    assert new == predicted["distinct_tokens"] // CHUNK
    until(lambda: sum(counted(engines)) - sum(before) >= asked)

    computed, local, shared = (now - then for now, then in zip(counted(engines), before, strict=True))
    assert predicted["prompt_tokens"] == asked == computed + local + shared
    found = [predicted[f"{name}_tokens"] for name in ("computed", "local", "shared")]
    assert all(abs(a - b) <= asked / 100 for a, b in zip(found, (computed, local, shared), strict=True)), found
    assert min(computed, local, shared) > asked / 20, found
