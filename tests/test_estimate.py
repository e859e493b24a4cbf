"""``kvdemo estimate``: the LRU stack against a plain LRU, every format, what is said, and the command itself."""

from __future__ import annotations

import json
import os
import random
import subprocess
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runs
from conftest import Lab
from kvdemo.errors import PreflightError, ServiceError, UsageError
from kvdemo.estimate import formats, reading, replay, result, savings
from kvdemo.estimate.formats import Blocks, Text
from kvdemo.estimate.replay import Setup
from kvdemo.estimate.savings import Times
from kvdemo.estimate.stack import Stack, held_tokens
from kvdemo.estimate.trace import Trace, chain_of_names, chain_of_tokens
from kvdemo.host.tokens import Tokenizer
from kvdemo.planning import shape
from kvdemo.words import estimate as words

BLOCK = 4
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


class Lru:
    """A prefix cache as anybody would write it: one entry a block, a prompt's last block used first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def touch(self, chain: Sequence[int]) -> int:
        """How many blocks were there, from the first on; then all are."""
        hits = next((at for at, name in enumerate(chain) if name not in self.blocks), len(chain))
        for name in reversed(chain):
            self.blocks[name] = None
            self.blocks.move_to_end(name)
        while len(self.blocks) > self.size:
            self.blocks.popitem(last=False)
        return hits


def trace_of(prompts: Sequence[Sequence[int]]) -> Trace:
    """A trace of prompts whose blocks are named by small numbers."""
    trace = Trace(BLOCK)
    for prompt in prompts:
        trace.add(chain_of_names(prompt), len(prompt) * BLOCK + 1)
    return trace


PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=7), max_size=40)


@given(PROMPTS, st.integers(0, 12))
@runs.CALM
def test_the_stack_is_an_lru_cache_of_every_size(prompts: list[list[int]], size: int) -> None:
    """Whatever is asked, in whatever order: the same hits as one entry a block, moved and evicted one by one."""
    trace, plain = trace_of(prompts), Lru(size)
    stack = Stack(trace.names, len(trace))
    for begin, end in zip(trace.begins, trace.begins[1:], strict=False):
        assert held_tokens(stack.touch(begin, end - begin), size) == plain.touch(trace.names[begin:end])


def test_unnamed_blocks_take_room() -> None:
    """An answer's blocks push a prompt out, and are never found."""
    trace = trace_of([[1, 2], [3], [1, 2]])
    hits = {}
    for answer in (0, 2):
        stack = Stack(trace.names, 3)
        for begin, length, unnamed in ((0, 2, 0), (2, 1, answer)):
            stack.touch(begin, length, unnamed)
        runs_ = stack.touch(3, 2)
        hits[answer] = [held_tokens(runs_, size) for size in range(7)]
    assert hits[0] == [0, 0, 1, 2, 2, 2, 2]
    assert hits[2] == [0, 0, 0, 0, 1, 2, 2]


def setup(**changes: Any) -> Setup:
    """Two engines, caches without a limit."""
    return replace(Setup(2, "round-robin", BLOCK, BLOCK, None, (None,)), **changes)


def test_local_and_shared_tokens() -> None:
    """The second engine loads what the first computed; the last token is computed always, locally its whole block."""
    trace = Trace(BLOCK)
    for _ in range(3):
        trace.add(chain_of_names([1, 2]), 2 * BLOCK)
    played = replay.replay(trace, setup())
    assert list(played.engines) == [0, 1, 0]
    assert list(played.shared) == [0, 7, 3]  # of the third the engine itself has one block, sharing three tokens more
    assert list(played.local) == [0, 0, 4]
    assert played.reuse[0] == replay.Reuse(24, 4, 10)
    assert played.distinct == 8


def test_a_backend_says_what_it_can_give() -> None:
    """Mooncake loads whole blocks only: of a prompt of whole blocks the last one is computed."""
    trace = Trace(BLOCK)
    for _ in range(2):
        trace.add(chain_of_names([1, 2]), 2 * BLOCK)
    assert list(replay.replay(trace, setup()).shared) == [0, 7]
    assert list(replay.replay(trace, setup(backend="mooncake")).shared) == [0, 4]


def test_chunks_of_several_blocks() -> None:
    """Only whole chunks are shared, and a cache that is too small for one shares nothing."""
    trace = Trace(BLOCK)
    for _ in range(2):
        trace.add(chain_of_names([1, 2, 3]), 13)
    played = replay.replay(trace, setup(chunk=2 * BLOCK, sizes=(None, 2 * BLOCK, BLOCK)))
    assert [one.shared for one in played.reuse] == [8, 8, 0]
    with pytest.raises(ValueError, match="neither parts nor multiples"):
        replay.replay(trace, setup(chunk=6))


def test_sessions_stay_on_their_engine() -> None:
    """A session's first request goes where it is its turn, the others follow it."""
    trace = Trace(BLOCK)
    for session in ("a", "b", "b", "a", None, "c"):
        trace.add([], 1, session=session)
    assert list(replay.routed(trace, range(6), 3, "session")) == [0, 1, 1, 0, 2, 0]
    assert list(replay.routed(trace, range(6), 3, "round-robin")) == [0, 1, 2, 0, 1, 2]


def test_times_decide_the_order() -> None:
    """Requests that stand in another order are replayed by their times."""
    trace = Trace(BLOCK)
    for time, names in ((2.0, [1, 2]), (0.0, [1]), (1.0, [1, 2])):
        trace.add(chain_of_names(names), 9, time=time)
    played = replay.replay(trace, setup(engines=1))
    assert list(played.order) == [1, 2, 0]
    assert list(played.local) == [0, 4, 8]


def test_chains_tell_prefixes_apart() -> None:
    """A block's name depends on what is before it, and on the salt."""
    one, other = (chain_of_tokens(array("I", tokens), 2) for tokens in ([1, 2, 3, 4, 5], [9, 2, 3, 4]))
    assert len(one) == 2
    assert not set(one) & set(other)
    assert chain_of_tokens(array("I", [1, 2]), 2, "salt") != one[:1]
    assert chain_of_tokens(array("I", [1, 2, 7, 7]), 2)[0] == one[0]


def words_of(texts: Sequence[Text]) -> list[array[int] | str]:
    """A tokenizer: a token for each letter."""
    return [
        array("I", map(ord, text.messages[-1]["content"] if text.prompt is None else text.prompt)) for text in texts
    ]


def read(*lines: Any, skip: bool = False, trace_block: int = 4) -> reading.Reading:
    """Read lines, which are JSON unless they are text."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return reading.read(texts, reading.Cut(2, 4, trace_block), words_of, skip=skip)


def test_openai_batch_files() -> None:
    """Chat and completions, text, ids and lists of them; salt and model keep prompts apart; sessions are found."""
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "abcd"}]}], "user": "me"}
    held = read(
        {"custom_id": "1", "url": "/v1/chat/completions", "body": {"model": "m", **chat}},
        "",
        {"custom_id": "2", "url": "/v1/completions", "body": {"model": "m", "prompt": ["abcd", [97, 98, 99]]}},
        {"custom_id": "3", "url": "/v1/completions", "body": {"model": "m", "prompt": "abcd", "cache_salt": "s"}},
        {"custom_id": "4", "url": "/v1/completions", "body": {"model": "n", "prompt": "abcd"}},
    )
    assert (held.format, held.timed, held.trace.block) == ("openai", False, 2)
    assert list(held.trace.tokens) == [4, 4, 3, 4, 4]
    chains = [held.trace.names[a:b] for a, b in zip(held.trace.begins, held.trace.begins[1:], strict=False)]
    assert chains[0] == chains[1]
    assert chains[2] == chains[0][:1]
    assert len({chain[0] for chain in chains}) == 3
    assert held.trace.numbers == {"me": 0}


LOG = (
    "(APIServer pid=7) INFO 12-31 23:59:58 [request_logger.py:70] Received request a: params: SamplingParams(n=1)",
    "(APIServer pid=7) DEBUG 12-31 23:59:58 [request_logger.py:60] Request a details: prompt: 'it\\'s prompt_token_ids"
    ": [9]', prompt_token_ids: [1, 2, 3, 4], prompt_embeds shape: None.",
    "INFO 12-31 23:59:59 [loggers.py:9] Engine 000: Avg prompt throughput: 1 tokens/s",
    '\x1b[32mINFO\x1b[0m 01-01 00:00:01 [logger.py:41] Received request b: prompt: "it\'s", params: SamplingParams('
    "n=1), prompt_token_ids: None, prompt_embeds shape: None, lora_request: None.",
)


def test_vllm_logs() -> None:
    """Ids where they are logged, else the prompt's text; a year ends; whatever else stands in a log is no mistake."""
    held = read(*LOG)
    assert (held.format, held.skipped) == ("vllm", 0)
    assert list(held.trace.tokens) == [4, 4]
    assert list(held.trace.times) == sorted(held.trace.times)
    assert held.trace.times[1] - held.trace.times[0] == 3
    assert held.trace.names[:2] == array("q", chain_of_tokens(array("I", [1, 2, 3, 4]), 2))
    with pytest.raises(UsageError, match="names 1 requests, but not their prompts") as error:
        read(LOG[0])
    assert "DEBUG" in error.value.hint


def test_a_log_that_was_cut_is_suspected() -> None:
    """Many prompts of the same, greatest length."""
    line = "DEBUG 01-01 00:00:01 Request {} details: prompt: None, prompt_token_ids: {}, prompt_embeds shape: None."
    held = read(*(line.format(i, [i] * min(i, 8)) for i in range(1, 12)))
    assert held.cut == 8
    assert any("--max-log-len" in note for note in result.notes(held, setup()))


def test_mooncake_traces() -> None:
    """Milliseconds, whole blocks only, answers; ids that do not fit the length are told."""
    line = {"timestamp": 1500, "input_length": 9, "output_length": 5, "hash_ids": [0, 1, 2]}
    held = read(line, {**line, "timestamp": 3000, "hash_ids": [0, 1]})
    assert (held.format, held.trace.block) == ("mooncake", 4)
    assert list(held.trace.times) == [1.5, 3.0]
    assert held.trace.names[:2] == held.trace.names[2:]
    assert list(held.trace.answers) == [5, 5]
    with pytest.raises(UsageError, match=r"line 1: hash_ids: 1 of 16 tokens were expected .* 3 are there"):
        read(line, trace_block=16)


def test_lookup_logs_of_lmcache() -> None:
    """The chunks as LMCache names them."""
    line = {"timestamp": 1.5, "model_name": "m", "seq_len": 9, "chunk_size": 4, "chunk_hashes": ["0xa", "0xb"]}
    held = read(line, line)
    assert (held.format, held.trace.block, len(held.trace.names)) == ("lmcache", 4, 4)
    with pytest.raises(UsageError, match="line 2: blocks of 4 tokens were expected"):
        read(line, {**line, "chunk_size": 8, "chunk_hashes": ["0xa"]})


def test_prompts_with_times() -> None:
    """Text, ids or messages; seconds; sessions."""
    messages = [{"role": "user", "content": "abc"}]
    held = read({"timestamp": 0.5, "prompt": "abcd", "session": 7}, {"timestamp": 1, "messages": messages})
    assert (held.format, list(held.trace.tokens), held.trace.numbers) == ("prompts", [4, 3], {"7": 0})
    with pytest.raises(UsageError, match="line 2: a timestamp was expected, as in the first"):
        read({"timestamp": 0.5, "prompt": "abcd"}, {"prompt": "abcd"})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": ', "no JSON object"),
        ({"prompt": 7}, "prompt: text, a list of token ids"),
        ({"prompt": [-1]}, "token ids: whole numbers from 0"),
        ({"prompt": "a", "timestamp": True}, "timestamp: a number was expected"),
        ({"messages": []}, "messages: a list of messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "content: parts of text were expected, not 'image_url'",
        ),
        ({"prompt": ""}, "a prompt of at least one token"),
        ({"prompt": "a", "output_tokens": -3}, "output_tokens: a whole number from 0"),
    ],
)
def test_broken_lines_are_told(line: Any, why: str) -> None:
    """By number and by what was expected; with --skip-broken they are counted and left out."""
    good = {"prompt": "abcd"}
    with pytest.raises(UsageError, match=f"1 broken line in plain prompts:\n  line 2: {why}") as error:
        read(good, line, good)
    assert "--skip-broken" in error.value.hint
    held = read(good, line, good, skip=True)
    assert (len(held.trace), held.skipped) == (2, 1)
    assert result.notes(held, setup())[0].startswith("1 line holds no request")


KEYS = ("timestamp", "prompt", "messages", "session", "input_length", "hash_ids", "output_length", "url", "body")
MORE = ("seq_len", "chunk_size", "chunk_hashes", "custom_id", "role", "content", "asctime", "message", "user")
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just(10**400))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS + MORE), inner, max_size=4)
)
PIECES = ("DEBUG 02-30 01:01:01 ", "Request a details: prompt: ", "'\\x'", "'b", "prompt_token_ids: [", "1, 2]", "None")


@given(
    st.lists(
        st.dictionaries(st.sampled_from(KEYS + MORE), VALUES, max_size=9).map(json.dumps)
        | st.lists(st.sampled_from(PIECES)).map("".join)
        | st.text(),
        max_size=5,
    ),
    st.sampled_from([None, *formats.TITLES]),
)
@runs.CALM
def test_no_line_is_too_broken(lines: list[str], format: formats.Format | None) -> None:
    """Whatever stands in a file: requests, or a sentence."""
    with suppress(UsageError):
        held = reading.read(lines, reading.Cut(2, 4, 4), words_of, format=format, skip=True)
        assert len(held.trace) > 0


def test_what_is_no_file_of_requests() -> None:
    """The known formats are shown; nothing at all is no request."""
    for lines in (["hello"], []):
        with pytest.raises(UsageError, match=r"(?s)no line looks like a request.*a Mooncake trace"):
            read(*lines)
    with pytest.raises(UsageError, match="10 or more broken lines"):
        read({"prompt": "a"}, *["{"] * 100)
    assert formats.detect("[1]") is None


def test_sizes_of_the_shared_cache() -> None:
    """The given one first, and always one without a limit."""
    assert result.sizes(400, 10, 2) == (400, 100, 200, 800, 1600, None)
    assert result.sizes(None, 10, 2) == (None, 5, 10, 20, 40, 80)
    assert result.sizes(None, None, 2) == (None,)


TIMES = Times(1000, 900, 800, cold=2.0, local=0.2, reuse=0.5, basis="a run", device="a host")


def model() -> shape.Shape:
    """A small Llama."""
    found = shape.of(CONFIG)
    assert found is not None
    return found


def replayed(prompts: int, blocks: int) -> tuple[Trace, replay.Replay]:
    """The same prompt again and again, by two engines in turn."""
    trace = Trace(100)
    for _ in range(prompts):
        trace.add(chain_of_names(range(blocks)), blocks * 100 + 1)
    return trace, replay.replay(trace, setup(block=100, chunk=100))


def test_savings_are_those_of_the_measured_prompt() -> None:
    """A reuse as it was measured saves what it did then; twice the requests save it once, the third has it itself."""
    trace, played = replayed(3, 8)
    saved = savings.savings(trace, played, model(), TIMES, gpus=2)
    work = [model().linear_flops(n) + model().attention_flops(n) for n in (800, 900)]
    assert saved.engine_seconds == pytest.approx(1.8 * work[0] / work[1])
    assert saved.load_seconds == pytest.approx(0.3)
    assert saved.ttft_seconds == pytest.approx(saved.engine_seconds - 0.3)
    assert saved.gpu_seconds == pytest.approx(2 * saved.engine_seconds)
    assert (saved.faster, saved.slower) == (1, 0)
    assert saved.mean_ttft_without - saved.mean_ttft_with == pytest.approx(saved.ttft_seconds / 3)


def test_slow_loads_are_told() -> None:
    """Where loading takes longer than computing, sharing costs time, and the words say so."""
    trace, played = replayed(2, 8)
    saved = savings.savings(trace, played, model(), replace(TIMES, reuse=9.0))
    assert saved.ttft_seconds < 0
    assert (saved.faster, saved.slower, saved.gpu_seconds) == (0, 1, None)
    with pytest.raises(ValueError, match="not faster"):
        savings.savings(trace, played, model(), replace(TIMES, local=2.5))


def estimate(**changes: Any) -> result.Estimate:
    """An estimate of two prompts."""
    held = read({"timestamp": 0, "prompt": "abcdefgh"}, {"timestamp": 60, "prompt": "abcdefgh"})
    given_ = setup(block=2, own=8, sizes=result.sizes(8, 8, 2))
    found = result.build("requests.jsonl", held, given_, replay.replay(held.trace, given_), per_token=1024)
    return replace(found, **changes)


def test_what_is_said() -> None:
    """Every number of the document in words, and unknown where it is."""
    found = estimate()
    assert words.heading(found) == ("requests.jsonl, plain prompts: 2 requests in 60 s, 16 prompt tokens (mean 8.00)")
    assert "2 engines (in turn), each with a prefix cache of 8 tokens (8.00 KiB) in blocks of 2" in words.against(found)
    assert [row[1:] for row in words.sources(found)] == [
        ("0", "0.0 %"),
        ("7", "43.8 %"),
        ("0", "0.0 %"),
        ("9", "56.2 %"),
    ]
    first, kv, time = words.sentences(found)
    assert first.startswith("Sharing would save computing 7 of 16 prompt tokens")
    assert kv.startswith("KV at 1,024 bytes a token: 7.00 KiB would be loaded")
    assert time.startswith("Time saved: unknown")
    assert "unknown" in words.sentences(replace(found, shared_bytes=None))[1]
    assert [words.size(row, found)[0] for row in found.sizes][-2:] == ["32 tokens (32.0 KiB)", "no limit"]


EVERYTHING = ("--engine-cache", "unlimited")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command."""
    return runs.run("estimate", *arguments)


def save(path: Path, *lines: Any) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def mooncake(requests: int, seed: int = 1) -> list[dict[str, Any]]:
    """Conversations that begin with one of a few instructions and grow, as a Mooncake trace."""
    chance, fresh = random.Random(seed), iter(range(10**9))  # noqa: S311 (a trace, no secret)
    talks: dict[int, list[int]] = {}
    lines = []
    for number in range(requests):
        talk = chance.randrange(1 + requests // 4)
        ids = talks.setdefault(talk, [chance.randrange(3) - 10])
        ids.extend(next(fresh) for _ in range(chance.randint(1, 4)))
        length = len(ids) * 512 - chance.randrange(512)
        lines.append({"timestamp": 10 * number, "input_length": length, "output_length": 9, "hash_ids": list(ids)})
    return lines


def test_the_command(tmp_path: Path) -> None:
    """Without a profile or a model: sizes in tokens, one JSON document, whose parts add up."""
    file = save(tmp_path / "trace.jsonl", *mooncake(200))
    caches = ("--engine-cache", "20000tokens", "--shared-cache", "40_000tokens")
    done = run(file, "--json", "--engines", 3, *caches)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["mode"], found["format"], found["requests"], found["engines"]) == ("estimate", "mooncake", 200, 3)
    assert found["local_tokens"] + found["shared_tokens"] + found["computed_tokens"] == found["prompt_tokens"]
    assert found["own_cache_tokens"] == 20000 // 16 * 16 - 32
    tokens = [row["shared_tokens"] for row in found["sizes"]]
    assert tokens == sorted(tokens)
    assert tokens[2] == found["shared_tokens"] > 0
    assert found["savings"] is None
    assert found["shared_bytes"] is None
    text = run(file, "--engines", 3, *caches).stdout
    assert f"{found['shared_tokens']:,}" in text
    assert "KV bytes: unknown" in text


def test_the_command_with_times_of_a_run(tmp_path: Path) -> None:
    """A saved run of bench, or doctor's document, gives seconds; a run of another model is refused."""
    config = tmp_path / "model" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(CONFIG))
    (config.parent / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    file = save(tmp_path / "trace.jsonl", *mooncake(50))
    digest = json.loads(run(file, *EVERYTHING, "--model", config.parent, "--json").stdout)["model_digest"]
    saved = runs.save(tmp_path, "run", runs.samples(), model_digest=digest)
    for name in (saved, saved.with_suffix(".json")):
        done = run(file, *EVERYTHING, "--model", config.parent, "--from", name, "--json")
        assert done.returncode == 0, done
        time = json.loads(done.stdout)["savings"]
        assert time["faster"] > 0
        assert time["mean_ttft_with"] < time["mean_ttft_without"]
        assert f"medians of 3 trials of 1,000 tokens in {name.name}" in time["basis"]
    single = {"cold": 2.0, "local": 0.1, "basis": "measured"}
    tiers = [{"name": "memory", "reuse": 0.2}]
    predicted = {"prediction": {"tokens": 1000, "hit": 768, "times": single, "tiers": tiers}}
    done = run(
        file, *EVERYTHING, "--model", config.parent, "--from", save(tmp_path / "doctor.json", predicted), "--json"
    )
    assert "predicted by doctor" in json.loads(done.stdout)["savings"]["basis"]
    other = runs.save(tmp_path, "other", runs.samples(), model_digest="else")
    done = run(file, *EVERYTHING, "--model", config.parent, "--from", other)
    assert done.returncode == 2
    assert "another model" in done.stderr


def test_a_profile_says_the_rest(shared_lab: Lab) -> None:
    """Engines, caches, chunks and blocks are the profile's; what its engines would refuse is told."""
    lab = shared_lab
    config = lab.path / "model" / "config.json"
    config.write_text(json.dumps(CONFIG | {"max_position_embeddings": 4096}))
    file = save(lab.path / "trace.jsonl", *mooncake(100))
    done = lab.run("estimate", file, lab.profile(), "--json")
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert (found["engines"], found["block_size"], found["chunk_size"]) == (2, 128, 64)
    size = 2 * 2 * 2 * 16 * 2  # layers, keys and values, heads, values of a head, bytes
    assert found["kv_bytes_per_token"] == size
    assert found["own_cache_tokens"] == (2**30 // size // 128 - 2) * 128  # vLLM's CPU build counts whole GiB
    assert found["shared_cache_tokens"] == int(0.72 * 16 * 2**20) // size
    assert [note.split(":")[0] for note in found["notes"]][:2] == [
        "The server evicts before its 16.0 MiB are full",
        f"{sum(line['input_length'] >= 4096 for line in mooncake(100))} prompts would be refused",
    ]
    done = lab.run("estimate", file, lab.profile(), "--shared-cache", "unlimited", "--engine-cache", "1MiB", "--json")
    found = json.loads(done.stdout)
    assert (found["own_cache_tokens"], found["shared_cache_tokens"]) == ((2**20 // size // 128 - 2) * 128, None)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--engine-cache", "4GiB"], "how many bytes of KV a token has is not known"),
        ([], "how large is an engine's own prefix cache?"),
        (["--engine-cache", "banana"], "--engine-cache: expected a size such as 8GiB"),
        (["--engine-cache", "unlimited", "--routing", "session"], "its requests have no session"),
        (["--engine-cache", "unlimited", "--chunk-size", "300"], "neither parts nor multiples"),
        (["--engine-cache", "unlimited", "--from", "none.json"], "nobody knows what a part of a prompt costs"),
        (["--engine-cache", "unlimited", "--format", "openai"], "body: a JSON object was expected"),
        (["--model", "no/model", "--engine-cache", "4GiB"], "a model that is on this machine (none is downloaded)"),
    ],
)
def test_mistakes_have_a_sentence(tmp_path: Path, arguments: list[str], why: str) -> None:
    """Exit code 2, what is wrong and what to do; never a traceback."""
    done = run(save(tmp_path / "trace.jsonl", *mooncake(5)), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_file_comes_first(tmp_path: Path) -> None:
    """Whatever else is missing, too: a file of requests or of times that is not there is told at once."""
    done = run(tmp_path / "none.jsonl")
    assert (done.returncode, "none.jsonl: No such file" in " ".join(done.stderr.split())) == (2, True)
    assert "kvdemo estimate --help" in " ".join(done.stderr.split())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    file = save(tmp_path / "prompts.jsonl", {"prompt": "abc"})  # text, and no tokenizer
    doctor = save(tmp_path / "doctor.json", {"checks": [], "prediction": None})
    endless = {"tokens": 1e999, "hit": 1, "tiers": [{"name": "memory", "reuse": 0.2}]}
    endless |= {"times": {"cold": 2.0, "local": 0.1, "basis": "measured"}}
    files = {tmp_path / "times.json": "times.json", doctor: "doctor predicted no times there"}
    files[save(tmp_path / "endless.json", {"prediction": endless})] = "doctor predicted no times there"
    for times, said in files.items():
        done = run(file, *EVERYTHING, "--model", tmp_path, "--from", times)
        assert (done.returncode, said in " ".join(done.stderr.split())) == (2, True)


def test_engines_that_nobody_asks_cost_nothing(tmp_path: Path) -> None:
    """Ten million engines for fifty requests: each has its own, and nothing is shared by chance."""
    file = save(tmp_path / "trace.jsonl", *mooncake(50))
    document = json.loads(run(file, *EVERYTHING, "--engines", 10**7, "--json").stdout)
    assert (document["engines"], document["local_tokens"]) == (10**7, 0)


@pytest.mark.parametrize(
    ("without", "with_it", "said"),
    [
        (2.0, 1.0, "(2.0x faster)"),
        (1.0, 2.0, "(2.0x slower)"),
        (1.0, 1.001, "(no difference)"),
        (1.0, 0.0, "(no ratio)"),
    ],
)
def test_a_longer_time_is_called_slower(without: float, with_it: float, said: str) -> None:
    """And nothing saved takes no time; parts of a second that differ are not told as the same second."""
    saved = savings.Savings("b", "d", 0.0, None, 0.0, without - with_it, without, with_it, 0, 0)
    lines = " ".join(words.sentences(estimate(savings=saved)))
    assert said in lines
    assert "Computing saved: 0 ms of engines; loading takes 0 ms." in lines
    short = estimate(savings=replace(saved, engine_seconds=0.48, load_seconds=0.04))
    assert "Computing saved: 480 ms of engines; loading takes 40.0 ms." in " ".join(words.sentences(short))


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    """Which is asked for, and named if it cannot be loaded; a file that is not there is named too."""
    file = save(tmp_path / "prompts.jsonl", {"prompt": "abc"})
    done = run(file, *EVERYTHING)
    assert (done.returncode, "whose tokenizer?" in done.stderr) == (2, True)
    done = run(file, *EVERYTHING, "--model", tmp_path)
    assert done.returncode == 5
    assert f"the tokenizer of {tmp_path} cannot be loaded" in " ".join(done.stderr.split())
    done = run(tmp_path / "none.jsonl", *EVERYTHING)
    assert (done.returncode, "cannot read" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("script", "error", "why"),
    [
        ("echo gone >&2; exit 3", PreflightError, "the tokenizer of m cannot be loaded: gone"),
        ('echo \'{"error": "no such model"}\'', PreflightError, "the tokenizer of m cannot be loaded: no such model"),
        (
            "echo '{\"ready\": true}'; read line; printf ab; exit 3",
            ServiceError,
            "the tokenizer of m ended: exit code 3",
        ),
    ],
)
def test_a_tokenizer_that_dies(tmp_path: Path, script: str, error: type[Exception], why: str) -> None:
    """At the start, or in the middle of an answer: its last words, or its exit code."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(error, match=why), Tokenizer(str(python), os.environ, "m") as tokenizer:
        tokenizer([Text("abc")._asdict()])


def test_blocks_stand_for_themselves() -> None:
    """What a trace names keeps its names apart from what it was told of."""
    (request,) = formats.parse(json.dumps(mooncake(1)[0]), "mooncake", 512)
    assert isinstance(request.prompt, Blocks)
    assert request.prompt.size == 512
