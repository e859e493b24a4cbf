"""Real engines on two nodes of a Ray cluster, each with its own LMCache server: what they share is L2 alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from real_fleet import HANDBOOK, MARK, MODEL, Real, needs_engines
from twonodes import TwoNodes, valkey

pytestmark = [*needs_engines, pytest.mark.filterwarnings("ignore")]

ACROSS = f"""
version: 1
name: across
model: {MODEL}
on: {{ray: {{address: "${{CLUSTER}}"}}}}
secrets: [LMCACHE_RESP_PASSWORD]
env: {{{MARK}: "${{HERE}}"}}
defaults:
  engine: {{gpus: [], kv_cache: 1GiB, max_model_len: 16384}}
caches:
  shared: {{l1: 1GiB, l2: "${{L2}}", chunk_size: 128}}
engines:
  writer: {{cache: shared}}
  reader: {{cache: shared}}
"""
PASSWORD = "correct-horse"  # noqa: S105 (of a server that lives for this test)


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """Two nodes and a profile with an engine for each; nothing is up yet."""
    path = tmp_path_factory.mktemp("across")
    (path / "across.yaml").write_text(ACROSS)
    (path / "document.txt").write_text(HANDBOOK.read_text()[:12000])
    two = TwoNodes({"KVDEMO_STATE_DIR": str(path / "nodes")})
    given = {"CLUSTER": two.address, "HERE": str(path), "LMCACHE_RESP_PASSWORD": PASSWORD}
    one = Real(path, path / "across.yaml", "across", **given)
    try:
        yield one
    finally:
        try:
            one.close()
        finally:
            two.close()


def shares_between_nodes(across: Real, l2: str) -> None:
    """The reader answers from what only the other node's engine has read: by its counters, and to the last bit."""
    across.environ["L2"] = l2
    across.up()
    nodes = {spec.name: spec.node for spec in across.plan.services}
    assert nodes["writer"] != nodes["reader"]
    found = across.bench("--trials", "1", "--no-limit", "--context", "document.txt")
    rows = {row["arm"]: row for row in found["rows"]}
    assert (rows["store"]["engine"], rows["store"]["verdict"]) == ("writer", "COLD")
    assert (rows["reuse"]["engine"], rows["reuse"]["verdict"]) == ("reader", "SHARED")
    reused = found["prompt_tokens"] // 128 * 128
    assert rows["reuse"]["external_cached_tokens"] == reused
    assert rows["reuse"]["tiers"] == {"l1": 0, "l2": reused}
    assert found["answer"]["same"] is True
    assert found["nice"] == {}


def test_nodes_share_a_directory(across: Real) -> None:
    """As on NFS: each server writes under temporary names of its own."""
    shares_between_nodes(across, "./kv")
    assert len(list((across.path / "kv").glob("*/tmp-*"))) == 2


def test_nodes_share_a_valkey_server(across: Real, tmp_path: Path) -> None:
    """The same through one server with a password, which stands in no command line and no log of kvdemo's."""
    with valkey(tmp_path, PASSWORD) as url:
        shares_between_nodes(across, url)
        assert PASSWORD not in (across.project.dir / "project.json").read_text()
        assert PASSWORD not in across.do("logs")
        across.do("down")
