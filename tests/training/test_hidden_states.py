"""Deep context distillation: the student's layers are drawn towards what the teacher's were."""

from pathlib import Path

import pytest
import torch

from cartridge_core.errors import TrainingError
from cartridge_core.inference.prefix import past_key_values
from cartridge_core.selfstudy.conversation import Conversation, Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.hidden_states import TeacherStates, layer_outputs, states_at
from cartridge_core.training.initial import initial_prefix
from cartridge_core.training.loop import train
from cartridge_core.training.packed_rows import input_length, pack_rows
from cartridge_core.training.ranks import ALONE
from cartridge_core.training.result import TrainingResult
from cartridge_core.training.sharding import decoder_layers
from cartridge_core.training.state import TrainingState
from cartridge_core.training.step import batch_gradient
from cartridge_core.training.teacher_context import TeacherContext
from tests.talkative import ChunkedStudy


@pytest.fixture
def config(config: TrainingConfig) -> TrainingConfig:
    return config.model_copy(update={"hidden_state_weight": 2.0, "steps": 40, "learning_rate": 0.05, "eval_every": 20})


@pytest.fixture
def some(chunked: ChunkedStudy) -> list[Conversation]:
    """Conversations about several chunks, the chunks in no order."""
    return [chunked.dataset[place] for place in (5, 0, len(chunked.dataset) - 1, 1, len(chunked.dataset) // 2)]


def states_of(chunked: ChunkedStudy, config: TrainingConfig) -> TeacherStates:
    study = chunked.dataset.manifest.plan.config
    return TeacherStates(chunked.base, chunked.corpus, list(chunked.dataset), study, config)


@torch.no_grad()
def plain_states(chunked: ChunkedStudy, conversation: Conversation) -> list[torch.Tensor]:
    """The teacher's layers at the answer, from transformers' own forward pass behind an ordinary cache."""
    base = chunked.base
    prefix = TeacherContext(base, chunked.corpus, chunked.dataset.manifest.plan.config).prefix(conversation)
    length = input_length(conversation)
    positions = torch.arange(prefix.next_position, prefix.next_position + length)[None]
    seen = base.model(
        input_ids=torch.from_numpy(conversation.token_ids[:length]).long()[None],
        position_ids=positions,
        past_key_values=past_key_values(base, prefix),
        output_hidden_states=True,
    ).hidden_states
    answer = torch.from_numpy(conversation.assistant_mask[1:][:length])
    # The last one is normed; the others are what layers give out.
    return [seen[layer][0][answer] for layer in range(1, len(seen) - 1)]


def test_the_teacher_s_states_are_those_of_the_plain_model(
    chunked: ChunkedStudy, config: TrainingConfig, some: list[Conversation]
) -> None:
    teacher = states_of(chunked, config)
    for conversation in some:
        plain = plain_states(chunked, conversation)
        assert len(plain) == len(teacher.layers) - 1 > 0
        for layer, wanted in enumerate(plain):
            found = teacher._states(conversation)[:, layer].float()
            torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.02)  # kept in bf16


def test_a_student_that_has_read_the_chunk_is_at_no_distance(
    chunked: ChunkedStudy, config: TrainingConfig, some: list[Conversation]
) -> None:
    base, teacher = chunked.base, states_of(chunked, config)
    context = TeacherContext(base, chunked.corpus, chunked.dataset.manifest.plan.config)
    about = [c for c in chunked.dataset if c.chunk_id == some[0].chunk_id]
    other = next(c for c in some if c.chunk_id != some[0].chunk_id)
    (rows,) = pack_rows(about, 10_000)
    far = []
    for prefix in (context.prefix(about[0]), context.prefix(other)):
        with torch.no_grad(), layer_outputs(base, teacher.layers) as seen:
            packed_loss(base, prefix, rows)
            distance = teacher.distance(seen, rows, about)
        assert distance is not None
        far.append(float(distance) / len(rows.teacher))
    assert far[0] < 0.005
    assert far[1] > 0.05


def test_the_loss_is_a_mean_over_layers_and_a_sum_over_tokens(
    chunked: ChunkedStudy, config: TrainingConfig, some: list[Conversation]
) -> None:
    """Packed together, in two layers, against each conversation by itself."""
    layers = (0, 1)
    base, teacher = chunked.base, states_of(chunked, config.model_copy(update={"hidden_state_layers": layers}))
    prefix = initial_prefix(base, chunked.corpus, chunked.dataset, config)
    (rows,) = pack_rows(some, 10_000)
    assert rows.members != tuple(range(len(some)))
    teacher.prepare(some)
    with torch.no_grad(), layer_outputs(base, layers) as seen:
        packed_loss(base, prefix, rows)
        found = teacher.distance(seen, rows, some)
        wanted = 0.0
        for conversation in some:
            (alone,) = pack_rows([conversation], 10_000)
            packed_loss(base, prefix, alone)
            for layer, student in enumerate(states_at(seen, layers, alone)):
                right = teacher._states(conversation)[:, layer].float()
                wanted += float(((student - right).abs().sum(dim=1) / right.abs().sum(dim=1)).sum()) / len(layers)
    assert found is not None
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_the_gradient_does_not_depend_on_how_a_batch_is_parted(
    chunked: ChunkedStudy, config: TrainingConfig, some: list[Conversation]
) -> None:
    gradients, told = [], []
    for tokens in (10_000, 16):
        changed = config.model_copy(update={"micro_batch_tokens": tokens})
        initial = initial_prefix(chunked.base, chunked.corpus, chunked.dataset, changed)
        state = TrainingState(initial, changed, chunked.base.device)
        told.append(batch_gradient(chunked.base, state, some, changed, ALONE, states_of(chunked, changed)))
        gradients.append([master.grad for master in state.prefix.parameters()])
    assert told[0].state_distance == pytest.approx(told[1].state_distance, rel=1e-3)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-2)


def fitted(chunked: ChunkedStudy, config: TrainingConfig, folder: Path) -> TrainingResult:
    return train(chunked.base, chunked.corpus, chunked.dataset, config, folder)


def test_training_brings_the_states_closer(chunked: ChunkedStudy, config: TrainingConfig, tmp_path: Path) -> None:
    layers = decoder_layers(chunked.base.model)
    hooks = [len(layer._forward_hooks) for layer in layers]
    drawn = fitted(chunked, config, tmp_path / "drawn")
    again = fitted(chunked, config, tmp_path / "again")
    without = fitted(chunked, config.model_copy(update={"hidden_state_weight": 0.0}), tmp_path / "without")
    distances = [point.state_distance or 0.0 for point in drawn.curve.train]
    assert sum(distances[-5:]) < 0.9 * sum(distances[:5])
    assert all(point.state_distance is None for point in without.curve.train)
    assert drawn.cartridge.digest == again.cartridge.digest != without.cartridge.digest
    assert [len(layer._forward_hooks) for layer in layers] == hooks


def test_activations_may_be_computed_again(chunked: ChunkedStudy, config: TrainingConfig, tmp_path: Path) -> None:
    changed = config.model_copy(update={"activation_checkpointing": True, "steps": 4, "warmup_steps": 1})
    plain = changed.model_copy(update={"activation_checkpointing": False})
    one, other = fitted(chunked, changed, tmp_path / "a"), fitted(chunked, plain, tmp_path / "b")
    assert one.cartridge.digest == other.cartridge.digest


def test_answers_of_the_student_are_matched_by_their_words_alone(
    chunked: ChunkedStudy, config: TrainingConfig, some: list[Conversation], tmp_path: Path
) -> None:
    own = [Targets(c.token_ids, c.assistant_mask, c.topk_ids, c.topk_logprobs, c.tail_logprob) for c in some]
    (rows,) = pack_rows(own, 10_000)
    assert states_of(chunked, config).distance({}, rows, own) is None
    result = fitted(chunked, config.model_copy(update={"steps": 6, "warmup_steps": 1, "on_policy_steps": 2}), tmp_path)
    assert len(result.curve.train) == 6


def test_what_cannot_be_matched_is_refused(chunked: ChunkedStudy, config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no layer 9"):
        fitted(chunked, config.model_copy(update={"hidden_state_layers": (9,)}), tmp_path)
    for changed in ({"objective": "next_token"}, {"compile": True}, {"shard_base": True}):
        with pytest.raises(ValueError, match="hidden_state_weight"):
            TrainingConfig.model_validate({"num_tokens": 8, "hidden_state_weight": 1.0, **changed})


def test_more_states_than_memory_is_meant_for_are_refused(
    chunked: ChunkedStudy, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cartridge_core.training.hidden_states.MAX_BYTES", 1000)
    with pytest.raises(TrainingError, match="fewer hidden_state_layers"):
        states_of(chunked, config)
