"""One profile on several nodes: who gets which server, and what can never share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvdemo.cluster import layout
from kvdemo.cluster.layout import Placement
from kvdemo.config.profile import Cache, Engine, Profile
from kvdemo.errors import ProfileError
from kvdemo.planning.facts import Facts, Gpu, Interpreter, Model
from kvdemo.planning.plan import Plan
from kvdemo.planning.services import Node

ONE, TWO = Node("1", "one", "10.0.0.1", "H"), Node("2", "two", "10.0.0.2", "H")
MODEL = Model("org/model", "/hub/model", "d1", "bfloat16", context=32768, kv_bytes_per_token=1024)
VERSIONS = {"python": "3.11.7", "vllm": "0.32.0", "lmcache": "0.5.6", "torch": "2.13.0"}
GPUS = tuple(Gpu(n, str(n), f"GPU-{n}", "H", 80 * 1024**3, 80 * 1024**3) for n in range(4))


def facts(node: Node, first_port: int, **changes: Any) -> Facts:
    """What a node says of itself."""
    names = [f"c-{node.name}", f"c-{node.name}.http", "plain", "a", "b"]
    seen = Facts(
        default_python="py",
        gpus=GPUS,
        interpreters={"py": Interpreter("py", VERSIONS)},
        models={"org/model": MODEL},
        ports={name: first_port + step for step, name in enumerate(names)},
        node=node.name,
        sockets="/s",
    )
    return replace(seen, **changes)


def profile(**cache: Any) -> Profile:
    """A plain engine and two that share."""
    engine = {"model": "org/model", "gpus": 1}
    engines = {"plain": Engine(**engine), "a": Engine(**engine, cache="c"), "b": Engine(**engine, cache="c")}
    caches = {"c": Cache(**{"l2": "/kv", **cache})}
    return Profile(path=Path("/p.yaml"), name="p", on={"ray": {}}, engines=engines, caches=caches)


SEATS = {"plain": Placement(ONE, (0,)), "a": Placement(ONE, (2,)), "b": Placement(TWO, (3,))}


def planned(wanted: Profile, seats: dict[str, Placement] | None = None, two: Facts | None = None) -> Plan:
    """The plan of both nodes."""
    return layout.merge(wanted, seats or SEATS, {ONE: facts(ONE, 7000), TWO: two or facts(TWO, 8000)}, {"address": "h"})


def test_every_node_has_a_server_of_its_own() -> None:
    """It sees its engines' GPUs only, listens for them on loopback, and for kvdemo on the node's address."""
    plan = planned(profile())
    assert [spec.name for spec in plan.services] == ["c-one", "c-two", "plain", "a", "b"]
    assert {spec.name: (spec.cache, spec.pool, spec.node) for spec in plan.engines} == {
        "plain": ("", "", "one"),
        "a": ("c-one", "c", "one"),
        "b": ("c-two", "c", "two"),
    }
    one, two = plan.service("c-one"), plan.service("c-two")
    assert one.addresses == (("127.0.0.1", 7000), ("10.0.0.1", 7001))
    assert (one.env["CUDA_VISIBLE_DEVICES"], two.env["CUDA_VISIBLE_DEVICES"]) == ("2", "3")
    assert one.store == two.store
    assert "tmp-one" in " ".join(one.argv)
    assert "tcp://127.0.0.1" in " ".join(plan.service("b").argv)
    assert (plan.service("b").url, plan.service("b").gpus) == ("http://10.0.0.2:8004", (3,))
    assert plan.nodes == (ONE, TWO)
    assert Plan.from_json(plan.to_json()) == plan


def test_what_one_node_lacks_names_it() -> None:
    """Also weights that are not those of the other node."""
    other = replace(MODEL, digest="d2")
    plan = planned(
        profile(), {**SEATS, "b": Placement(TWO, ())}, facts(TWO, 8000, memory=1, models={"org/model": MODEL})
    )
    assert [text.partition(":")[0] for text in plan.missing] == ["two"]
    alone = profile().model_copy(update={"caches": {}})
    alone = alone.model_copy(
        update={"engines": {name: e.model_copy(update={"cache": None}) for name, e in alone.engines.items()}}
    )
    plan = planned(alone, None, facts(TWO, 8000, models={"org/model": other}))
    assert plan.missing == ("model org/model is not the same on one and two: other weights or config",)


def test_other_weights_or_versions_on_a_node_do_not_share() -> None:
    """As on one machine: the same cache, other numbers."""
    older = {"py": Interpreter("py", VERSIONS | {"vllm": "0.31.0"})}
    with pytest.raises(ProfileError, match=r"a and b share cache 'c' but differ in vllm \(0.32.0 / 0.31.0\)"):
        planned(profile(), None, facts(TWO, 8000, interpreters=older))


def test_nodes_share_nothing_without_l2() -> None:
    """Unless all of its engines are on one node."""
    with pytest.raises(ProfileError, match=r"on 2 nodes \(one, two\) and it has no l2") as caught:
        planned(profile(l2=None))
    assert "placement: pack" in caught.value.hint
    together = {name: Placement(ONE, (index,)) for index, name in enumerate(SEATS)}
    plan = layout.merge(profile(l2=None), together, {ONE: facts(ONE, 7000)}, {})
    assert [spec.name for spec in plan.services] == ["c-one", "plain", "a", "b"]


def test_an_engine_wired_to_another_nodes_server_is_refused() -> None:
    """Users try it, and it cannot work: KV moves through shared memory."""
    plan = planned(profile())
    stray = replace(plan.service("b"), cache="c-one")
    with pytest.raises(ProfileError, match="b on node two is wired to c-one, the cache server of node one"):
        layout.refuse_strays([plan.service("c-one"), stray])


def test_names_that_would_meet() -> None:
    """A server is called after its cache and its node; an engine may have that name already."""
    wanted = profile()
    engines = {**wanted.engines, "c-one": wanted.engines["plain"]}
    seen = {ONE: facts(ONE, 7000), TWO: facts(TWO, 8000)}
    with pytest.raises(ProfileError, match="two services would be called c-one"):
        layout.merge(wanted.model_copy(update={"engines": engines}), {**SEATS, "c-one": Placement(ONE, (1,))}, seen, {})
