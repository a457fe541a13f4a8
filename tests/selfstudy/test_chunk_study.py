from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from cartridge_core.corpus import Chunk, Corpus, TokenizedCorpus
from cartridge_core.errors import TeacherError
from cartridge_core.inference.generate import Generation, GenerationConfig
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids, render_turns
from cartridge_core.selfstudy.chunk_study import draw_chunk, study_chunk
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Sample
from cartridge_core.selfstudy.seeds import SEED_FAMILIES
from cartridge_core.teacher.local import LocalTeacher
from cartridge_core.teacher.protocol import Message


class Recorder(LocalTeacher):
    """A teacher that remembers what it was asked."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base)
        self.calls: list[tuple[str, list[str], GenerationConfig]] = []

    def ask(
        self,
        context_text: str,
        conversations: Sequence[Sequence[Message]],
        config: GenerationConfig,
        seeds: Sequence[int],
    ) -> list[Generation]:
        self.calls.append((context_text, [turns[-1]["content"] for turns in conversations], config))
        return super().ask(context_text, conversations, config, seeds)


@pytest.fixture(scope="module")
def chunk(base: BaseModel, corpus: Corpus, config: SelfStudyConfig) -> Chunk:
    return draw_chunk(TokenizedCorpus.build(corpus, base.tokenizer), config, 0)


def study(base: BaseModel, chunk: Chunk, config: SelfStudyConfig, indices: range = range(8)) -> list[Sample]:
    return study_chunk(chunk, indices, LocalTeacher(base), base.tokenizer, config, held_out=())


def test_targets_are_what_the_teacher_thinks_with_the_chunk_in_its_system_message(
    base: BaseModel, chunk: Chunk, config: SelfStudyConfig
) -> None:
    """The student's tokens behind the chunk, read in one pass, must give back every stored probability."""
    kept = [sample for sample in study(base, chunk, config, range(40)) if sample.targets is not None]
    assert len(kept) > 5
    for sample in kept:
        targets = sample.targets
        assert targets is not None
        head = prefix_token_ids(base.tokenizer, chunk.prompt_text)
        ids = torch.tensor([[*head, *targets.token_ids.tolist()]])
        logprobs = base.model(input_ids=ids).logits[0].float().log_softmax(-1)
        rows = logprobs[
            np.flatnonzero(targets.assistant_mask) + len(head) - 1
        ]  # what predicts a token stands before it
        top, indices = rows.topk(config.top_k)
        assert torch.allclose(top, torch.from_numpy(targets.topk_logprobs), atol=1e-4)
        assert torch.allclose(rows.gather(1, torch.from_numpy(targets.topk_ids).long()), top, atol=1e-4)
        tail = 1 - top.exp().sum(-1)
        assert torch.allclose(tail, torch.from_numpy(targets.tail_logprob).exp(), atol=1e-5)
        answer = targets.token_ids[targets.assistant_mask]
        assert answer.tolist() == indices[:, 0].tolist()  # greedy
        assert int(answer[-1]) in base.eos_ids
        turn = render_turns(base.tokenizer, [{"role": "user", "content": sample.question}], add_generation_prompt=True)
        assert targets.token_ids[~targets.assistant_mask].tolist() == list(turn.token_ids)
        assert base.tokenizer.decode(answer[:-1], skip_special_tokens=True) == sample.answer


def test_a_sees_chunk_and_seed_prompt_and_b_sees_chunk_and_question(
    base: BaseModel, chunk: Chunk, config: SelfStudyConfig
) -> None:
    teacher = Recorder(base)
    samples = study_chunk(chunk, range(16), teacher, base.tokenizer, config, held_out=())
    (context_a, prompts, config_a), (context_b, questions, config_b) = teacher.calls
    assert context_a == context_b == chunk.prompt_text
    assert prompts == [sample.seed_prompt for sample in samples]
    for sample in samples:
        wording, sentence = sample.seed_prompt.split(" Ask about this part of the text: ")
        assert wording in SEED_FAMILIES[sample.family]
        assert sentence.strip('"') in " ".join(chunk.text.split())
    assert {sample.family for sample in samples} == set(config.families)
    assert (config_a.temperature, config_a.top_k_logprobs) == (1.0, 0)
    assert (config_b.temperature, config_b.top_k_logprobs) == (0.0, 5)
    asked = [s.question for s in samples if s.outcome in ("kept", "answer_unfinished", "answer_empty")]
    assert questions == asked
    assert len(set(questions)) == len(questions)


def test_a_sample_does_not_depend_on_its_company(base: BaseModel, chunk: Chunk, config: SelfStudyConfig) -> None:
    # Sampled answers, so that a repeated question is answered wherever it stands.
    config = config.model_copy(update={"temperature_b": 1.0})
    together = study(base, chunk, config, range(24))
    alone = [sample for index in range(0, 24, 5) for sample in study(base, chunk, config, range(index, index + 1))]
    for single in alone:
        other = together[single.sample_index]
        assert (single.question, single.answer, single.outcome) == (other.question, other.answer, other.outcome)
    assert len({sample.seed for sample in together}) == 24


def test_a_repeat_is_dropped_only_when_it_could_bring_nothing_new(
    base: BaseModel, chunk: Chunk, config: SelfStudyConfig
) -> None:
    alike = config.model_copy(
        update={"focus_words": None, "temperature_a": 0.0, "families": ("question",), "max_tokens_a": 64}
    )
    greedy = study(base, chunk, alike, range(30))
    finished = [sample for sample in greedy if sample.outcome not in ("question_unfinished", "question_empty")]
    distinct = {sample.question for sample in finished}
    assert 0 < len(distinct) <= len(SEED_FAMILIES["question"])
    repeated = [sample for sample in finished if sample.outcome == "question_repeated"]
    assert len(repeated) == len(finished) - len(distinct)
    assert all(sample.targets is None and sample.answer == "" for sample in repeated)
    sampled = study(base, chunk, alike.model_copy(update={"temperature_b": 1.0}), range(30))
    assert all(sample.outcome != "question_repeated" for sample in sampled)


def test_distributions_that_do_not_fit_the_tokens_are_refused(
    base: BaseModel, chunk: Chunk, config: SelfStudyConfig
) -> None:
    class Forgetful(LocalTeacher):
        def ask(
            self,
            context_text: str,
            conversations: Sequence[Sequence[Message]],
            config: GenerationConfig,
            seeds: Sequence[int],
        ) -> list[Generation]:
            given = super().ask(context_text, conversations, config, seeds)
            return [replace(generation, topk_ids=generation.topk_ids[1:]) for generation in given]

    class Confused(LocalTeacher):
        def ask(
            self,
            context_text: str,
            conversations: Sequence[Sequence[Message]],
            config: GenerationConfig,
            seeds: Sequence[int],
        ) -> list[Generation]:
            given = super().ask(context_text, conversations, config, seeds)
            return [replace(generation, tail_logprob=generation.tail_logprob * np.nan) for generation in given]

    with pytest.raises(TeacherError, match="distributions for an answer"):
        study_chunk(chunk, range(16), Forgetful(base), base.tokenizer, config, held_out=())
    with pytest.raises(TeacherError, match="not a number"):
        study_chunk(chunk, range(16), Confused(base), base.tokenizer, config, held_out=())


def test_chunks_depend_on_seed_and_index(base: BaseModel, corpus: Corpus, config: SelfStudyConfig) -> None:
    tokenized = TokenizedCorpus.build(corpus, base.tokenizer)
    ids = [draw_chunk(tokenized, config, index).id for index in range(12)]
    assert [draw_chunk(tokenized, config, index).id for index in reversed(range(12))] == ids[::-1]
    assert len(set(ids)) == 12
    assert {draw_chunk(tokenized, config, index).document_index for index in range(12)} == {0, 1, 2}
    assert draw_chunk(tokenized, config.model_copy(update={"seed": 8}), 0).id != ids[0]
