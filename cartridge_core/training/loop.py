"""The training loop: context distillation into a key/value prefix (arXiv 2506.06266, section 3)."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cartridge_core.cartridge import Cartridge
from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import ArtifactError, TrainingError
from cartridge_core.initialization import INITIALIZERS
from cartridge_core.models import BaseModel
from cartridge_core.progress import Progress, no_progress
from cartridge_core.rendering import template_digest
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.best import BestCartridge
from cartridge_core.training.checks import check_inputs
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.curve import HeldOutPoint, LossCurve, TrainPoint
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.held_out import HeldOut, HeldOutScore
from cartridge_core.training.objective import OBJECTIVES
from cartridge_core.training.optimizer import OPTIMIZERS, set_learning_rate
from cartridge_core.training.packed_rows import pack_batch
from cartridge_core.training.precision import training_precision
from cartridge_core.training.result import TrainingResult
from cartridge_core.training.schedule import learning_rate
from cartridge_core.training.trainable_prefix import TrainablePrefix

CARTRIDGE = "cartridge"
"""Folder of the result within the run's folder."""
CURVE_DATA = "curve.jsonl"
"""The loss curve's numbers within the run's folder."""
CURVE_PICTURE = "curve.png"
"""The loss curve's picture within the run's folder."""


def train(
    base: BaseModel,
    corpus: Corpus,
    dataset: ConversationDataset | None,
    config: TrainingConfig,
    folder: Path,
    *,
    tenant: str = "default",
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train a Cartridge.

    The same inputs give the same tensors, to the bit, on the same machine with as many threads. The run's folder ends
    with the Cartridge, the loss curve and its picture.

    Args:
        base: The frozen model.
        corpus: What the Cartridge stands in for.
        dataset: The study to distil; None for the next-token objective.
        config: How to train.
        folder: Where the run's files go.
        tenant: Who the corpus belongs to.
        progress: Told about steps.

    Raises:
        TrainingError: The inputs cannot be trained on, or the loss is no longer finite; the message says at which step
            and learning rate, and where the best Cartridge until then lies.
        BaseModelMismatchError: The study was made with another model, revision or tokenizer.
        DatasetError: The study is empty, too small, about another corpus, or rendered in another way.
    """
    check_inputs(base.identity, base.max_positions, template_digest(base.tokenizer), corpus, dataset, config)
    run = _Run(base, corpus, dataset, config, Path(folder), tenant)
    try:
        stopped_early = run.steps(progress)
    finally:
        run.curve.save(run.folder / CURVE_DATA)
    run.curve.plot(run.folder / CURVE_PICTURE)
    kept = run.best.publish(run.folder / CARTRIDGE)
    first = run.curve.held_out[0]
    return TrainingResult(
        cartridge=kept.cartridge,
        curve=run.curve,
        best_step=kept.step,
        best=kept.score,
        initial=HeldOutScore(first.loss, first.kl),
        steps=len(run.curve.train),
        stopped_early=stopped_early,
        num_examples=run.material.num_examples,
        num_held_out=len(run.material.held_out),
        num_unfit=run.material.num_unfit,
        seconds=run.elapsed(),
    )


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        base: BaseModel,
        corpus: Corpus,
        dataset: ConversationDataset | None,
        config: TrainingConfig,
        folder: Path,
        tenant: str,
    ) -> None:
        self._started = time.perf_counter()
        self.base, self.config, self.folder = base, config, folder
        self.material = OBJECTIVES[config.objective](base, corpus, dataset, config)
        initial = INITIALIZERS[config.initialization](base, corpus.text(), config.num_tokens, config.seed)
        self.prefix = TrainablePrefix(initial, config.num_frozen_tokens, base.device)
        self.optimizer = OPTIMIZERS[config.optimizer](self.prefix.parameters(), config)
        self.held_out = HeldOut(base, self.material.held_out, config)
        self.best = BestCartridge(folder)
        self.curve = LossCurve()
        self._provenance: dict[str, Any] = {
            "tenant": tenant,
            "corpus_digest": corpus.digest,
            "dataset_digest": dataset.manifest.digest if dataset is not None else None,
            "training_config_digest": config.digest,
            "seed": config.seed,
        }

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started

    def steps(self, progress: Progress) -> bool:
        """Take the steps; says whether patience ran out."""
        config = self.config
        self._look(0)
        without_gain = 0
        for step in range(config.steps):
            self._step(step, self.material.stream.batch(step))
            taken = step + 1
            if taken % config.eval_every == 0 or taken == config.steps:
                without_gain = 0 if self._look(taken) else without_gain + 1
            kept = self.best.kept
            progress(taken, config.steps, f"training, held out {kept.score.kl:.4f} nats at step {kept.step}")
            if config.patience is not None and without_gain >= config.patience:
                return taken < config.steps
        return False

    def _step(self, step: int, examples: list[Targets]) -> None:
        rate = learning_rate(self.config, step)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        config = self.config
        parts = pack_batch(examples, config, self.base.device)
        # One mean over all tokens of the batch, however it is parted: a part's own mean would weigh short answers more.
        tokens = sum(len(part.teacher) for part in parts)
        loss = entropy = torch.zeros((), device=self.base.device)
        for part in parts:
            with training_precision(self.base, config):
                sums = packed_loss(
                    self.base,
                    self.prefix.prefix(),
                    part,
                    temperature=config.temperature,
                    chunk_tokens=config.loss_chunk_tokens,
                )
            share = sums.loss / tokens
            share.backward()
            loss = loss + share.detach()
            entropy = entropy + sums.entropy / tokens
        norm = torch.nn.utils.clip_grad_norm_(self.prefix.parameters(), self.config.max_grad_norm)
        self._record(step, rate, loss, entropy, norm, tokens)
        self.optimizer.step()

    def _record(self, step: int, rate: float, loss: Tensor, entropy: Tensor, norm: Tensor, tokens: int) -> None:
        point = TrainPoint(step + 1, rate, float(loss), float(loss - entropy), float(norm), tokens, self.elapsed())
        if not (math.isfinite(point.loss) and math.isfinite(point.grad_norm)):
            raise self._diverged(step + 1, rate, f"loss {point.loss}, gradient norm {point.grad_norm}")
        self.curve.train.append(point)

    def _look(self, step: int) -> bool:
        """Score what would be served now; says whether it is the best so far."""
        rate = self.curve.train[-1].learning_rate if self.curve.train else 0.0
        try:
            cartridge = self._cartridge()
        except ArtifactError as error:
            raise self._diverged(step, rate, error.problem) from error
        score = self.held_out.score(cartridge)
        if not score.finite:
            raise self._diverged(step, rate, f"held-out loss {score.loss}")
        self.curve.held_out.append(HeldOutPoint(step, score.loss, score.kl, self.elapsed()))
        better = self.best.offer(cartridge, step, score)
        self.curve.save(self.folder / CURVE_DATA)
        return better

    def _cartridge(self) -> Cartridge:
        return Cartridge.from_prefix(
            self.prefix.prefix(),
            base_model=self.base.identity,
            layers=self.base.layer_specs,
            dtype=self.base.kv_dtype,
            template_digest=template_digest(self.base.tokenizer),
            num_frozen_tokens=self.config.num_frozen_tokens,
            **self._provenance,
        )

    def _diverged(self, step: int, rate: float, seen: str) -> TrainingError:
        problem = f"Training is no longer finite at step {step} with learning rate {rate:.4g}: {seen}."
        if not self.curve.held_out:
            return TrainingError(problem, "Check the model and its precision: it fails before any training.")
        kept = self.best.kept
        return TrainingError(
            f"{problem} The best Cartridge until then, of step {kept.step}, is in {kept.folder}.",
            "Choose a lower learning rate or a longer warm-up.",
        )
