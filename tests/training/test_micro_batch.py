"""Memory that does not suffice: half the micro-batch, once; the same result."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import TrainingError
from cartridge_core.models import BaseModel
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loop import train

CPU_WORDS = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
)


@pytest.fixture
def limited(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`limited(tokens, error)`: the model's forward pass fails with the error for more tokens, in its last layer."""

    def limit(tokens: int, error: type[RuntimeError] | RuntimeError) -> list[int]:
        sizes: list[int] = []
        layer = base.model.get_decoder().layers[-1]
        forward = layer.forward

        def failing(hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
            if torch.is_grad_enabled():
                sizes.append(hidden.shape[1])
                if hidden.shape[1] > tokens:
                    raise error
            return forward(hidden, *args, **kwargs)

        monkeypatch.setattr(layer, "forward", failing)
        return sizes

    return limit


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_WORDS)], ids=["gpu", "cpu"]
)
def test_halved_once_with_the_same_result(
    base: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    limited: Callable[..., list[int]],
    caplog: pytest.LogCaptureFixture,
    error: RuntimeError,
) -> None:
    config = config.model_copy(update={"steps": 8, "learning_rate": 0.05})
    smaller = train(base, corpus, study, config.model_copy(update={"micro_batch_tokens": 150}), tmp_path / "smaller")
    sizes = limited(200, error)
    halved = train(base, corpus, study, config, tmp_path / "halved")
    assert caplog.text.count("Memory ran out") == 1
    assert sizes[0] > 200 and max(sizes[1:]) <= 200
    for name in ("loss", "grad_norm"):
        seen, wanted = ([getattr(point, name) for point in run.curve.train] for run in (halved, smaller))
        assert seen == pytest.approx(wanted, rel=2e-5)
    pairs = zip(
        halved.cartridge.keys + halved.cartridge.values, smaller.cartridge.keys + smaller.cartridge.values, strict=True
    )
    for ours, theirs in pairs:
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_second_time_is_an_error_with_a_remedy(
    base: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    limited: Callable[..., list[int]],
) -> None:
    limited(20, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(TrainingError, match="ran out again") as caught:
        train(base, corpus, study, config, tmp_path)
    assert "micro_batch_tokens" in caught.value.remedy


def test_other_errors_are_not_taken_for_it(
    base: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    limited: Callable[..., list[int]],
) -> None:
    limited(20, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(base, corpus, study, config, tmp_path)
