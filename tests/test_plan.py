"""Profile and facts become a plan: pure, so everything can be refused here without a machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvdemo.config.profile import Cache, Engine, Profile, Runtime
from kvdemo.errors import ProfileError
from kvdemo.planning import plan
from kvdemo.planning.facts import Facts, Interpreter, Model

VERSIONS = {"python": "3.11.7", "vllm": "0.32.0", "lmcache": "0.5.6", "torch": "2.13.0"}
MODEL = Model("org/model", "/hub/model", "d1", "bfloat16", context=32768, kv_bytes_per_token=1024)
FACTS = Facts(
    default_python="py",
    interpreters={"py": Interpreter("py", VERSIONS), "old": Interpreter("old", VERSIONS | {"vllm": "0.31.0"})},
    models={"org/model": MODEL},
    ports={"shared": 6000, "shared.http": 6001, "plain": 7000, "a": 7001, "b": 7002},
    sockets="/s",
)


def profile(**changes: Any) -> Profile:
    """One plain engine and two cached ones without GPUs."""
    one = {"model": "org/model", "gpus": []}
    engines = {"plain": Engine(**one), "a": Engine(**one, cache="shared"), "b": Engine(**one, cache="shared")}
    return Profile(
        path=Path("/p/demo.yaml"), name="demo", **{"engines": engines, "caches": {"shared": Cache()}} | changes
    )


def altered(engine: str, **changes: Any) -> Profile:
    """The same, one engine changed."""
    base = profile()
    return profile(engines={**base.engines, engine: base.engines[engine].model_copy(update=changes)})


def test_order_and_places() -> None:
    """Caches first; each service knows its ports, its model, its cache, its times."""
    made = plan.make(profile(), FACTS)
    assert [spec.name for spec in made.services] == ["shared", "plain", "a", "b"]
    cache, plain, a, _ = made.services
    assert (cache.port, cache.ports, cache.url) == (6001, (6000, 6001), "http://127.0.0.1:6001")
    assert (plain.cache, a.cache, a.chunk_size, plain.chunk_size) == ("", "shared", 256, None)
    assert (a.model, a.context, a.kv_bytes_per_token) == ("model", 32768, 1024)
    assert made.missing == ()
    assert made.service("a") is a
    assert made.engines == made.services[1:]


def test_a_plan_survives_json() -> None:
    """What `up` saves is what `down`, `ps` and `restart` read, digests included."""
    made = plan.make(profile(secrets=["HF_TOKEN"], caches={"shared": Cache(l2="/kv")}), FACTS)
    again = plan.Plan.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    assert [spec.digest for spec in again.services] == [spec.digest for spec in made.services]


def test_a_plan_of_a_newer_version_is_read() -> None:
    """Unknown fields are left out; a document that is no plan is a KeyError."""
    document = json.loads(json.dumps(plan.make(profile(), FACTS).to_json()))
    document["future"] = document["services"][0]["future"] = 1
    assert plan.Plan.from_json(document).project == "demo"
    with pytest.raises(KeyError):
        plan.Plan.from_json({})


def test_float32_where_the_processor_is_slow_at_less() -> None:
    """Without AVX-512, for engines without a GPU that do not say otherwise; sizes, command and kin follow."""
    narrow = replace(FACTS, wide=False)
    usual, made = plan.make(profile(), FACTS), plan.make(profile(), narrow)
    assert not any("--dtype" in spec.argv for spec in usual.services)
    for spec in made.engines:
        assert spec.argv[spec.argv.index("--dtype") + 1] == "float32"
        assert spec.kv_bytes_per_token == 2 * 1024
    assert made.service("shared").kin != usual.service("shared").kin
    other = plan.make(altered("plain", args={"dtype": "half"}), narrow).service("plain")
    assert (other.argv[other.argv.index("--dtype") + 1], other.kv_bytes_per_token) == ("half", 1024)
    with pytest.raises(ProfileError, match="differ in dtype"):
        plan.make(altered("a", args={"dtype": "half"}), narrow)
    small = replace(narrow, models={"org/model": replace(MODEL, quantized=True)})
    on_gpu = altered("plain", gpus=[0])
    for spec in (plan.make(profile(), small).service("plain"), plan.make(on_gpu, narrow).service("plain")):
        assert "--dtype" not in spec.argv


def test_the_digest_changes_with_what_runs_only() -> None:
    """Another flag, variable or secret means a new start; another patience does not."""
    first = plan.make(profile(), FACTS).service("a").digest
    assert plan.make(altered("a", max_model_len=99), FACTS).service("a").digest != first
    assert plan.make(altered("a", env={"X": "1"}), FACTS).service("a").digest != first
    assert plan.make(profile(secrets=["X"]), FACTS).service("a").digest != first
    assert plan.make(profile(start_timeout=5.0), replace(FACTS, busy={1: "x"})).service("plain").argv == (
        plan.make(profile(), FACTS).service("plain").argv
    )


@pytest.mark.parametrize(
    ("host", "url", "connects"),
    [
        ("127.0.0.1", "http://127.0.0.1:6001", "tcp://127.0.0.1"),
        ("0.0.0.0", "http://127.0.0.1:6001", "tcp://127.0.0.1"),  # noqa: S104
        ("::", "http://[::1]:6001", "tcp://[::1]"),
        ("::1", "http://[::1]:6001", "tcp://[::1]"),
        ("node7", "http://node7:6001", "tcp://node7"),
    ],
)
def test_hosts(host: str, url: str, connects: str) -> None:
    """A wildcard is listened on, never connected to; IPv6 stands in brackets."""
    made = plan.make(profile(caches={"shared": Cache(host=host)}), FACTS)
    argv = made.service("a").argv
    config = json.loads(argv[argv.index("--kv-transfer-config") + 1])
    assert made.service("shared").url == url
    assert config["kv_connector_extra_config"]["lmcache.mp.host"] == connects


def test_stores_are_kept_apart_by_fingerprint() -> None:
    """Other weights, dtype, flags or versions: another directory. LMCache itself would load wrong KV silently."""

    def store(given: Profile, facts: Facts = FACTS) -> str:
        return plan.make(given, facts).service("shared").store

    caches = {"shared": Cache(l2="/kv")}
    base = store(profile(caches=caches))
    assert Path(base).parent == Path("/kv")
    dtyped = {n: e.model_copy(update={"args": {"dtype": "half"}}) for n, e in profile().engines.items()}
    others = {
        store(profile(caches=caches), replace(FACTS, models={"org/model": replace(MODEL, digest="d2")})),
        store(
            profile(caches=caches), replace(FACTS, interpreters={"py": Interpreter("py", VERSIONS | {"vllm": "0.33"})})
        ),
        store(profile(caches=caches, engines=dtyped)),
    }
    assert len(others | {base}) == 4
    python = Interpreter("py", VERSIONS | {"python": "3.12.0"})
    assert store(profile(caches=caches), replace(FACTS, interpreters={"py": python})) == base
    assert plan.make(profile(), FACTS).service("shared").store == ""
    packed = {"shared": Cache(l2="/kv", l2_adapter={"serde": {"type": "fp8"}})}
    assert store(profile(caches=packed)) != base
    assert store(profile(caches={"shared": Cache(l2="/kv", l2_adapter={"num_workers": 2})})) == base


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"args": {"kv_cache_dtype": "fp8"}}, 'kv-cache-dtype (default / "fp8")'),
        ({"runtime": Runtime(python="old")}, "vllm (0.32.0 / 0.31.0)"),
    ],
)
def test_engines_that_cannot_share_are_refused(changes: dict[str, Any], said: str) -> None:
    """The same model in another form: its KV would silently be wrong. An engine without the cache may differ."""
    with pytest.raises(ProfileError) as caught:
        plan.make(altered("b", **changes), FACTS)
    assert "engines a and b share cache 'shared' but differ in" in str(caught.value)
    assert said in str(caught.value)
    plan.make(altered("plain", **changes), FACTS)


def test_everything_missing_is_told_at_once() -> None:
    """Interpreter, model, context, secret, port: one line each, no duplicates."""
    facts = replace(
        FACTS,
        interpreters={"py": Interpreter("py", {}, "vllm is not installed")},
        models={"org/model": replace(MODEL, problem="its config.json cannot be read")},
        busy={7000: "pid 1 (other)"},
    )
    given = profile(
        secrets=["TOKEN"],
        engines={**profile().engines, "plain": Engine(model="org/model", gpus=[], max_model_len=99999)},
    )
    assert plan.make(given, facts).missing == (
        *(f"{name}: vllm is not installed" for name in ("shared", "plain", "a", "b")),
        "model org/model: its config.json cannot be read",
        "plain: max_model_len 99999 is more than the 32768 of org/model; lower it or, if the model can, give "
        "`hf-overrides` with its rope scaling in args",
        "secret TOKEN is not set, neither in the environment nor in .env beside the profile",
        "port 7000 (plain) is taken: pid 1 (other)",
    )


def test_a_token_is_needed_for_a_download_only() -> None:
    """HF_TOKEN may be absent while the model is here; then nothing is fetched either."""
    given = profile(secrets=["HF_TOKEN"])
    assert plan.make(given, FACTS).missing == ()
    made = plan.make(given, replace(FACTS, models={"org/model": Model("org/model")}))
    assert (made.fetch, made.missing) == (
        ("org/model",),
        ("secret HF_TOKEN is not set, neither in the environment nor in .env beside the profile",),
    )
    assert made.service("a").model == "org/model"
    there = replace(FACTS, models={"org/model": Model("org/model")}, secrets=frozenset({"HF_TOKEN"}))
    assert plan.make(given, there).missing == ()


def test_wanted_ports() -> None:
    """One for an engine, two for a cache; None where kvdemo chooses."""
    given = profile(caches={"shared": Cache(port=5555)})
    assert plan.wanted_ports(given) == {"shared": 5555, "shared.http": None, "plain": None, "a": None, "b": None}


def test_a_cache_sees_the_gpus_of_its_engines() -> None:
    """Not those of others."""
    engines = {
        "plain": Engine(model="org/model", gpus=[0]),
        "a": Engine(model="org/model", gpus=[2, 3], cache="shared"),
    }
    made = plan.make(profile(engines=engines), FACTS)
    assert made.service("shared").gpus == (2, 3)
    assert made.service("shared").env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert sum("is not here" in line for line in made.missing) == 3


def test_two_revisions_of_one_model_are_two() -> None:
    """Each engine knows the digest of its own weights and its interpreter's versions, whatever comes first."""
    other = replace(MODEL, digest="d2")
    facts = replace(FACTS, models={**FACTS.models, "org/model@v2": other})
    engines = altered("b", args={"revision": "v2"}, cache=None).engines
    made = plan.make(
        profile(engines={**engines, "old": Engine(model="org/model", gpus=[], runtime=Runtime(python="old"))}),
        replace(facts, ports={**FACTS.ports, "old": 7003}),
    )
    assert made.models == {"org/model": "d1", "org/model@v2": "d2"}
    assert [made.service(name).weights for name in ("plain", "b")] == ["d1", "d2"]
    assert made.versions_of(made.service("old"))["vllm"] == "0.31.0"
    assert made.versions_of(made.service("a"))["vllm"] == "0.32.0"


def test_problems_are_records() -> None:
    """What is wrong and what to do are apart, with a code and the service; the JSON has them, and the sentences too."""
    made = plan.make(altered("a", max_model_len=99999), FACTS)
    document = made.to_json()
    (context,) = [one for one in document["problems"] if one["kind"] == "context"]
    assert (context["service"], context["hard"]) == ("a", True)
    assert context["text"].startswith("a: max_model_len 99999 is more than the 32768 of org/model")
    assert context["fix"].startswith("lower it or, if the model can")
    assert f"{context['text']}; {context['fix']}" in document["missing"]
    assert plan.Plan.from_json(document) == made
    earlier = {key: value for key, value in document.items() if key != "problems"}
    for service in earlier["services"]:
        for key in ("python", "source", "tokenizer", "measures", "l1", "paths"):
            service.pop(key)
    assert {spec.python for spec in plan.Plan.from_json(earlier).services} == {"py"}
