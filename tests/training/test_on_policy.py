"""The final phase: the Cartridge answers the study's questions, the teacher behind the chunk scores the answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import DatasetError
from cartridge_core.inference.decoding import top_and_tail
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.score import logits_behind
from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.rendering import turn_end_ids
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.selfstudy.seeding import derive_seed
from cartridge_core.selfstudy.synthesize import synthesize
from cartridge_core.teacher.local import LocalTeacher
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.conversation_stream import ConversationStream
from cartridge_core.training.initial import initial_prefix
from cartridge_core.training.layer_modes import compiled_layers, eager_layers
from cartridge_core.training.loop import train
from cartridge_core.training.on_policy import OnPolicyBatch, OnPolicyStream
from cartridge_core.training.ranks import ALONE
from cartridge_core.training.state import TrainingState
from cartridge_core.training.teacher_context import TeacherContext
from cartridge_core.training.teacher_scores import teacher_targets
from tests.talkative import STUDY as SMALL
from tests.talkative import ChunkedStudy

STUDY = SMALL.model_copy(update={"num_conversations": 240, "conversations_per_chunk": 40})


@pytest.fixture(scope="module")
def chunked(talkative: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> ChunkedStudy:
    """A larger one: six chunks, several conversations about each."""
    base, folder = load_base_model(talkative, device="cpu"), tmp_path_factory.mktemp("larger")
    synthesize(corpus, LocalTeacher(base), base.tokenizer, STUDY, folder)
    return ChunkedStudy(base, corpus, ConversationDataset.load(folder))


@pytest.fixture
def config(config: TrainingConfig) -> TrainingConfig:
    return config.model_copy(update={"steps": 12, "on_policy_steps": 6, "eval_every": 3, "learning_rate": 0.05})


@pytest.fixture
def state(chunked: ChunkedStudy, config: TrainingConfig) -> TrainingState:
    prefix = initial_prefix(chunked.base, chunked.corpus, chunked.dataset, config)
    return TrainingState(prefix, config, chunked.base.device)


def stream(
    chunked: ChunkedStudy, config: TrainingConfig, study: SelfStudyConfig = STUDY, base: BaseModel | None = None
) -> OnPolicyStream:
    return OnPolicyStream(base or chunked.base, chunked.corpus, list(chunked.dataset), study, config)


def turn(example: Targets) -> list[int]:
    return [int(token) for token in example.token_ids[~example.assistant_mask]]


def answer(example: Targets) -> list[int]:
    return [int(token) for token in example.token_ids[example.assistant_mask]]


def assert_equal(one: OnPolicyBatch, other: OnPolicyBatch) -> None:
    assert one.num_unfinished == other.num_unfinished
    for ours, theirs in zip(one.examples, other.examples, strict=True):
        for name in ("token_ids", "assistant_mask", "topk_ids", "topk_logprobs", "tail_logprob"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("max_tokens", [10, 60, 10_000])
def test_the_teacher_scores_its_own_answers_as_the_study_did(chunked: ChunkedStudy, max_tokens: int) -> None:
    """However they are packed, and in the order in which they were given."""
    context = TeacherContext(chunked.base, chunked.corpus, STUDY)
    first = chunked.dataset[0].chunk_id
    about_it = [conversation for conversation in chunked.dataset if conversation.chunk_id == first]
    assert len({len(conversation.token_ids) for conversation in about_it}) > 2
    turns, answers = [turn(c) for c in about_it], [answer(c) for c in about_it]
    prefix = context.prefix(about_it[0])
    scored = teacher_targets(chunked.base, prefix, turns, answers, STUDY.top_k, max_tokens, chunk_tokens=3)
    for seen, kept in zip(scored, about_it, strict=True):
        assert np.array_equal(seen.token_ids, kept.token_ids)
        assert np.array_equal(seen.assistant_mask, kept.assistant_mask)
        assert np.array_equal(seen.topk_ids, kept.topk_ids)
        np.testing.assert_allclose(seen.topk_logprobs, kept.topk_logprobs, atol=1e-4)
        np.testing.assert_allclose(seen.tail_logprob, kept.tail_logprob, atol=1e-4)


def test_a_batch_is_the_students_answers_and_the_teachers_scores(
    chunked: ChunkedStudy, config: TrainingConfig, state: TrainingState
) -> None:
    state.step = 7
    batch = stream(chunked, config).batch(state, ALONE)
    asked = ConversationStream(list(chunked.dataset), config.batch_size, config.seed).batch(7)
    assert len(batch.examples) == len(asked) == config.batch_size
    assert len({conversation.chunk_id for conversation in asked}) > 1
    context = TeacherContext(chunked.base, chunked.corpus, STUDY)
    limits = GenerationConfig(max_new_tokens=STUDY.max_tokens_b, temperature=1.0)
    unfinished = 0
    for place, (example, conversation) in enumerate(zip(batch.examples, asked, strict=True)):
        assert turn(example) == turn(conversation)
        seed = derive_seed(config.seed, "on_policy", 7, place)
        (said,) = generate(chunked.base, state.served(), [turn(conversation)], limits, [seed])
        assert answer(example) == list(said.token_ids)
        unfinished += not said.finished
        (logits,) = logits_behind(chunked.base, context.prefix(conversation), [example.token_ids.tolist()])
        at = torch.from_numpy(np.flatnonzero(example.assistant_mask) - 1)
        _, logprobs, tail = top_and_tail(logits[at], STUDY.top_k)
        np.testing.assert_allclose(example.topk_logprobs, logprobs.numpy(), atol=1e-4)
        np.testing.assert_allclose(example.tail_logprob, tail.numpy(), atol=1e-4)
        found = logits[at].log_softmax(dim=1).gather(1, torch.from_numpy(example.topk_ids).long())
        np.testing.assert_allclose(example.topk_logprobs, found.numpy(), atol=1e-4)
    assert batch.num_unfinished == unfinished
    assert [answer(e) for e in batch.examples] != [answer(c) for c in asked]


def test_a_batch_depends_on_seed_step_and_masters(
    chunked: ChunkedStudy, config: TrainingConfig, state: TrainingState
) -> None:
    drawn = stream(chunked, config)
    first = drawn.batch(state, ALONE)
    torch.manual_seed(5)
    drawn.batch(state, ALONE)
    assert_equal(drawn.batch(state, ALONE), first)
    assert_equal(stream(chunked, config).batch(state, ALONE), first)
    others = stream(chunked, config.model_copy(update={"on_policy_temperature": 0.0})).batch(state, ALONE)
    said = [answer(example) for example in first.examples]
    assert [turn(example) for example in others.examples] == [turn(example) for example in first.examples]
    assert [answer(example) for example in others.examples] != said
    with torch.no_grad():
        for master in state.prefix.parameters():
            master.mul_(-1.0)
    moved = drawn.batch(state, ALONE)
    assert [turn(example) for example in moved.examples] == [turn(example) for example in first.examples]
    assert [answer(example) for example in moved.examples] != said


def test_answers_that_do_not_end_are_cut_kept_and_counted(
    chunked: ChunkedStudy, config: TrainingConfig, state: TrainingState
) -> None:
    """By the study's limit, a row's, and the room that the chunk leaves in the teacher's window."""
    base = chunked.base
    ends = base.eos_ids | turn_end_ids(base.tokenizer)
    whole = stream(chunked, config).batch(state, ALONE)
    turns, answers = [turn(e) for e in whole.examples], [answer(e) for e in whole.examples]
    assert max(map(len, answers)) > 4 and min(map(len, answers)) < 3

    def check(batch: OnPolicyBatch, room: list[int]) -> None:
        kept = [said[:most] for said, most in zip(answers, room, strict=True)]
        assert [answer(example) for example in batch.examples] == kept
        assert [len(example.topk_ids) for example in batch.examples] == [len(said) for said in kept]
        assert batch.num_unfinished == sum(said[-1] not in ends for said in kept)

    check(whole, [STUDY.max_tokens_b] * len(turns))
    check(stream(chunked, config, STUDY.model_copy(update={"max_tokens_b": 2})).batch(state, ALONE), [2] * len(turns))

    row = max(map(len, turns)) + 1
    room = [row + 1 - len(asked) for asked in turns]
    assert any(len(said) > most for said, most in zip(answers, room, strict=True))
    check(stream(chunked, config.model_copy(update={"row_tokens": row})).batch(state, ALONE), room)

    asked = ConversationStream(list(chunked.dataset), config.batch_size, config.seed).batch(0)
    context = TeacherContext(base, chunked.corpus, STUDY)
    before = [context.prefix(conversation).next_position + len(turn(conversation)) for conversation in asked]
    window = max(before) + 1
    room = [window + 1 - length for length in before]
    assert any(len(said) > most for said, most in zip(answers, room, strict=True))
    narrow = replace(base, max_positions=window)
    check(stream(chunked, config, base=narrow).batch(state, ALONE), room)


def test_the_phase_is_the_last_steps(chunked: ChunkedStudy, config: TrainingConfig, tmp_path: Path) -> None:
    result = train(*fields_of(chunked), config, tmp_path / "with")
    plain = train(*fields_of(chunked), config.model_copy(update={"on_policy_steps": 0}), tmp_path / "without")
    assert [point.loss for point in result.curve.train[:6]] == [point.loss for point in plain.curve.train[:6]]
    assert [point.learning_rate for point in result.curve.train] == [p.learning_rate for p in plain.curve.train]
    assert all(
        ours.loss != theirs.loss for ours, theirs in zip(result.curve.train[6:], plain.curve.train[6:], strict=True)
    )
    counts = [point.unfinished for point in result.curve.train]
    assert counts[:6] == [None] * 6 and None not in counts[6:]
    assert result.curve.num_unfinished == sum(count or 0 for count in counts)
    assert plain.curve.num_unfinished is None
    assert result.cartridge.manifest.training_config_digest == config.digest


def fields_of(chunked: ChunkedStudy) -> tuple[BaseModel, Corpus, ConversationDataset]:
    return chunked.base, chunked.corpus, chunked.dataset


def test_the_student_comes_closer_to_the_teacher_on_its_own_answers(
    chunked: ChunkedStudy, config: TrainingConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"steps": 40, "on_policy_steps": 40, "batch_size": 40})
    result = train(*fields_of(chunked), config, tmp_path)
    assert None not in [point.unfinished for point in result.curve.train]
    divergences = [point.kl for point in result.curve.train]
    assert min(divergences) >= 0
    assert sum(divergences[-5:]) < 0.7 * sum(divergences[:5])
    assert result.best.kl < result.initial.kl


def test_patience_begins_with_the_phase(chunked: ChunkedStudy, config: TrainingConfig, tmp_path: Path) -> None:
    """A learning rate far too high: an ordinary run has soon waited too long."""
    sizes = {"steps": 60, "on_policy_steps": 30, "learning_rate": 30.0, "eval_every": 2, "patience": 1}
    config = config.model_copy(update=sizes)
    plain = train(*fields_of(chunked), config.model_copy(update={"on_policy_steps": 0}), tmp_path / "without")
    assert plain.stopped_early and plain.steps < 30
    result = train(*fields_of(chunked), config, tmp_path / "with")
    assert result.stopped_early and result.steps == max(result.best_step, 30) + 2


def test_a_study_whose_chunks_cannot_be_drawn_again_is_refused(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="is about chunk chunk"):
        train(base, corpus, study, config, tmp_path)
    assert not (tmp_path / "curve.jsonl").exists()
    train(base, corpus, study, config.model_copy(update={"on_policy_steps": 0}), tmp_path)


def test_generation_passes_layers_that_are_not_compiled(chunked: ChunkedStudy) -> None:
    (layer, *_) = chunked.base.model.get_decoder().layers
    with compiled_layers(chunked.base, True):
        compiled = layer._compiled_call_impl
        assert compiled is not None
        with eager_layers(chunked.base):
            assert layer._compiled_call_impl is None
        assert layer._compiled_call_impl is compiled


@pytest.mark.slow
def test_a_compiled_run_has_the_same_phase(chunked: ChunkedStudy, config: TrainingConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"steps": 4, "warmup_steps": 1, "on_policy_steps": 2})
    plain = train(*fields_of(chunked), config, tmp_path / "plain")
    quick = train(*fields_of(chunked), config.model_copy(update={"compile": True}), tmp_path / "compiled")
    seen, wanted = ([point.loss for point in run.curve.train] for run in (quick, plain))
    assert seen == pytest.approx(wanted, rel=1e-4)
