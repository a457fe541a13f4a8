"""Training of a LoRA adapter on what a Cartridge is trained on: the same batches, loss and looks, for comparison.

It is the comparison of arXiv 2506.06266, section 3: the question is only what is trained, the keys and values in front
of a frozen model or low-rank updates of its layers. A killed run begins anew; it keeps no checkpoints.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import TrainingError
from cartridge_core.inference.prefix import empty_prefix
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.progress import Progress, no_progress
from cartridge_core.rendering import bare_prefix_token_ids, template_digest
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.adapter import Adapter
from cartridge_core.training.adapter_config import AdapterConfig
from cartridge_core.training.adapter_layers import equal_memory_rank, injected, peft_config
from cartridge_core.training.checks import check_inputs
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.curve import HeldOutPoint, LossCurve, TrainPoint
from cartridge_core.training.held_out import HeldOut, HeldOutScore
from cartridge_core.training.micro_batch import MicroBatch
from cartridge_core.training.objective import OBJECTIVES, Material
from cartridge_core.training.random_state import own_random_numbers
from cartridge_core.training.ranks import ALONE
from cartridge_core.training.result import CURVE_DATA, CURVE_PICTURE
from cartridge_core.training.schedule import learning_rate
from cartridge_core.training.step import batch_gradient

ADAPTER = "adapter"
"""Folder of the result within the run's folder."""


@dataclass(frozen=True)
class AdapterResult:
    """A trained adapter and how it came about."""

    adapter: Adapter
    """The best of the run, by held-out loss, as it is stored."""
    curve: LossCurve
    """Loss of every step and every look."""
    best_step: int
    """Steps that the adapter was trained for."""
    best: HeldOutScore
    """Its held-out score."""
    initial: HeldOutScore
    """The held-out score before the first step: of the bare model."""
    steps: int
    """Steps taken in all."""
    stopped_early: bool
    """Whether patience ran out before the configured number of steps."""


class _Matrices:
    """What `batch_gradient` trains: the adapter's matrices, with nothing in front of the conversations."""

    def __init__(self, matrices: dict[str, Tensor], nothing: PrefixKV) -> None:
        self.by_name, self._nothing = matrices, nothing

    def parameters(self) -> list[Tensor]:
        return list(self.by_name.values())

    def prefix(self) -> PrefixKV:
        return self._nothing


@dataclass
class _State:
    prefix: _Matrices
    optimizer: Optimizer
    micro_batch: MicroBatch


def train_adapter(
    base: BaseModel,
    corpus: Corpus,
    dataset: ConversationDataset,
    config: TrainingConfig,
    adapter: AdapterConfig,
    folder: Path,
    progress: Progress = no_progress,
) -> AdapterResult:
    """Distil a study into a LoRA adapter. The same inputs give the same matrices on the same machine and threads.

    Every conversation is read behind what stands in front of bare turns (the BOS token), as the adapter is used. The
    folder ends with the adapter, the loss curve and its picture. The base model is given back as it was.

    Args:
        base: The frozen model.
        corpus: What the study is about.
        dataset: The study.
        config: How the Cartridge beside it is trained.
        adapter: The adapter's size, and what is to be different from the Cartridge's training.
        folder: Where the files go.
        progress: Told about steps.

    Raises:
        TrainingError: The inputs cannot be trained on, a layer does not exist, memory does not suffice, or the loss is
            no longer finite; the message then says at which step and learning rate, and where the best until then is.
        BaseModelMismatchError: The study was made with another model, revision or tokenizer.
        DatasetError: The study is empty, too small, about another corpus, or rendered in another way.
    """
    config = adapter.beside(config)
    check_inputs(base.identity, base.max_positions, template_digest(base.tokenizer), corpus, dataset, config)
    rank = adapter.rank or equal_memory_rank(base, config.num_tokens, adapter.target_modules)
    alpha = adapter.alpha or 2.0 * rank
    material = OBJECTIVES[config.objective](base, corpus, dataset, config, progress)
    stored = peft_config(base, rank, alpha, adapter.target_modules)
    folder.mkdir(parents=True, exist_ok=True)
    with own_random_numbers(base.device):
        torch.manual_seed(config.seed)
        with injected(base, rank, alpha, adapter.target_modules) as matrices:
            return _Run(base, material, config, stored, matrices, folder).to_the_end(progress)


class _Run:
    def __init__(
        self,
        base: BaseModel,
        material: Material,
        config: TrainingConfig,
        stored: dict[str, object],
        matrices: dict[str, Tensor],
        folder: Path,
    ) -> None:
        self._base, self._material, self._config, self._stored = base, material, config, stored
        self._folder, self._matrices = folder, matrices
        masters = _Matrices(matrices, empty_prefix(base))
        optimizer = torch.optim.AdamW(masters.parameters(), lr=config.learning_rate, weight_decay=0.0)
        self._state = _State(masters, optimizer, MicroBatch(config.micro_batch_tokens))
        self._head = np.array(bare_prefix_token_ids(base.tokenizer), dtype=np.int32)
        self._held_out = HeldOut(base, [self._behind_head(example) for example in material.held_out], config)
        self._curve, self._started = LossCurve(), time.perf_counter()
        self._best: tuple[int, HeldOutScore, dict[str, Tensor]] | None = None
        self._looks_without_gain = 0

    def to_the_end(self, progress: Progress) -> AdapterResult:
        config, taken = self._config, 0
        self._look(0)
        while taken < config.steps and not self._out_of_patience():
            self._step(taken)
            taken += 1
            if taken % config.eval_every == 0 or taken == config.steps:
                self._look(taken)
            best_step, score, _ = self._kept()
            progress(taken, config.steps, f"training the adapter, held out {score.kl:.4f} nats at step {best_step}")
        self._curve.save(self._folder / CURVE_DATA)
        self._curve.plot(self._folder / CURVE_PICTURE)
        best_step, score, _ = self._kept()
        first = self._curve.held_out[0]
        return AdapterResult(
            adapter=self._save_best(),
            curve=self._curve,
            best_step=best_step,
            best=score,
            initial=HeldOutScore(first.loss, first.kl),
            steps=taken,
            stopped_early=taken < config.steps,
        )

    def _out_of_patience(self) -> bool:
        return self._config.patience is not None and self._looks_without_gain >= self._config.patience

    def _step(self, taken: int) -> None:
        config, optimizer = self._config, self._state.optimizer
        rate = learning_rate(config, taken)
        for group in optimizer.param_groups:
            group["lr"] = rate
        examples = [self._behind_head(example) for example in self._material.stream.batch(taken)]
        batch = batch_gradient(self._base, self._state, examples, config, ALONE)
        if not batch.finite:
            raise self._diverged(taken + 1, rate, f"loss {batch.loss}, gradient norm {batch.grad_norm}")
        optimizer.step()
        divergence, seconds = batch.loss - batch.entropy, time.perf_counter() - self._started
        self._curve.train.append(
            TrainPoint(taken + 1, rate, batch.loss, divergence, batch.grad_norm, batch.tokens, seconds)
        )

    @torch.no_grad()
    def _look(self, taken: int) -> None:
        """Score the matrices as they would be stored, and keep them if they are the best so far."""
        rounded = {name: matrix.to(self._base.kv_dtype, copy=True) for name, matrix in self._matrices.items()}
        masters = {name: matrix.clone() for name, matrix in self._matrices.items()}
        for name, matrix in self._matrices.items():
            matrix.copy_(rounded[name])
        score = self._held_out.score_behind(self._state.prefix.prefix(), self._state.micro_batch)
        for name, matrix in self._matrices.items():
            matrix.copy_(masters[name])
        if not score.finite:
            rate = self._curve.train[-1].learning_rate if self._curve.train else 0.0
            raise self._diverged(taken, rate, f"held-out loss {score.loss}")
        self._curve.held_out.append(HeldOutPoint(taken, score.loss, score.kl, time.perf_counter() - self._started))
        if self._best is None or score.loss < self._best[1].loss:
            self._best, self._looks_without_gain = (taken, score, rounded), 0
        else:
            self._looks_without_gain += 1

    def _kept(self) -> tuple[int, HeldOutScore, dict[str, Tensor]]:
        if self._best is None:
            raise LookupError("nothing has been looked at yet")
        return self._best

    def _save_best(self) -> Adapter:
        adapter = Adapter(self._stored, self._kept()[2])
        adapter.save(self._folder / ADAPTER)
        return adapter

    def _behind_head(self, example: Targets) -> Targets:
        """The conversation with the tokens in front of bare turns, which predict nothing."""
        return replace(
            example,
            token_ids=np.concatenate((self._head, example.token_ids)),
            assistant_mask=np.concatenate((np.zeros(len(self._head), dtype=np.bool_), example.assistant_mask)),
        )

    def _diverged(self, step: int, rate: float, seen: str) -> TrainingError:
        problem = f"Training of the adapter is no longer finite at step {step} with learning rate {rate:.4g}: {seen}."
        if self._best is None:
            return TrainingError(problem, "Check the model and its precision: it fails before any training.")
        self._save_best()
        return TrainingError(
            f"{problem} The best until then, of step {self._best[0]}, is in {self._folder / ADAPTER}.",
            "Choose a lower learning rate or a longer warm-up.",
        )
