import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import RegistryError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.registry import (
    RegisteredVersion,
    VersionContent,
    alias_targets,
    clear_alias,
    erase_version,
    model_name,
    register_version,
    set_alias,
    tag_version,
)
from cartridge_core.registry.client import registry_client
from cartridge_core.settings import Settings
from tests.ports import free_port
from tests.samples import CORPUS, embedded, grade, save_cartridge

NAME = "default.clinic.reference"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return embedded(tmp_path / "home")


@pytest.fixture
def content(tmp_path: Path) -> VersionContent:
    return content_of(tmp_path / "cartridge")


def content_of(folder: Path, seed: int = 0, **more: Any) -> VersionContent:
    cartridge = save_cartridge(folder, seed, **more)
    return VersionContent(
        corpus="clinic",
        corpus_digest=CORPUS.digest,
        corpus_uri="docs",
        manifest=cartridge.manifest,
        files=(folder / "cartridge.safetensors", folder / "manifest.json"),
    )


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def graded(content: VersionContent, tmp_path: Path, right: int = 19) -> VersionContent:
    plots = tmp_path / "curve.png", tmp_path / "memory.png"
    for plot in plots:
        plot.write_bytes(b"\x89PNG")
    return replace(
        content,
        report=grade(content.manifest.digest, right),
        training_plots=(plots[0],),
        evaluation_plots=(plots[1],),
        params={"learning_rate": 0.02, "unset": None},
        tags={"flow_run": "seven"},
    )


def test_the_model_has_exactly_our_files(settings: Settings, content: VersionContent, tmp_path: Path) -> None:
    (tmp_path / "cartridge" / "notes.txt").write_text("not part of the Cartridge")
    version = register_version(settings, content)
    assert (version.name, version.version, version.created) == (NAME, 1, True)
    with registry_client(settings) as client:
        model = client.get_logged_model(version.model_id)
        assert model.status == "READY"
        assert model.model_type == "cartridge"
        listed = [entry.path for entry in client.list_logged_model_artifacts(version.model_id)]
    assert sorted(listed) == ["cartridge.safetensors", "manifest.json"]
    stored = files_below(settings.mlflow_artifacts)
    assert [name.rpartition("/")[2] for name in stored] == ["cartridge.safetensors", "manifest.json"]
    found = Cartridge.load(settings.mlflow_artifacts / Path(stored[0]).parent)
    assert found.digest == content.manifest.digest


def test_a_version_shows_what_it_is_and_how_it_did(settings: Settings, content: VersionContent, tmp_path: Path) -> None:
    version = register_version(settings, graded(content, tmp_path))
    with registry_client(settings) as client:
        shown = client.get_model_version(NAME, "1")
        model = client.get_logged_model(version.model_id)
        training = client.get_run(version.run_id)
        (found,) = client.search_runs([model.experiment_id], "tags.stage = 'evaluate'")
        evaluation = client.get_run(found.info.run_id)
        plots = [entry.path for entry in client.list_artifacts(evaluation.info.run_id, "plots")]
        curve = [entry.path for entry in client.list_artifacts(version.run_id, "plots")]
        reports = [entry.path for entry in client.list_artifacts(evaluation.info.run_id)]
    assert shown.source == f"models:/{version.model_id}"
    assert shown.run_id == version.run_id
    assert shown.tags["cartridge_digest"] == content.manifest.digest
    assert (shown.tags["base"], shown.tags["corpus"], shown.tags["tokens"]) == ("reference", "clinic", "6")
    assert shown.tags["acc_vs_icl"] == "0.950"
    assert shown.description == grade(content.manifest.digest).markdown()
    assert model.params["num_tokens"] == "6"
    assert model.params["learning_rate"] == "0.02"
    assert "unset" not in model.params
    metrics = {metric.key: metric for metric in model.metrics}
    assert metrics["self_study_accuracy"].value == pytest.approx(0.95)
    assert metrics["icl_accuracy"].value == pytest.approx(1.0)
    assert metrics["self_study_accuracy"].dataset_name == "clinic"
    assert [(use.dataset.name, use.dataset.digest) for use in training.inputs.dataset_inputs] == [
        ("clinic", CORPUS.digest[:36]),
        ("clinic-study", "f" * 36),
    ]
    assert [use.model_id for use in evaluation.inputs.model_inputs] == [version.model_id]
    assert training.info.status == evaluation.info.status == "FINISHED"
    assert training.data.tags["flow_run"] == "seven"
    assert (curve, plots) == (["plots/curve.png"], ["plots/memory.png"])
    assert "report.json" in reports


def test_replies_stay_out_of_mlflow(settings: Settings, content: VersionContent, tmp_path: Path) -> None:
    register_version(settings, graded(content, tmp_path))
    for path in settings.mlflow_artifacts.rglob("*.json"):
        assert "Which room?" not in path.read_text()


def test_registering_again_finds_the_version(settings: Settings, content: VersionContent, tmp_path: Path) -> None:
    first = register_version(settings, content)
    again = register_version(settings, content)
    assert again == replace(first, created=False)
    other = register_version(settings, content_of(tmp_path / "other", 1))
    assert (other.version, other.created) == (2, True)
    assert register_version(settings, content).version == 1


def test_a_later_report_is_added_once(settings: Settings, content: VersionContent, tmp_path: Path) -> None:
    register_version(settings, content)
    better = graded(content, tmp_path, 20)
    for _ in range(2):
        register_version(settings, graded(content, tmp_path))
        version = register_version(settings, better)
    with registry_client(settings) as client:
        experiment = client.get_logged_model(version.model_id).experiment_id
        runs = client.search_runs([experiment], "tags.stage = 'evaluate'")
        assert len(runs) == 2
        assert client.get_model_version(NAME, "1").tags["acc_vs_icl"] == "1.000"


def test_each_corpus_and_each_base_model_has_its_own_model(
    settings: Settings, content: VersionContent, tmp_path: Path
) -> None:
    qwen = BaseModelIdentity(id="Qwen/Qwen3-0.6B", revision="1", config_digest="c" * 64, tokenizer_digest="d" * 64)
    names = [
        register_version(settings, content).name,
        register_version(settings, replace(content, corpus="handbook")).name,
        register_version(settings, content_of(tmp_path / "qwen", base_model=qwen)).name,
    ]
    assert names == [NAME, "default.handbook.reference", "default.clinic.Qwen--Qwen3-0.6B"]


def test_an_interrupted_registration_is_completed(settings: Settings, content: VersionContent) -> None:
    """The model was logged, the version is missing: what is there is used."""
    first = register_version(settings, content)
    with registry_client(settings) as client:
        client.delete_model_version(NAME, "1")
    second = register_version(settings, content)
    assert second.created
    assert second.model_id == first.model_id


def test_a_failed_upload_is_marked_and_done_anew(settings: Settings, content: VersionContent, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"failed: .*gone"):
        register_version(settings, replace(content, files=(tmp_path / "gone",)))
    with registry_client(settings) as client:
        (experiment,) = client.search_experiments(filter_string="name = 'default.clinic'")
        (model,) = client.search_logged_models([experiment.experiment_id])
        (run,) = client.search_runs([experiment.experiment_id])
    assert (model.status, run.info.status) == ("FAILED", "FAILED")
    version = register_version(settings, content)
    assert version.version == 1
    assert version.model_id != model.model_id


def test_two_at_once_agree_on_one_version(settings: Settings, content: VersionContent) -> None:
    results: list[RegisteredVersion] = []
    threads = [threading.Thread(target=lambda: results.append(register_version(settings, content))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert len({(result.version, result.model_id) for result in results}) == 1
    with registry_client(settings) as client:
        assert len(client.search_model_versions(f"name = '{NAME}'")) == 1


def test_a_dataset_that_another_process_just_named_is_found(
    settings: Settings, content: VersionContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of the test above in one thread: the database refuses the row once, because it is there by now."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    real, refusals = MlflowClient.log_inputs, ["UNIQUE constraint failed: datasets.digest"]

    def refused_once(self: MlflowClient, *arguments: Any, **options: Any) -> None:
        if refusals:
            raise MlflowException(refusals.pop())
        real(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_inputs", refused_once)
    version = register_version(settings, content)
    with registry_client(settings) as client:
        assert client.get_run(version.run_id).inputs.dataset_inputs
    refusals.append("disk full")
    with pytest.raises(RegistryError, match="disk full"):
        register_version(settings, replace(content, corpus="other"))


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("reference", "default.clinic.reference"),
        ("Qwen/Qwen3-0.6B", "default.clinic.Qwen--Qwen3-0.6B"),
        ("my model", "default.clinic.my-model-"),
        ("a--b", "default.clinic.a--b-"),
    ],
)
def test_names(base: str, name: str) -> None:
    assert model_name("default", "clinic", base).startswith(name)
    assert "/" not in model_name("default", "clinic", base)


def test_different_base_models_never_share_a_name() -> None:
    ids = ["a/b", "a--b", "a b", "a-b", "a:b", "a.b"]
    assert len({model_name("default", "clinic", base) for base in ids}) == len(ids)


def test_aliases(settings: Settings, content: VersionContent) -> None:
    version = register_version(settings, content)
    register_version(settings, replace(content, corpus="clinic2"))
    assert alias_targets(settings, "clinic") == {}
    set_alias(settings, version.name, "champion", version.version)
    set_alias(settings, "default.clinic2.reference", "champion", 1)
    assert alias_targets(settings, "clinic") == {(NAME, "champion"): 1}
    for _ in range(2):
        clear_alias(settings, version.name, "champion")
    assert alias_targets(settings, "clinic") == {}
    tag_version(settings, version.name, version.version, {"gate": "passed"})
    with registry_client(settings) as client:
        assert client.get_model_version(NAME, "1").tags["gate"] == "passed"
    with pytest.raises(RegistryError, match=r"mlflow\.db refused: "):
        set_alias(settings, version.name, "champion", 9)


def test_erasing_takes_the_files_too_and_can_be_repeated(
    settings: Settings, content: VersionContent, tmp_path: Path
) -> None:
    kept = register_version(settings, content_of(tmp_path / "kept", 1))
    version = register_version(settings, graded(content, tmp_path))
    before = files_below(settings.mlflow_artifacts)
    digest = content.manifest.digest
    removed = erase_version(settings, NAME, version.version, version.model_id, digest)
    left = files_below(settings.mlflow_artifacts)
    assert len(removed) == 3
    assert len(left) == 2 < len(before)
    assert all(kept.model_id in name for name in left)
    erase_version(settings, NAME, version.version, version.model_id, digest)
    with registry_client(settings) as client:
        (found,) = client.search_model_versions(f"name = '{NAME}'")
    assert int(found.version) == kept.version
    again = register_version(settings, content)
    assert (again.version, again.created) == (3, True)


def test_mlflow_is_used_without_a_trace(
    settings: Settings, content: VersionContent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow

    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    for variable in (None, elsewhere):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if variable:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
        register_version(settings, replace(content, corpus="one" if variable else "two"))
        assert os.environ.get("MLFLOW_TRACKING_URI") == variable
        assert mlflow.is_tracking_uri_set() == (variable is not None)
    assert not (tmp_path / "elsewhere.db").exists()


def test_the_first_use_is_quiet_and_stays_in_its_folder(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.registry.test_registry import content_of;"
        "from cartridge_core.registry import register_version; from cartridge_core.settings import Settings;"
        f"register_version(Settings(home={str(tmp_path / 'home')!r}), content_of(Path({str(tmp_path / 'c')!r})))"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (tmp_path / "cwd").mkdir()
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "cwd", env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert (answer.stdout, answer.stderr) == ("", "")
    assert list((tmp_path / "cwd").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["mlartifacts", "mlflow.db"]


def test_a_server_that_is_down_is_one_sentence(
    content: VersionContent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    down = embedded(tmp_path / "home", mlflow_tracking_uri="http://me:secret@127.0.0.1:1")
    with pytest.raises(RegistryError, match=r"^MLflow at http://me:\*\*\*@127.* refused: .*Check MLFLOW_TRACKING_URI"):
        register_version(down, content)


def test_without_mlflow_the_extra_is_named(
    settings: Settings, content: VersionContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RegistryError, match=r"cartridge-foundry\[registry\]"):
        register_version(settings, content)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server that proxies its artifacts."""
    port = free_port()
    embedded(tmp_path / "server")
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{tmp_path}/server/mlflow.db"),
        *("--artifacts-destination", str(tmp_path / "server" / "artifacts")),
    ]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=quiet, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.mark.slow
def test_a_server_holds_the_same_and_forgets_the_same(server: str, content: VersionContent, tmp_path: Path) -> None:
    settings = embedded(tmp_path / "home", mlflow_tracking_uri=server)
    version = register_version(settings, graded(content, tmp_path))
    assert register_version(settings, content) == replace(version, created=False)
    set_alias(settings, NAME, "champion", 1)
    assert alias_targets(settings, "clinic") == {(NAME, "champion"): 1}
    stored = tmp_path / "server" / "artifacts"
    assert len(files_below(stored)) == 5
    erase_version(settings, NAME, 1, version.model_id, content.manifest.digest)
    assert files_below(stored) == []
    assert alias_targets(settings, "clinic") == {}
    assert not (tmp_path / "home" / "mlartifacts").exists()
