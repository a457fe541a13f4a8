"""A process that dies after any step of a registration; the next one completes it, and nothing is there twice."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cartridge_core.catalog import catalog_session, list_cartridges, list_events
from cartridge_core.publishing import Evidence, register_cartridge
from cartridge_core.registry.client import registry_client
from cartridge_core.settings import Settings
from cartridge_core.storage import open_store
from tests.samples import SOURCE, embedded, grade, save_cartridge

STEPS = [
    ("cartridge_core.storage.local", "LocalStore.put_file", 1),  # the tensors are stored
    ("cartridge_core.storage.local", "LocalStore.put_file", 2),  # the manifest is stored
    ("cartridge_core.storage.local", "LocalStore.put_file", 4),  # the report is stored
    ("cartridge_core.registry.version", "log_inputs", 1),  # in the middle of the run
    ("cartridge_core.registry.version", "_logged_model", 1),
    ("mlflow", "MlflowClient.create_registered_model", 1),
    ("mlflow", "MlflowClient.create_model_version", 1),
    ("cartridge_core.publishing.registering", "register_version", 1),
    ("cartridge_core.publishing.registering", "record_cartridge", 1),  # rows that are not committed yet
    ("cartridge_core.publishing.registering", "_record", 1),
]


def dying_after(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    calls = 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        result = function(*arguments, **options)
        calls += 1
        if calls == times:
            os._exit(9)
        return result

    return dying


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("module", "place", "times"), STEPS)
def test_a_crash_after_each_step(module: str, place: str, times: int, tmp_path: Path) -> None:
    settings: Settings = embedded(tmp_path / "home")
    cartridge = save_cartridge(tmp_path / "c")
    evidence = Evidence(report=grade(cartridge.digest))
    owner: Any = importlib.import_module(module)
    *path, name = place.split(".")
    for part in path:
        owner = getattr(owner, part)
    child = os.fork()
    if child == 0:
        try:
            setattr(owner, name, dying_after(getattr(owner, name), times))
            register_cartridge(settings, tmp_path / "c", SOURCE, evidence)
        finally:  # whatever happens, the child must not go on as a second pytest
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "it did not come to this step"
    entry = register_cartridge(settings, tmp_path / "c", SOURCE, evidence, actor="second")
    assert register_cartridge(settings, tmp_path / "c", SOURCE, evidence) == entry
    with registry_client(settings) as client:
        versions = client.search_model_versions(f"name = '{entry.model_name}'")
    assert [int(version.version) for version in versions] == [entry.version]
    with catalog_session(settings, read_only=True) as session:
        assert list_cartridges(session, "default") == [entry]
        assert len(list_events(session, "default")) == 1
    assert len(open_store(settings.artifact_root).list()) == 4
    assert entry.score == 0.95
