"""The previous Cartridge that a training starts from: found by digest, alias, version or folder, and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.catalog import catalog_session, find_cartridge
from cartridge_core.errors import NotFoundError, TrainingError
from cartridge_core.initialization.options import CartridgeOptions
from cartridge_core.settings import Settings
from cartridge_core.stages.ask import held_copy
from cartridge_core.stages.ingest import IngestedCorpus
from cartridge_core.stages.model import identity_of, model_key
from cartridge_core.training.config import TrainingConfig

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge

_DIGEST = re.compile(r"[0-9a-f]{6,64}")
"""The beginning of a digest that is long enough to be meant as one."""


def with_previous(
    settings: Settings,
    corpus: IngestedCorpus,
    config: TrainingConfig,
    model: str | None,
    trained: Mapping[str, Path],
) -> TrainingConfig:
    """The configuration with the whole digest of the Cartridge that it starts from, and where that lies.

    A configuration that starts otherwise is returned as it is. The base model is not loaded.

    Args:
        settings: Catalog, stores, tenant.
        corpus: What the new Cartridge is for: aliases and versions are this corpus's.
        config: How to train.
        model: Hub id or folder; None for the settings' own.
        trained: Digest to folder of the Cartridges in the digest store, of any corpus.

    Raises:
        NotFoundError: There is no such Cartridge.
        BaseModelMismatchError: It belongs to another base model.
        TrainingError: It is another tenant's, several are meant, or the new one cannot start from it.
    """
    options = config.initialization_options
    if not isinstance(options, CartridgeOptions):
        return config
    from cartridge_core.cartridge import Cartridge
    from cartridge_core.initialization.previous_cartridge import check_previous

    folder = options.folder or _folder(settings, corpus, options.cartridge, trained)
    cartridge = Cartridge.load(folder)
    _check_tenant(settings, cartridge)
    check_previous(
        cartridge, identity_of(settings, model), str(model_key(settings, model)["template"]), config.num_tokens
    )
    found = options.model_copy(update={"cartridge": cartridge.digest, "folder": folder})
    return config.model_copy(update={"initialization_options": found})


def _folder(settings: Settings, corpus: IngestedCorpus, reference: str, trained: Mapping[str, Path]) -> Path:
    if Path(reference).is_dir():
        return Path(reference)
    if _DIGEST.fullmatch(reference):
        matching = sorted(digest for digest in trained if digest.startswith(reference))
        if len(matching) > 1:
            several = ", ".join(digest[:12] for digest in matching)
            raise TrainingError(f"{reference} begins the digests of {several}.", "Give more of the digest.")
        if matching:
            return trained[matching[0]]
    try:
        with catalog_session(settings, read_only=True) as session:
            entry = find_cartridge(session, settings.tenant, corpus.name, reference)
    except NotFoundError as error:
        raise NotFoundError(
            f"There is no Cartridge {reference!r} to start from: no folder, no trained one, none of '{corpus.name}'.",
            "Give an artifact's folder, six or more characters of a digest, or an alias or version of the corpus.",
        ) from error
    # Not released as long as this process lives: the training reads it again.
    return held_copy(settings, entry).folder


def _check_tenant(settings: Settings, cartridge: Cartridge) -> None:
    if cartridge.manifest.tenant != settings.tenant:
        raise TrainingError(
            f"Cartridge {cartridge.digest[:12]} belongs to tenant {cartridge.manifest.tenant!r}, "
            f"not to {settings.tenant!r}.",
            "Start from one of your own.",
        )
