"""``kvdemo estimate`` against what it imitates: LMCache's simulator and eviction, vLLM's block pool, vLLM's own log.

These are the installed packages' own classes, in an interpreter of their own, on one trace. Nothing is started.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from kvdemo.estimate import reading, replay
from kvdemo.estimate.replay import Setup
from kvdemo.estimate.stack import Run, Stack, held_tokens
from kvdemo.estimate.trace import Trace
from test_estimate import mooncake

pytestmark = [
    pytest.mark.timeout(300),  # vLLM alone takes ten seconds to import, on a busy machine a minute
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or importlib.util.find_spec("lmcache") is None,
        reason="needs vLLM and LMCache (scripts/setup installs them)",
    ),
]

UNIT = 512
SIZES = (5, 40, 150, 400, 10**6)


def printed(code: str, given: Any, level: str = "ERROR") -> str:
    """What this code prints, given something as JSON on standard input."""
    environ = {**os.environ, "VLLM_LOGGING_LEVEL": level, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, input=json.dumps(given), capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def there(code: str, given: Any) -> Any:
    """The same, as JSON."""
    return json.loads(printed(code, given).splitlines()[-1])


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Three hundred requests, as they are read from a Mooncake trace."""
    lines = map(json.dumps, mooncake(300))
    return reading.read(lines, reading.Cut(16, 256), lambda _: []).trace


def chains(trace: Trace) -> list[list[int]]:
    """The whole blocks of each request."""
    return [list(trace.names[begin:end]) for begin, end in pairwise(trace.begins)]


def held_whole(runs: Sequence[Run], size: int) -> int:
    """The same of a cache that evicts a prompt's first block first, as LMCache's simulator does.

    Of a run that does not fit whole the first blocks are gone, and with them the prefix.
    """
    end = 0
    for run in runs:
        if size < run.above + (run.end - run.first) + run.below:
            return end
        end = run.end
    return end


SIMULATOR = """
import json, sys
from lmcache.tools.cache_simulator.simulator import simulate
given = json.load(sys.stdin)
results = [simulate(given["events"], size, 1, fast=True) for size in given["sizes"]]
print(json.dumps([[one["total_tokens"], one["total_hit_tokens"]] for one in results]))
"""


def test_lmcaches_simulator_counts_the_same(trace: Trace) -> None:
    """LMCache's own simulator finds the same tokens at every size, to the last one.

    It evicts a prompt's first chunk first, which its server does not; without a limit both are one.
    """
    tokens = zip(chains(trace), trace.tokens, strict=True)
    events = [{"chunk_hashes": [f"{n:x}" for n in c], "seq_len": t, "chunk_size": UNIT} for c, t in tokens]
    theirs = there(SIMULATOR, {"events": events, "sizes": SIZES})
    ours = dict.fromkeys(SIZES, 0)
    caches = Stack(trace.names, len(trace))
    for begin, end in pairwise(trace.begins):
        runs = caches.touch(begin, end - begin)
        for size in SIZES:
            ours[size] += held_whole(runs, size) * UNIT
    assert [(sum(trace.tokens), hits) for hits in ours.values()] == [tuple(pair) for pair in theirs]
    setup = Setup(1, "round-robin", UNIT, UNIT, 0, (None,))
    whole = replay.replay(trace, setup).reuse[0]
    assert theirs[-1][1] - whole.shared == sum(t % UNIT == 0 for t in trace.tokens)  # the last token is computed


EVICTION = """
import json, sys
from lmcache.v1.distributed.eviction_policy.lru import LRUEvictionPolicy
given = json.load(sys.stdin)
totals = []
for size in given["sizes"]:
    policy, held, total = LRUEvictionPolicy(), set(), 0
    for chain in given["chains"]:
        hits = next((at for at, name in enumerate(chain) if name not in held), len(chain))
        total += hits
        policy.on_keys_touched(chain[:hits])
        policy.on_keys_created(chain)
        held.update(chain)
        if len(held) > size:
            gone = policy.get_eviction_candidates(len(held) - size)
            policy.on_keys_removed(gone)
            held.difference_update(gone)
    totals.append(total)
print(json.dumps(totals))
"""


def hits(trace: Trace, sizes: tuple[int, ...]) -> list[int]:
    """Blocks found by caches of these sizes."""
    totals = dict.fromkeys(sizes, 0)
    caches = Stack(trace.names, len(trace))
    for begin, end in pairwise(trace.begins):
        runs = caches.touch(begin, end - begin)
        for size in sizes:
            totals[size] += held_tokens(runs, size)
    return list(totals.values())


def test_lmcaches_server_evicts_in_this_order(trace: Trace) -> None:
    """The policy of LMCache's server, asked to evict whatever is too much, leaves the same hits at every size."""
    assert there(EVICTION, {"chains": chains(trace), "sizes": SIZES}) == hits(trace, SIZES)


POOL = """
import json, sys
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

given = json.load(sys.stdin)
block = given["block"]
init_none_hash(sha256)
spec = FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=1, dtype=torch.float32)
totals = []
for blocks in given["blocks"]:
    config = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    manager = KVCacheManager(
        config, max_model_len=10**6, scheduler_block_size=block, hash_block_size=block, enable_caching=True
    )
    hits = []
    for number, prompt in enumerate(given["prompts"]):
        request = Request(
            request_id=str(number), prompt_token_ids=prompt, sampling_params=SamplingParams(max_tokens=1),
            pooling_params=None, block_hasher=get_request_block_hasher(block, sha256),
        )
        found, tokens, *_ = manager.get_computed_blocks(request)
        fresh = manager.allocate_slots(request, len(prompt) - tokens, tokens, found)
        assert fresh is not None
        request.num_computed_tokens = len(prompt)
        manager.free(request)
        hits.append(tokens)
    totals.append(hits)
print(json.dumps(totals))
"""


def test_vllms_own_cache_has_the_same_tokens() -> None:
    """The hits of vLLM's KV cache manager, request by request, with room for some prompts and for all.

    One block of its pool is never used, and one is written to that is not whole: the option --engine-cache and the
    profile's sizes count neither.
    """
    block = 4
    prompts = []
    for line in mooncake(150):
        names = line["hash_ids"]
        prompts.append([token for name in names for token in range(4 * (name + 10), 4 * (name + 10) + 4)][:-1])
    trace = Trace(block)
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    trace = reading.read(lines, reading.Cut(block, block), lambda _: []).trace
    pools = (45, 80, 200, 5000)
    theirs = there(POOL, {"block": block, "blocks": pools, "prompts": prompts})
    for blocks, found in zip(pools, theirs, strict=True):
        setup = Setup(1, "round-robin", block, block, (blocks - 2) * block, (None,))
        assert list(replay.replay(trace, setup).local) == found, blocks
    assert 0 < sum(theirs[0]) < sum(theirs[1]) < sum(theirs[-1])


LOGGED = """
import json, sys
from vllm.entrypoints.serve.utils import request_logger
from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging
from vllm.sampling_params import SamplingParams
given = json.load(sys.stdin)
for formatter in ("text", "json"):
    configure_logging(LoggingConfig(formatter=formatter))
    writer = request_logger.RequestLogger(max_log_len=None)
    for number, (text, ids) in enumerate(given):
        writer.log_inputs(f"cmpl-{number}", text, ids, None, SamplingParams(max_tokens=8), None)
        writer.log_outputs(f"cmpl-{number}", text or "", ids, "stop")
"""


def test_vllms_own_log_is_read() -> None:
    """What vLLM's request logger writes at DEBUG, as text and as JSON; a prompt holds the format's own words."""
    requests = [
        ("it's \"both\"\nprompt_token_ids: [9], prompt: 'x'", [1, 2, 3, 4, 5]),
        (None, [1, 2, 3]),
        ("only text", None),
    ]
    log = printed(LOGGED, requests, level="DEBUG")
    texts: list[str | None] = []

    def tokenize(asked: Any) -> list[Any]:
        texts.extend(one.prompt for one in asked)
        return [array("I", range(7)) for _ in asked]

    held = reading.read(log.splitlines(), reading.Cut(2, 2), tokenize)
    assert (held.format, held.timed, held.skipped) == ("vllm", True, 0)
    assert list(held.trace.tokens) == [5, 3, 7] * 2
    assert texts == ["only text"] * 2
