"""Hugging Face: may this model be had, and download it once, before several engines would do so at the same time.

Asked in the engines' interpreter, by the huggingface_hub that they use.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any, Literal

from kvdemo.errors import PreflightError
from kvdemo.planning.repositories import Repository

Part = Literal["access", "config", "weights"]

# Prints one JSON document: what was found, or the names of the error's classes, its HTTP status and its text.
_ASK = """
import fnmatch, json, sys
name, part, revision, form, kind = sys.argv[1:]
class FormatError(Exception): pass
class NoConfigError(FormatError): pass
class OnlyGgufError(FormatError): pass
class NotMistralError(FormatError): pass
def has(pattern): return any(fnmatch.fnmatch(one, pattern) for one in files)
try:
    from huggingface_hub import HfApi, get_hf_file_metadata, get_token, hf_hub_url, snapshot_download
    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    files = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    own = has("params.json") and has("consolidated*.safetensors")
    if kind != "model":
        file, mistral = next(iter(files), ""), False
    else:
        mistral = form == "mistral" or (form == "" and own and not has("config.json"))
        file = "params.json" if mistral else "config.json"
        if mistral and not own:
            raise NotMistralError("its files: " + ", ".join(sorted(files)))
        if not has(file):
            raise (OnlyGgufError if has("*.gguf") else NoConfigError)("its files: " + ", ".join(sorted(files)))
    # The list of files is public even where the files are not.
    get_hf_file_metadata(hf_hub_url(name, file, revision=revision))
    skip = ["*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "original/*", "onnx/*"]
    weights = ["*.safetensors", "*.bin"]
    others = [one for one in files if one.endswith(".safetensors") and not one.startswith("consolidated")]
    if kind == "tokenizer":
        skip += weights
    elif mistral:
        weights = ["consolidated*.safetensors"]
        skip += ["*.bin", *others]
    elif has("*.safetensors"):
        weights = ["*.safetensors"]
        skip += ["*.bin"]
        skip += ["consolidated*"] if others else []
    if part != "access":
        wanted = ["*.json"] if part == "config" else None
        snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=skip)
    kept = {one: size for one, size in files.items() if not any(fnmatch.fnmatch(one, pattern) for pattern in skip)}
    print(json.dumps({"bytes": sum(n for f, n in kept.items() if any(fnmatch.fnmatch(f, one) for one in weights))}))
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
        {"OnlyGgufError"},
        "it holds GGUF files only, which are not supported",
        "name the repository that they were made from",
        "",
    ),
    (
        {"NotMistralError"},
        "it is not in Mistral's own format, which needs params.json and consolidated*.safetensors",
        "leave `load-format: mistral` and `config-format: mistral` out",
        "",
    ),
    (
        {"NoConfigError", "RemoteEntryNotFoundError"},
        "it has no config.json",
        "kvdemo reads Hugging Face's format, and Mistral's (params.json and consolidated*.safetensors); is this an "
        "adapter or a data set? Then name the model it belongs to",
        "",
    ),
    (
        {"RepositoryNotFoundError", 404},
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


def download(repository: Repository, python: str, environ: Mapping[str, str], part: Part) -> int:
    """Download what an engine reads of this repository, where that engine looks for it; bytes of its weights.

    ``python`` and ``environ`` are the defaults of all engines. What is no model has no ``config`` of its own: that part
    of it is nothing. Raises PreflightError as ``fetch`` does.
    """
    engine = repository.engine
    if part == "config" and repository.kind != "model":
        return 0
    return fetch(
        repository.name,
        engine.runtime.python or python,
        {**environ, **engine.env},
        part=part,
        revision=repository.revision,
        form=repository.form,
        kind=repository.kind,
    )


def fetch(
    name: str,
    python: str,
    environ: Mapping[str, str],
    *,
    part: Part = "weights",
    revision: str = "main",
    form: str = "",
    kind: str = "model",
) -> int:
    """Download a model, or only its ``config`` files, or just ask for ``access``; bytes of its weights.

    ``form`` and ``kind`` are those of a ``Repository``. Raises PreflightError that tells a missing token, an unaccepted
    licence, an unknown name, a format that is not supported and no network apart.
    """
    words = [python, "-c", _ASK, name, part, revision, form, kind]
    try:
        completed = subprocess.run(words, capture_output=True, text=True, env=dict(environ), check=False)
    except OSError as error:
        raise PreflightError(f"model {name} cannot be downloaded: {python}: {error.strerror}") from None
    try:
        answer: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (completed.stderr.strip().splitlines() or [f"exit code {completed.returncode}"])[-1]
        raise PreflightError(f"model {name} cannot be downloaded: {last[:300]}", "see the message above") from None
    if completed.returncode:
        what, advice = _refusal(name, answer)
        raise PreflightError(f"model {name} cannot be downloaded: {what} ({answer['text'][:200]})", advice)
    return int(answer["bytes"])


def _refusal(name: str, answer: Mapping[str, Any]) -> tuple[str, str]:
    """What went wrong, and what to do about it."""
    signs = {*answer["kinds"], answer["status"], f"errno {answer['errno']}"}
    if isinstance(answer["status"], int) and answer["status"] >= 500:
        signs.add("5xx")
    for pattern, what, with_token, without in _REFUSALS:
        if signs & pattern:
            return what, (without if without and not answer["token"] else with_token).format(
                page=f"https://huggingface.co/{name}"
            )
    return "an unknown error", "see the message above"
