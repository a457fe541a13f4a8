"""Training from beginning to end: context distillation into a key/value prefix (arXiv 2506.06266, section 3)."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import ArtifactError
from cartridge_core.models import BaseModel
from cartridge_core.progress import Progress, no_progress
from cartridge_core.rendering import template_digest
from cartridge_core.training.best import BestCartridge
from cartridge_core.training.checkpoint import Checkpoint, Checkpoints
from cartridge_core.training.checks import check_inputs
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.initial import initial_prefix
from cartridge_core.training.layer_modes import compiled_layers
from cartridge_core.training.objective import OBJECTIVES
from cartridge_core.training.random_state import own_random_numbers
from cartridge_core.training.ranks import ALONE, Ranks
from cartridge_core.training.result import CARTRIDGE, CURVE_DATA, CURVE_PICTURE, RESULT, TrainingResult, finished_result
from cartridge_core.training.run import Run
from cartridge_core.training.run_folder import owned_folder, remove_leftovers
from cartridge_core.training.run_identity import RunIdentity
from cartridge_core.training.state import TrainingState

logger = logging.getLogger(__name__)


def train(
    base: BaseModel,
    corpus: Corpus,
    dataset: ConversationDataset | None,
    config: TrainingConfig,
    folder: Path,
    *,
    tenant: str = "default",
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> TrainingResult:
    """Train a Cartridge, or go on where a killed run of the same inputs has its newest checkpoint.

    The same inputs give the same tensors, to the bit, on the same machine with as many threads and ranks, whether the
    run was killed on its way or not. The run's folder ends with the Cartridge, the loss curve and its picture.

    Args:
        base: The frozen model.
        corpus: What the Cartridge stands in for.
        dataset: The study to distil; None for the next-token objective.
        config: How to train.
        folder: Where the run's files go; every rank sees the same one.
        tenant: Who the corpus belongs to.
        progress: Told about steps.
        ranks: The processes that train together; each calls this function with the same inputs.

    Raises:
        TrainingError: The inputs cannot be trained on, the folder belongs to another run or to another process, memory
            does not suffice, or the loss is no longer finite; the message then says at which step and learning rate,
            and where the best Cartridge until then lies.
        BaseModelMismatchError: The study was made with another model, revision or tokenizer.
        DatasetError: The study is empty, too small, about another corpus, or rendered in another way.
    """
    started = time.perf_counter()
    folder = Path(folder)
    template = template_digest(base.tokenizer)
    check_inputs(base.identity, base.max_positions, template, corpus, dataset, config, ranks.count)
    identity = RunIdentity.of(tenant, corpus, dataset, base.identity, template, config)
    with _owned(folder, ranks), own_random_numbers(base.device):
        best = BestCartridge(folder, writes=ranks.first)
        checkpoints = Checkpoints(folder, config.keep_checkpoints)
        if ranks.first:
            remove_leftovers(folder, (CARTRIDGE, CURVE_DATA, CURVE_PICTURE, RESULT))
        if found := finished_result(identity, folder):
            if ranks.first:
                checkpoints.clear()
                best.clear()
            return found
        torch.manual_seed(config.seed)
        told = progress if ranks.first else no_progress
        material = OBJECTIVES[config.objective](base, corpus, dataset, config, told)
        if checkpoint := _newest(checkpoints, best, identity, folder, ranks, base.device):
            layers = len(base.layer_specs)
            state = TrainingState.restored(
                checkpoint.tensors, checkpoint.record.state, checkpoint.curve, layers, config, base.device
            )
            started -= checkpoint.record.seconds
            _say_resumed(state.step, config.steps, folder, progress, ranks)
        else:
            state = TrainingState(initial_prefix(base, corpus, dataset, config), config, base.device)
            ranks.from_first(state.prefix.parameters())
        run = Run(base, material, state, best, checkpoints, identity, config, folder, ranks, started)
        with compiled_layers(base, config.compile):
            return run.to_the_end(progress, resumed_from=state.step if checkpoint else None)


@contextmanager
def _owned(folder: Path, ranks: Ranks) -> Iterator[None]:
    if not ranks.first:
        yield
        return
    with owned_folder(folder):
        yield


def _newest(
    checkpoints: Checkpoints,
    best: BestCartridge,
    identity: RunIdentity,
    folder: Path,
    ranks: Ranks,
    device: torch.device,
) -> Checkpoint | None:
    """The newest checkpoint that is whole, its best Cartridge taken up; all ranks get the one that rank 0 finds.

    Raises:
        TrainingError: The folder's checkpoints are of another run.
    """
    found: Checkpoint | None = None
    if ranks.first:
        for step in checkpoints.steps():
            try:
                identity.check(checkpoints.record(step).run, str(folder))
                found = _whole(checkpoints, best, step)
            except ArtifactError as error:
                logger.warning("The checkpoint of step %d cannot be used: %s", step, error)
                continue
            break
        checkpoints.start_from(found.record.state.step if found else None)
        best.prune(checkpoints.best_steps())
    step = ranks.most(-1 if found is None else found.record.state.step, device)
    if ranks.first or step < 0:
        return found
    return _whole(checkpoints, best, step)


def _whole(checkpoints: Checkpoints, best: BestCartridge, step: int) -> Checkpoint:
    checkpoint = checkpoints.load(step)
    best.restore(checkpoint.record.best)
    return checkpoint


def _say_resumed(step: int, steps: int, folder: Path, progress: Progress, ranks: Ranks) -> None:
    if ranks.first:
        logger.warning("Training goes on from step %d of %d (checkpoint in %s).", step, steps, folder)
        progress(step, steps, f"training, going on from step {step}")
