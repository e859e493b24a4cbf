"""Hugging Face: may this model be had, and download it once, before several engines would do so at the same time.

Asked in the engines' interpreter, by the huggingface_hub that they use.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any, Literal

from kvdemo.errors import PreflightError

Part = Literal["access", "config", "weights"]

# Prints one JSON document: what was found, or the names of the error's classes, its HTTP status and its text.
_ASK = """
import json, sys
name, part, revision = sys.argv[1:]
try:
    from huggingface_hub import HfApi, get_hf_file_metadata, get_token, hf_hub_url, snapshot_download
    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    # The list of files is public even where the files are not.
    get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision))
    files = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    new = any(one.endswith(".safetensors") for one in files)
    skip = ["*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "original/*", "onnx/*"] + (["*.bin"] if new else [])
    if new and any(not one.startswith("consolidated") for one in files if one.endswith(".safetensors")):
        skip.append("consolidated*")
    if part != "access":
        wanted = ["*.json"] if part == "config" else None
        snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=skip)
    kind = ".safetensors" if new else ".bin"
    print(json.dumps({"bytes": sum(n for f, n in files.items() if f.endswith(kind) and "consolidated" not in f)}))
except Exception as error:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    status = [getattr(getattr(one, "response", None), "status_code", None) for one in chain]
    kinds = [kind.__name__ for one in chain for kind in type(one).__mro__]
    token = "huggingface_hub" in sys.modules and bool(sys.modules["huggingface_hub"].get_token())
    text = " ".join(str(error).split()) or type(error).__name__
    print(json.dumps({"kinds": kinds, "status": next(filter(None, status), None), "text": text, "token": token,
                      "errno": next((one.errno for one in chain if getattr(one, "errno", None)), None)}))
    sys.exit(1)
"""

# Signs (classes of errors, HTTP status), what they mean, what to do with a token and (if different) without.
_REFUSALS: tuple[tuple[set[str | int], str, str, str], ...] = (
    (
        {"GatedRepoError"},
        "it is gated, and you have no access",
        "log in at {page} with the account of your token, and accept its licence",
        "log in at {page}, accept its licence, then set HF_TOKEN to a token of that account",
    ),
    (
        {429},
        "too many requests (429)",
        "try again in a few minutes",
        "try again in a few minutes, with HF_TOKEN set: known accounts may ask more often",
    ),
    ({"RevisionNotFoundError"}, "no such revision", "check `revision` in args", ""),
    (
        {"RepositoryNotFoundError", "RemoteEntryNotFoundError", 404},
        "no such model (404)",
        "check the spelling; if it is private, your token may not see it",
        "check the spelling; if it is private, set HF_TOKEN",
    ),
    (
        {401},
        "the token is refused (401)",
        "the token is wrong or expired; make a new one at https://huggingface.co/settings/tokens",
        "set HF_TOKEN",
    ),
    ({403}, "access is forbidden (403)", "your token lacks the permission to read it", "set HF_TOKEN"),
    (
        {"OfflineModeIsEnabled"},
        "HF_HUB_OFFLINE is set",
        "unset it for the first start, or give a local directory as `model`",
        "",
    ),
    ({"errno 28"}, "the disk is full", "set HF_HOME to a larger one", ""),
    ({"5xx"}, "Hugging Face has trouble", "try again later", ""),
    (
        {"ConnectError", "ConnectionError", "TimeoutException", "Timeout", "LocalEntryNotFoundError"},
        "no connection",
        "check the network and HF_ENDPOINT, or give a local directory as `model`",
        "",
    ),
    ({"ModuleNotFoundError"}, "no huggingface_hub", "install it for the engines' interpreter", ""),
)


def fetch(name: str, python: str, environ: Mapping[str, str], *, part: Part = "weights", revision: str = "main") -> int:
    """Download a model, or only its ``config`` files, or just ask for ``access``; bytes of its weights.

    Raises PreflightError that tells a missing token, an unaccepted licence, an unknown name and no network apart.
    """
    words = [python, "-c", _ASK, name, part, revision]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=dict(environ), check=False)
    except OSError as error:
        raise PreflightError(f"model {name} cannot be downloaded: {python}: {error.strerror}") from None
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PreflightError(f"model {name} cannot be downloaded: {last[:300]}", "see the message above") from None
    if done.returncode:
        what, advice = _refusal(name, said)
        raise PreflightError(f"model {name} cannot be downloaded: {what} ({said['text'][:200]})", advice)
    return int(said["bytes"])


def _refusal(name: str, said: Mapping[str, Any]) -> tuple[str, str]:
    """What went wrong, and what to do about it."""
    signs = {*said["kinds"], said["status"], f"errno {said['errno']}"}
    if isinstance(said["status"], int) and said["status"] >= 500:
        signs.add("5xx")
    for known, what, with_token, without in _REFUSALS:
        if signs & known:
            return what, (without if without and not said["token"] else with_token).format(
                page=f"https://huggingface.co/{name}"
            )
    return "an unknown error", "see the message above"
