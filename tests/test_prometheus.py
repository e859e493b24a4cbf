"""``kvdemo export prometheus``: a real Prometheus reads the fleet, and answers whatever the dashboard asks.

The dashboard is held to Grafana's own types, which its Foundation SDK generates from Grafana's schema; no Grafana runs
here.
"""

from __future__ import annotations

import json
import shutil
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from conftest import Lab
from kvdemo import backends
from kvdemo.backends import lmcache, series
from kvdemo.errors import UsageError
from kvdemo.export import grafana, prometheus
from kvdemo.planning.plan import Plan
from kvdemo.planning.services import Node
from watching import RARE, Watcher, checked, expressions, names, needs_prometheus
from watching import prometheus as running

TEXT = " ".join(f"word{number}" for number in range(400))


def two_caches(lab: Lab, **settings: Any) -> Path:
    """A profile of one plain engine and two caches, one of them with an L2 and two engines."""
    engines = {"plain": {}, "a": {"cache": "big"}, "b": {"cache": "big"}, "c": {"cache": "small"}}
    caches = {"big": {"l1": "64MiB", "l2": "./kv", "chunk_size": 64}, "small": {"l1": "16MiB", "chunk_size": 64}}
    return lab.profile(engines, caches, **settings)


@pytest.fixture(scope="module")
def watched(shared_lab: Lab) -> Iterator[tuple[Plan, Watcher, Path]]:
    """A fleet of fakes, what was exported of it, and the Prometheus that reads it."""
    profile = two_caches(shared_lab)
    shared_lab.up(profile)
    done = shared_lab.run("export", "prometheus", "-p", shared_lab.name, "-o", "watch")
    assert done.returncode == 0, done.stderr
    plan = shared_lab.plan(profile)
    with running(shared_lab.path / "watch") as watcher:
        watcher.wait_up()
        yield plan, watcher, shared_lab.path / "watch"


def ask(plan: Plan, engine: str, text: str, salt: str) -> None:
    """One request."""
    body = {"prompt": text, "max_tokens": 2, "cache_salt": salt}
    httpx.post(f"{plan.service(engine).url}/v1/completions", json=body, timeout=30).raise_for_status()


def documents(lab: Lab) -> dict[str, Any]:
    """The dashboard of a fleet with two caches, as JSON and as Grafana's types see it."""
    made: dict[str, Any] = json.loads(grafana.dashboard(lab.plan(two_caches(lab))))
    return made


@needs_prometheus
def test_prometheus_reads_every_service(watched: tuple[Plan, Watcher, Path]) -> None:
    """Each is a target at the port that it has; jobs and labels say what it is."""
    plan, watcher, directory = watched
    assert watcher.health() == dict.fromkeys((spec.name for spec in plan.services), "up")
    jobs = yaml.safe_load((directory / "prometheus.yml").read_text())["scrape_configs"]
    said = {
        target["labels"]["service"]: (job["job_name"], target["targets"], target["labels"])
        for job in jobs
        for target in job["static_configs"]
    }
    for spec in plan.services:
        job, targets, labels = said[spec.name]
        assert (job, targets) == (f"{plan.project}-{spec.kind}s", [f"127.0.0.1:{spec.port}"])
        wired = {"cache": spec.cache} if spec.cache else {}
        assert labels == {"project": plan.project, "service": spec.name, "kind": spec.kind, **wired}


@needs_prometheus
def test_every_question_is_answered(watched: tuple[Plan, Watcher, Path]) -> None:
    """Every question is right, and is answered wherever the fleet has the counter: not what only trouble counts."""
    plan, watcher, directory = watched
    checked(directory)
    for salt in ("one", "two"):
        for engine in ("a", "b", "c", "plain"):
            ask(plan, engine, TEXT, salt)
        watcher.scraped_again()
    exposed = watcher.exposed()
    asked = expressions(directory)
    assert len(asked) > 15
    unanswered = {expression for expression in asked if not watcher.ask(expression)}
    assert {one for one in unanswered if names(one) <= exposed} == set()
    # The fake engine does not say how long it asked.
    asking = {f"{lmcache.LOOKUP.series.name}_{part}" for part in ("sum", "count")}
    assert {name for one in unanswered for name in names(one)} <= RARE | asking


@needs_prometheus
def test_the_answers_are_what_happened(watched: tuple[Plan, Watcher, Path]) -> None:
    """Tokens by source for each engine; a salt that is used once counts, although its series begins with all of it."""
    plan, watcher, directory = watched
    watcher.scraped_again()
    tokens = len(TEXT.split())
    chunks = tokens // 64 * 64

    def total(question: str) -> dict[tuple[str, ...], float]:
        """The increase over ten minutes, as the rate is over these."""
        return {labels: round(value * 600) for labels, value in watcher.ask(question).items()}

    hits = next(one for one in expressions(directory) if "lookup_hit_l1_tokens" in one)
    before = total(hits).get(("big",), 0)
    ask(plan, "a", TEXT, "only once")
    ask(plan, "b", TEXT, "only once")
    watcher.scraped_again()
    # Prometheus extrapolates by half a scrape.
    assert total(hits)[("big",)] - before == pytest.approx(chunks, rel=0.3)
    assert total(hits)[("small",)] <= total(hits)[("big",)]
    use = watcher.ask(next(one for one in expressions(directory) if series.UP.name + "{" in one))
    assert use == {(spec.name,): 1.0 for spec in plan.services}
    by_source = watcher.ask(next(one for one in expressions(directory) if "service, source" in one))
    assert by_source[("plain", series.SHARED)] == 0
    assert by_source[("b", series.SHARED)] > 0


@needs_prometheus
def test_the_checks_see_mistakes(watched: tuple[Plan, Watcher, Path], tmp_path: Path) -> None:
    """Of a question and of the configuration."""
    _, watcher, directory = watched
    shutil.copytree(directory / "grafana", tmp_path / "grafana")
    right = (directory / "prometheus.yml").read_text()
    for wrong in (right.replace("static_configs", "statics"), right.replace('"5s"', '"5x"')):
        (tmp_path / "prometheus.yml").write_text(wrong)
        with pytest.raises(AssertionError):
            checked(tmp_path)
    (tmp_path / "prometheus.yml").write_text(right)
    checked(tmp_path)
    file = next((tmp_path / "grafana" / "dashboards").iterdir())
    file.write_text(file.read_text().replace("histogram_quantile(", "histogram_quantil("))
    with pytest.raises(AssertionError):
        checked(tmp_path)
    assert not watcher.ask('sum by (service) (vllm:no_such_series{project="x"})')


def errors(document: Mapping[str, Any]) -> list[str]:
    """What Grafana's types find wrong: fields that they do not know, and values of another type."""
    sdk = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="scripts/setup --dev installs it")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    seen = sdk.Dashboard.from_json(document)
    again = json.loads(JSONEncoder().encode(seen))
    return [*_lost(document, again, ""), *_mistyped(seen, "")]


def _lost(made: Any, seen: Any, place: str) -> Iterator[str]:
    """What was written and is not seen: Grafana's types add defaults, and drop what they do not know."""
    if isinstance(made, dict) and isinstance(seen, dict):
        for key, value in made.items():
            yield from _lost(value, seen[key], f"{place}/{key}") if key in seen else [f"{place}/{key} is unknown"]
    elif isinstance(made, list) and isinstance(seen, list) and len(made) == len(seen):
        for number, pair in enumerate(zip(made, seen, strict=True)):
            yield from _lost(*pair, f"{place}/{number}")
    elif made != seen:
        yield f"{place}: {made!r} is seen as {seen!r}"


def _mistyped(value: Any, place: str) -> Iterator[str]:
    """Values of a type that is not the annotated one, in an object of the SDK and all below it."""
    for name, hint in typing.get_type_hints(type(value)).items():
        part = getattr(value, name)
        if part is None or isinstance(part, bool | int | float | str):
            try:
                checker = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
                checker.validate_json(json.dumps(part), strict=True)
            except ValidationError as error:
                yield f"{place}/{name}: {error.errors()[0]['msg']}"
        for number, one in enumerate(part if isinstance(part, list) else [part]):
            if hasattr(one, "to_json"):
                yield from _mistyped(one, f"{place}/{name}/{number}")


def test_the_dashboard_is_grafana_s(lab: Lab) -> None:
    """By Grafana's own types, down to the options of its panels and the fields of its queries."""
    assert errors(documents(lab)) == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("schemaVersion",), "42"),
        (("titel",), "x"),
        (("panels", 1, "gridPos", "w"), "12"),
        (("panels", 1, "targets", 0, "expression"), "up"),
        (("panels", 1, "targets", 0, "range"), "yes"),
        (("panels", 1, "options", "legend", "displayMode"), "lines"),
        (("panels", 1, "fieldConfig", "defaults", "custom", "stacking", "mode"), "high"),
        (("graphTooltip",), 7),
    ],
)
def test_grafana_s_types_see_mistakes(lab: Lab, path: tuple[str | int, ...], wrong: Any) -> None:
    """Another type, a field that Grafana does not know, a word that is none of its own."""
    document = documents(lab)
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    try:
        found = errors(document)
    except (TypeError, ValueError):
        return
    assert found


def test_panels_stand_beside_each_other(lab: Lab) -> None:
    """Each has its own number and place, none covers another, and each says what it shows, in which unit."""
    panels = documents(lab)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    charts = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"] for panel in charts)
    assert {panel["title"] for panel in panels if panel["type"] == "row"} == {"Engines", "LMCache", "Processes"}
    assert len({panel["title"] for panel in panels}) == len(panels)


def of_kind(plan: Plan, name: str, kind: str) -> Plan:
    """The same plan, but this cache and its engines are of that kind; it has no process if that has none."""
    mine = {spec.name for spec in plan.services if name in {spec.name, spec.cache}}
    specs = [replace(spec, backend=kind) if spec.name in mine else spec for spec in plan.services]
    return replace(plan, services=tuple(spec for spec in specs if spec.name != name or backends.of(kind).serves))


@needs_prometheus
@pytest.mark.parametrize("kind", backends.BACKENDS)
def test_every_kind_of_cache_has_its_panels(lab: Lab, kind: str) -> None:
    """Beside a cache of another kind: what each says of itself, right by Grafana's types and by promtool."""
    plan = of_kind(lab.plan(two_caches(lab)), "small", kind)
    for name, text in prometheus.files(plan, lab.path).items():
        file = lab.path / "watch" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    checked(lab.path / "watch")
    document = json.loads(grafana.dashboard(plan))
    assert errors(document) == []
    titles = [panel["title"] for panel in document["panels"]]
    for one in (backends.DEFAULT, backends.of(kind)):
        assert {one.title, *(chart.title for chart in one.charts)} <= set(titles)
    assert len(set(titles)) == len(titles)


def test_what_verdicts_read_is_shown(lab: Lab) -> None:
    """The counter that sources come from, the two that tell processes apart, the queue, and a cache's own."""
    shown = {
        name for panel in documents(lab)["panels"] for one in panel.get("targets", ()) for name in names(one["expr"])
    }
    read = {one.name for one in (series.BY_SOURCE, series.RUNNING, series.WAITING, series.START, series.KV_USE)}
    assert read <= shown
    assert f"{series.TTFT.name}_bucket" in shown
    assert all(name.startswith(("vllm:", "lmcache_mp_", "process_", "up")) for name in shown)


def test_without_a_cache_there_is_nothing_of_one(lab: Lab) -> None:
    """One job, and no question about LMCache."""
    plan = lab.plan(lab.profile({"plain": {}}))
    made = prometheus.files(plan, PurePosixPath("/somewhere"))
    assert [job["job_name"] for job in yaml.safe_load(made["prometheus.yml"])["scrape_configs"]] == [
        f"{plan.project}-engines"
    ]
    assert "lmcache" not in made[f"grafana/dashboards/{plan.project}.json"].lower()


def test_grafana_finds_it(lab: Lab) -> None:
    """An absolute path in which nothing is expanded; the data source is the one that the dashboard asks first."""
    plan = lab.plan(two_caches(lab))
    made = prometheus.files(plan, PurePosixPath("/srv/my $dir"))
    folder = "grafana/provisioning"
    provider = yaml.safe_load(made[f"{folder}/dashboards/kvdemo.yaml"])
    assert provider["providers"][0]["options"] == {"path": "/srv/my $$dir/grafana/dashboards"}
    source = yaml.safe_load(made[f"{folder}/datasources/kvdemo.yaml"])["datasources"][0]
    document = json.loads(made[f"grafana/dashboards/{plan.project}.json"])
    assert source["uid"] == document["templating"]["list"][0]["current"]["value"]
    assert (provider["apiVersion"], source["type"], source["url"]) == (1, "prometheus", "http://127.0.0.1:9090")


def test_long_names_have_an_address() -> None:
    """Grafana allows 40 characters; two projects never have the same."""
    long = [f"{'a' * 60}{end}" for end in ("b", "c")]
    found = [grafana.uid(name) for name in ("demo4", *long)]
    assert found[0] == "kvdemo-demo4"
    assert len(set(found)) == 3
    assert max(map(len, found)) <= 40


def test_a_cluster_is_known_once_it_runs(lab: Lab) -> None:
    """Its nodes' addresses then; before, nobody knows where Ray will put its services."""
    plan = lab.plan(two_caches(lab))
    with pytest.raises(UsageError, match="where it will listen is known once it runs") as refused:
        prometheus.scrape(replace(plan, on={"address": "auto"}))
    assert f"kvdemo export prometheus -p {plan.project}" in refused.value.hint
    moved = tuple(replace(spec, host="10.0.0.7", node="n1") for spec in plan.services)
    text = prometheus.scrape(
        replace(plan, services=moved, on={"address": "auto"}, nodes=(Node("1", "n1", "10.0.0.7"),))
    )
    jobs = yaml.safe_load(text)["scrape_configs"]
    targets = [target for job in jobs for target in job["static_configs"]]
    assert {target["labels"]["node"] for target in targets} == {"n1"}
    assert all(target["targets"][0].startswith("10.0.0.7:") for target in targets)
    assert "from nowhere else" not in text


def test_the_command(lab: Lab) -> None:
    """To stdout the configuration alone; into a directory all of it, and how to use it in one sentence."""
    path = two_caches(lab, secrets=["VLLM_API_KEY"])
    lab.environ["VLLM_API_KEY"] = "correct-horse"
    done = lab.run("export", "prometheus", path)
    assert done.returncode == 0, done.stderr
    ports = {spec.name: spec.port for spec in lab.plan(path).services}
    jobs = yaml.safe_load(done.stdout)["scrape_configs"]
    assert {target["labels"]["service"]: target["targets"] for job in jobs for target in job["static_configs"]} == {
        name: [f"127.0.0.1:{port}"] for name, port in ports.items()
    }
    done = lab.run("export", "prometheus", path, "-o", "new/watch it")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"prometheus --config.file='{lab.path}/new/watch it'/prometheus.yml reads the fleet")
    assert done.stdout.rstrip().endswith(f"shows it at http://127.0.0.1:3000/d/kvdemo-{lab.name}")
    written = [file for file in (lab.path / "new").rglob("*") if file.is_file()]
    assert len(written) == 4
    assert not [file for file in written if "correct-horse" in file.read_text()]
    (lab.path / "taken").write_text("")
    for wrong in (["-p", "nobody"], [path, "--nodes", "2"], [path, "-o", "taken"]):
        refused = lab.run("export", "prometheus", *wrong)
        assert refused.returncode in {2, 7}, refused
        assert "Traceback" not in refused.stderr
