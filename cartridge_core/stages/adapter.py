"""A LoRA adapter trained on what a Cartridge was distilled from, to compare the two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.errors import ArtifactError, TrainingError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import FittedCartridge
from cartridge_core.stages.ingest import IngestedCorpus, store_of
from cartridge_core.stages.model import borrowed_model, identity_of, model_key, rendering_of, window_of
from cartridge_core.stages.store import Facts, Finished
from cartridge_core.stages.study import StudiedDataset
from cartridge_core.training.adapter_config import AdapterConfig
from cartridge_core.training.config import TrainingConfig

if TYPE_CHECKING:
    from cartridge_core.training.adapter import Adapter

ADAPTER = "adapter"
"""Folder that training leaves the best adapter in."""


@dataclass(frozen=True)
class FittedAdapter:
    """A trained adapter in the digest store."""

    product: Finished
    """Where it lies and how it was made."""

    @property
    def digest(self) -> str:
        """The adapter's digest."""
        return str(self.product.facts["digest"])

    @property
    def folder(self) -> Path:
        """What `peft.PeftModel.from_pretrained` reads."""
        return self.product.directory / ADAPTER

    def load(self) -> Adapter:
        """The adapter, verified.

        Raises:
            ArtifactError: It is damaged.
        """
        from cartridge_core.training.adapter import Adapter

        adapter = Adapter.load(self.folder)
        if adapter.digest != self.digest:
            raise ArtifactError(
                f"{self.folder} is not the adapter that was trained.", f"Remove {self.product.directory}."
            )
        return adapter


def fit_adapter(
    settings: Settings,
    corpus: IngestedCorpus,
    dataset: StudiedDataset | None,
    cartridge: FittedCartridge,
    adapter: AdapterConfig,
    model: str | None = None,
    progress: Progress = no_progress,
) -> FittedAdapter:
    """Train a LoRA adapter beside a Cartridge, or find that this was done. A killed run begins anew.

    Args:
        settings: Store, device, default model.
        corpus: What the Cartridge stands in for.
        dataset: What it was distilled from.
        cartridge: Whose training the adapter's follows.
        adapter: The adapter's size, and what is to be different.
        model: Hub id or folder; None for the settings' own.
        progress: Told about steps.

    Raises:
        TrainingError: The Cartridge was not distilled, or training cannot start or go on.
        ModuleNotFoundError: PEFT is not installed (extra `peft`).
    """
    if dataset is None or cartridge.objective != "distillation":
        raise TrainingError(
            f"Cartridge {cartridge.digest[:12]} was not distilled: an adapter would have no study to learn from.",
            "Compare with a Cartridge of the objective 'distillation'.",
        )
    config = TrainingConfig.from_recipe(cartridge.product.inputs["config"])
    inputs = {
        "tenant": settings.tenant,
        "corpus": corpus.digest,
        "dataset": dataset.digest,
        "base_model": model_key(settings, model),
        "adapter": adapter.recipe(config),
    }

    def work(directory: Path) -> Facts:
        # Before the model is loaded: whoever lacks it is to hear of it at once.
        import peft  # noqa: F401

        from cartridge_core.training.adapter_loop import train_adapter
        from cartridge_core.training.checks import check_inputs

        text, conversations = corpus.load(), dataset.load()
        identity, template = identity_of(settings, model), rendering_of(settings, model)
        check_inputs(identity, window_of(settings, model), template, text, conversations, adapter.beside(config))
        with borrowed_model(settings, model, config.base_dtype) as base:
            result = train_adapter(base, text, conversations, config, adapter, directory, progress)
        return {
            "digest": result.adapter.digest,
            "rank": result.adapter.rank,
            "num_bytes": result.adapter.num_bytes,
            "best_step": result.best_step,
            "steps": result.steps,
            "stopped_early": result.stopped_early,
            "held_out_kl": result.best.kl,
        }

    return FittedAdapter(store_of(settings).run("adapter", inputs, work))
