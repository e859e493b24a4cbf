"""A Mooncake store as one service: what is passed on to master and pool, and the two real programs together."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guarding import gone, until
from kvdemo.backends.backend import Address, Losses
from kvdemo.backends.mooncake import SERVICE, TCP, Mooncake
from kvdemo.config.settings import Cache
from kvdemo.host import health, mooncakepool, process
from kvdemo.planning import caches
from runs import CALM

MIB = 1024**2


def missing() -> str:
    """Why a store cannot be run here; empty if it can."""
    if importlib.util.find_spec("mooncake") is None:
        return "Mooncake is not installed (scripts/setup --mooncake)"
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError:
        return "Mooncake needs libibverbs.so.1 (Debian: libibverbs1)"
    return ""


needs_mooncake = pytest.mark.skipif(bool(missing()), reason=missing() or "it can be run")


@pytest.fixture
def store() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A running store of 64 MiB, and its ports: for engines, HTTP, pool."""
    with closing(socket()) as one, closing(socket()) as two, closing(socket()) as three:
        for each in (one, two, three):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (one, two, three)]
    words = ["--host", "127.0.0.1", "--port", str(ports[0]), "--http-port", str(ports[1]), "--pool-port", str(ports[2])]
    argv = [sys.executable, str(SERVICE), *words, "--l1", str(64 * MIB), "--eviction-ratio", "0.1"]
    running = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        until(lambda: Mooncake().usable(health.counters(f"http://127.0.0.1:{ports[1]}")), 30)
        yield running, ports
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def children(pid: int) -> dict[str, int]:
    """The programs that a process started."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {Path(f"/proc/{child}/comm").read_text().strip(): int(child) for child in pids}


@needs_mooncake
def test_a_store_is_up_and_ends_without_a_trace(store: tuple[subprocess.Popen[str], list[int]]) -> None:
    """Master and pool run, the master knows the pool's memory; one SIGTERM ends both, exit code 0, ports free."""
    running, ports = store
    both = children(running.pid)
    assert set(both) == {"mooncake_master", "mooncake_client"}
    url = f"http://127.0.0.1:{ports[1]}"
    assert health.request(url, Mooncake.health_path)[0] == 200
    assert health.counters(url)["total_capacity_bytes"] == 64 * MIB
    running.terminate()
    running.communicate(timeout=30)
    assert running.returncode == 0
    assert all(gone(pid) for pid in both.values())
    assert all(process.port_free("127.0.0.1", port) for port in ports)


@needs_mooncake
@pytest.mark.parametrize("half", ["mooncake_master", "mooncake_client"])
def test_neither_half_outlives_the_other(store: tuple[subprocess.Popen[str], list[int]], half: str) -> None:
    """Killed, it is named, the other ends too, and the service with code 1: nothing goes on half alive."""
    running, _ = store
    both = children(running.pid)
    os.kill(both[half], signal.SIGKILL)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 1
    assert f"{half} ended by itself (-9)" in said
    assert all(gone(pid) for pid in both.values())


@needs_mooncake
def test_a_taken_port_ends_it_at_once(store: tuple[subprocess.Popen[str], list[int]]) -> None:
    """A second store on the same ports: the master ends, and with it the service, not after a time-out."""
    _, ports = store
    words = ["--host", "127.0.0.1", "--port", str(ports[0]), "--http-port", str(ports[1]), "--pool-port", str(ports[2])]
    argv = [sys.executable, str(SERVICE), *words, "--l1", str(64 * MIB)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ended by itself" in done.stderr


@CALM
@given(st.integers(1, 50_000), st.sampled_from([16, 128, 256]))
def test_whole_blocks_are_shared_and_one_less_of_whole_ones(tokens: int, block: int) -> None:
    """2,308 tokens in blocks of 128 are 18 blocks, 2,304 tokens; of 2,304 only 17: the last token is computed."""
    hit = Mooncake().reusable(tokens, block)
    assert hit % block == 0
    assert 1 <= tokens - hit <= block
    byhand = {127: 0, 128: 0, 129: 128, 256: 128, 257: 256, 2304: 2176, 2308: 2304}
    assert {n: Mooncake().reusable(n, 128) for n in byhand} == byhand


def test_engines_are_kept_apart() -> None:
    """Each has a lookup socket and a file of its own; other weights have other keys; the block is the chunk."""
    one, other = (
        Mooncake().wiring(Address("127.0.0.1", 5, 128, own_port=port, fingerprint="f")) for port in (8000, 8001)
    )
    sockets = [w.arguments["kv-transfer-config"]["kv_connector_extra_config"]["lookup_rpc_port"] for w in (one, other)]
    assert sockets == [8000, 8001]
    assert not set(one.files) & set(other.files)
    assert one.env["MOONCAKE_CONFIG_PATH"] in one.files
    assert one.arguments["block-size"] == 128
    fine = Mooncake().wiring(Address("127.0.0.1", 5, 128, own_port=8000, fingerprint="g")).arguments
    assert fine != one.arguments


def test_both_ends_move_kv_alike() -> None:
    """Connections are kept and queues are long on either side, unless the profile says otherwise."""
    engine = Mooncake().wiring(Address("127.0.0.1", 5, 128, own_port=8000)).env
    store = caches.env(Cache(kind="mooncake", env={"MC_TCP_LANES_PER_PEER": "2"}), devices=())
    assert TCP.items() <= engine.items()
    assert (TCP | {"MC_TCP_LANES_PER_PEER": "2"}).items() <= store.items()


def test_vllm_reads_the_file_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own class: the store is standalone, the engine gives no memory, and the address is that of the master."""
    module = pytest.importorskip("vllm.distributed.mooncake_store", reason="needs vLLM")
    wiring = Mooncake().wiring(Address("127.0.0.1", 5555, sockets=str(tmp_path), own_port=8000))
    for path, text in wiring.files.items():
        Path(path).write_text(text)
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", wiring.env["MOONCAKE_CONFIG_PATH"])
    read = module.MooncakeStoreConfig.load_from_config()
    assert (read.mode, read.global_segment_size, read.protocol) == ("standalone-store", 0, "tcp")
    assert (read.master_server_address, read.local_buffer_size) == ("127.0.0.1:5555", Mooncake.engine_bytes)


def test_flags_as_the_master_writes_them() -> None:
    """Underscores in names and not in values, and gflags' way to say no."""
    written = {"--eviction-ratio": "-eviction_ratio", "0.05": "0.05", "--no-enable-offload": "-noenable_offload"}
    written |= {"--root-fs-dir=/a-b": "-root_fs_dir=/a-b", "-v=1": "-v=1"}
    assert {word: mooncakepool.underscored(word) for word in written} == written


def test_what_the_master_tells() -> None:
    """Counters as mooncake_master 0.3.13 words them; a master without a pool cannot store."""
    exposed = "master_total_capacity_bytes 100\nmaster_batch_put_end_items_total 19\nmaster_evicted_key_count 2\n"
    after = health.parsed(exposed + "master_batch_put_end_failed_items_total 1\n")
    backend = Mooncake()
    assert backend.usable(after)
    assert not backend.usable(health.parsed("master_total_capacity_bytes 0\n"))
    assert backend.chunks_written({"batch_put_end_items": 4.0}, after) == 14
    assert backend.losses({}, {}, after) == Losses(evictions=2)
    assert json.loads(next(iter(backend.wiring(Address("h", 1)).files.values())))["master_server_address"] == "h:1"
