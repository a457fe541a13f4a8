"""Checkpoints: what they hold, which are kept, and which are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cartridge_core.cartridge import Cartridge
from cartridge_core.corpus import Corpus, Document
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import TrainingError
from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training import objective
from cartridge_core.training.checkpoint import Checkpoints
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.conversation_stream import ConversationStream
from cartridge_core.training.loop import train
from cartridge_core.training.result import TrainingResult
from cartridge_core.training.run_folder import owned_folder

Train = Callable[..., TrainingResult]


class StoppedError(Exception):
    """What ends a run on its way."""


@pytest.fixture
def config(config: TrainingConfig) -> TrainingConfig:
    return config.model_copy(update={"steps": 12, "eval_every": 3, "checkpoint_every": 2, "learning_rate": 0.05})


@pytest.fixture
def run(base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path) -> Train:
    """`run(stop_at=step, **changed)` trains in one and the same folder unless told another."""

    def go(stop_at: int | None = None, folder: str = "run", **changed: object) -> TrainingResult:
        def stop(done: int, total: int, what: str) -> None:
            if done == stop_at:
                raise StoppedError

        inputs = {"corpus": corpus, "dataset": study, "tenant": "default"} | {
            name: changed.pop(name) for name in ("corpus", "dataset", "tenant") if name in changed
        }
        return train(
            base,
            inputs["corpus"],  # type: ignore[arg-type]
            inputs["dataset"],  # type: ignore[arg-type]
            config.model_copy(update=changed),
            tmp_path / folder,
            tenant=str(inputs["tenant"]),
            progress=stop,
        )

    return go


def course(result: TrainingResult) -> list[object]:
    return [replace(point, seconds=0.0) for point in (*result.curve.train, *result.curve.held_out)]


def test_a_stopped_run_goes_on(run: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = run(folder="whole")
    with pytest.raises(StoppedError):
        run(stop_at=7)
    resumed = run()
    assert "goes on from step 6 of 12" in caplog.text
    assert resumed.resumed_from == 6 and whole.resumed_from is None
    assert resumed.cartridge.digest == whole.cartridge.digest
    assert course(resumed) == course(whole)
    again = run()
    assert again.cartridge.digest == whole.cartridge.digest
    assert (again.best, again.initial, again.steps) == (whole.best, whole.initial, whole.steps)


def test_random_numbers_of_a_step_are_the_same_after_a_stop(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawn(ConversationStream):
        def batch(self, step: int) -> list[Targets]:
            batch = super().batch(step)
            return [batch[int(index)] for index in torch.randint(len(batch), (len(batch),))]

    monkeypatch.setattr(objective, "ConversationStream", Drawn)
    whole = run(folder="whole")
    with pytest.raises(StoppedError):
        run(stop_at=5)
    before = torch.get_rng_state()
    assert run().cartridge.digest == whole.cartridge.digest
    assert torch.equal(before, torch.get_rng_state())


def test_what_a_checkpoint_holds(run: Train, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(stop_at=6, optimizer="muon", ema_decay=0.9)
    folder = tmp_path / "run" / "checkpoints" / "step-000006"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "curve.jsonl", "state.safetensors"]
    tensors = load_file(folder / "state.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"layers", "average", "optimizer"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert tensors["layers.0.key"].shape == (2, 8, 12)
    momentum = [name for name in tensors if name.endswith("momentum_buffer")]
    assert len(momentum) == len([name for name in tensors if name.startswith("average")]) == 4
    record = json.loads((folder / "checkpoint.json").read_text())
    assert record["state"]["step"] == 6
    assert record["run"]["config"]["optimizer"] == "muon"
    assert "checkpoint_every" not in record["run"]["config"]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_and_the_best_are_kept(run: Train, tmp_path: Path, keep: int) -> None:
    """A learning rate far too high: the best is the first, and no later checkpoint removes it."""
    with pytest.raises(StoppedError):
        run(stop_at=11, keep_checkpoints=keep, learning_rate=30.0)
    checkpoints = Checkpoints(tmp_path / "run", keep)
    assert checkpoints.steps() == [10, 8, 6][:keep]
    needed = checkpoints.best_steps()
    kept = {int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "best").iterdir()}
    assert needed <= kept <= needed | {9}
    for step in kept:
        assert Cartridge.load(tmp_path / "run" / "best" / f"step-{step:06d}").num_tokens == 8


def test_a_best_that_a_checkpoint_names_outlives_a_better_one(run: Train, tmp_path: Path) -> None:
    """It gets better with every look; the checkpoint before the look must still find the older best."""
    with pytest.raises(StoppedError):
        run(stop_at=10, checkpoint_every=8)
    names = sorted(path.name for path in (tmp_path / "run" / "best").iterdir())
    assert names == ["step-000006", "step-000009"]
    assert run(checkpoint_every=8).resumed_from == 8
    assert run(folder="whole").cartridge.digest == run().cartridge.digest


@pytest.mark.parametrize("damage", ["tensors", "curve", "marker", "best"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    run: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    with pytest.raises(StoppedError):
        run(stop_at=8)
    home = tmp_path / "run"
    newest = home / "checkpoints" / "step-000008"
    path = {
        "tensors": newest / "state.safetensors",
        "curve": newest / "curve.jsonl",
        "marker": newest / "checkpoint.json",
        "best": home / "best" / "step-000006" / "cartridge.safetensors",
    }[damage]
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"#" + content[-8:])
    resumed = run()
    # Both checkpoints that are kept rely on the best of step 6.
    assert resumed.resumed_from == (None if damage == "best" else 6)
    assert "step 8 cannot be used" in caplog.text
    assert resumed.cartridge.digest == run(folder="whole").cartridge.digest


def test_by_time(run: Train, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(stop_at=3, checkpoint_every=None, checkpoint_seconds=1e-9)
    assert Checkpoints(tmp_path / "run", 2).steps() == [3, 2]
    with pytest.raises(StoppedError):
        run(stop_at=3, folder="never", checkpoint_every=None, checkpoint_seconds=None)
    assert Checkpoints(tmp_path / "never", 2).steps() == []


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_by_name(
    run: Train,
    make_study: Callable[..., ConversationDataset],
    base: BaseModel,
    corpus: Corpus,
    tmp_path: Path,
    finished: bool,
) -> None:
    if finished:
        run()
    else:
        with pytest.raises(StoppedError):
            run(stop_at=5)
    with pytest.raises(TrainingError, match=r"another training run: config\.seed was 3, is 4\.") as caught:
        run(seed=4)
    assert str(tmp_path / "run") in caught.value.problem
    with pytest.raises(TrainingError, match="dataset was '"):
        run(dataset=make_study(base, corpus, 39))
    with pytest.raises(TrainingError, match=r"tenant was 'default', is 'clinic'"):
        run(tenant="clinic")
    other = Corpus("other", (Document("b.txt", "B", "text/plain", corpus.text() + " More."),))
    with pytest.raises(TrainingError, match="corpus was '"):
        run(corpus=other, dataset=make_study(base, other))
    # How the run is carried out is nobody's business but this machine's.
    assert run(checkpoint_every=5, keep_checkpoints=1).steps == 12


def test_two_do_not_train_in_one_folder(run: Train, tmp_path: Path) -> None:
    second = owned_folder(tmp_path / "run", patience=0.2)
    with owned_folder(tmp_path / "run"), pytest.raises(TrainingError, match="Another process is training"), second:
        pass
    assert run().steps == 12


def test_after_a_loss_that_is_not_finite_the_checkpoints_stay(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cartridge_core.training import step
    from cartridge_core.training.distillation import LossSum, packed_loss

    taken: list[int] = []

    def breaks(*args: object, **kwargs: object) -> LossSum:
        taken.append(1)
        sums = packed_loss(*args, **kwargs)  # type: ignore[arg-type]
        return replace(sums, loss=sums.loss * float("inf")) if len(taken) == 8 else sums

    monkeypatch.setattr(step, "packed_loss", breaks)
    with pytest.raises(TrainingError, match=r"step 8 with learning rate .* best Cartridge until then, of step 6"):
        run()
    assert Checkpoints(tmp_path / "run", 2).steps() == [6, 4]
    assert Cartridge.load(tmp_path / "run" / "best" / "step-000006").num_tokens == 8
    monkeypatch.undo()
    resumed = run()
    assert resumed.resumed_from == 6
    assert resumed.cartridge.digest == run(folder="whole").cartridge.digest
