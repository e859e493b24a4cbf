"""Is a service ready, and is it what we think it is? Short HTTP questions over the standard library.

(httpx would cost ``ps`` a third of its processor time to import.)
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from kvdemo import backends
from kvdemo.judge.scrape import Scrape, parse
from kvdemo.planning.services import ServiceSpec

PREFIXES = ("vllm", *backends.prefixes(), "process")
"""How the names of the series begin that are read."""


def unusable(key: str) -> str:
    """Why no HTTP header can carry this API key, in words that do not show it; empty if one can."""
    if "\r" in key or "\n" in key:
        return "holds a line end"
    if not (key.isascii() and key.isprintable()):
        return "holds characters that no HTTP header can carry"
    return "begins or ends with a blank" if key != key.strip() else ""


def request(
    url: str, path: str, *, timeout: float = 3, key: str = "", body: dict[str, Any] | None = None
) -> tuple[int, bytes]:
    """GET, or POST if there is a body; status and answer, or (0, reason) if none came within ``timeout`` seconds."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout, context=_tls())
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    path = parts.path.rstrip("/") + path
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request("POST" if body is not None else "GET", path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, (str(error) or type(error).__name__).encode()
    finally:
        connection.close()


@cache
def _tls() -> ssl.SSLContext:
    """Certificates are read once."""
    return ssl.create_default_context()


def healthy(spec: ServiceSpec, timeout: float = 3) -> bool:
    """Whether it says of itself that it works. A hung engine may: so ``up`` also makes it generate."""
    return request(spec.url, spec.health_path, timeout=timeout)[0] == 200


def core_died(url: str) -> bool:
    """Whether the core of this engine has died: its API server answers 503 then, and takes seconds to end itself."""
    return request(url, "/health")[0] == 503


def window(url: str, model: str, key: str = "") -> int | None:
    """The longest sequence of this model, in tokens, as the engine itself says; None if it does not."""
    status, body = request(url, "/v1/models", key=key)
    try:
        cards = json.loads(body)["data"] if status == 200 else []
        lengths = [card.get("max_model_len") for card in cards if card["id"] == model]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def models(url: str, key: str = "") -> tuple[int, list[str]]:
    """The status with which an OpenAI server answers, 0 if it does not, and the model ids that it offers."""
    status, body = request(url, "/v1/models", key=key)
    try:
        return status, [str(entry["id"]) for entry in json.loads(body)["data"]] if status == 200 else []
    except (ValueError, KeyError, TypeError):
        return status, []


def generates(url: str, model: str, timeout: float, key: str = "") -> str:
    """Make the engine produce one token; empty when it did, else why not."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    status, answer = request(url, "/v1/completions", timeout=timeout, key=key, body=body)
    return "" if status == 200 else f"{status or 'no answer'}: {answer[:300].decode(errors='replace')}"


def report(cache: ServiceSpec) -> dict[str, Any]:
    """A cache server's own report; empty if it does not answer."""
    code, body = request(cache.url, backends.of(cache.backend).report_path)
    try:
        document = json.loads(body) if code == 200 else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def counters(url: str, key: str = "") -> dict[str, float]:
    """Prometheus samples of ``/metrics`` summed over labels; by source and by reason, too, where a series has them.

    Keys are names without prefix and ``_total``: ``prompt_tokens_by_source{local_compute}``, ``num_requests_running``.
    """
    answer, _ = metrics(url, key)
    return dict(answer.values) if answer else {}


def parsed(exposed: str) -> dict[str, float]:
    """The same of a text that ``/metrics`` answered."""
    return dict(parse(exposed, PREFIXES).values)


def metrics(url: str, key: str = "", timeout: float = 10) -> tuple[Scrape | None, str]:
    """``/metrics`` as it is now, or None and why it cannot be read."""
    code, body = request(url, "/metrics", timeout=timeout, key=key)
    if code != 200:
        reason = f"HTTP {code} at /metrics" if code else body.decode(errors="replace")
        return None, f"does not answer ({reason})"
    return parse(body.decode(errors="replace"), PREFIXES, time.monotonic()), ""
