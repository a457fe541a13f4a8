"""Dashboard and alerts ask for numbers that the gateway has, with labels that they have."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml

from cartridge_core.serving.metrics import Metrics
from tests.compose_file import ROOT

DASHBOARD = json.loads((ROOT / "infra/grafana/dashboards/cartridges.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((ROOT / "infra/prometheus/alerts.yml").read_text(encoding="utf-8"))


class NoEngine:
    """An engine that nobody asks anything."""

    def cache_counts(self) -> object:
        class Counts:
            hits = misses = loads = failed_loads = evictions = resident_bytes = 0
            load_seconds = 0.0

        return Counts()


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Name of each series that the gateway exports, and its labels."""
    metrics = Metrics(NoEngine())  # type: ignore[arg-type]
    series: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if hasattr(metric, "_labelnames"):
            labels = set(metric._labelnames)
            name, kind = metric._name, metric._type
            for suffix in {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[kind]:
                series[name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    for family in metrics.collect():
        series[family.name + ("_total" if family.type == "counter" else "")] = set()
    return series


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        yield variable["name"], variable["query"]["query"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("title", "expression"), expressions())
def test_it_asks_for_what_there_is(title: str, expression: str, exported: dict[str, set[str]]) -> None:
    names = re.findall(r"\b(cartridge_\w+)", expression)
    assert names or "up{" in expression
    for name in names:
        assert name in exported, f"{title}: the gateway has no {name}"
    for name, matchers in re.findall(r"\b(cartridge_\w+)\{([^}]*)\}", expression):
        used = set(re.findall(r"(\w+)\s*=~?\"", matchers))
        assert used <= exported[name], f"{title}: {name} has no label {used - exported[name]}"
    for labels in re.findall(r"by \(([\w, ]+)\)", expression):
        assert set(re.split(r",\s*", labels)) <= exported[names[0]], title


def test_everything_that_is_exported_is_shown(exported: dict[str, set[str]]) -> None:
    shown = " ".join(expression for _, expression in expressions())
    missing = {name for name in exported if not name.endswith(("_sum", "_count")) and name not in shown}
    assert not missing


def test_the_dashboard_is_provisioned_from_its_data_source() -> None:
    source = yaml.safe_load(
        (ROOT / "infra/grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    )
    uid = source["datasources"][0]["uid"]
    assert all(panel["datasource"]["uid"] == uid for panel in DASHBOARD["panels"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
