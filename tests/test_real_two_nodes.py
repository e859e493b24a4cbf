"""Real engines on two nodes of a Ray cluster, each with its own LMCache servers: what they share is L2 alone."""

from __future__ import annotations

from collections.abc import Iterator

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
  cache: {{l1: 1GiB, chunk_size: 128}}
caches:
  files: {{l2: ./kv}}
  valkey: {{l2: "${{VALKEY}}"}}
engines:
  files-writer: {{cache: files}}
  files-reader: {{cache: files}}
  valkey-writer: {{cache: valkey}}
  valkey-reader: {{cache: valkey}}
"""
PASSWORD = "correct-horse"  # noqa: S105 (of a server that lives for this test)


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """Two nodes, on each of them an engine for each kind of L2; all are up."""
    path = tmp_path_factory.mktemp("across")
    (path / "across.yaml").write_text(ACROSS)
    (path / "document.txt").write_text(HANDBOOK.read_text()[:4000])
    two = TwoNodes({"KVDEMO_STATE_DIR": str(path / "nodes")})
    given = {"CLUSTER": two.address, "HERE": str(path), "LMCACHE_RESP_PASSWORD": PASSWORD}
    with valkey(path, PASSWORD) as url:
        one = Real(path, path / "across.yaml", "across", VALKEY=url, **given)
        try:
            one.up()
            yield one
        finally:
            try:
                one.close()
            finally:
                two.close()


def shares_between_nodes(across: Real, cache: str) -> None:
    """The reader answers from what only the other node's engine has read: by its counters, and to the last bit."""
    writer, reader = f"{cache}-writer", f"{cache}-reader"
    assert across.plan.service(writer).node != across.plan.service(reader).node
    given = ("--trials", "1", "--no-limit", "--context", "document.txt", "--result-dir", cache)
    found = across.bench("--writer", writer, "--reader", reader, *given)
    rows = {row["arm"]: row for row in found["rows"]}
    assert (rows["store"]["engine"], rows["store"]["verdict"]) == (writer, "COLD")
    assert (rows["reuse"]["engine"], rows["reuse"]["verdict"]) == (reader, "SHARED")
    reused = found["prompt_tokens"] // 128 * 128
    assert rows["reuse"]["external_cached_tokens"] == reused
    assert rows["reuse"]["tiers"] == {"l1": 0, "l2": reused}
    assert found["answer"]["same"] is True
    assert found["nice"] == {}


def test_nodes_share_a_directory(across: Real) -> None:
    """As on NFS: each server writes under temporary names of its own."""
    shares_between_nodes(across, "files")
    assert len(list((across.path / "kv").glob("*/tmp-*"))) == 2


def test_nodes_share_a_valkey_server(across: Real) -> None:
    """The same through one server with a password, which stands in no command line and no log of kvdemo's."""
    shares_between_nodes(across, "valkey")
    assert PASSWORD not in (across.project.dir / "project.json").read_text()
    assert PASSWORD not in across.do("logs")
    across.do("down")
