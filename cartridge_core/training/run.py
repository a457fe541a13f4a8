"""One training run: steps, looks at the held-out examples, checkpoints, and what is left at the end."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import ArtifactError, TrainingError
from cartridge_core.models import BaseModel
from cartridge_core.progress import Progress
from cartridge_core.rendering import template_digest
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.selfstudy.seeding import derive_seed
from cartridge_core.training.best import BestCartridge
from cartridge_core.training.checkpoint import Checkpoints
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.curve import HeldOutPoint, TrainPoint
from cartridge_core.training.held_out import HeldOut, HeldOutScore
from cartridge_core.training.objective import Material
from cartridge_core.training.optimizer import set_learning_rate
from cartridge_core.training.ranks import Ranks
from cartridge_core.training.result import CARTRIDGE, CURVE_DATA, CURVE_PICTURE, TrainingResult, save_result
from cartridge_core.training.run_identity import RunIdentity
from cartridge_core.training.schedule import learning_rate
from cartridge_core.training.state import TrainingState
from cartridge_core.training.step import batch_gradient


class Run:
    """The order of things between the first step, or the one after a checkpoint, and the last."""

    def __init__(
        self,
        base: BaseModel,
        material: Material,
        state: TrainingState,
        best: BestCartridge,
        checkpoints: Checkpoints,
        identity: RunIdentity,
        config: TrainingConfig,
        folder: Path,
        ranks: Ranks,
        started: float,
    ) -> None:
        self._base, self._material, self._state, self._best = base, material, state, best
        self._checkpoints, self._identity, self._config = checkpoints, identity, config
        self._folder, self._ranks = folder, ranks
        self._held_out = HeldOut(base, material.held_out, config, ranks)
        # What the run took before it was killed counts too: the beginning is put back by that much.
        self._started = started
        # A long initialisation is worth a checkpoint soon.
        self._saved_at = self._elapsed() if state.step else 0.0

    def to_the_end(self, progress: Progress, resumed_from: int | None) -> TrainingResult:
        """Take the steps that are left, then publish the best Cartridge."""
        state, config = self._state, self._config
        try:
            if not state.curve.held_out:
                self._look()
            while state.step < config.steps and not self._out_of_patience():
                self._step()
                self._checkpoint_if_due()
                if self._ranks.first:
                    kept = self._best.kept
                    what = f"training, held out {kept.score.kl:.4f} nats at step {kept.step}"
                    progress(state.step, config.steps, what)
        finally:
            self._save_curve()
        return self._finish(resumed_from)

    def _out_of_patience(self) -> bool:
        patience = self._config.patience
        return patience is not None and self._state.looks_without_gain >= patience

    def _step(self) -> None:
        state, config = self._state, self._config
        # Whatever draws random numbers in a step draws the same ones after a kill: no generator has to be kept.
        torch.manual_seed(derive_seed(config.seed, "step", state.step, self._ranks.rank))
        rate = learning_rate(config, state.step)
        set_learning_rate(state.optimizer, rate)
        examples, unfinished = self._batch()
        batch = batch_gradient(self._base, state, examples, config, self._ranks, self._material.teacher_states)
        if not batch.finite:
            raise self._diverged(state.step + 1, rate, batch.told())
        state.update()
        divergence = batch.loss - batch.entropy
        state.curve.train.append(
            TrainPoint(
                state.step,
                rate,
                batch.loss,
                divergence,
                batch.grad_norm,
                batch.tokens,
                self._elapsed(),
                unfinished,
                batch.state_distance,
            )
        )
        if state.step % config.eval_every == 0 or state.step == config.steps:
            self._look()

    def _batch(self) -> tuple[Sequence[Targets], int | None]:
        """The step's examples, and how many of them are on-policy answers that did not end; None for the study's."""
        step, on_policy = self._state.step, self._material.on_policy
        if on_policy is None or step < self._config.first_on_policy_step:
            return self._material.stream.batch(step), None
        drawn = on_policy.batch(self._state, self._ranks)
        return drawn.examples, drawn.num_unfinished

    def _look(self) -> None:
        """Score what would be served now, and keep it if it is the best so far."""
        state = self._state
        rate = state.curve.train[-1].learning_rate if state.curve.train else 0.0
        try:
            cartridge = self._cartridge()
        except ArtifactError as error:
            raise self._diverged(state.step, rate, error.problem) from error
        score = self._held_out.score(cartridge, state.micro_batch)
        if not score.finite:
            raise self._diverged(state.step, rate, f"held-out loss {score.loss}")
        state.curve.held_out.append(HeldOutPoint(state.step, score.loss, score.kl, self._elapsed()))
        better = self._best.offer(cartridge, state.step, score)
        # A wait that ran out before the on-policy phase would take away what was asked for: there it begins anew.
        waiting = self._material.on_policy is None or state.step > self._config.first_on_policy_step
        state.looks_without_gain = state.looks_without_gain + 1 if waiting and not better else 0
        if self._ranks.first:
            self._best.prune(self._checkpoints.best_steps())
        self._save_curve()

    def _checkpoint_if_due(self) -> None:
        state, config = self._state, self._config
        by_steps = config.checkpoint_every is not None and state.step % config.checkpoint_every == 0
        waited = self._elapsed() - self._saved_at
        by_time = config.checkpoint_seconds is not None and waited >= config.checkpoint_seconds
        if not self._ranks.first or not (by_steps or by_time):
            return
        best, seconds = self._best.kept.record(), self._elapsed()
        self._checkpoints.save(self._identity, state.tensors(), state.record(), state.curve, best, seconds)
        self._best.prune(self._checkpoints.best_steps())
        self._saved_at = self._elapsed()

    def _finish(self, resumed_from: int | None) -> TrainingResult:
        state = self._state
        kept = self._best.publish(self._folder / CARTRIDGE)
        first = state.curve.held_out[0]
        result = TrainingResult(
            cartridge=kept.cartridge,
            curve=state.curve,
            best_step=kept.step,
            best=kept.score,
            initial=HeldOutScore(first.loss, first.kl),
            steps=state.step,
            stopped_early=state.step < self._config.steps,
            num_examples=self._material.num_examples,
            num_held_out=len(self._material.held_out),
            num_unfit=self._material.num_unfit,
            seconds=self._elapsed(),
            resumed_from=resumed_from,
        )
        if self._ranks.first:
            state.curve.plot(self._folder / CURVE_PICTURE)
            save_result(result, self._identity, self._folder)
            # Only now: until the result is whole, a kill takes up the newest checkpoint.
            self._checkpoints.clear()
            self._best.clear()
        return result

    def _save_curve(self) -> None:
        if self._ranks.first:
            self._state.curve.save(self._folder / CURVE_DATA)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started

    def _cartridge(self) -> Cartridge:
        config, identity = self._config, self._identity
        return Cartridge.from_prefix(
            self._state.served(),
            base_model=self._base.identity,
            layers=self._base.layer_specs,
            dtype=self._base.kv_dtype,
            template_digest=template_digest(self._base.tokenizer),
            num_frozen_tokens=config.num_frozen_tokens,
            tenant=identity.tenant,
            corpus_digest=identity.corpus,
            dataset_digest=identity.dataset,
            training_config_digest=config.digest,
            seed=config.seed,
        )

    def _diverged(self, step: int, rate: float, seen: str) -> TrainingError:
        problem = f"Training is no longer finite at step {step} with learning rate {rate:.4g}: {seen}."
        if not self._state.curve.held_out:
            return TrainingError(problem, "Check the model and its precision: it fails before any training.")
        kept = self._best.kept
        return TrainingError(
            f"{problem} The best Cartridge until then, of step {kept.step}, is in {kept.folder}.",
            "Choose a lower learning rate or a longer warm-up.",
        )
