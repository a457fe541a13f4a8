"""The study of one chunk: A asks, B answers, and every conversation that was begun is accounted for."""

import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cartridge_core.corpus.chunking import Chunk, sample_chunk
from cartridge_core.corpus.tokenized import TokenizedCorpus
from cartridge_core.errors import TeacherError
from cartridge_core.rendering import render_turns
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Outcome, Sample, Targets
from cartridge_core.selfstudy.focus import draw_seed_prompt
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.roles import answer_questions, ask_questions
from cartridge_core.selfstudy.seeding import derive_seed, spread_position
from cartridge_core.teacher.protocol import Teacher

if TYPE_CHECKING:
    from cartridge_core.inference.generate import Generation


def draw_chunk(corpus: TokenizedCorpus, config: SelfStudyConfig, index: int) -> Chunk:
    """The index-th chunk of a study; it depends on the seed and the index alone."""
    rng = random.Random(derive_seed(config.seed, "chunk", index))
    offset = derive_seed(config.seed, "offset") / 2**63
    return sample_chunk(corpus, rng, config.chunk, spread_position(offset, index))


def study_chunk(
    chunk: Chunk,
    indices: Sequence[int],
    teacher: Teacher,
    tokenizer: Any,
    config: SelfStudyConfig,
    held_out: Collection[str],
) -> list[Sample]:
    """All conversations about a chunk, in two calls of the teacher: every question, then every answer.

    A question that repeats another one about the same chunk is dropped when the answerer is greedy: the same context
    and the same words give the same answer, so that the repeat would only weigh what the asker likes to ask. When the
    answerer samples, a repeat brings a new answer and stays.

    Args:
        chunk: What the conversations are about.
        indices: Sample indices of the conversations.
        teacher: Plays both roles.
        tokenizer: The base model's.
        config: How to study.
        held_out: Keys (`question_key`) of questions that are reserved for evaluation.

    Returns:
        One sample for each index, in order.

    Raises:
        TeacherError: The teacher cannot answer, or gives distributions that do not fit its tokens.
    """
    families = [config.families[index % len(config.families)] for index in indices]
    seeds = [derive_seed(config.seed, "sample", index) for index in indices]
    offset = derive_seed(config.seed, "focus") / 2**63
    prompts = [
        draw_seed_prompt(family, seed, chunk.text, spread_position(offset, index), config.focus_words)
        for index, family, seed in zip(indices, families, seeds, strict=True)
    ]
    asked = ask_questions(
        teacher, chunk, prompts, [derive_seed(seed, "a") for seed in seeds], config.temperature_a, config.max_tokens_a
    )
    questions = [generation.text.strip() for generation in asked]
    outcomes = _judge_questions(asked, questions, config, held_out)
    open_rows = [row for row, outcome in enumerate(outcomes) if outcome == "kept"]
    answers = dict(
        zip(
            open_rows,
            answer_questions(
                teacher,
                chunk,
                [questions[row] for row in open_rows],
                [derive_seed(seeds[row], "b") for row in open_rows],
                config.temperature_b,
                config.max_tokens_b,
                config.top_k,
            ),
            strict=True,
        )
    )
    for row, answer in answers.items():
        if not answer.finished:
            outcomes[row] = "answer_unfinished"
        elif not answer.text.strip():
            outcomes[row] = "answer_empty"
    return [
        Sample(
            sample_index=index,
            family=families[row],
            chunk_id=chunk.id,
            seed=seeds[row],
            seed_prompt=prompts[row],
            outcome=outcomes[row],
            question=questions[row],
            answer=answers[row].text if row in answers else "",
            targets=_targets(tokenizer, questions[row], answers[row]) if outcomes[row] == "kept" else None,
        )
        for row, index in enumerate(indices)
    ]


def _judge_questions(
    asked: "Sequence[Generation]", questions: Sequence[str], config: SelfStudyConfig, held_out: Collection[str]
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    seen: set[str] = set()
    for generation, question in zip(asked, questions, strict=True):
        if not generation.finished:
            outcomes.append("question_unfinished")
        elif not question:
            outcomes.append("question_empty")
        elif question_key(question) in held_out:
            outcomes.append("question_held_out")
        elif config.temperature_b == 0 and question in seen:
            outcomes.append("question_repeated")
        else:
            outcomes.append("kept")
            seen.add(question)
    return outcomes


def _targets(tokenizer: Any, question: str, answer: "Generation") -> Targets:
    """The student's tokens are the turns without the chunk; the answer's are the ones the teacher generated."""
    turn = render_turns(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True).token_ids
    targets = Targets(
        token_ids=np.concatenate((turn, answer.token_ids)).astype(np.int32),
        assistant_mask=np.arange(len(turn) + len(answer.token_ids)) >= len(turn),
        topk_ids=np.asarray(answer.topk_ids, dtype=np.int32),
        topk_logprobs=np.asarray(answer.topk_logprobs, dtype=np.float32),
        tail_logprob=np.asarray(answer.tail_logprob, dtype=np.float32),
    )
    length = len(answer.token_ids)
    if not (len(targets.topk_ids) == len(targets.topk_logprobs) == len(targets.tail_logprob) == length):
        raise TeacherError(
            f"The teacher gave {len(targets.topk_ids)} distributions for an answer of {length} tokens.",
            "Use a teacher that reports the log-probabilities of every generated token.",
        )
    if np.isnan(targets.topk_logprobs).any() or np.isnan(targets.tail_logprob).any():
        raise TeacherError("The teacher gave a probability that is not a number.", "Load the model in float32.")
    return targets
