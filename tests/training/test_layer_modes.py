"""Activation checkpointing, compiled layers and other weight types change how a step is made, not what it learns."""

import dataclasses
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.models import BaseModel
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.initial import initial_prefix
from cartridge_core.training.layer_modes import compiled_layers, recomputed_activations
from cartridge_core.training.loop import train
from cartridge_core.training.objective import distillation
from cartridge_core.training.ranks import Ranks
from cartridge_core.training.state import TrainingState
from cartridge_core.training.step import batch_gradient
from tests.proofs.llama_shapes import TINY, random_model, random_prefix
from tests.proofs.synthetic_conversations import SyntheticConversations

Study = Callable[..., ConversationDataset]


def gradient(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig
) -> tuple[float, list[torch.Tensor]]:
    state = TrainingState(initial_prefix(base, corpus, study, config), config, base.device)
    batch = distillation(base, corpus, study, config).stream.batch(0)
    loss = batch_gradient(base, state, batch, config, Ranks())
    return loss.loss, [master.grad for master in state.prefix.parameters() if master.grad is not None]


def test_recomputed_activations_give_the_same_gradient(
    each_base: BaseModel, corpus: Corpus, make_study: Study, config: TrainingConfig
) -> None:
    study = make_study(each_base, corpus, 12)
    config = config.model_copy(update={"num_tokens": 12})
    plain = gradient(each_base, corpus, study, config)
    again = gradient(each_base, corpus, study, config.model_copy(update={"activation_checkpointing": True}))
    assert again[0] == plain[0]
    # Not of every tensor: behind a window shorter than the questions an answer sees the prefix in early layers alone.
    assert any(float(tensor.abs().max()) > 0 for tensor in again[1])
    for one, other in zip(plain[1], again[1], strict=True):
        assert torch.equal(one, other)
    assert not any(module.training for module in each_base.model.modules())


def test_layers_are_passed_twice(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig
) -> None:
    passes: list[bool] = []
    hook = base.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(True))
    try:
        gradient(base, corpus, study, config)
        once = len(passes)
        gradient(base, corpus, study, config.model_copy(update={"activation_checkpointing": True}))
    finally:
        hook.remove()
    # One pass each is the prefill that initialises the prefix.
    assert (once, len(passes) - once) == (2, 3)


def test_the_model_is_given_back_after_an_error(base: BaseModel) -> None:
    with pytest.raises(KeyError), recomputed_activations(base, True):
        assert base.model.get_decoder().layers[0].training
        raise KeyError
    assert not any(module.training for module in base.model.modules())
    assert not base.model.get_decoder().layers[0].gradient_checkpointing


@pytest.mark.slow
def test_compiled_layers_train_the_same(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"steps": 4, "warmup_steps": 1, "eval_every": 2})
    plain = train(base, corpus, study, config, tmp_path / "plain")
    quick = train(base, corpus, study, config.model_copy(update={"compile": True}), tmp_path / "compiled")
    seen, wanted = ([point.loss for point in run.curve.train] for run in (quick, plain))
    assert seen == pytest.approx(wanted, rel=1e-4)
    assert base.model.get_decoder().layers[0]._compiled_call_impl is None


def test_many_layers_share_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler gives up on a function that it had to compile eight times: each layer must not count as one."""
    # No code is made: what is compiled, and how often, is decided before.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    base = random_model(dataclasses.replace(TINY, num_layers=12), torch.device("cpu"), torch.float32)
    conversations = SyntheticConversations(TINY.vocab_size, 4, (3, 20), (3, 20))
    config = TrainingConfig(num_tokens=16, precision="float32")
    state = TrainingState(random_prefix(base, 16), config, base.device)
    plain = batch_gradient(base, state, conversations.batch(0), config, Ranks()).loss
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), compiled_layers(base, True):
        losses = [batch_gradient(base, state, conversations.batch(step), config, Ranks()).loss for step in (0, 1, 2)]
    assert losses[0] == pytest.approx(plain, rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert base.model.get_decoder().layers[0]._compiled_call_impl is None
