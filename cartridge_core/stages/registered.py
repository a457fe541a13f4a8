"""A registered Cartridge as something to grade: one that was imported was never trained in this digest store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cartridge_core.catalog import CatalogEntry, catalog_session, find_cartridge
from cartridge_core.errors import EvaluationError
from cartridge_core.publishing import CorpusSource, Evidence, register_cartridge
from cartridge_core.settings import Settings
from cartridge_core.stages.ask import fetch, held_copy
from cartridge_core.stages.ingest import IngestedCorpus

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge
    from cartridge_core.stages.grade import GradedCartridge


@dataclass(frozen=True)
class RegisteredCartridge:
    """A Cartridge of the catalog."""

    settings: Settings
    """Names the stores."""
    entry: CatalogEntry
    """What the catalog says about it."""

    @property
    def digest(self) -> str:
        """The Cartridge's digest."""
        return self.entry.digest

    @property
    def num_tokens(self) -> int:
        """Its length in virtual tokens."""
        return self.entry.num_tokens

    def load(self) -> Cartridge:
        """The Cartridge, fetched and verified."""
        return fetch(self.settings, self.entry)

    def record(self, graded: GradedCartridge, actor: str = "") -> CatalogEntry:
        """Add a report to its registration, so that the gate can judge it."""
        with held_copy(self.settings, self.entry) as held:
            return register_cartridge(
                self.settings,
                held.folder,
                CorpusSource(self.entry.corpus, self.entry.corpus_digest),
                Evidence(report=graded.load(), evaluation_plots=(graded.plot,)),
                actor=actor,
            )


def find_registered(settings: Settings, corpus: IngestedCorpus, reference: str) -> RegisteredCartridge:
    """The registered Cartridge that a user means.

    Args:
        settings: Names the catalog.
        corpus: The corpus version to ask about.
        reference: An alias, a version or the start of a digest.

    Raises:
        NotFoundError: There is none.
        EvaluationError: It stands in for another version of the corpus.
    """
    with catalog_session(settings, read_only=True) as session:
        entry = find_cartridge(session, settings.tenant, corpus.name, reference)
    if entry.corpus_digest != corpus.digest:
        raise EvaluationError(
            f"Cartridge {entry.digest[:12]} stands in for version {entry.corpus_digest[:12]} of corpus "
            f"'{corpus.name}', not for {corpus.digest[:12]}.",
            "Name that version with `--version`, or add its documents.",
        )
    return RegisteredCartridge(settings, entry)
