"""A run that is killed with SIGKILL, at any moment, ends with the tensors and the loss curve of one that is not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cartridge_core
from cartridge_core.cartridge import Cartridge
from cartridge_core.corpus import Corpus
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.curve import LossCurve

HERE = Path(__file__).parent


Ends = dict[str, list[int]]
Start = Callable[..., Ends]


@pytest.fixture(scope="module")
def start(model: Path, corpus: Corpus, study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """`start(config, folder, runs)`: exit codes of each run's attempts; `train_process.py` says what they are."""
    corpus_folder = tmp_path_factory.mktemp("corpus")
    corpus.save(corpus_folder / "wards")
    environment = {**os.environ, "PYTHONPATH": str(Path(cartridge_core.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def run(
        config: TrainingConfig, folder: Path, runs: Ends, studied: tuple[Path, Path] = (model, study_folder)
    ) -> Ends:
        reader, study = studied
        arguments = [reader, corpus_folder / "wards", study, config.model_dump_json(), folder, json.dumps(runs)]
        command = [str(part) for part in (sys.executable, HERE / "train_process.py", *arguments)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=400)
        ends: Ends = json.loads(done.stdout)
        return ends

    return run


def course(folder: Path) -> tuple[list[object], list[object]]:
    """The loss curve without the seconds, which no two runs share."""
    curve = LossCurve.load(folder / "curve.jsonl")
    return [replace(p, seconds=0.0) for p in curve.train], [replace(p, seconds=0.0) for p in curve.held_out]


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "adamw", "learning_rate": 0.05},
        {"optimizer": "muon", "learning_rate": 1.0, "ema_decay": 0.9, "keep_checkpoints": 1},
    ],
    ids=["adamw", "muon-ema"],
)
def test_killed_at_any_file_operation(
    start: Start,
    config: TrainingConfig,
    tmp_path: Path,
    changed: dict[str, object],
) -> None:
    """A whole run; runs that die once at each of many moments; one that dies again and again."""
    sizes = {"steps": 5, "warmup_steps": 2, "eval_every": 2, "checkpoint_every": 2}
    config = TrainingConfig.model_validate(config.model_dump() | sizes | changed)
    once = {f"killed-{moment}": [moment, 0] for moment in range(2, 150, 9)}
    ends = start(config, tmp_path, {"whole": [0], **once, "often": [5, 25, 25, 25, 1, 30, 30, 0]})
    deaths = [name for name, (first, _) in ((name, ends[name]) for name in once) if first == -signal.SIGKILL]
    assert len(deaths) >= 10 and deaths[-1] != list(once)[-1], "the moments should reach beyond the last operation"
    assert ends["often"].count(-signal.SIGKILL) > 3
    assert_all_as_the_whole(tmp_path, ends)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in once]
    assert len({result["resumed_from"] for result in results}) >= 3, "they should go on from different steps"


def test_killed_in_the_on_policy_phase(
    start: Start, config: TrainingConfig, talkative: Path, chunked_folder: Path, tmp_path: Path
) -> None:
    """Answers that a killed run had sampled are sampled again."""
    sizes = {"steps": 6, "on_policy_steps": 4, "warmup_steps": 2, "eval_every": 3, "checkpoint_every": 1}
    config = TrainingConfig.model_validate(config.model_dump() | sizes | {"learning_rate": 0.05})
    once = {f"killed-{moment}": [moment, 0] for moment in range(60, 150, 30)}
    ends = start(config, tmp_path, {"whole": [0], **once}, (talkative, chunked_folder))
    assert_all_as_the_whole(tmp_path, ends)
    resumed = {json.loads((tmp_path / name / "result.json").read_text())["resumed_from"] for name in once}
    assert len(resumed & {3, 4, 5}) >= 2, "they should go on from within the phase"
    unfinished = [point.unfinished for point in LossCurve.load(tmp_path / "whole" / "curve.jsonl").train]
    assert unfinished[:2] == [None, None] and None not in unfinished[2:]


def assert_all_as_the_whole(home: Path, ends: Ends) -> None:
    """Every run has ended, and with what the run ended with that was never killed."""
    whole = home / "whole"
    for name, codes in ends.items():
        folder = home / name
        assert codes[-1] == 0 and set(codes) <= {0, -signal.SIGKILL}, name
        assert course(folder) == course(whole), name
        assert Cartridge.load(folder / "cartridge").digest == Cartridge.load(whole / "cartridge").digest, name
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in whole.iterdir()), name
