"""Stage 3: a Cartridge is trained, by distilling the study or on the corpus's own text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.errors import NotFoundError, TrainingError
from cartridge_core.initialization.options import CartridgeOptions
from cartridge_core.initialization.shipped_starts import shipped_start
from cartridge_core.manifest import read_manifest
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.ancestry import ancestry, check_standing
from cartridge_core.stages.ingest import IngestedCorpus, store_of
from cartridge_core.stages.model import (
    borrowed_model,
    identity_of,
    model_key,
    model_name,
    rendering_of,
    source_of,
    window_of,
)
from cartridge_core.stages.start import LearnedStart, starts
from cartridge_core.stages.store import Facts, Finished
from cartridge_core.stages.study import StudiedDataset
from cartridge_core.stages.warm_start import with_previous
from cartridge_core.training.config import TrainingConfig

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge
    from cartridge_core.training.result import TrainingResult

CARTRIDGE = "cartridge"
"""Folder that training leaves the best Cartridge in."""
CURVE = "curve.png"
"""File that training draws the loss into."""


@dataclass(frozen=True)
class FittedCartridge:
    """A trained Cartridge in the digest store."""

    product: Finished
    """Where it lies and how it was made."""

    @property
    def digest(self) -> str:
        """The Cartridge's digest."""
        return str(self.product.facts["digest"])

    @property
    def num_tokens(self) -> int:
        """Its length in virtual tokens."""
        return int(self.product.facts["num_tokens"])

    @property
    def objective(self) -> str:
        """What it was trained on: `distillation` or `next_token`."""
        return str(self.product.inputs["config"]["objective"])

    @property
    def dataset_digest(self) -> str | None:
        """What it was distilled from; None for a next-token Cartridge."""
        digest: str | None = self.product.inputs["dataset"]
        return digest

    @property
    def folder(self) -> Path:
        """The artifact: tensors and manifest."""
        return self.product.directory / CARTRIDGE

    @property
    def curve(self) -> Path:
        """The picture of the loss."""
        return self.product.directory / CURVE

    def load(self) -> Cartridge:
        """The Cartridge, verified."""
        from cartridge_core.cartridge import Cartridge

        return Cartridge.load(self.folder)


def fit(
    settings: Settings,
    corpus: IngestedCorpus,
    dataset: StudiedDataset | None,
    config: TrainingConfig,
    model: str | None = None,
    progress: Progress = no_progress,
    processes: int = 1,
) -> FittedCartridge:
    """Train a Cartridge for a corpus, or find that this was done; a killed run goes on from its newest checkpoint.

    Args:
        settings: Store, device, default model.
        corpus: What the Cartridge stands in for.
        dataset: What it is distilled from; None with the next-token objective.
        config: How it is trained.
        model: Hub id or folder; None for the settings' own.
        progress: Told about steps.
        processes: How many processes of this machine train together, with a GPU each where there are GPUs.

    Raises:
        TrainingError: The inputs cannot be trained on (said before the model's weights are loaded), what it is to start
            from was made of a corpus that was withdrawn, or training failed.
        NotFoundError: The previous Cartridge that it is to start from is nowhere.
        BaseModelMismatchError: That one belongs to another base model.
    """
    if (dataset is None) != (config.objective == "next_token"):
        problem = f"Objective '{config.objective}' {'needs' if dataset is None else 'does not use'} a dataset."
        raise TrainingError(problem, "Give a dataset for distillation, none for next_token.")
    made: list[FittedCartridge | LearnedStart] = [*_trained(settings), *starts(settings)]
    config = with_previous(settings, corpus, config, model, {one.digest: one.folder for one in made})
    options = config.initialization_options
    products = [one.product for one in made]
    ancestors = ancestry(options.cartridge, products) if isinstance(options, CartridgeOptions) else []
    check_standing(settings, ancestors)
    inputs = {
        "tenant": settings.tenant,
        "corpus": corpus.digest,
        "dataset": dataset.digest if dataset else None,
        "base_model": model_key(settings, model),
        "config": config.recipe(),
        "start": _shipped(settings, model, config),
    }

    def work(directory: Path) -> Facts:
        result = _train(settings, corpus, dataset, config, model, directory, progress, processes)
        return {
            "digest": result.cartridge.digest,
            "num_tokens": result.cartridge.num_tokens,
            "kv_bytes": result.cartridge.kv_bytes,
            "best_step": result.best_step,
            "steps": result.steps,
            "stopped_early": result.stopped_early,
            "resumed_from": result.resumed_from,
            "num_unfit": result.num_unfit,
            "num_unfinished": result.curve.num_unfinished,
            "model": source_of(settings, model),
            "ancestry": ancestors,
        }

    return FittedCartridge(store_of(settings).run("fit", inputs, work, resumable=True))


def _shipped(settings: Settings, model: str | None, config: TrainingConfig) -> str | None:
    """Digest of the shipped start that the training begins with, so that another one makes another Cartridge."""
    if config.initialization != "auto" or config.objective == "next_token":
        return None
    folder = shipped_start(identity_of(settings, model), rendering_of(settings, model), config.num_tokens)
    return read_manifest(folder).digest if folder else None


def _train(
    settings: Settings,
    corpus: IngestedCorpus,
    dataset: StudiedDataset | None,
    config: TrainingConfig,
    model: str | None,
    directory: Path,
    progress: Progress,
    processes: int,
) -> TrainingResult:
    from cartridge_core.training.checks import check_inputs
    from cartridge_core.training.loop import train
    from cartridge_core.training.processes import train_in_processes
    from cartridge_core.training.run_identity import RunIdentity

    text, conversations = corpus.load(), dataset.load() if dataset else None
    identity, template = identity_of(settings, model), rendering_of(settings, model)
    check_inputs(identity, window_of(settings, model), template, text, conversations, config, processes)
    if processes > 1:
        return train_in_processes(
            RunIdentity.of(settings.tenant, text, conversations, identity, template, config),
            model_name(settings, model),
            corpus.product.directory,
            dataset.product.directory if dataset else None,
            config,
            directory,
            processes,
            device=settings.device,
            threads=settings.threads,
            progress=progress,
        )
    with borrowed_model(settings, model, config.base_dtype) as base:
        return train(base, text, conversations, config, directory, tenant=settings.tenant, progress=progress)


def _trained(settings: Settings) -> list[FittedCartridge]:
    """The tenant's Cartridges in the digest store, oldest first."""
    products = store_of(settings).finished("fit")
    return [FittedCartridge(product) for product in products if product.inputs["tenant"] == settings.tenant]


def find_cartridge(settings: Settings, corpus: IngestedCorpus, digest: str = "") -> FittedCartridge:
    """The newest distilled Cartridge of a corpus version, or the one whose digest begins with `digest`.

    Raises:
        NotFoundError: There is none.
    """
    own = [c for c in _trained(settings) if c.product.inputs["corpus"] == corpus.digest]
    matching = [c for c in own if (c.digest.startswith(digest) if digest else c.objective == "distillation")]
    if not matching:
        which = f"Cartridge {digest}" if digest else "trained Cartridge"
        remedy = f"Train one with: cartridge train {corpus.name}"
        raise NotFoundError(f"Corpus '{corpus.name}' ({corpus.digest[:12]}) has no {which}.", remedy)
    return matching[-1]
