"""The two recipes that are compared: the paper's, and the one that is the default here."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cartridge_core.baselines import trained_arm
from cartridge_core.benchmarks import BENCHMARKS
from cartridge_core.cartridge import Cartridge
from cartridge_core.evaluation import evaluate
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.progress import Progress, no_progress
from cartridge_core.rendering import template_digest
from cartridge_core.stages.quickstart_plan import SHORT_PLAN
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.held_out import HeldOut
from cartridge_core.training.initial import initial_prefix
from cartridge_core.training.loop import train
from cartridge_core.training.micro_batch import MicroBatch
from cartridge_core.training.objective import distillation, split_study
from cartridge_core.training.packed_attention import packed_logits
from cartridge_core.training.packed_rows import PackedRows, pack_batch
from cartridge_core.training.precision import training_precision
from tests.proofs.recipe_corpora import RecipeCorpus
from tests.proofs.recipe_run import Look, RecipeRun

LOOKS = 20
"""Looks of the paper's run at the exam; their time is not counted."""


def our_recipe(
    base: BaseModel, about: RecipeCorpus, config: TrainingConfig, inputs: dict[str, Any], progress: Progress
) -> RecipeRun:
    """The product's own training. All of its processor time counts: initialisation, looks, checkpoints.

    The exam is put once, to what the run ends with.
    """
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="recipe-") as folder:
        result = train(base, about.corpus, about.conversations, config, Path(folder), progress=progress)
    used = time.process_time() - started
    exam, micro_batch = exam_of(base, about, config), MicroBatch(config.micro_batch_tokens)
    look = Look(step=config.steps, kl=exam.score(result.cartridge, micro_batch).kl, seconds=used)
    return RecipeRun(inputs=inputs, looks=(look,), right=examine(base, about, result.cartridge))


def paper_recipe(
    base: BaseModel, about: RecipeCorpus, config: TrainingConfig, inputs: dict[str, Any], progress: Progress
) -> RecipeRun:
    """The paper's training (arXiv 2506.06266, section 3.2 and appendix; its code's default).

    Keys and values of the first tokens are parameters in bf16, as the reference implementation has them; Adam at a
    constant rate, without warm-up or clipping; cross-entropy over the teacher's top 20 without the tail's mass.
    Batches, packing and attention are those of our side, so that only the recipe differs.
    """
    material = distillation(base, about.corpus, about.conversations, config)
    exam, micro_batch = exam_of(base, about, config), MicroBatch(config.micro_batch_tokens)
    started = time.process_time()
    initial = initial_prefix(base, about.corpus, about.conversations, config)
    half = [tensor.detach().bfloat16() for tensor in (*initial.keys, *initial.values) if tensor is not None]
    frozen = [tensor[:, : config.num_frozen_tokens] for tensor in half]
    trained = [tensor[:, config.num_frozen_tokens :].clone().requires_grad_() for tensor in half]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate)
    used = time.process_time() - started

    def prefix() -> PrefixKV:
        whole = [torch.cat(pair, dim=1).float() for pair in zip(frozen, trained, strict=True)]
        return PrefixKV(whole[: len(whole) // 2], whole[len(whole) // 2 :], initial.next_position)

    def cartridge() -> Cartridge:
        served = prefix()
        return Cartridge.from_prefix(
            PrefixKV(
                [tensor.detach() for tensor in served.keys if tensor is not None],
                [tensor.detach() for tensor in served.values if tensor is not None],
                served.next_position,
            ),
            base_model=base.identity,
            layers=base.layer_specs,
            dtype=base.kv_dtype,
            template_digest=template_digest(base.tokenizer),
            num_frozen_tokens=config.num_frozen_tokens,
            tenant="default",
            corpus_digest=about.corpus.digest,
            dataset_digest=about.conversations.manifest.digest,
            training_config_digest=config.digest,
            seed=config.seed,
        )

    best = cartridge()
    looks = [Look(step=0, kl=exam.score(best, micro_batch).kl, seconds=used)]
    for step in range(config.steps):
        started = time.process_time()
        examples = material.stream.batch(step)
        tokens = sum(int(example.assistant_mask.sum()) for example in examples)
        optimizer.zero_grad(set_to_none=True)
        for part in pack_batch(examples, config, config.micro_batch_tokens, base.device):
            with training_precision(base, config):
                loss = _top_k_cross_entropy(packed_logits(base, prefix(), part), part) / tokens
            loss.backward()
        optimizer.step()
        used += time.process_time() - started
        if (step + 1) % max(config.steps // LOOKS, 1) == 0 or step + 1 == config.steps:
            now = cartridge()
            look = Look(step=step + 1, kl=exam.score(now, micro_batch).kl, seconds=used)
            if look.kl < min(earlier.kl for earlier in looks):
                best = now
            looks.append(look)
            progress(step + 1, config.steps, f"exam {look.kl:.4f} nats")
    return RecipeRun(inputs=inputs, looks=tuple(looks), right=examine(base, about, best))


def exam_of(base: BaseModel, about: RecipeCorpus, config: TrainingConfig) -> HeldOut:
    """The exam's conversations whose questions a run of this configuration does not train on."""
    trained_on, _, _ = split_study(about.conversations, config, base.max_positions)
    return HeldOut(base, list(about.unseen(trained_on)), config)


def _top_k_cross_entropy(logits: Tensor, rows: PackedRows) -> Tensor:
    student = logits.float().log_softmax(dim=-1).gather(1, rows.teacher.topk_ids)
    return -(rows.teacher.topk_logprobs.exp() * student).sum()


def examine(
    base: BaseModel, about: RecipeCorpus, cartridge: Cartridge, progress: Progress = no_progress
) -> tuple[float, ...]:
    """The score of each question, asked behind a Cartridge."""
    arm = trained_arm(base, cartridge)
    result = evaluate(base, arm, about.questions, BENCHMARKS["closed_answer"], SHORT_PLAN.evaluation, progress)
    return tuple(row.score for row in result.rows)
