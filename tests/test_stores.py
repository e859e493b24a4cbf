"""L2 on a server: whose KV it is, by a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conftest import Lab
from kvdemo.backends import store
from kvdemo.errors import PreflightError
from kvdemo.fleet import stores
from kvdemo.planning.services import ServiceSpec
from twonodes import valkey

redis = pytest.importorskip("redis")
ENVIRON = {"LMCACHE_RESP_PASSWORD": "correct-horse"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a password."""
    with valkey(tmp_path_factory.mktemp("valkey"), ENVIRON["LMCACHE_RESP_PASSWORD"]) as url:
        yield url


def cache(url: str, kin: dict[str, str] | None = None) -> ServiceSpec:
    """A cache with this L2."""
    nothing: dict[str, Any] = {"argv": (), "env": {}, "ports": (), "start_timeout": 0.0, "stop_timeout": 0.0}
    return ServiceSpec("shared", "cache", host="", port=0, store=url, kin=kin or {}, **nothing)


def put(url: str, *keys: str) -> None:
    """Write as LMCache does."""
    host, port = store.server(url)
    with redis.Redis(host, port, password=ENVIRON["LMCACHE_RESP_PASSWORD"]) as client:
        for key in keys:
            client.set(key, b"kv")


def test_a_server_belongs_to_one_fingerprint_of_a_model(server: str) -> None:
    """The first one has it; the same may come again, others may not; another model is another matter."""
    stores.claim(cache(server, {"/m[1]": "f1"}), ENVIRON)
    put(server, "/m[1]@0@0@hash@salt")
    stores.claim(cache(server, {"/m[1]": "f1", "/n": "g1"}), ENVIRON)
    with pytest.raises(PreflightError, match=r"holds KV of /m\[1\] by other weights, .* \(f1, not f2\)"):
        stores.claim(cache(server, {"/m[1]": "f2"}), ENVIRON)


def test_kv_without_a_claim_is_nobodys(server: str) -> None:
    """Of another program, or its claim was evicted: it may be of any weights."""
    put(server, "org/model@0@0@hash")
    with pytest.raises(PreflightError, match="unknown"):
        stores.claim(cache(server, {"org/model": "f1"}), ENVIRON)
    stores.claim(cache(server, {"org/mode": "f1", "org": "f1"}), ENVIRON)


def test_keys_of_a_salt(server: str) -> None:
    """Found and deleted by salt; nothing else is."""
    put(server, "m@0@0@1@run-1", "m@0@0@2@run-1", "m@0@0@1@run-2", "m@0@0@1")
    assert sorted(stores.keys(cache(server), "run-1", ENVIRON)) == ["m@0@0@1@run-1", "m@0@0@2@run-1"]
    stores.forget(cache(server), "run-*", ENVIRON)
    assert stores.keys(cache(server), "run-*", ENVIRON) == []


def test_a_server_that_refuses(server: str) -> None:
    """No password, or nobody there: what to look at."""
    with pytest.raises(PreflightError, match="authenticated") as caught:
        stores.claim(cache(server, {"m": "f"}), {})
    assert "LMCACHE_RESP_PASSWORD" in caught.value.hint
    with pytest.raises(PreflightError, match="refused"):
        stores.claim(cache("redis://127.0.0.1:9", {"m": "f"}), {})


def test_other_weights_are_refused_before_they_start(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A whole fleet on a server, then the same with another model under the same path."""
    with valkey(tmp_path_factory.mktemp("valkey")) as url:
        path = lab.profile({"a": {"cache": "shared"}}, {"shared": {"l1": "16MiB", "l2": url}})
        lab.up(path)
        spec = lab.plan(path).service("shared")
        assert (spec.store, spec.directory, list(spec.kin)) == (url, "", [str(lab.path / "model")])
        lab.down()
        (lab.path / "model" / "config.json").write_text('{"max_position_embeddings": 65536, "dtype": "float16"}')
        with pytest.raises(PreflightError, match="by other weights, flags or versions"):
            lab.up(path)
        assert lab.project().records() == {}
