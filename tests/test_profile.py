"""Profiles: what a right one means, and every line that a wrong one gets."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvdemo.backends import BACKENDS
from kvdemo.config.benchmark import Bench
from kvdemo.config.profile import Profile, load, schema
from kvdemo.errors import ProfileError

PROFILES = Path(__file__).parent.parent / "profiles"
GIB = 1024**3
ANY = "0.0.0.0"  # noqa: S104 (only looked at)

FULL = """\
name: demo4
env: { HF_HOME: "${HF_HOME:-~/.cache/huggingface}", LEVEL: 1.10 }
secrets: [HF_TOKEN]
runtime: { python: "${KVDEMO_PYTHON:-}" }
model: org/model
host: 0.0.0.0
start_timeout: 15m
x-first: &first { gpus: [0], memory: 0.4 }
defaults:
  engine: { max_model_len: 32768, memory: 0.6, args: { max_num_seqs: 8, dtype: auto }, env: { LEVEL: two, X: "1" } }
  cache: { l1: 4GiB, runtime: { python: ./venv/bin/python } }
caches:
  shared: { l2: "${KV_STORE_DIR:-./kv-store}", chunk_size: 128, port: 5555 }
engines:
  vllm-a: { <<: *first, port: "${PORT:-8000}" }
  vllm-b: { gpus: ["1", GPU-0a1b], memory: 20GiB, model: ../models/tiny, host: 127.0.0.1, kv_cache: 1.5GB }
  lmcache-a:
    cache: shared
    env: { LEVEL: three }
    args: { --max-num-seqs: 16, enforce-eager: true, compilation-config: { level: 3 } }
bench: { context: doc.txt, questions: ['Who?', 'Why?'] }
"""


def read(directory: Path, text: str, **environ: str) -> Profile:
    """Load this text as ``p.yaml`` in the directory."""
    (directory / "p.yaml").write_text(text)
    return load(directory / "p.yaml", environ)


def test_a_full_profile_is_resolved(tmp_path: Path) -> None:
    """Defaults and variables are merged, sizes are bytes, durations seconds, paths absolute."""
    profile = read(tmp_path, FULL)
    a, b, cached = profile.engines.values()
    assert (profile.name, profile.version, profile.path) == ("demo4", 1, tmp_path / "p.yaml")
    assert (profile.secrets, profile.start_timeout, profile.stop_timeout) == (("HF_TOKEN",), 900.0, 30.0)
    assert (a.gpus, a.port, a.memory, a.model, a.host, a.cache) == ((0,), 8000, 0.4, "org/model", ANY, None)
    assert (b.gpus, b.memory, b.kv_cache, b.host) == ((1, "GPU-0a1b"), 20 * GIB, 1_500_000_000, "127.0.0.1")
    assert b.model == str(tmp_path.parent / "models/tiny")
    assert cached.args == {
        "max-num-seqs": 16,
        "dtype": "auto",
        "enforce-eager": True,
        "compilation-config": {"level": 3},
    }
    assert cached.env == {"HF_HOME": "~/.cache/huggingface", "LEVEL": "three", "X": "1"}
    assert (cached.gpus, cached.memory, cached.max_model_len, cached.runtime.python) == ("auto", 0.6, 32768, None)
    cache = profile.caches["shared"]
    assert (cache.l1, cache.l2, cache.chunk_size, cache.port) == (4 * GIB, str(tmp_path / "kv-store"), 128, 5555)
    assert cache.env == {"HF_HOME": "~/.cache/huggingface", "LEVEL": "1.10"}
    assert (cache.runtime.python, cache.host) == (str(tmp_path / "venv/bin/python"), ANY)
    assert (profile.bench.context, profile.bench.questions) == (tmp_path / "doc.txt", ("Who?", "Why?"))


def test_the_smallest_profile(tmp_path: Path) -> None:
    """One engine and a model are enough; the file's name becomes the fleet's; empty sections are none."""
    file = tmp_path / "My demo_4.yaml"
    file.write_text("model: m\nenv:\ncaches:\nbench:\nengines:\n  a:\n")
    profile = load(file, {})
    assert profile.name == "my-demo-4"
    assert profile.engines["a"].model == "m"
    assert profile.engines["a"].gpus == "auto"
    assert profile.bench.trials == 3


def test_variables_come_from_the_environment_then_dotenv(tmp_path: Path) -> None:
    """The environment wins over .env; an empty variable of an optional key leaves the key out."""
    (tmp_path / ".env").write_text("export PORT=9000\nMODEL='a/b'\n")
    text = "model: ${MODEL}\nengines: {a: {port: $PORT, memory: '${MEM:-}'}}\n"
    assert read(tmp_path, text).engines["a"].port == 9000
    engine = read(tmp_path, text, PORT="9001", MODEL="~/m", HOME="/home/me").engines["a"]
    assert (engine.port, engine.model, engine.memory) == (9001, "/home/me/m", None)


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("15m", 900), ("2h", 7200), ("1h 30m", 5400)]
)
def test_durations(tmp_path: Path, written: str, seconds: float) -> None:
    """A number is seconds; text carries its units."""
    assert read(tmp_path, f"start_timeout: {written}\nmodel: m\nengines: {{a: }}").start_timeout == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [("2147483648", 2 * GIB), ("512MiB", GIB // 2), ("1.5GB", 1_500_000_000), ("8Gi", 8 * GIB), ("'8 gib'", 8 * GIB)],
)
def test_sizes(tmp_path: Path, written: str, size: int) -> None:
    """A number is bytes; GiB is 1024 cubed, GB 1000 cubed."""
    assert read(tmp_path, f"model: m\nengines: {{a: }}\ncaches: {{c: {{l1: {written}}}}}").caches["c"].l1 == size


ONE = "model: m\nengines: {a: }\n"
TITLES = " or ".join(one.title for one in BACKENDS.values())
BROKEN = {
    "version": (ONE + "version: 2\n", ["3:10: version: expected 1, the version of the file format, got 2"]),
    "misspelt keys": (
        "modle: m\nengines:\n  a:\n    gpu: [2]\n    memory: 0.5\n",
        [
            "1:1: unknown key 'modle' (did you mean 'model'?)",
            "4:5: engines.a: unknown key 'gpu' (did you mean 'gpus'?)",
        ],
    ),
    "keys of other parts": (
        ONE + "caches: {c: {memory: 0.5, zzz: 1}}\nbench: {cache: c, zzz: 1}\ntrials: 3\n",
        [
            "3:14: caches.c: unknown key 'memory' (it belongs in an engine)",
            f"3:27: caches.c: unknown key 'zzz' (a flag of {TITLES} goes under 'args')",
            "4:9: bench: unknown key 'cache' (it belongs in an engine)",
            f"4:19: bench: unknown key 'zzz' (known here: {', '.join(Bench.model_fields)})",
            "5:1: unknown key 'trials' (it belongs under 'bench')",
        ],
    ),
    "a flag outside of args": (
        "model: m\nengines: {a: {enforce_eager: true, gpu_memory_utilization: 0.5}}\n",
        [
            "2:15: engines.a: unknown key 'enforce_eager' (a flag of vLLM goes under 'args')",
            "2:36: engines.a: unknown key 'gpu_memory_utilization' (did you mean 'memory'?)",
        ],
    ),
    "path is no key": (ONE + "path: x\n", ["3:1: unknown key 'path' (known here: {top})"]),
    "no engines": (
        "model: m\nengines:\n",
        ["2:9: engines: at least one engine is needed, such as 'engines: {vllm-a: {}}'"],
    ),
    "engines misspelt": ("model: m\nengins: {a: }\n", ["2:1: unknown key 'engins' (did you mean 'engines'?)"]),
    "wrong types": (
        "model: 7\nname: Demo_4\nhost: http://x:1\nstart_timeout: soon\nstop_timeout: 0\nsecrets: hf_abcdef\n"
        "engines: {a: [], b: {port: 80, cache: [], max_model_len: 1.5, args: x}}\n",
        [
            "1:8: model: expected text, got 7 (put it in quotes)",
            "2:7: name: 'Demo_4' is not a name: use lower-case letters, digits and '-', at most 63 (such as 'demo-4')",
            "3:7: host: expected an address without scheme or port, such as 127.0.0.1 or 0.0.0.0, got 'http://x:1'",
            "4:16: start_timeout: expected a duration such as 90s, 15m or 2h, got 'soon'",
            "5:15: stop_timeout: expected a duration above zero and of at most 240h, got 0",
            "6:10: secrets: expected a list of names of variables, such as [HF_TOKEN]",
            "7:14: engines.a: expected 'key: value' lines (a mapping), got a list",
            "7:28: engines.b.port: expected a port from 1024 to 65535, got 80",
            "7:39: engines.b.cache: expected text, got a list",
            "7:58: engines.b.max_model_len: expected a number of tokens such as 32768 or 32k, or auto, got 1.5",
            "7:69: engines.b.args: expected 'key: value' lines (a mapping), got 'x'",
        ],
    ),
    "booleans are no numbers": (
        "model: m\nengines: {a: {port: true, memory: yes, kv_cache: on, gpus: [true]}}\n",
        [
            "2:21: engines.a.port: expected a port from 1024 to 65535, got true",
            "2:35: engines.a.memory: expected a fraction of the GPU such as 0.6, or a size such as 20GiB, got true",
            "2:50: engines.a.kv_cache: expected a size such as 8GiB, 512MiB or 1.5GB, got true",
            "2:61: engines.a.gpus[0]: expected the index of a GPU (from 0), or its UUID (GPU-...), got true",
        ],
    ),
    "gpus": (
        "model: m\nengines: {a: {gpus: 0}, b: {gpus: [0, -1]}, c: {gpus: [2, 2]}, d: {gpus: [cuda0]}}\n",
        [
            "2:21: engines.a.gpus: expected a list such as [0] or [0, 1], [] for none, or auto, got 0",
            "2:39: engines.b.gpus[1]: expected the index of a GPU (from 0), or its UUID (GPU-...), got -1",
            "2:59: engines.c.gpus[1]: GPU 2 is named twice",
            "2:75: engines.d.gpus[0]: expected the index of a GPU (from 0), or its UUID (GPU-...), got 'cuda0'",
        ],
    ),
    "sizes": (
        ONE + "caches: {a1: {l1: 8}, b1: {l1: 8G}, c1: {l1: big}, d1: {l1: 0}, e1: {l1: 99999999999999999999}}\n"
        "defaults: {engine: {memory: 20}}\n",
        [
            "3:19: caches.a1.l1: 8 means 8 bytes; is 8GiB meant?",
            "3:32: caches.b1.l1: '8G' can mean two sizes: write 8GiB or 8GB",
            "3:46: caches.c1.l1: expected a size such as 8GiB, 512MiB or 1.5GB, got 'big'",
            "3:61: caches.d1.l1: 0 means 0 bytes, which is too small",
            "3:74: caches.e1.l1: expected a size such as 8GiB, 512MiB or 1.5GB, got 99999999999999999999",
            "4:29: defaults.engine.memory: expected a fraction of the GPU up to 1.0, or a size such as 20GiB, "
            "got 20 (is 20GiB meant?)",
        ],
    ),
    "defaults are told once": (
        "model: m\ndefaults: {engine: {prot: 1, chunk_size: 1}, cache: {chunk_size: 8}}\n"
        "engines: {a: , b: }\ncaches: {c: , d: }\n",
        [
            "2:21: defaults.engine: unknown key 'prot' (did you mean 'port'?)",
            "2:30: defaults.engine: unknown key 'chunk_size' (it belongs in a cache)",
            "2:66: defaults.cache.chunk_size: expected a whole number of at least 16, got 8",
        ],
    ),
    "names": (
        "model: m\nengines: {vllm_a: , shared: }\ncaches: {shared: }\n",
        [
            "2:11: engines: 'vllm_a' is not a name: use lower-case letters, digits and '-', at most 63 "
            "(such as 'vllm-a')",
            "2:21: engines.shared: a cache is called 'shared', too",
        ],
    ),
    "unknown caches": (
        "model: m\nengines: {a: {cache: sharde}, b: {cache: zzz}}\ncaches: {shared: {l1: 1}}\n",
        [
            "2:22: engines.a.cache: no cache is called 'sharde' (did you mean 'shared'?)",
            "2:42: engines.b.cache: no cache is called 'zzz' (there is: shared)",
            "3:23: caches.shared.l1: 1 means 1 bytes; is 1GiB meant?",
        ],
    ),
    "no cache at all": (
        "model: m\nengines: {a: {cache: x}}\n",
        ["2:22: engines.a.cache: no cache is called 'x' (there is none)"],
    ),
    "no model": (
        "engines:\n  a:\n  b:\n  c: {model: m}\n",
        ["2:3: engines.a: no model: give 'model' here, under defaults.engine or at the top (nor for b)"],
    ),
    "ports": (
        "model: m\ncaches: {s: {port: 9000, http_port: 9000}}\n"
        "engines: {a: {port: 8000}, b: {port: 8000}, c: {port: 9000}}\n",
        [
            "2:37: caches.s.http_port: port 9000 is used twice: caches.s.port has it, too",
            "3:38: engines.b.port: port 8000 is used twice: engines.a.port has it, too",
            "3:55: engines.c.port: port 9000 is used twice: caches.s.port has it, too",
        ],
    ),
    "a port in defaults": (
        "model: m\ndefaults: {engine: {port: 8000}}\nengines: {a: , b: }\n",
        ["2:27: engines.b.port: port 8000 is used twice: engines.a.port has it, too"],
    ),
    "fractions": (
        "model: m\ndefaults: {engine: {memory: 0.6}}\nengines:\n  a: {gpus: [0]}\n  b: {gpus: [1, 0], memory: 0.3}\n"
        "  c: {gpus: [0]}\n  d: {memory: 1.0}\n",
        ["6:13: engines.c: GPU 0 is given away more than once: a 0.6 + b 0.3 + c 0.6 = 1.5 of 1.0"],
    ),
    "environment": (
        ONE + "secrets: [HF_TOKEN, hf-x]\nenv: {HF_TOKEN: hf_x, 'A B': 1, C: [], D: }\n",
        [
            "3:21: secrets[1]: expected the name of a variable, such as HF_TOKEN, never its value",
            "4:23: env.A B: not the name of a variable: use letters, digits and '_'",
            "4:36: env.C: expected text, got a list",
            '4:42: env.D: expected text, got nothing (write "" for an empty value)',
        ],
    ),
    "a secret in env": (
        ONE + "secrets: [HF_TOKEN]\ndefaults: {engine: {env: {HF_TOKEN: hf_x}}}\n",
        [
            "4:27: defaults.engine.env.HF_TOKEN: is under 'secrets': engines get it from your environment; "
            "remove it here"
        ],
    ),
    "flags with a key": (
        "model: m\nengines: {a: {args: {--port: 1, max_num_seqs: 1, max-num-seqs: 2, 'a b': 1}}}\n"
        "defaults: {engine: {args: {gpu_memory_utilization: 0.5}}}\n",
        [
            "2:22: engines.a.args.--port: this flag has a key of its own: write 'port' outside of args",
            "2:50: engines.a.args.max-num-seqs: the flag --max-num-seqs is given twice",
            "2:67: engines.a.args.a b: not a flag: write it as max-num-seqs or max_num_seqs",
            "3:28: defaults.engine.args.gpu_memory_utilization: this flag has a key of its own: "
            "write 'memory' outside of args",
        ],
    ),
    "the adapter's directory": (
        "model: m\nengines: {a: {cache: s}}\ncaches: {s: {l2: ./kv, l2_adapter: {type: fs, base_path: /x}}}\n",
        ["3:47: caches.s.l2_adapter.base_path: kvdemo makes the directory: write 'l2', beside l2_adapter"],
    ),
    "variables": (
        "model: ${MODEL}\nname: ${NAME:?which fleet}\nengines: {a: {port: '${PORT:-http}', gpus: [$GPU]}}\n",
        [
            "1:8: model: variable MODEL is not set; set it, or give it a default: ${MODEL:-...}",
            "2:7: name: variable NAME is not set: which fleet",
            "3:21: engines.a.port: expected a port from 1024 to 65535, got 'http'",
            "3:45: engines.a.gpus[0]: variable GPU is not set; set it, or give it a default: ${GPU:-...}",
        ],
    ),
    "bench": (
        ONE + "bench: {trials: many, questions: [], max_tokens: 0, system: }\n",
        [
            "3:17: bench.trials: expected a whole number of at least 1, got 'many'",
            "3:34: bench.questions: the list is empty; expected at least one text",
            "3:50: bench.max_tokens: expected a whole number of at least 1, got 0",
            "3:60: bench.system: expected text, got nothing",
        ],
    ),
    "an L2 that is neither": (
        ONE + "caches:\n  x: {l2: 'redis://:secret@host'}\n  y: {l2: http://host}\n  z: {l2: 'redis://h:port'}\n",
        [
            "4:11: caches.x.l2: a password does not belong in a profile: name LMCACHE_RESP_PASSWORD (and "
            "LMCACHE_RESP_USERNAME) under secrets, and write redis://HOST:PORT",
            "5:11: caches.y.l2: expected a directory, or a server as redis://HOST:PORT, got 'http://host'",
            "6:11: caches.z.l2: expected a directory, or a server as redis://HOST:PORT, got 'redis://h:port'",
        ],
    ),
    "a place that is none": (
        ONE + "on: {ray: {adress: auto, placement: near, address: 'ray://h'}}\n",
        [
            "3:12: on.ray: unknown key 'adress' (did you mean 'address'?)",
            "3:37: on.ray.placement: expected spread (engines on different nodes as far as possible) or pack (on few), "
            "got 'near'",
            "3:52: on.ray.address: expected auto (the cluster that this machine is a node of) or HOST:PORT, got "
            "'ray://h'",
        ],
    ),
    "a cluster's words on one machine": (
        "model: m\nengines: {a: {gpus: 2}, b: {gpus: 0}}\n",
        [
            "2:21: engines.a.gpus: a number of GPUs is for a cluster; on one machine name them, such as [0], or write "
            "auto",
            "2:35: engines.b.gpus: expected a list such as [0] or [0, 1], [] for none, or auto, got 0",
        ],
    ),
    "one machine's words on a cluster": (
        "model: m\non: ray\nhost: 0.0.0.0\nengines: {a: {gpus: [0, 1]}, b: {gpus: 2}, c: {}, d: {gpus: []}}\n",
        [
            "3:7: host: on a cluster every service listens on its node's address; leave host out",
            "4:21: engines.a.gpus: on a cluster GPUs are counted, not named: write 2",
        ],
    ),
    "what carries the KV, and what nobody knows": (
        "model: m\ncaches: {c: {kind: lmcache}, d: {kind: memcached}, e: {kind: [a]}}\nengines: {a: {cache: c}}\n",
        [
            f"2:40: caches.d.kind: expected {' or '.join(BACKENDS)}, got 'memcached'",
            f"2:62: caches.e.kind: expected {' or '.join(BACKENDS)}, got a list",
        ],
    ),
    "a cached engine that is wired by hand": (
        "model: m\ncaches: {c: }\nengines: {a: {cache: c, args: {kv-transfer-config: {}}}}\n",
        [
            "3:32: engines.a.args.kv-transfer-config: an engine with a cache is wired by kvdemo to the cache server "
            "beside it; leave this flag out",
        ],
    ),
    "a model that is neither": (
        "model: models/a/b\nengines: {a: }\n",
        [
            "1:8: model: expected a Hugging Face id, or a directory beginning with ./ ../ / or ~, got 'models/a/b'",
        ],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_mistake_is_told_at_its_place(tmp_path: Path, case: str) -> None:
    """All mistakes at once, in order, each with its line and a caret under the key or value that is wrong."""
    text, expected = BROKEN[case]
    with pytest.raises(ProfileError) as caught:
        read(tmp_path, text)
    lines = str(caught.value).splitlines()
    top = ", ".join(name for name in Profile.model_fields if name != "path")
    assert lines[::3] == [f"{tmp_path / 'p.yaml'}:{line}".replace("{top}", top) for line in expected]
    for message, line, caret in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        number, column = message.removeprefix(f"{tmp_path / 'p.yaml'}:").split(":")[:2]
        assert line.startswith(f"{number:>5} | ")
        assert caret.index("^") == 8 + int(column) - 1 or "…" in line


def test_the_whole_message(tmp_path: Path) -> None:
    """What a user sees, to the letter."""
    with pytest.raises(ProfileError) as caught:
        read(tmp_path, "model: m\nengines:\n  a:\n    gpu: [2]\n")
    assert str(caught.value) == (
        f"{tmp_path}/p.yaml:4:5: engines.a: unknown key 'gpu' (did you mean 'gpus'?)\n"
        "    4 |     gpu: [2]\n"
        "      |     ^"
    )


def test_a_secret_is_never_repeated(tmp_path: Path) -> None:
    """The value of a secret gets into no value and no message, wherever its name is listed."""
    for text in (
        "secrets: [KEY]\nmodel: ${KEY}\nengines: {a: {port: $KEY}}\n",
        "x-s: &s {secrets: [KEY]}\n<<: *s\nmodel: ${NO:-${KEY}}\nengines: {a: {port: '${KEY:?}'}}\n",
        "secrets: KEY\nmodel: m\nengines: {a: {args: {token: '$KEY'}}}\n",
    ):
        with pytest.raises(ProfileError) as caught:
            read(tmp_path, text, KEY="hf_hidden")
        assert "KEY is under 'secrets'" in str(caught.value)
        assert "hidden" not in str(caught.value)


def test_a_mistake_in_dotenv_is_told_with_the_others(tmp_path: Path) -> None:
    """A finding in .env stands beside those in the profile."""
    (tmp_path / ".env").write_text("A=1\nnonsense\n")
    with pytest.raises(ProfileError) as caught:
        read(tmp_path, ONE + "version: 2\n")
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()[::3]] == [
        f"{tmp_path}/.env:2:1",
        f"{tmp_path}/p.yaml:3:10",
    ]


def described(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every property of a JSON Schema."""
    if isinstance(part, dict):
        for name, value in part.get("properties", {}).items():
            yield f"{path}.{name}", value
        for name, value in part.items():
            yield from described(value, f"{path}.{name}")


def test_the_schema_describes_every_key() -> None:
    """Editors show a description for every key, and take numbers, or text with a variable."""
    properties = dict(described(schema()))
    assert len(properties) > 40
    assert [path for path, value in properties.items() if not value.get("description")] == []
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (FULL, True),
        (ONE, True),
        ("model: m\nengines: {a: {port: '${PORT:-8000}', memory: '${M}', gpus: ['${G}'], kv_cache: 4GiB}}", True),
        ("model: m\nx-a: {}\nname: '${N}'\nstart_timeout: 15m\nengines: {a: {gpus: auto, memory: 0.5}}", True),
        ("model: m\nengines: {}", False),
        ("model: m", False),
        ("model: m\nengines: {a: {gpu: [0]}}", False),
        ("model: m\nengines: {a_b: {}}", False),
        ("model: m\nengines: {a: {port: 80}}", False),
        ("model: m\nengines: {a: {memory: 1.5}}", False),
        ("model: m\nengines: {a: {gpus: 0}}", False),
        ("model: m\n'on': ray\nengines: {a: {gpus: 2}}", True),
        ("model: m\n'on': {ray: {address: 'h:6379', placement: pack}}\nengines: {a: {}}", True),
        ("model: m\n'on': {ray: {placement: near}}\nengines: {a: {}}", False),
        ("model: m\n'on': slurm\nengines: {a: {}}", False),
        ("version: 2\nengines: {a: {}}", False),
        ("path: x\nengines: {a: {}}", False),
        ("start_timeout: soon\nengines: {a: {}}", False),
    ],
)
def test_the_schema_agrees_with_load(tmp_path: Path, text: str, fits: bool) -> None:
    """What load takes, the schema takes; what load refuses for its shape, the schema refuses."""
    assert jsonschema.Draft202012Validator(schema()).is_valid(yaml.safe_load(text)) is fits
    if fits:
        assert read(tmp_path, text, M="0.5", G="1", N="n").engines
    else:
        with pytest.raises(ProfileError):
            read(tmp_path, text)


def test_the_published_schema_is_current() -> None:
    """profiles/kvdemo.schema.json is what `python -m kvdemo.config.profile` prints."""
    shown = subprocess.run([sys.executable, "-m", "kvdemo.config.profile"], capture_output=True, text=True, check=True)
    assert (PROFILES / "kvdemo.schema.json").read_text() == shown.stdout
    assert json.loads(shown.stdout) == schema()


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_profiles_load(file: Path) -> None:
    """Every profile that ships is right with an empty environment, and right for editors."""
    assert load(file, {}).engines
    jsonschema.validate(yaml.safe_load(file.read_text()), schema())


NAMES = st.sampled_from(
    [*Profile.model_fields, "a", "l1", "gpus", "memory", "args", "engine", "cache", "<<", "x-a", "port"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["$A", "${A:-1}", "8GiB"]),
)
TREES = st.recursive(
    SCALARS, lambda tree: st.one_of(st.lists(tree, max_size=3), st.dictionaries(NAMES, tree, max_size=5))
)
TEXTS = st.one_of(
    st.binary(max_size=80),
    st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,? \n\t$<\\0", max_size=60).map(str.encode),
    st.dictionaries(NAMES, TREES, max_size=6).map(lambda tree: yaml.safe_dump(tree).encode()),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=TEXTS, environment=st.binary(max_size=20))
def test_no_input_ends_in_a_traceback(tmp_path: Path, data: bytes, environment: bytes) -> None:
    """Whatever the file and .env hold, there is a Profile that can be stored, or a ProfileError."""
    (tmp_path / "p.yaml").write_bytes(data)
    (tmp_path / ".env").write_bytes(environment)
    with contextlib.suppress(ProfileError):
        assert load(tmp_path / "p.yaml", {"A": "1"}).model_dump_json()
