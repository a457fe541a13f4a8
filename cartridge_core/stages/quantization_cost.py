"""What quantisation costs on the conversations that training held out."""

from __future__ import annotations

from collections.abc import Sequence

from cartridge_core.progress import no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import FittedCartridge
from cartridge_core.stages.ingest import IngestedCorpus
from cartridge_core.stages.model import borrowed_model
from cartridge_core.stages.study import StudiedDataset
from cartridge_core.training.config import TrainingConfig


def held_out_kl(
    settings: Settings,
    corpus: IngestedCorpus,
    dataset: StudiedDataset | None,
    cartridge: FittedCartridge,
    storages: Sequence[str],
    model: str | None = None,
) -> dict[str, float]:
    """Divergence from the teacher on the examples that picked the Cartridge's best step.

    Args:
        settings: Store, device, default model.
        corpus: What the Cartridge stands in for.
        dataset: What it was distilled from; None for a next-token Cartridge.
        cartridge: The exact Cartridge.
        storages: Keys of `manifest.STORAGE`.
        model: Hub id or folder; None for the settings' own.

    Returns:
        Nats a token: of the `exact` Cartridge, and of it quantised to each storage.
    """
    from cartridge_core.training.held_out import HeldOut
    from cartridge_core.training.micro_batch import MicroBatch
    from cartridge_core.training.objective import OBJECTIVES

    config = TrainingConfig.from_recipe(cartridge.product.inputs["config"])
    exact = cartridge.load()
    with borrowed_model(settings, model) as base:
        # What is held out is all that is used: how often the others would be drawn need not be worked out.
        uniform = config.model_copy(update={"sampling": "uniform"})
        studied = dataset.load() if dataset else None
        material = OBJECTIVES[config.objective](base, corpus.load(), studied, uniform, no_progress)
        held_out = HeldOut(base, material.held_out, config)
        stored = {"exact": exact} | {storage: exact.quantized(storage) for storage in storages}
        return {name: held_out.score(each, MicroBatch(config.micro_batch_tokens)).kl for name, each in stored.items()}
