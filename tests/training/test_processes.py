"""Two real processes over gloo end with what one process ends with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cartridge_core
from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import TrainingError
from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.rendering import template_digest
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loop import train
from cartridge_core.training.processes import train_in_processes
from cartridge_core.training.result import TrainingResult, finished_result
from cartridge_core.training.run_identity import RunIdentity
from tests.talkative import ChunkedStudy

HERE = Path(__file__).parent
ROOT = str(Path(cartridge_core.__file__).parents[1])
RUNS: dict[str, dict[str, object]] = {
    "adamw": {},
    "fsdp2": {"shard_base": True},
    "muon": {"optimizer": "muon", "learning_rate": 0.5},
    "fewer conversations than processes": {"batch_size": 1, "steps": 4},
}
"""What two processes train."""
SAMPLES: dict[str, dict[str, object]] = {
    f"{name}-{size}": {"shard_base": shard_base, "on_policy_steps": 5, "batch_size": size}
    for name, shard_base in (("shares", False), ("lockstep", True))
    for size in (5, 1)
}
"""The same, with answers that the model samples on the way. A batch of one is one process's alone."""

InProcesses = Callable[..., TrainingResult]


@pytest.fixture(scope="module")
def stored(model: Path) -> BaseModel:
    return load_base_model(model, device="cpu")


@pytest.fixture(scope="module")
def study(study_folder: Path) -> ConversationDataset:
    return ConversationDataset.load(study_folder)


@pytest.fixture(scope="module")
def config(config: TrainingConfig) -> TrainingConfig:
    return config.model_copy(update={"steps": 8, "eval_every": 4, "learning_rate": 0.05, "batch_size": 11})


@pytest.fixture(scope="module")
def corpus_folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "wards"
    corpus.save(folder)
    return folder


@pytest.fixture(scope="module")
def together(
    model: Path,
    talkative: Path,
    study_folder: Path,
    chunked_folder: Path,
    corpus_folder: Path,
    config: TrainingConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder of the runs that two processes have trained, one after another."""
    folder = tmp_path_factory.mktemp("together")
    runs = [
        {
            "model": str(reader),
            "corpus": str(corpus_folder),
            "dataset": str(dataset),
            "config": config.model_copy(update=changed).for_another_process(),
            "folder": str(folder / name),
        }
        for reader, dataset, named in ((model, study_folder, RUNS), (talkative, chunked_folder, SAMPLES))
        for name, changed in named.items()
    ]
    (folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    command = [sys.executable, str(HERE / "train_ranks.py"), str(folder / "runs.json")]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": ROOT}, check=True, timeout=400)
    return folder


@pytest.fixture
def in_processes(
    stored: BaseModel, model: Path, corpus: Corpus, study: ConversationDataset, study_folder: Path, corpus_folder: Path
) -> InProcesses:
    def run(config: TrainingConfig, folder: Path, **more: Any) -> TrainingResult:
        identity = RunIdentity.of("default", corpus, study, stored.identity, template_digest(stored.tokenizer), config)
        places = (str(model), corpus_folder, study_folder)
        return train_in_processes(identity, *places, config, folder, 2, device="cpu", threads=1, **more)

    return run


def assert_same_run(ours: TrainingResult, theirs: TrainingResult) -> None:
    """Within the rounding of fp32 sums in another order."""
    for name in ("loss", "kl", "grad_norm", "tokens"):
        seen, wanted = ([getattr(point, name) for point in run.curve.train] for run in (ours, theirs))
        assert seen == pytest.approx(wanted, rel=2e-5)
    seen, wanted = ([(look.step, look.loss) for look in run.curve.held_out] for run in (ours, theirs))
    assert [look[1] for look in seen] == pytest.approx([look[1] for look in wanted], rel=1e-5)
    assert ours.best_step == theirs.best_step
    sides = ((run.cartridge.keys + run.cartridge.values) for run in (ours, theirs))
    for one, many in zip(*sides, strict=True):
        assert one is not None and many is not None
        torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_trains(
    together: Path,
    stored: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    name: str,
) -> None:
    shared = config.model_copy(update=RUNS[name])
    single = train(stored, corpus, study, shared.model_copy(update={"shard_base": False}), tmp_path / "single")
    identity = RunIdentity.of("default", corpus, study, stored.identity, template_digest(stored.tokenizer), shared)
    both = finished_result(identity, together / name)
    assert both is not None
    assert_same_run(both, single)


@pytest.mark.parametrize("name", SAMPLES)
def test_two_processes_sample_what_one_samples(
    together: Path, chunked: ChunkedStudy, config: TrainingConfig, tmp_path: Path, name: str
) -> None:
    base, corpus, study = chunked.base, chunked.corpus, chunked.dataset
    shared = config.model_copy(update=SAMPLES[name])
    single = train(base, corpus, study, shared.model_copy(update={"shard_base": False}), tmp_path / "single")
    identity = RunIdentity.of("default", corpus, study, base.identity, template_digest(base.tokenizer), shared)
    both = finished_result(identity, together / name)
    assert both is not None
    assert_same_run(both, single)
    assert [point.unfinished for point in both.curve.train] == [point.unfinished for point in single.curve.train]
    assert single.curve.num_unfinished is not None


def test_a_run_of_several_processes_tells_and_leaves_what_one_does(
    in_processes: InProcesses,
    stored: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
) -> None:
    """Started by the command's own function, with the base model parted."""
    single = train(stored, corpus, study, config, tmp_path / "single")
    told: list[tuple[int, int]] = []
    parted = config.model_copy(update={"shard_base": True})
    both = in_processes(parted, tmp_path / "both", progress=lambda done, total, _: told.append((done, total)))
    assert_same_run(both, single)
    assert told == [(step, 8) for step in range(1, 9)]
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("single", "both")]
    assert files[0] == files[1]


def test_an_error_of_the_ranks_ends_the_run_with_it(
    in_processes: InProcesses, config: TrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="cannot start from a corpus of") as caught:
        in_processes(config.model_copy(update={"num_tokens": 900}), tmp_path / "both")
    assert caught.value.remedy.startswith("Choose 1 to")
    assert (tmp_path / "both" / "processes.log").is_file()


def test_a_killed_rank_ends_the_run_and_it_goes_on(
    in_processes: InProcesses,
    stored: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = config.model_copy(update={"checkpoint_every": 2})
    killed: list[int] = []

    def kill(done: int, total: int, what: str) -> None:
        if done == 5 and not killed:
            killed.append(rank_process(tmp_path / "both", 1))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(TrainingError, match="died without a word"):
        in_processes(config, tmp_path / "both", progress=kill)
    resumed = in_processes(config, tmp_path / "both")
    assert resumed.resumed_from in (4, 6)
    assert "goes on from step" in caplog.text
    assert_same_run(resumed, train(stored, corpus, study, config, tmp_path / "whole"))


def rank_process(folder: Path, rank: int) -> int:
    """The process id of a rank that trains in a folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode().split("\0")
                environment = (entry / "environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(folder) in command and f"RANK={rank}" in environment:
                return int(entry.name)
    raise LookupError(f"no rank {rank} trains in {folder}")


def test_the_ranks_do_not_outlive_the_command(
    model: Path, corpus_folder: Path, study_folder: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    """Its death is noticed by who writes to it."""
    config = config.model_copy(update={"steps": 100_000, "eval_every": 100_000, "checkpoint_every": None})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    arguments = ["--model", model, "--corpus", corpus_folder, "--dataset", study_folder, "--json"]
    arguments += ["--config", tmp_path / "config.json", "--folder", tmp_path / "run", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", "-m", "cartridge_core.training.launch", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": ROOT}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    assert running.stdout is not None
    assert "progress" in running.stdout.readline()
    running.stdout.close()
    assert running.wait(90) != 0
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            rank_process(tmp_path / "run", 0)
        except LookupError:
            return
        time.sleep(0.2)
    pytest.fail("a rank is still there")


@pytest.mark.parametrize(
    ("changed", "processes", "match"), [({}, 0, "0 processes"), ({"shard_base": True}, 1, "shard_base")]
)
def test_what_cannot_be_shared_is_refused(
    stored: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    changed: dict[str, object],
    processes: int,
    match: str,
) -> None:
    from cartridge_core.training.checks import check_inputs

    with pytest.raises(TrainingError, match=match):
        check_inputs(
            stored.identity,
            1024,
            study.manifest.template_digest,
            corpus,
            study,
            config.model_copy(update=changed),
            processes,
        )
