"""Stage 5: files, registry and catalog learn about a graded Cartridge. No alias moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cartridge_core.publishing import CorpusSource, Evidence, register_cartridge
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import FittedCartridge
from cartridge_core.stages.grade import GradedCartridge
from cartridge_core.stages.ingest import IngestedCorpus
from cartridge_core.stages.study import find_dataset

if TYPE_CHECKING:
    from cartridge_core.catalog import CatalogEntry


def register(
    settings: Settings,
    corpus: IngestedCorpus,
    cartridge: FittedCartridge,
    graded: GradedCartridge | None,
    tags: Mapping[str, str] | None = None,
    restore: bool = False,
    actor: str = "",
) -> CatalogEntry:
    """Register a Cartridge with everything that speaks for it. Doing it again changes nothing; a new report is added.

    The stores themselves know what is registered, so nothing of this is kept in the digest store.

    Args:
        settings: Names the stores and the tenant.
        corpus: What the Cartridge stands in for.
        cartridge: What is registered.
        graded: Its report; without one it cannot be promoted.
        tags: Tags of the MLflow runs, such as the flow run's id.
        restore: Register it although it was deleted once.
        actor: Who asks, for the record.

    Raises:
        PublishingError: It was deleted, or it belongs to another tenant or corpus.
        StorageError, RegistryError, CatalogError: A store refuses; doing it again goes on.
    """
    told = corpus.product.facts
    studied = find_dataset(settings, corpus, cartridge.dataset_digest) if cartridge.dataset_digest else None
    source = CorpusSource(
        name=corpus.name,
        digest=corpus.digest,
        num_documents=told["num_documents"],
        num_skipped=len(told["skipped"]),
    )
    evidence = Evidence(
        report=graded.load() if graded else None,
        num_conversations=studied.product.facts["num_conversations"] if studied else None,
        training_plots=(cartridge.curve,),
        evaluation_plots=(graded.plot,) if graded else (),
        params=cartridge.product.inputs["config"],
        tags=tags or {},
    )
    return register_cartridge(settings, cartridge.folder, source, evidence, restore=restore, actor=actor)
