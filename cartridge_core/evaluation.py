"""Grading: every arm answers the same questions, greedily, and the benchmark judges the replies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from cartridge_core.benchmarks import Benchmark, Interval, Question
from cartridge_core.errors import EvaluationError
from cartridge_core.progress import Progress, no_progress

if TYPE_CHECKING:
    from cartridge_core import models
    from cartridge_core.baselines import Arm


class EvaluationConfig(BaseModel):
    """How questions are put and how sure the scores are said to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=64, ge=1)
    """Longest reply in tokens; a longer one is cut and judged as it stands."""
    batch_size: int = Field(default=64, ge=1)
    """Questions answered at once."""
    bootstrap_samples: int = Field(default=10_000, ge=1000)
    """Resamples behind an interval that has no closed form."""
    seed: int = 0
    """Seed of the resampling; replies are greedy and need none."""
    allow_overflow: bool = False
    """Report an arm whose text leaves no room for the questions as 'does not fit' instead of refusing to grade."""


class QuestionRow(BaseModel):
    """One question put to one arm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    """Name of the arm."""
    question_id: str
    """Id of the question."""
    question: str
    """What was asked."""
    answer: str
    """The gold answer."""
    reply: str
    """What the model said; empty where there is an error."""
    score: float
    """Between 0 and 1; unparsed replies and errors score 0."""
    parsed: bool
    """Whether the reply held anything to judge."""
    finished: bool
    """Whether the model ended the reply itself."""
    num_reply_tokens: int
    """Length of the reply, its end token included."""
    error: str | None = None
    """Why the question could not be asked."""


class ArmResult(BaseModel):
    """How an arm did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the arm."""
    metric: str
    """What the score is called."""
    fits: bool = True
    """False if the arm's text leaves no room for the questions in the model's window; it then has no score."""
    score: float | None
    """Mean score over all n questions."""
    interval: Interval | None
    """95% interval of the score."""
    n: int
    """Questions asked, those with errors included."""
    unparsed: int
    """Replies that held nothing to judge; counted as wrong."""
    errors: int
    """Questions that could not be asked; counted as wrong."""
    unfinished: int
    """Replies cut at `max_new_tokens`."""
    num_tokens: int
    """Tokens in front of the question."""
    kv_bytes: int
    """Bytes of their keys and values in the base model's stored type; memory ratios compare `memory_bytes`."""
    stored_bytes: int | None = None
    """Bytes on disk of a quantised Cartridge, which takes `kv_bytes` in memory; None for any other arm."""
    cartridge_digest: str | None = None
    """The Cartridge that was graded, for a trained arm."""
    adapter_bytes: int | None = None
    """Bytes of the weights that a LoRA arm adds to the model, in its stored type; None for any other arm."""
    seconds: float
    """Wall time of the arm's answers."""
    rows: tuple[QuestionRow, ...] = Field(default=(), exclude=True, repr=False)
    """One row a question in the questions' order; kept beside a report, not in it."""

    @property
    def memory_bytes(self) -> int:
        """What the arm takes beside the model: keys and values in front of the question, and an adapter's weights."""
        return self.kv_bytes + (self.adapter_bytes or 0)

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out rather than null: reports written before there were quantisation and adapters keep their digests.
        content: dict[str, Any] = handler(self)
        return {k: v for k, v in content.items() if v is not None or k not in ("stored_bytes", "adapter_bytes")}


def evaluate(
    base: models.BaseModel,
    arm: Arm,
    questions: Sequence[Question],
    benchmark: Benchmark,
    config: EvaluationConfig | None = None,
    progress: Progress = no_progress,
) -> ArmResult:
    """Put the questions to one arm.

    A question too long for the model's window even alone is an error, counted as wrong. An arm whose text leaves too
    little of the window for some other question is not graded at all: a score over what happens to fit means nothing.

    Raises:
        EvaluationError: There are no questions, or the arm does not fit and `config.allow_overflow` is off.
    """
    # Imported late: results are read (by the promotion gate, by reports) where there is no torch.
    from cartridge_core.inference.generate import GenerationConfig, generate
    from cartridge_core.rendering import render_turns

    config = config or EvaluationConfig()
    if not questions:
        raise EvaluationError("There are no questions to ask.", "Give at least one.")
    started = time.perf_counter()
    prompts = [render_turns(base.tokenizer, q.messages, add_generation_prompt=True).token_ids for q in questions]
    room = base.max_positions - config.max_new_tokens
    asked = [index for index, prompt in enumerate(prompts) if len(prompt) <= room]
    start = arm.prefix.next_position if arm.prefix else arm.num_tokens
    needed = start + max((len(prompts[index]) for index in asked), default=0)
    if not arm.fits or needed > room:
        if not config.allow_overflow:
            raise EvaluationError(
                f"Arm '{arm.name}' needs {needed + config.max_new_tokens} positions (text, question and reply); "
                f"{base.identity.id} has {base.max_positions}.",
                "Set allow_overflow to report the arm as 'does not fit', or use a model with a larger window.",
            )
        return _does_not_fit(arm, len(questions), benchmark)

    rows: dict[int, QuestionRow] = {
        index: _error_row(arm, questions[index], f"needs {len(prompt) + config.max_new_tokens} positions alone")
        for index, prompt in enumerate(prompts)
        if len(prompt) > room
    }
    with arm.applied():
        replies = generate(
            base,
            arm.prefix,
            [prompts[index] for index in asked],
            GenerationConfig(max_new_tokens=config.max_new_tokens),
            progress=lambda done, total, what: progress(done, total, f"{arm.name}: {what}"),
            batch_size=config.batch_size,
        )
    for index, reply in zip(asked, replies, strict=True):
        verdict = benchmark.score(questions[index], reply.text)
        rows[index] = QuestionRow(
            arm=arm.name,
            question_id=questions[index].id,
            question=questions[index].question,
            answer=questions[index].answer,
            reply=reply.text,
            score=verdict.score,
            parsed=verdict.parsed,
            finished=reply.finished,
            num_reply_tokens=len(reply.token_ids),
        )
    return _summary(arm, [rows[i] for i in range(len(questions))], benchmark, config, time.perf_counter() - started)


def _summary(
    arm: Arm, rows: Sequence[QuestionRow], benchmark: Benchmark, config: EvaluationConfig, seconds: float
) -> ArmResult:
    scores = [row.score for row in rows]
    return ArmResult(
        name=arm.name,
        metric=benchmark.metric,
        score=sum(scores) / len(scores),
        interval=benchmark.interval(scores, config.bootstrap_samples, config.seed),
        n=len(rows),
        unparsed=sum(not row.parsed and row.error is None for row in rows),
        errors=sum(row.error is not None for row in rows),
        unfinished=sum(not row.finished and row.error is None for row in rows),
        num_tokens=arm.num_tokens,
        kv_bytes=arm.kv_bytes,
        stored_bytes=arm.stored_bytes,
        cartridge_digest=arm.cartridge_digest,
        adapter_bytes=arm.adapter_bytes,
        seconds=round(seconds, 3),
        rows=tuple(rows),
    )


def _does_not_fit(arm: Arm, n: int, benchmark: Benchmark) -> ArmResult:
    return ArmResult(
        name=arm.name,
        metric=benchmark.metric,
        fits=False,
        score=None,
        interval=None,
        n=n,
        unparsed=0,
        errors=0,
        unfinished=0,
        num_tokens=arm.num_tokens,
        kv_bytes=arm.kv_bytes,
        stored_bytes=arm.stored_bytes,
        cartridge_digest=arm.cartridge_digest,
        adapter_bytes=arm.adapter_bytes,
        seconds=0.0,
    )


def _error_row(arm: Arm, question: Question, problem: str) -> QuestionRow:
    return QuestionRow(
        arm=arm.name,
        question_id=question.id,
        question=question.question,
        answer=question.answer,
        reply="",
        score=0.0,
        parsed=False,
        finished=False,
        num_reply_tokens=0,
        error=problem,
    )
