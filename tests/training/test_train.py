"""Training as a whole, on a tiny model with a real teacher."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import TrainingError
from cartridge_core.inference.prefix import prefill
from cartridge_core.inference.score import token_logprobs
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids
from cartridge_core.training import step
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.curve import LossCurve
from cartridge_core.training.distillation import LossSum, packed_loss
from cartridge_core.training.loop import train
from cartridge_core.training.loss import cross_entropy
from cartridge_core.training.packed_attention import packed_logits
from cartridge_core.training.packed_rows import pack_rows
from cartridge_core.training.trainable_prefix import TrainablePrefix


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("adamw", 0.05), ("muon", 0.5)])
def test_held_out_divergence_falls(
    base: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    optimizer: str,
    learning_rate: float,
) -> None:
    config = config.model_copy(update={"optimizer": optimizer, "learning_rate": learning_rate, "steps": 60})
    told: list[tuple[int, int]] = []
    result = train(base, corpus, study, config, tmp_path, progress=lambda done, total, what: told.append((done, total)))
    assert result.best.kl < 0.7 * result.initial.kl
    assert told == [(step, 60) for step in range(1, 61)]
    assert result.steps == 60
    assert result.num_examples + result.num_held_out == len(study)

    manifest = result.cartridge.manifest
    assert (manifest.num_tokens, manifest.next_position, manifest.num_frozen_tokens) == (8, 8, 1)
    assert manifest.dataset_digest == study.manifest.digest
    assert manifest.training_config_digest == config.digest
    assert manifest.base_model == base.identity
    assert Cartridge.load(tmp_path / "cartridge").digest == result.cartridge.digest
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cartridge", "curve.jsonl", "curve.png", "result.json"]


def test_the_first_token_is_frozen_and_all_others_move(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"num_frozen_tokens": 2})
    trained = train(base, corpus, study, config, tmp_path).cartridge
    before = prefill(base, prefix_token_ids(base.tokenizer, corpus.text())[:8])
    for start, end in zip((*before.keys, *before.values), (*trained.keys, *trained.values), strict=True):
        assert start is not None and end is not None
        assert torch.equal(start[:, :2], end[:, :2])
        assert (start[:, 2:] != end[:, 2:]).any(dim=2).all()


def test_equal_inputs_give_equal_tensors_and_other_seeds_others(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    first = train(base, corpus, study, config, tmp_path / "a")
    torch.manual_seed(2)  # the process's own random state plays no part
    again = train(base, corpus, study, config, tmp_path / "b")
    assert first.cartridge.digest == again.cartridge.digest
    assert [p.loss for p in first.curve.train] == [p.loss for p in again.curve.train]
    other = train(base, corpus, study, config.model_copy(update={"seed": 4}), tmp_path / "c")
    assert other.cartridge.manifest.tensors_sha256 != first.cartridge.manifest.tensors_sha256


def test_micro_batches_give_the_mean_over_all_tokens(
    base: BaseModel, corpus: Corpus, study: ConversationDataset
) -> None:
    initial = first_tokens(InitializationSource(base, corpus, 8))
    examples = list(study)[:13]

    def gradients(max_tokens: int) -> tuple[float, list[torch.Tensor]]:
        prefix = TrainablePrefix(initial, 1)
        parts = pack_rows(examples, max_tokens)
        tokens = sum(len(part.teacher) for part in parts)
        loss = 0.0
        for part in parts:
            share = packed_loss(base, prefix.prefix(), part).loss / tokens
            share.backward()
            loss += share.item()
        return loss, [parameter.grad for parameter in prefix.parameters() if parameter.grad is not None]

    whole, parted = gradients(10_000), gradients(60)
    assert whole[0] == pytest.approx(parted[0], rel=1e-5)
    assert len(whole[1]) == 2 * len(base.layer_specs)
    for one, many in zip(whole[1], parted[1], strict=True):
        torch.testing.assert_close(one, many)


def test_a_parted_batch_is_recorded_as_the_whole(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"steps": 4})
    in_parts = config.model_copy(update={"micro_batch_tokens": 64})
    whole = train(base, corpus, study, config, tmp_path / "a").curve.train
    parted = train(base, corpus, study, in_parts, tmp_path / "b").curve.train
    assert [p.tokens for p in whole] == [p.tokens for p in parted]
    for name in ("loss", "kl", "grad_norm"):
        assert [getattr(p, name) for p in parted] == pytest.approx([getattr(p, name) for p in whole], rel=1e-3)


def test_the_learning_rate_is_set_before_the_step(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    """A first step at (nearly) no learning rate leaves the loss where it was; one at the peak does not."""
    config = config.model_copy(update={"learning_rate": 0.3, "warmup_steps": 29, "eval_every": 1})
    curve = train(base, corpus, study, config, tmp_path).curve
    assert [p.learning_rate for p in curve.train] == pytest.approx([0.3 * (s + 1) / 29 for s in range(29)] + [0.3])
    moved = [abs(curve.held_out[i + 1].kl - curve.held_out[i].kl) for i in (0, 15)]
    assert moved[0] < moved[1]


def test_next_token_learns_the_text(base: BaseModel, corpus: Corpus, config: TrainingConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"objective": "next_token", "window_tokens": 40, "steps": 60})
    config = config.model_copy(update={"learning_rate": 0.05})
    result = train(base, corpus, None, config, tmp_path)
    assert result.best.loss < 0.8 * result.initial.loss
    assert result.best.kl == result.best.loss
    assert result.cartridge.manifest.dataset_digest is None
    token_ids = base.tokenizer(corpus.text(), add_special_tokens=False)["input_ids"][:40]
    untrained = prefill(base, prefix_token_ids(base.tokenizer, corpus.text())[:8])
    mask = [position > 0 for position in range(len(token_ids))]
    (before,) = token_logprobs(base, untrained, [token_ids], [mask])
    (after,) = token_logprobs(base, result.cartridge.prefix(), [token_ids], [mask])
    assert after.mean() > before.mean() + 0.5


def test_the_best_step_is_kept_and_patience_stops(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    """A learning rate far too high: it gets worse at once, and the start is what is kept."""
    config = config.model_copy(update={"learning_rate": 30.0, "steps": 200, "eval_every": 2, "patience": 3})
    result = train(base, corpus, study, config, tmp_path)
    assert result.stopped_early
    looks = result.curve.held_out
    assert result.best_step == min(looks, key=lambda look: look.loss).step
    assert looks[-1].step == result.steps == result.best_step + 3 * 2
    assert looks[-1].loss > result.best.loss
    assert result.curve.best.loss == result.best.loss


def test_the_held_out_loss_is_that_of_the_stored_tensors(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    result = train(base, corpus, study, config, tmp_path)
    _, held_out = study.split(config.held_out_fraction, config.seed)
    (part,) = pack_rows(list(held_out), 100_000)
    with torch.no_grad():
        stored = Cartridge.load(tmp_path / "cartridge").prefix()
        loss = cross_entropy(packed_logits(base, stored, part), part.teacher).mean()
    assert result.best.loss == pytest.approx(loss.item(), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(
    base: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []

    def breaks(*args: object, **kwargs: object) -> LossSum:
        taken.append(1)
        sums = packed_loss(*args, **kwargs)  # type: ignore[arg-type]
        return replace(sums, loss=sums.loss * float("nan")) if len(taken) == 15 else sums

    monkeypatch.setattr(step, "packed_loss", breaks)
    with pytest.raises(TrainingError, match=r"step 15 with learning rate 0\.0\d+: loss nan") as caught:
        train(base, corpus, study, config, tmp_path)
    (kept,) = (tmp_path / "best").iterdir()
    assert kept.name in ("step-000000", "step-000010")
    assert str(kept) in str(caught.value)
    assert Cartridge.load(kept).num_tokens == 8
    curve = LossCurve.load(tmp_path / "curve.jsonl")
    assert len(curve.train) == 14
    assert not (tmp_path / "cartridge").exists()

    monkeypatch.undo()
    train(base, corpus, study, config, tmp_path)
    assert Cartridge.load(tmp_path / "cartridge").num_tokens == 8
    assert not (tmp_path / "best").exists()


def test_the_curve_is_written_and_read_back(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    result = train(base, corpus, study, config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "held_out"] == [0, 10, 20, 30]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 31))
    loaded = LossCurve.load(tmp_path / "curve.jsonl")
    assert (loaded.train, loaded.held_out) == (result.curve.train, result.curve.held_out)
    loaded.plot(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "curve.png").read_bytes()


def test_bfloat16_products_train_as_well(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    exact = train(base, corpus, study, config, tmp_path / "exact")
    rough = train(base, corpus, study, config.model_copy(update={"precision": "bfloat16"}), tmp_path / "rough")
    assert rough.cartridge.manifest.tensors_sha256 != exact.cartridge.manifest.tensors_sha256
    assert rough.best.kl == pytest.approx(exact.best.kl, rel=0.1)
    assert [p.loss for p in rough.curve.train[:5]] == pytest.approx([p.loss for p in exact.curve.train[:5]], rel=0.02)


def test_what_does_not_fit_is_left_out_and_counted(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    longest = int(study.lengths.max())
    too_long = int((study.lengths > longest - 8).sum())
    assert 0 < too_long < len(study) / 2
    config = config.model_copy(update={"steps": 4, "row_tokens": longest - 9})
    result = train(base, corpus, study, config, tmp_path / "row")
    assert result.num_unfit == too_long
    assert result.num_examples + result.num_held_out + result.num_unfit == len(study)

    narrow = replace(base, max_positions=config.num_tokens + longest - 8)
    config = config.model_copy(update={"row_tokens": None})
    behind = train(narrow, corpus, study, config, tmp_path / "window")
    assert behind.num_unfit == too_long
    # The same ones are left, so the same is learnt.
    assert [p.loss for p in behind.curve.train] == [p.loss for p in result.curve.train]
    assert train(base, corpus, study, config, tmp_path / "all").num_unfit == 0


def test_options_of_the_loss_reach_it(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"steps": 4})
    plain = train(base, corpus, study, config, tmp_path / "a").curve
    chunked = train(base, corpus, study, config.model_copy(update={"loss_chunk_tokens": 7}), tmp_path / "b").curve
    assert [p.loss for p in chunked.train] == pytest.approx([p.loss for p in plain.train], rel=1e-4)
    hot = train(base, corpus, study, config.model_copy(update={"temperature": 2.0}), tmp_path / "c").curve
    # Trained at another temperature, judged at the same.
    assert hot.train[0].kl != pytest.approx(plain.train[0].kl, rel=0.01)
    assert hot.held_out[0].kl == pytest.approx(plain.held_out[0].kl, rel=1e-6)
    assert hot.held_out[-1].kl < hot.held_out[0].kl


def test_every_family_of_models_trains(
    each_base: BaseModel, corpus: Corpus, config: TrainingConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"objective": "next_token", "window_tokens": 24, "steps": 8, "warmup_steps": 1})
    result = train(each_base, corpus, None, config, tmp_path)
    assert result.best.loss < result.initial.loss
