"""Flags of a profile: whatever vLLM's parser takes can be written, and arrives there as it was meant."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvdemo.config import decisions, flags, secrecy
from kvdemo.config.profile import Cache, load
from kvdemo.errors import ProfileError


def of_profile(directory: Path, written: dict[str, Any]) -> dict[str, Any]:
    """The args of an engine as a profile of this text has them."""
    file = directory / "p.yaml"
    file.write_text(yaml.safe_dump({"model": "m", "engines": {"a": {"gpus": [0], "args": written}}}, sort_keys=False))
    return load(file, {"HOME": "/home/me"}).engines["a"].args


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"max_num_seqs": 8, "--seed": 1, "dtype": "half"}, "--max-num-seqs 8 --seed 1 --dtype half"),
        ({"enforce-eager": True, "async-scheduling": False}, "--enforce-eager --no-async-scheduling"),
        ({"no-enforce-eager": True, "no_async_scheduling": "false"}, "--no-enforce-eager --async-scheduling"),
        ({"enforce-eager": "true", "async-scheduling": "False"}, "--enforce-eager --no-async-scheduling"),
        ({"enforce-eager": None, "aggregate-engine-logging": False}, ""),
        (
            {"-q": "fp8", "-O": 3, "cc": {"mode": 3}},
            '--quantization fp8 --optimization-level 3 --compilation-config {"mode":3}',
        ),
        ({"-O3": None}, "--optimization-level 3"),
        ({"logits-processors": ["a.b", "c.d"]}, "--logits-processors a.b c.d"),
        ({"middleware": ["a.b", "c.d"]}, "--middleware a.b --middleware c.d"),
        ({"middleware": "a.b"}, "--middleware a.b"),
        ({"allowed-origins": ["*", "http://x"]}, '--allowed-origins ["*","http://x"]'),
        ({"allowed-origins": "*", "allowed-methods": '["GET"]'}, '--allowed-origins ["*"] --allowed-methods ["GET"]'),
        ({"allowed-headers": []}, "--allowed-headers []"),
        ({"lora-modules": [{"name": "x", "path": "/l"}, "y=o/y"]}, '--lora-modules {"name":"x","path":"/l"} y=o/y'),
        ({"lora-modules": '[{"name":"x","path":"/l"}]'}, '--lora-modules {"name":"x","path":"/l"}'),
        ({"disable-access-log-for-endpoints": ["/health", "/m"]}, "--disable-access-log-for-endpoints /health,/m"),
        ({"hf-overrides": {"a_b": {"c": [1]}}}, '--hf-overrides {"a_b":{"c":[1]}}'),
        (
            {"hf_overrides.rope_scaling.factor": 2, "compilation-config.use_x": True},
            "--hf-overrides.rope_scaling.factor 2 --compilation-config.use_x true",
        ),
        ({"seed": -1, "response-role": "-x"}, "--seed -1 --response-role=-x"),
    ],
)
def test_a_value_becomes_the_words_that_its_flag_takes(tmp_path: Path, written: dict[str, Any], words: str) -> None:
    """Underscores or dashes, short names, both boolean forms, and each kind of list as vLLM reads it."""
    assert " ".join(flags.words(of_profile(tmp_path, written))) == words


def test_lmcache_takes_the_same_kinds() -> None:
    """An appended flag is repeated, a switch that is off is left out."""
    cache = Cache(args={"server_module": ["a", "b"], "enable-tracing": False, "no-l1-use-lazy": True})
    assert flags.words(cache.args) == ("--server-module", "a", "--server-module", "b", "--no-l1-use-lazy")


PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
names = sorted(n.lstrip("-") for a in parser._actions for n in a.option_strings if n.startswith("--"))
def parsed(words):
    try: return {k: repr(v) for k, v in vars(parser.parse_args(words)).items()}
    except SystemExit: return None
for line in sys.stdin:
    print("parsed", json.dumps([names, [parsed(words) for words in json.loads(line)]]), flush=True)
"""

ANSWER = "parsed "
Parsed = Callable[[list[list[str]]], tuple[list[str], list[dict[str, str] | None]]]
"""Asks for the names of vLLM's flags, and what its own parser makes of command lines (None: it refuses)."""


@pytest.fixture(scope="module")
def parsed() -> Iterator[Parsed]:
    """The parser of vLLM, in one process for all: vLLM takes eight seconds to import."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARSE], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        tell, hear = process.stdin, process.stdout

        def ask(commands: list[list[str]]) -> tuple[list[str], list[dict[str, str] | None]]:
            print(json.dumps(commands), file=tell, flush=True)
            for line in hear:
                if line.startswith(ANSWER):
                    names, values = json.loads(line.removeprefix(ANSWER))
                    return names, values
            raise AssertionError("vLLM's parser has ended")

        yield ask
        tell.close()
        hear.read()


def test_vllm_reads_what_the_profile_means(tmp_path: Path, parsed: Parsed) -> None:
    """Each line pairs args of a profile with the words a user would type; vLLM's parser makes the same of both."""
    pairs: list[tuple[dict[str, Any], list[str]]] = [
        ({"-tp": 1, "pp": 1}, ["-tp", "1", "-pp", "1"]),
        ({"allowed-origins": "*"}, ["--allowed-origins", '["*"]']),
        ({"middleware": ["a.b", "c.d"]}, ["--middleware", "a.b", "--middleware", "c.d"]),
        ({"lora-modules": [{"name": "x", "path": "o/x"}, "y=o/y"]}, ["--lora-modules", "x=o/x", "y=o/y"]),
        ({"lora-modules": "[" + '{"name": "x", "path": "o/x"}]'}, ["--lora-modules", "x=o/x"]),
        (
            {"speculative-config": {"method": "ngram", "num_speculative_tokens": 3}},
            ["--speculative-config.method", "ngram", "--speculative-config.num_speculative_tokens", "3"],
        ),
        ({"compilation-config.cudagraph_mode": "NONE"}, ["-cc.cudagraph_mode", "NONE"]),
        ({"hf-overrides": {"rope_parameters": {"factor": 4.0}}}, ["--hf_overrides.rope_parameters.factor", "4.0"]),
        ({"hf-overrides.a.b": [1, 2], "hf-overrides.a.c": True}, ["--hf-overrides", '{"a":{"b":[1,2],"c":true}}']),
        ({"max_num_batched_tokens": "2k"}, ["--max-num-batched-tokens", "2000"]),
        ({"disable-access-log-for-endpoints": ["/a", "/b"]}, ["--disable-access-log-for-endpoints", "/a,/b"]),
        ({"aggregate-engine-logging": False, "no-async-scheduling": "true"}, ["--no-async-scheduling"]),
        ({"cudagraph-capture-sizes": [1, 2]}, ["--cudagraph-capture-sizes", "1", "2"]),
        ({"-O": 0, "limit-mm-per-prompt": {"image": 2}}, ["-O0", "--limit-mm-per-prompt", '{"image": 2}']),
        ({"response-role": "-user"}, ["--response-role=-user"]),
    ]
    ours = [list(flags.words(of_profile(tmp_path, written))) for written, _ in pairs]
    _, values = parsed(ours + [typed for _, typed in pairs])
    assert None not in values
    assert values[: len(pairs)] == values[len(pairs) :]


def test_what_is_said_of_flags_is_true_of_vllm(parsed: Parsed) -> None:
    """Every flag that a table names is one of vLLM's, and none of vLLM's is taken for the beginning of another."""
    names, _ = parsed([])
    assert not set(decisions.REMOVED) & set(names)
    engine = {*decisions.OWN_KEYS, *flags.SHORT.values()} - {"help"}
    assert engine <= set(names)
    own = {n for n in names if "key of its own" in "".join(decisions.of_engine(n, "x", cached=None))}
    assert own == set(decisions.OWN_KEYS)
    abbreviations = [n for n in names if any("whole name" in t for t in decisions.of_engine(n, "x", cached=None))]
    assert abbreviations == []


def findings(directory: Path, text: str, **environ: str) -> str:
    """Everything that is wrong with a profile of this text; empty if nothing is."""
    file = directory / "p.yaml"
    file.write_text(text)
    try:
        load(file, environ)
    except ProfileError as error:
        return str(error)
    return ""


SHARED = "model: m\ncaches: {s: }\n"


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("args: {gpu-memory-util: 0.5}", "write a flag's whole name"),
        ("args: {device_memory_utilization: 0.5}", "write 'memory'"),
        ("args: {device-ids: [0]}", "write 'gpus'"),
        ("args: {config: c.yaml}", "write the flags of that file here"),
        ("args: {uds: /tmp/s}", "on 'host' and 'port'"),
        ("args: {ssl-certfile: c.pem}", "plain HTTP"),
        ("args: {enable-prefix-caching: false}", "prefix cache"),
        ("args: {no-enable-prefix-caching: true}", "prefix cache"),
        ("args: {enable-prefix-caching: 'False'}", "prefix cache"),
        ("args: {disable-log-stats: true}", "where the tokens of an answer came from"),
        ("args: {enable-prompt-tokens-details: no}", "where the tokens of an answer came from"),
        ("args: {runner: pooling}", "asks for text"),
        ("args: {headless: true}", "asks for text"),
        ("args: {help: true}", "ends the engine"),
        ("args: {port: null}", "write 'port'"),
        ("args: {enable-prompt-tokens-details: null}", "where the tokens of an answer came from"),
        ("args: {download-dir: /models}", "HF_HUB_CACHE"),
        ("args: {load-format: gguf}", "GGUF is not supported"),
        ("cache: s, args: {kv-transfer-config: null}", "wired by kvdemo"),
        ("env: {VLLM_USE_MODELSCOPE: 'True'}", "from Hugging Face"),
        ("env: {SPT_NOENV: '0'}", "leaves behind"),
        ("args: {kv-transfer-config.kv_connector: LMCacheConnectorV1}", "write 'cache: NAME'"),
        ('args: {kv-transfer-config: \'{"kv_connector": "LMCacheMPConnector"}\'}', "write 'cache: NAME'"),
        ("cache: s, args: {kv-offloading-size: 4}", "wired by kvdemo"),
        ("cache: s, args: {kv_transfer_config: {kv_connector: X}}", "wired by kvdemo"),
        ("cache: s, args: {block-size: 96}", "96 does not divide chunk_size 256"),
        ("cache: s, args: {block_size: '48'}", "48 does not divide"),
        ("env: {CUDA_VISIBLE_DEVICES: '1'}", "write 'gpus'"),
        ("env: {VLLM_CPU_KVCACHE_SPACE: '1'}", "write 'kv_cache'"),
        ("env: {LMCACHE_CHUNK_SIZE: '1'}", "write 'chunk_size'"),
        ("env: {LMCACHE_CONFIG_FILE: l.yaml}", "write 'l1', 'l2' and 'chunk_size'"),
        ("args: {middleware: []}", "leave the flag out"),
        ("args: {middleware: [--x]}", "would be read as a flag"),
        ("args: {middleware: [[a]]}", "got a list"),
        ("args: {enforce-eager: true, no-enforce-eager: true}", "is given twice"),
        ("args: {-tp: 1, tensor_parallel_size: 1}", "is given twice"),
    ],
)
def test_what_a_key_decides_is_decided_nowhere_else(tmp_path: Path, engine: str, said: str) -> None:
    """Whatever contradicts a key is one finding at its place, in an engine, in the defaults and at the top alike."""
    told = findings(tmp_path, f"{SHARED}engines:\n  a: {{{engine}}}\n")
    assert said in told
    assert f"{tmp_path}/p.yaml:4:" in told
    assert told.count("\n") == 2
    if "cache: s" not in engine:
        assert said in findings(tmp_path, f"{SHARED}defaults: {{engine: {{{engine}}}}}\nengines: {{a: }}\n")


@pytest.mark.parametrize(
    "engine",
    [
        "args: {enable-prefix-caching: true, enable-prompt-tokens-details: true, runner: generate, block-size: 96}",
        "args: {kv-transfer-config: {kv_connector: OffloadingConnector}, shutdown-timeout: 3, disable-log-stats: no}",
        "cache: s, args: {block-size: 64, enforce-eager: true, hf-token: true}",
        "args: {hf-overrides: {eos_token: x, pad_token: y}, max-num-batched-tokens: 8}",
        "env: {HF_HUB_DISABLE_IMPLICIT_TOKEN: '1', TOKENIZERS_PARALLELISM: 'x', HF_TOKEN_PATH: /t}",
        "args: {uds: null, ssl-certfile: null, runner: null, headless: null, config: null}",
        "args: {root-path: /a, api-server-count: 2, allowed-origins: ['http://h:80/@x']}",
    ],
)
def test_what_contradicts_nothing_is_taken(tmp_path: Path, engine: str) -> None:
    """The same decision twice is none, and a name that only sounds like a secret is no secret."""
    assert findings(tmp_path, f"{SHARED}engines: {{a: {{{engine}}}}}\n") == ""


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("args: {l2-adapter: {type: fs, base_path: /x}}", "write 'l2'"),
        ("args: {disable-metrics: true}", "where the tokens"),
        ("args: {supported-transfer-mode: engine_driven}", "lmcache_driven"),
        ("args: {transport: grpc}", "zmq"),
        ("args: {chunk-size: null}", "write 'chunk_size'"),
        ("l2: ./kv, args: {l2-adapter: null}", "write 'l2'"),
        ("l2_adapter: {type: fs}", "write 'l2'"),
        ("args: {l1_size_gb: 3}", "write 'l1'"),
        ("env: {LMCACHE_MAX_LOCAL_CPU_SIZE: '3'}", "write 'l1'"),
        ("l2: 'redis://h', l2_adapter: {password: geheim}", "LMCACHE_RESP_PASSWORD"),
        ('args: {runtime-plugin-config: \'{"redis_password": "geheim"}\'}', "a secret does not belong"),
    ],
)
def test_a_cache_and_its_engines_agree(tmp_path: Path, cache: str, said: str) -> None:
    """What would part a cache from its keys or from its engines is a finding at its place."""
    told = findings(tmp_path, f"model: m\ncaches:\n  s: {{{cache}}}\nengines: {{a: {{cache: s}}}}\n")
    assert said in told
    assert f"{tmp_path}/p.yaml:3:" in told
    assert "geheim" not in told


def test_paths_in_args_and_env_are_relative_to_the_profile(tmp_path: Path) -> None:
    """Alone, in lists, behind NAME=, inside JSON written as YAML or as text; repository names and texts stay."""
    here = str(tmp_path)
    given = of_profile(
        tmp_path,
        {
            "chat-template": "t/x.jinja",
            "tool-parser-plugin": "plugin.py",
            "tokenizer": "../tok",
            "hf-config-path": "org/config",
            "allowed-local-media-path": "~/models",
            "lora-modules": ["x=./x", "y=org/y", {"name": "z", "path": "./z"}],
            "speculative-config": {"model": "./draft", "method": "eagle"},
            "compilation-config": '{"cache_dir": "./cc", "mode": 3}',
            "response-role": "a./b",
        },
    )
    assert given == {
        "chat-template": f"{here}/t/x.jinja",
        "tool-parser-plugin": f"{here}/plugin.py",
        "tokenizer": f"{tmp_path.parent}/tok",
        "hf-config-path": "org/config",
        "allowed-local-media-path": "/home/me/models",
        "lora-modules": [f"x={here}/x", "y=org/y", {"name": "z", "path": f"{here}/z"}],
        "speculative-config": {"model": f"{here}/draft", "method": "eagle"},
        "compilation-config": f'{{"cache_dir": "{here}/cc", "mode": 3}}',
        "response-role": "a./b",
    }
    assert of_profile(tmp_path, {"chat-template": "{{ messages[0] }}./x"})["chat-template"] == "{{ messages[0] }}./x"
    file = tmp_path / "p.yaml"
    file.write_text(
        "model: m\nenv: {HF_HOME: ./hf, PYTHONPATH: './a:/b:../c', U: 'http://./x', T: ./x}\nengines: {a: }\n"
        "caches: {c: {args: {trace-output: t.json}, l2: ./kv, l2_adapter: {type: dax, device: ./d}}}\n"
    )
    profile = load(file, {})
    assert profile.engines["a"].env == {
        "HF_HOME": f"{here}/hf",
        "PYTHONPATH": f"{here}/a:/b:{tmp_path.parent}/c",
        "U": "http://./x",
        "T": f"{here}/x",
    }
    assert profile.caches["c"].args == {"trace-output": f"{here}/t.json"}
    assert profile.caches["c"].l2_adapter == {"type": "dax", "device": f"{here}/d"}


HIDDEN = "geheim-0123"
PLACES = [
    "engines: {{a: {{args: {{api-key: {0}}}}}}}",
    "engines: {{a: {{args: {{'--api_key': [{0}, other]}}}}}}",
    "engines: {{a: {{env: {{VLLM_API_KEY: {0}}}}}}}",
    "engines: {{a: {{env: {{VLLM_API_KEY: '${{MY_KEY}}'}}}}}}",
    "env: {{HF_TOKEN: {0}}}\nengines: {{a: }}",
    "defaults: {{engine: {{env: {{MY_SECRET: '{0}'}}}}}}\nengines: {{a: }}",
    "defaults: {{engine: {{args: {{hf-token: {0}}}}}}}\nengines: {{a: }}",
    "defaults:\n  engine:\n    args:\n      api-key:\n        {0}\nengines: {{a: }}",
    "engines:\n  a:\n    args:\n      api-key:\n      - {0}\n",
    "engines: {{a: {{args: {{kv-transfer-config: {{x: {{redis_password: {0}}}}}}}}}}}",
    'engines: {{a: {{args: {{additional-config: \'{{"clientSecret": "{0}"}}\'}}}}}}',
    "engines: {{a: {{env: {{STORE: 'redis://:{0}@host'}}}}}}",
    "caches: {{c: {{l2: 'redis://me:{0}@host'}}}}\nengines: {{a: }}",
    "caches: {{c: {{env: {{AWS_SECRET_ACCESS_KEY: {0}}}}}}}\nengines: {{a: }}",
    "engines: {{a: {{model: 'https://u:{0}@host/m'}}}}",
    "engines: {{a: {{args: {{'--api-key {0}': }}}}}}\nsecrets: 1",
    "engines: {{a: {{args: {{'api-key={0}': true}}}}}}\nsecrets: 1",
    "engines: {{a: {{args: {{middleware: ['--api-key={0}']}}}}}}\nsecrets: 1",
    "engines: {{a: }}\nsecrets: [HF_TOKEN={0}]",
    "engines: {{a: }}\nbench: {{system: 'Bearer {0}', secret: 1}}",
    "engines: {{a: {{args: {{otlp-traces-headers: 'Authorization=Bearer {0}'}}}}}}",
    "engines: {{a: {{args: {{x-headers: 'authorization: Basic {0}'}}}}}}",
    'engines: {{a: {{env: {{OTEL_EXPORTER_OTLP_HEADERS: "Authorization={0}"}}}}}}',
    "x-k: &k {{api-key: {0}}}\nengines: {{a: {{args: *k}}}}",
    "engines:\n  a:\n    env:\n      MY_SECRET: >-\n        {0}\n        more\n",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_that_is_written_down_is_told_and_never_shown(tmp_path: Path, place: str) -> None:
    """A finding says how to give it instead; neither that nor another mistake on its line shows the value."""
    told = findings(tmp_path, "model: m\n" + place.format(HIDDEN), MY_KEY=HIDDEN)
    assert HIDDEN not in told
    assert "secret" in told
    for broken in ("x: [", "  y: }", "engines: {a: {zzz: 1}}"):
        assert HIDDEN not in findings(
            tmp_path, f"model: m\n{place.format(HIDDEN)}  # {broken}\n{broken}\n", MY_KEY=HIDDEN
        )


@pytest.mark.parametrize("text", ["Basic understanding, please.", "Authorization: who may?", "The bearer certificates"])
def test_words_about_authorization_are_no_secret(tmp_path: Path, text: str) -> None:
    """A question may speak of it."""
    assert not findings(tmp_path, f"model: m\nengines: {{a: }}\nbench: {{system: '{text}'}}")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"\\"), min_size=8, max_size=40))
def test_no_line_shows_what_follows_the_name_of_a_secret(value: str) -> None:
    """Whatever the value is, and however it is put: behind a colon or an equals sign, below, in a list, in quotes."""
    value += "#unique"
    for lines in (
        [f"api-key: {value}"],
        [f"a: {{env: {{X_API_KEY: '{value}'}}}}"],
        [f"HF_TOKEN={value}"],
        ["password:", f"  {value}"],
        ["- hf_token:", f"  - {value}"],
        ["secrets:", f"- {value}"],
    ):
        assert value not in secrecy.covered_line(lines, len(lines) - 1)


PUBLIC: list[tuple[str, dict[str, Any], dict[str, Any], set[str]]] = [
    ("m/chat", {"dtype": "auto", "api-key": "token-abc123"}, {}, {"api-key"}),
    (
        "m/70b",
        {"tensor-parallel-size": 4, "gpu-memory-utilization": 0.95},
        {"gpus": [0, 1, 2, 3]},
        {"gpu-memory-utilization"},
    ),
    ("m/7b", {"max-model-len": 8192, "enable-prefix-caching": True}, {}, {"max-model-len"}),
    ("m/awq", {"quantization": "awq", "host": "0.0.0.0", "port": 8080}, {}, {"host", "port"}),  # noqa: S104
    (
        "m/moe",
        {
            "trust-remote-code": True,
            "served-model-name": "moe",
            "enable-auto-tool-choice": True,
            "tool-call-parser": "hermes",
            "reasoning-parser": "qwen3",
            "disable-custom-all-reduce": True,
            "enable_expert_parallel": True,
            "max-num-seqs": 8,
        },
        {"gpus": [0, 1]},
        {"served-model-name"},
    ),
    (
        "m/yarn",
        {
            "hf-overrides": '{"text_config": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}}',
            "kv-cache-dtype": "fp8",
            "compilation-config": '{"cudagraph_mode":"PIECEWISE"}',
            "async-scheduling": True,
            "load-format": "fastsafetensors",
            "speculative-config": '{"method":"mtp","num_speculative_tokens":2}',
        },
        {"max_model_len": "1m"},
        set(),
    ),
    (
        "m/eagle",
        {
            "swap-space": 16,
            "disable-log-requests": True,
            "distributed-executor-backend": "mp",
            "enforce-eager": True,
            "no-enable-chunked-prefill": True,
            "max-num-batched-tokens": 131072,
            "speculative_config": {"method": "eagle3", "model": "o/draft", "num_speculative_tokens": 2},
        },
        {},
        {"swap-space", "disable-log-requests"},
    ),
    (
        "m/spec",
        {"-tp": 8, "-pp": 2, "speculative-model": "/m", "num-speculative-tokens": 5},
        {"gpus": list(range(16))},
        {"speculative-model", "num-speculative-tokens"},
    ),
    (
        "m/bench",
        {"block-size": 128, "no-enable-prefix-caching": True, "language-model-only": True},
        {},
        {"no-enable-prefix-caching"},
    ),
    ("m/dotted", {"speculative-config.method": "mtp", "speculative-config.num_speculative_tokens": 5}, {}, set()),
    (
        "m/lmcache",
        {"kv-transfer-config": '{"kv_connector":"LMCacheMPConnector", "kv_role":"kv_both"}'},
        {},
        {"kv-transfer-config"},
    ),
    (
        "m/lora",
        {"enable-lora": True, "lora-modules": ["a=o/a", "b=o/b"], "max-lora-rank": 64, "lora-extra-vocab-size": 256},
        {},
        {"lora-extra-vocab-size"},
    ),
    ("m/template", {"chat-template": "examples/tool_chat_template.jinja", "uvicorn-log-level": "warning"}, {}, set()),
    ("m/cors", {"allowed-origins": '["*"]', "allowed-methods": '["GET","POST"]', "allow-credentials": True}, {}, set()),
    ("m/tls", {"ssl-keyfile": "key.pem", "ssl-certfile": "cert.pem"}, {}, {"ssl-keyfile", "ssl-certfile"}),
    ("m/embed", {"task": "embed"}, {}, {"task"}),
    ("m/pool", {"runner": "pooling", "convert": "embed"}, {}, {"runner", "convert"}),
    ("m/mm", {"limit-mm-per-prompt": '{"image": 2}', "allowed-local-media-path": "/data"}, {}, set()),
    ("m/mistral", {"tokenizer_mode": "mistral", "config_format": "mistral", "load_format": "mistral"}, {}, set()),
    ("m/offload", {"cpu-offload-gb": 10, "kv-offloading-size": 8, "kv-offloading-backend": "native"}, {}, set()),
    ("m/offload", {"kv-offloading-size": 8, "kv-offloading-backend": "lmcache"}, {}, {"kv-offloading-backend"}),
    (
        "m/optimum",
        {"-O3": None, "max-cudagraph-capture-size": 64, "optimization-level": None},
        {},
        {"optimization-level"},
    ),
    (
        "m/dp",
        {"data-parallel-size": 4, "tensor-parallel-size": 2, "api-server-count": 4},
        {"gpus": list(range(8))},
        set(),
    ),
]


@pytest.mark.parametrize("case", range(len(PUBLIC)))
def test_public_command_lines_as_profiles(tmp_path: Path, case: int) -> None:
    """Whatever people write behind `vllm serve` is taken, or refused at its place; without that the rest is taken."""
    model, args, keys, refused = PUBLIC[case]
    text = yaml.safe_dump({"model": model, "engines": {"a": {"gpus": [0], **keys, "args": args}}}, sort_keys=False)
    told = findings(tmp_path, text)
    assert {line.split(": ")[1].rpartition(".")[2] for line in told.splitlines()[::3]} == refused, told
    rest = {name: value for name, value in args.items() if name not in refused}
    text = yaml.safe_dump({"model": model, "engines": {"a": {"gpus": [0], **keys, "args": rest}}}, sort_keys=False)
    assert findings(tmp_path, text) == ""


def test_vllm_takes_the_public_command_lines(tmp_path: Path, parsed: Parsed) -> None:
    """What a profile takes of them, vLLM's own parser takes as well."""
    kept = [{name: value for name, value in args.items() if name not in out} for _, args, _, out in PUBLIC]
    for args in kept:
        args.pop("tensor-parallel-size", None), args.pop("data-parallel-size", None)
        args.pop("-tp", None), args.pop("-pp", None)
    _, values = parsed([list(flags.words(of_profile(tmp_path, args))) for args in kept])
    assert None not in values
