"""A real Prometheus that reads what ``kvdemo export prometheus`` says, and the questions of its dashboard put to it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from guarding import free_port, until
from kvdemo.backends import lmcache

ROOT = Path(__file__).resolve().parent.parent
UNPACKED = ROOT / ".cache" / "prometheus" / "usr" / "bin"
"""Where scripts/setup --dev unpacks Debian's package."""

PATIENCE = 30.0
RARE = {one.name for one in (lmcache.EVICTED, lmcache.REFUSED, lmcache.UNREADABLE, lmcache.EARLY_EXIT)}
"""What a cache server exposes only once it has happened."""


def _found(name: str) -> str:
    return shutil.which(name) or shutil.which(UNPACKED / name) or ""


PROMETHEUS = _found("prometheus")
PROMTOOL = _found("promtool")
needs_prometheus = pytest.mark.skipif(
    not (PROMETHEUS and PROMTOOL), reason="needs Prometheus and promtool (scripts/setup --dev says how to get them)"
)
SERIES = re.compile(r"\b([a-z_]+(?:[:_][A-Za-z0-9_]+)+)(?=\{)")
"""The name of a series in a question: what stands before its selector."""


def expressions(directory: Path) -> list[str]:
    """Every question of the dashboards below a directory, as Grafana would put it over ten minutes, at a quick pace."""
    panels = [
        panel
        for file in (directory / "grafana" / "dashboards").glob("*.json")
        for panel in json.loads(file.read_text())["panels"]
    ]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [expr.replace("$__rate_interval", "10m").replace(":5s]", ":500ms]") for expr in found]


def names(expression: str) -> set[str]:
    """The series that it asks for."""
    return set(SERIES.findall(expression)) | ({"up"} if re.search(r"\bup\{", expression) else set())


class Watcher:
    """One Prometheus at ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=PATIENCE).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, expression: str) -> dict[tuple[str, ...], float]:
        """Its answer now: values by service and the other labels' values; what is no number is left out."""
        rows = {
            (row["metric"].pop("service", ""), *row["metric"].values()): float(row["value"][1])
            for row in self._get("query", query=expression)["result"]
        }
        return {labels: value for labels, value in rows.items() if not math.isnan(value)}

    def health(self) -> dict[str, str]:
        """Of each service, how the last scrape went: ``up``, ``down`` or ``unknown``."""
        return {one["labels"]["service"]: one["health"] for one in self._get("targets")["activeTargets"]}

    def exposed(self) -> set[str]:
        """The names of all series that were scraped."""
        return set(self._get("label/__name__/values"))

    def unanswered(self, directory: Path) -> set[str]:
        """The series of those questions of the dashboards that have no answer now."""
        return {name for one in expressions(directory) if not self.ask(one) for name in names(one)}

    def scrapes(self) -> float:
        """How often the service was scraped that was scraped least."""
        return min(self.ask("count_over_time(up[5m])").values(), default=0.0)

    def scraped_again(self, times: int = 2) -> None:
        """Wait until every service was scraped so often once more."""
        enough = self.scrapes() + times
        until(lambda: self.scrapes() >= enough, PATIENCE)

    def wait_up(self) -> None:
        """Wait until every service was scraped."""
        until(lambda: set(self.health().values()) == {"up"}, PATIENCE)


@contextmanager
def prometheus(directory: Path, pace: str = "500ms") -> Iterator[Watcher]:
    """Prometheus with the configuration in this directory, but at a quicker pace."""
    text = (directory / "prometheus.yml").read_text()
    quick, changes = re.subn(
        r'scrape_interval: "5s"\n( *)scrape_timeout: "5s"', rf"scrape_interval: {pace}\n\1scrape_timeout: {pace}", text
    )
    assert changes
    config = directory / "quick.yml"
    config.write_text(quick)
    port, said = free_port(), directory / "prometheus.log"
    argv = [
        PROMETHEUS,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with said.open("w") as log:
        process = subprocess.Popen(argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    watcher = Watcher(f"http://127.0.0.1:{port}")
    try:
        until(lambda: _ready(watcher.url) or process.poll() is not None, PATIENCE)
        assert process.poll() is None, said.read_text()
        yield watcher
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=1).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def checked(directory: Path) -> None:
    """``promtool`` finds the configuration right, and every question of the dashboard is one."""
    asked = [{"record": f"asked_{number}", "expr": one} for number, one in enumerate(expressions(directory))]
    rules = directory / "asked.yml"
    rules.write_text(json.dumps({"groups": [{"name": "asked", "rules": asked}]}))
    for kind, file in (("config", directory / "prometheus.yml"), ("rules", rules)):
        argv = [PROMTOOL, "check", kind, str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
