"""What this machine lets us use, within the limits of a container."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kvdemo.host import machine

MIB = 1024**2


def write(place: Path, **files: object) -> Path:
    """A directory of the kernel's files; ``memory_max`` is memory.max."""
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("_", ".", 1)).write_text(f"{text}\n")
    return place


def test_memory_without_a_limit(tmp_path: Path) -> None:
    """What the kernel can give."""
    for place in (tmp_path, write(tmp_path / "unlimited", memory_max="max", memory_current=5 * MIB)):
        assert machine.memory(place) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert machine.memory() > 0


def test_memory_in_a_container(tmp_path: Path) -> None:
    """What is left of its limit; pages of files do not count, the kernel gives them back."""
    limits = {"memory_max": 100 * MIB, "memory_current": 60 * MIB}
    assert machine.memory(write(tmp_path / "v2", **limits, memory_stat=f"anon 1\ninactive_file {20 * MIB}")) == 60 * MIB
    assert machine.memory(write(tmp_path / "bare", **limits)) == 40 * MIB
    assert machine.memory(write(tmp_path / "over", memory_max=MIB, memory_current=2 * MIB)) == 0
    old = {"memory_limit_in_bytes": 50 * MIB, "memory_usage_in_bytes": 20 * MIB}
    write(tmp_path / "v1" / "memory", **old)
    assert machine.memory(tmp_path / "v1") == 30 * MIB


def test_disk_and_limits(tmp_path: Path) -> None:
    """A directory that is still to be made counts as the one above it; limits are numbers."""
    assert machine.free(tmp_path / "a" / "b") == pytest.approx(machine.free(tmp_path), rel=0.1)
    total, free = machine.shared_memory()
    assert total >= free >= 0
    assert machine.open_files() > 0
    locked = machine.locked_memory()
    assert locked is None or locked >= 0


def test_wide_processors(tmp_path: Path) -> None:
    """By the flags of an x86 processor; others are not judged."""
    for text, wide in (
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", True),
        ("flags\t\t: fpu avx avx2\nflags\t\t: fpu avx avx2\n", False),
        ("Features\t: fp asimd\n", True),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        assert machine.has_avx512(tmp_path / "cpuinfo") is wide


def test_what_has_no_disk_below_it(tmp_path: Path) -> None:
    """Shared memory has none; what is not there is on none."""
    assert machine.is_in_memory("/dev/shm")
    assert not machine.is_in_memory("/proc")
    assert not machine.is_in_memory(tmp_path / "missing")
