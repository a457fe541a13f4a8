"""The fit stage: a killed command goes on, several processes are the same run, wrong inputs cost no model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cartridge_core
from cartridge_core.cli.main import app
from cartridge_core.errors import BaseModelMismatchError, CartridgeError, TrainingError
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import fit
from cartridge_core.stages.ingest import IngestedCorpus, ingest
from cartridge_core.stages.study import StudiedDataset, study
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.curve import LossCurve
from tests.talkative import STUDY, Workplace

TRAINING = TrainingConfig(num_tokens=24, steps=6, warmup_steps=1, batch_size=4, eval_every=2)


@pytest.fixture
def studied(workplace: Workplace) -> tuple[IngestedCorpus, StudiedDataset]:
    corpus = ingest(workplace.settings, "wards", [workplace.documents])
    return corpus, study(workplace.settings, corpus, STUDY)


def test_a_killed_command_goes_on(
    workplace: Workplace, studied: tuple[IngestedCorpus, StudiedDataset], tmp_path: Path
) -> None:
    home = workplace.settings.home
    config = tmp_path / "train.toml"
    config.write_text("num_tokens = 24\nwarmup_steps = 1\nbatch_size = 4\neval_every = 50\n", encoding="utf-8")
    options = ["train", "wards", "--config", str(config), "--steps", "300", "--checkpoint-every", "20", "--json"]
    command = [sys.executable, "-c", "from cartridge_core.cli.main import main; main()", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(cartridge_core.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as running:
        while not list(home.glob("stages/fit/*/checkpoints/step-*/checkpoint.json")):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert not list(home.glob("stages/fit/*/stage.json"))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=200)
    told = json.loads(again.stdout)
    assert told["resumed_from"] >= 20
    assert f"Training goes on from step {told['resumed_from']} of 300" in again.stderr
    shutil.rmtree(home / "stages" / "fit")
    whole = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=200)
    assert json.loads(whole.stdout)["digest"] == told["digest"]
    assert json.loads(whole.stdout)["resumed_from"] is None


def test_bookkeeping_is_not_another_cartridge(
    workplace: Workplace, studied: tuple[IngestedCorpus, StudiedDataset]
) -> None:
    first = fit(workplace.settings, *studied, TRAINING)
    assert fit(workplace.settings, *studied, TRAINING.model_copy(update={"keep_checkpoints": 5})).product.cached
    assert not fit(workplace.settings, *studied, TRAINING.model_copy(update={"ema_decay": 0.9})).product.cached
    assert first.product.facts["resumed_from"] is None


def test_two_processes_of_a_command(workplace: Workplace, studied: tuple[IngestedCorpus, StudiedDataset]) -> None:
    arguments = ["train", "wards", "--tokens", "24", "--steps", "24", "--processes", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["steps"] == 24
    folder = Path(told["directory"]).parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "cartridge",
        "curve.jsonl",
        "curve.png",
        "result.json",
        "stage.json",
    ]


def test_an_on_policy_phase_of_a_command(workplace: Workplace, studied: tuple[IngestedCorpus, StudiedDataset]) -> None:
    arguments = ["train", "wards", "--tokens", "24", "--steps", "24", "--json"]
    digests = set()
    for more, phase in ((["--on-policy-steps", "3"], 3), ([], 0)):
        result = CliRunner().invoke(app, [*arguments, *more])
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        curve = LossCurve.load(Path(told["directory"]).parent / "curve.jsonl")
        assert [point.unfinished is not None for point in curve.train] == [False] * (24 - phase) + [True] * phase
        assert told["num_unfinished"] == curve.num_unfinished
        digests.add(told["digest"])
    assert len(digests) == 2
    refused = CliRunner().invoke(app, [*arguments, "--on-policy-steps", "25"])
    assert refused.exit_code != 0 and "at most steps=24" in str(refused.exception) + refused.output


@pytest.fixture
def without_weights(workplace: Workplace, tmp_path: Path) -> Path:
    """The workplace's model with weights that nobody can load."""
    folder = tmp_path / "broken" / Path(workplace.model).name
    shutil.copytree(workplace.model, folder)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"no weights")
    with pytest.raises(CartridgeError):
        from cartridge_core.models import load_base_model

        load_base_model(folder, device="cpu")
    return folder


def test_wrong_inputs_are_refused_before_the_weights_are_loaded(
    workplace: Workplace, studied: tuple[IngestedCorpus, StudiedDataset], without_weights: Path
) -> None:
    """Were they loaded, the error would be about them."""
    corpus, dataset = studied
    settings = Settings(base_model=str(without_weights))
    with pytest.raises(BaseModelMismatchError, match="differ in revision"):
        fit(settings, corpus, dataset, TRAINING)
    text = TRAINING.model_copy(update={"objective": "next_token"})
    for changed, match in (
        ({"initialization": "magic"}, "no initialisation named 'magic'"),
        ({"optimizer": "sgd"}, "no optimizer named 'sgd'"),
        ({"schedule": "steps"}, "no schedule named 'steps'"),
        ({"num_tokens": 2000}, "exceed the 1024 positions"),
    ):
        with pytest.raises(TrainingError, match=match):
            fit(settings, corpus, None, text.model_copy(update=changed))
    with pytest.raises(CartridgeError, match="Cannot read a model"):
        fit(settings, corpus, None, text)


def test_another_tokenizer_is_refused_before_the_weights_are_loaded(
    workplace: Workplace, studied: tuple[IngestedCorpus, StudiedDataset], without_weights: Path
) -> None:
    tokenizer = without_weights / "tokenizer.json"
    rules = json.loads(tokenizer.read_text(encoding="utf-8"))
    rules["model"]["vocab"]["newword"] = len(rules["model"]["vocab"]) + 1000
    tokenizer.write_text(json.dumps(rules), encoding="utf-8")
    with pytest.raises(BaseModelMismatchError, match="tokenizer_digest"):
        fit(Settings(base_model=str(without_weights)), *studied, TRAINING)


def test_the_schema_says_what_every_field_is(workplace: Workplace) -> None:
    result = CliRunner().invoke(app, ["train", "--print-config-schema"])
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert set(schema["properties"]) == set(TrainingConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert all(field.get("description") for field in schema["properties"].values())
