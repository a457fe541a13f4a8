"""Deployments: every one in prefect.yaml exists, and the short name works as it is typed."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow

from cartridge_core.errors import NotFoundError, SettingsError, StorageError
from flows.retrying import is_outage

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_deployment_is_a_flow_of_that_name(deployment: dict[str, Any]) -> None:
    path, _, name = deployment["entrypoint"].partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    flow = getattr(module, name)
    assert isinstance(flow, Flow)
    assert flow.name == deployment["name"]


def deployment_run(name: str, server: str, plugins: bool) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_API_URL": server, "PREFECT_PLUGINS_ENABLED": str(plugins).lower()}
    command = [str(Path(sys.executable).with_name("prefect")), "deployment", "run", name]
    parameters = ["--param", "corpus=wards", "--param", 'paths=["documents"]']
    return subprocess.run([*command, *parameters], env=environment, capture_output=True, text=True, cwd=ROOT)


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
