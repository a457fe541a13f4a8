"""The dashboard's questions, asked of a real Prometheus as Grafana asks them.

Variables are filled in, and the answers are those over a range of time.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import httpx

from tests.compose_file import ROOT

DASHBOARD = ROOT / "infra/grafana/dashboards/cartridges.json"
SCRAPE_SECONDS = 15
"""Of infra/prometheus/prometheus.yml and of Grafana's data source."""
FILLED_IN = {
    "$tenant": ".*",
    "$corpus": ".*",
    # As Grafana reckons it for a short range: four scrapes.
    "$__rate_interval": f"{4 * SCRAPE_SECONDS}s",
}
"""What Grafana puts in where nobody chose a tenant or a corpus."""
EMPTY = {"Answers without their Cartridge": "every answer had its Cartridge"}
"""Panels that stay empty after healthy answers in the profile cpu, and why."""
NUM_PANELS = len(json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"])
EXPECTED = {
    "panels_answering": {"at_least": float(NUM_PANELS)},
    "panels_with_data": {"at_least": float(NUM_PANELS - len(EMPTY)), "at_most": float(NUM_PANELS - len(EMPTY))},
    "panels_unlike_expected": {"at_most": 0.0},
}
"""What is asked of `panel_figures`."""


@dataclass(frozen=True)
class Seen:
    """What Prometheus said to one panel."""

    refused: tuple[str, ...]
    """Errors of its questions."""
    points: int
    """Finite values of all its series."""


def ask_panels(prometheus: str, since: float) -> dict[str, Seen]:
    """Every panel's questions.

    Args:
        prometheus: Address of the server.
        since: `time.time()` from which on numbers are wanted.

    Returns:
        What was said, by the panel's title.
    """
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    seen: dict[str, Seen] = {}
    with httpx.Client(base_url=prometheus, timeout=30) as client:
        for panel in dashboard["panels"]:
            refused: list[str] = []
            points = 0
            for target in panel["targets"]:
                span = {"start": since, "end": time.time(), "step": SCRAPE_SECONDS}
                asked = {"query": filled_in(target["expr"]), **span}
                said = client.get("/api/v1/query_range", params=asked).json()
                if said["status"] != "success":
                    refused.append(f"{panel['title']}: {said.get('error')}")
                    continue
                values = [float(value) for series in said["data"]["result"] for _, value in series["values"]]
                points += sum(map(isfinite, values))
            seen[panel["title"]] = Seen(tuple(refused), points)
    return seen


def filled_in(question: str) -> str:
    """A question with the dashboard's variables replaced."""
    for name, value in FILLED_IN.items():
        question = question.replace(name, value)
    return question


def holds_within(prometheus: str, condition: str, seconds: float) -> bool:
    """Whether a condition, such as `up == 1`, comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = httpx.get(f"{prometheus}/api/v1/query", params={"query": condition}, timeout=30).json()
        if found["data"]["result"]:
            return True
        time.sleep(1)
    return False


def panel_figures(seen: Mapping[str, Seen]) -> dict[str, float]:
    """Numbers of panels that are answered, that show something, and that show something or nothing against `EMPTY`."""
    return {
        "panels_answering": float(sum(not one.refused for one in seen.values())),
        "panels_with_data": float(sum(one.points > 0 for one in seen.values())),
        "panels_unlike_expected": float(sum((one.points > 0) == (title in EMPTY) for title, one in seen.items())),
    }
