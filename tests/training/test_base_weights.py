"""The type that the frozen model's weights are held in."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.training.base_weights import Float8Linear, load_frozen_model
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loop import train


def test_a_float8_layer_is_the_linear_one_up_to_rounding() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    # Outputs of very different sizes: with one scale for all, the small ones would be nothing.
    linear.weight.data *= torch.logspace(-4, 0, 48)[:, None]
    hidden = torch.randn(5, 64, requires_grad=True)
    wanted = linear(hidden)
    wanted.square().sum().backward()
    gradient, hidden.grad = hidden.grad, None
    layer = Float8Linear(linear)
    seen = layer(hidden)
    seen.square().sum().backward()
    assert layer.weight.dtype == torch.float8_e4m3fn
    bias = linear.bias.detach()
    for ours, theirs in ((seen.detach() - bias, wanted.detach() - bias), (hidden.grad, gradient)):
        assert ours is not None and theirs is not None
        assert float((ours - theirs).norm() / theirs.norm()) < 0.04
    seen, wanted = seen.detach(), wanted.detach()
    rows = (seen - wanted).norm(dim=0) / (wanted - bias).norm(dim=0)
    assert float(rows.max()) < 0.1


@pytest.mark.parametrize(
    ("weights", "dtype", "share"), [("bfloat16", torch.bfloat16, 0.5), ("float8", torch.bfloat16, 0.45)]
)
def test_training_with_smaller_weights(
    model: Path,
    corpus: Corpus,
    study_folder: Path,
    config: TrainingConfig,
    tmp_path: Path,
    weights: str,
    dtype: torch.dtype,
    share: float,
) -> None:
    study = ConversationDataset.load(study_folder)
    exact = load_frozen_model(model, "cpu")
    small = load_frozen_model(model, "cpu", weights)
    assert small.dtype == dtype
    assert small.identity == exact.identity
    sizes = [sum(p.numel() * p.element_size() for p in base.model.parameters()) for base in (small, exact)]
    assert sizes[0] <= share * sizes[1]
    config = config.model_copy(update={"learning_rate": 0.05})
    reached = [
        train(base, corpus, study, config, tmp_path / name) for name, base in (("exact", exact), ("small", small))
    ]
    assert reached[1].best.kl < 0.9 * reached[1].initial.kl
    assert reached[1].cartridge.keys[0] is not None
    assert reached[1].cartridge.manifest.dtype == "float32"
    assert reached[1].best.kl == pytest.approx(reached[0].best.kl, rel=0.5)
