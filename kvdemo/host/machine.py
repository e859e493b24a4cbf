"""What this machine lets us use: memory, shared memory, open files, disk; within a container's limits."""

from __future__ import annotations

import contextlib
import resource
import shutil
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def memory(cgroup: Path = CGROUP) -> int:
    """Bytes of host memory that new processes can have: what the kernel can give, within a container's limit."""
    available = psutil.virtual_memory().available
    limit, current = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is None or current is None:  # control groups of version 1
        v1 = cgroup / "memory"
        limit, current = _number(v1 / "memory.limit_in_bytes"), _number(v1 / "memory.usage_in_bytes")
        cgroup = v1
    if limit is None or current is None:
        return available
    return max(0, min(available, limit - current + _page_cache(cgroup / "memory.stat")))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _page_cache(file: Path) -> int:
    """Pages of files that the kernel gives back when memory is short."""
    try:
        rows = dict(line.split() for line in file.read_text().splitlines())
        return int(rows["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0


def free(path: str | Path) -> int:
    """Free bytes of the file system on which this path is, or would be."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def is_in_memory(directory: str | Path) -> bool:
    """Whether a directory lies on a file system that has no disk below it; False if it is not there."""
    try:
        device = Path(directory).stat().st_dev
    except OSError:
        return False
    for mount in psutil.disk_partitions(all=True):
        with contextlib.suppress(OSError):
            if mount.fstype in {"tmpfs", "ramfs"} and Path(mount.mountpoint).stat().st_dev == device:
                return True
    return False


def shared_memory() -> tuple[int, int]:
    """Bytes of /dev/shm: all, and free."""
    usage = shutil.disk_usage("/dev/shm")
    return usage.total, usage.free


def has_avx512(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has AVX-512, without which products of bfloat16 numbers are computed one by one."""
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "avx512f")
    return "avx512f" in flags.split()


def open_files() -> int:
    """How many files a process may have open at most (its own limit can be raised to this)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return limit if limit != resource.RLIM_INFINITY else 2**31


def locked_memory() -> int | None:
    """Bytes that a process may lock in memory; None if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return limit if limit != resource.RLIM_INFINITY else None
