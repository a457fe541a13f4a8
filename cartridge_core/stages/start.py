"""A learned start: where Cartridges of a base model begin, from the studies of several corpora."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, store_of
from cartridge_core.stages.model import borrowed_model, identity_of, model_key, rendering_of, window_of
from cartridge_core.stages.store import Facts, Finished
from cartridge_core.stages.study import StudiedDataset
from cartridge_core.training.start_config import StartConfig, check_corpora

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge

STAGE, CARTRIDGE = "start", "cartridge"


@dataclass(frozen=True)
class LearnedStart:
    """A learned start in the digest store."""

    product: Finished
    """Where it lies and how it was made."""

    @property
    def digest(self) -> str:
        """What `cartridge train --init-from` takes."""
        return str(self.product.facts["digest"])

    @property
    def folder(self) -> Path:
        """The artifact: tensors and manifest of a Cartridge that stands in for no corpus."""
        return self.product.directory / CARTRIDGE

    def load(self) -> Cartridge:
        """The start, verified."""
        from cartridge_core.cartridge import Cartridge

        return Cartridge.load(self.folder)


def learned_start(
    settings: Settings,
    studies: Sequence[tuple[IngestedCorpus, StudiedDataset]],
    config: StartConfig,
    model: str | None = None,
    progress: Progress = no_progress,
) -> LearnedStart:
    """Learn a start, or find that this was done; a killed run goes on from the newest checkpoint.

    Forgetting a corpus forgets the starts that were learnt from it, and the Cartridges that began with those.

    Args:
        settings: Store, device, default model.
        studies: Two or more corpora, each with what is distilled about it; their order is part of the recipe.
        config: Length, rounds, steps.
        model: Hub id or folder; None for the settings' own.
        progress: Told about steps.

    Raises:
        TrainingError: There are fewer than two different corpora, or one cannot be trained on; said before
            the model's weights are loaded.
    """
    digests = [corpus.digest for corpus, _ in studies]
    check_corpora(digests)
    inputs = {
        "tenant": settings.tenant,
        "corpora": digests,
        "datasets": [dataset.digest for _, dataset in studies],
        "base_model": model_key(settings, model),
        "config": config.model_dump(mode="json"),
    }

    def work(directory: Path) -> Facts:
        from cartridge_core.training.checks import check_inputs
        from cartridge_core.training.learned_start import learn_start

        loaded = [(corpus.load(), dataset.load()) for corpus, dataset in studies]
        identity, window = identity_of(settings, model), window_of(settings, model)
        template = rendering_of(settings, model)
        for corpus, conversations in loaded:
            check_inputs(identity, window, template, corpus, conversations, config.training(0), 1)
        runs = directory / "runs"
        with borrowed_model(settings, model) as base:
            start = learn_start(base, loaded, config, runs, tenant=settings.tenant, progress=progress)
        start.save(directory / CARTRIDGE)
        shutil.rmtree(runs)
        return {"digest": start.digest, "num_tokens": start.num_tokens, "corpora": [c.name for c, _ in studies]}

    return LearnedStart(store_of(settings).run(STAGE, inputs, work, resumable=True))


def starts(settings: Settings) -> list[LearnedStart]:
    """The tenant's learned starts, oldest first."""
    products = store_of(settings).finished(STAGE)
    return [LearnedStart(product) for product in products if product.inputs["tenant"] == settings.tenant]
