"""Deployments: every one in prefect.yaml exists, and the short name works as it is typed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect import Flow

from cartridge_core.catalog import catalog_session, list_corpora
from cartridge_core.errors import CatalogError, NotFoundError, SettingsError, StorageError
from cartridge_core.initialization.initializers import INITIALIZERS
from cartridge_core.stages.ingest import ingest
from flows.fit_cartridge import fit_cartridge
from flows.ingest_corpus import ingest_corpus
from flows.retrying import is_outage
from flows.train_cartridge import train_cartridge
from tests.talkative import Workplace

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_deployment_is_a_flow_of_that_name(deployment: dict[str, Any]) -> None:
    path, _, name = deployment["entrypoint"].partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    flow = getattr(module, name)
    assert isinstance(flow, Flow)
    assert flow.name == deployment["name"]


def test_parameters_say_what_they_are_and_how_large_they_may_be() -> None:
    for deployment in DEPLOYMENTS:
        path, _, name = deployment["entrypoint"].partition(":")
        schema = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name).parameters
        for parameter, told in schema.properties.items():
            assert told.get("description"), (name, parameter)
            kinds = [told, *told.get("anyOf", ())]
            for kind in kinds:
                if kind.get("type") in ("integer", "number"):
                    assert {"minimum", "exclusiveMinimum"} & set(kind), (name, parameter)
                    assert "default" not in kind or kind["default"] is None or kind.get("minimum", 0) <= kind["default"]


def test_the_form_offers_the_initialisers_that_there_are() -> None:
    for flow in (train_cartridge, fit_cartridge):
        (named, nothing) = flow.parameters.properties["initialization"]["anyOf"]
        assert named["enum"] == list(INITIALIZERS) and nothing == {"type": "null"}


def prefect(server: str, *arguments: str, plugins: bool = True) -> subprocess.CompletedProcess[str]:
    """The `prefect` command as somebody types it in the checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {
        "PREFECT_API_URL": server,
        "PREFECT_PLUGINS_ENABLED": str(plugins).lower(),
        "PWD": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a worker starts `python`
    }
    command = [str(Path(sys.executable).with_name("prefect")), *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, timeout=240
    )


def deployment_run(name: str, server: str, plugins: bool) -> subprocess.CompletedProcess[str]:
    parameters = ["--param", "corpus=wards", "--param", 'paths=["documents"]']
    return prefect(server, "deployment", "run", name, *parameters, plugins=plugins)


def test_what_the_readme_says_deploys_and_a_worker_runs_it(prefect_server: str, workplace: Workplace) -> None:
    for pool in ("cpu", "gpu"):
        made = prefect(prefect_server, "work-pool", "create", pool, "--type", "process", "--overwrite")
        assert made.returncode == 0, made.stderr
    deployed = prefect(prefect_server, "deploy", "--all")
    assert deployed.returncode == 0, deployed.stderr
    listed = httpx.post(f"{prefect_server}/deployments/filter", json={}).json()
    assert {deployment["name"] for deployment in DEPLOYMENTS} <= {found["name"] for found in listed}

    parameters = ["--param", "corpus=wards", "--param", f"paths={json.dumps([str(workplace.documents)])}"]
    refused = prefect(prefect_server, "deployment", "run", "train-cartridge", *parameters, "--param", "num_tokens=-4")
    assert refused.returncode != 0
    assert "num_tokens" in refused.stdout + refused.stderr

    started = prefect(prefect_server, "deployment", "run", "ingest-corpus", *parameters)
    assert started.returncode == 0, started.stderr
    worked = prefect(prefect_server, "worker", "start", "--pool", "cpu", "--run-once")
    runs = httpx.post(
        f"{prefect_server}/flow_runs/filter", json={"flows": {"name": {"any_": ["ingest-corpus"]}}}
    ).json()
    states = {run["state"]["type"] for run in runs if run["deployment_id"]}
    assert states == {"COMPLETED"}, worked.stdout + worked.stderr
    with catalog_session(workplace.settings, read_only=True) as session:
        assert [corpus.name for corpus in list_corpora(session, "default")] == ["wards"]


def test_the_short_name_runs_the_deployment(prefect_server: str) -> None:
    from flows.train_cartridge import train_cartridge

    train_cartridge.to_deployment(name="train-cartridge").apply()
    short = deployment_run("train-cartridge", prefect_server, plugins=True)
    assert short.returncode == 0, short.stderr
    assert "train-cartridge" in short.stdout
    assert deployment_run("train-cartridge/train-cartridge", prefect_server, plugins=True).returncode == 0
    stock = deployment_run("train-cartridge", prefect_server, plugins=False)
    assert stock.returncode != 0, "Prefect knows short names by now: the plugin can go"


class Ended:
    """A task's state, as far as the retry condition looks at it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def result(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [(StorageError("S3 is away."), True), (NotFoundError("No corpus."), False), (SettingsError("No."), False)],
)
def test_only_outages_are_tried_again(error: Exception, expected: bool) -> None:
    assert is_outage(None, None, Ended(error)) is expected


def test_a_catalog_that_is_away_for_a_moment_ends_no_run(
    prefect_server: str, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def first_away(*asked: Any) -> Any:
        tries.append(asked[1])
        if len(tries) == 1:
            raise CatalogError("The database system is starting up.")
        return ingest(*asked)

    monkeypatch.setattr("flows.ingest_corpus.ingest", first_away)
    assert ingest_corpus("wards", [workplace.documents])["num_documents"] > 0
    assert tries == ["wards", "wards"]
