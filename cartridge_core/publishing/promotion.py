"""Promotion and rollback: moving the alias that is served."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.catalog import (
    CHAMPION,
    CatalogEntry,
    Status,
    alias_history,
    catalog_session,
    find_cartridge,
    list_cartridges,
    resolve,
    set_alias,
)
from cartridge_core.catalog.aliases import ROLLBACK, previous_target, valid_alias
from cartridge_core.errors import NotFoundError, PublishingError, RegistryError
from cartridge_core.publishing.drift import project_alias
from cartridge_core.publishing.gate import GateDecision, PromotionGate, decide
from cartridge_core.registry import tag_version
from cartridge_core.report import REPORT_FILE, EvaluationReport
from cartridge_core.settings import Settings
from cartridge_core.storage import open_store

_LONGEST_TAG = 500


@dataclass(frozen=True)
class Promotion:
    """What came of a promotion or a rollback."""

    entry: CatalogEntry
    """The Cartridge in question, as it is now."""
    alias: str
    """The alias in question."""
    moved: bool
    """Whether the alias moved; False when the gate refused or it pointed there already."""
    decision: GateDecision | None
    """What the gate said; None for a rollback, which asks no gate."""
    refused: bool = False
    """Whether the gate left the alias where it was."""
    projection_error: str | None = None
    """Why MLflow does not show the alias yet. What is served does not depend on it; `project_alias` repeats it."""


def promote(
    settings: Settings,
    corpus: str,
    reference: str | None = None,
    *,
    alias: str = CHAMPION,
    gate: PromotionGate | None = None,
    force: bool = False,
    reason: str = "",
    actor: str = "",
) -> Promotion:
    """Move an alias of a corpus to a Cartridge, if the gate lets it pass.

    The catalog's alias, which is what is served, moves first and in one transaction; MLflow's follows.

    Args:
        settings: Names the stores and the tenant.
        corpus: Name of the corpus.
        reference: A version, an alias or the start of a digest; the newest Cartridge where nobody says.
        alias: What to move.
        gate: What is asked of the Cartridge.
        force: Move it whatever the gate says; that is written down.
        reason: Why, for the record.
        actor: Who asks, for the record.

    Raises:
        NotFoundError: There is no such corpus or Cartridge.
        PublishingError: The Cartridge was never graded, or was retired or deleted.
        StorageError, CatalogError: A store refuses. MLflow's refusal is told in the result instead.
    """
    valid_alias(alias)
    entry = _wanted(settings, corpus, reference)
    decision = _decision(settings, entry, gate, required=not force)
    if not decision.passed and not force:
        error = _tell_mlflow(settings, entry, decision)
        return Promotion(entry, alias, False, decision, refused=True, projection_error=error)
    said = reason or decision.sentence
    if not decision.passed:
        said = f"Forced: {reason or 'no reason given'}. {decision.sentence}".strip()
    return _move(settings, entry, alias, decision, said, actor)


def rollback(settings: Settings, corpus: str, *, alias: str = CHAMPION, reason: str = "", actor: str = "") -> Promotion:
    """Move an alias back to the Cartridge it pointed at before, skipping those that were deleted or retired.

    A second rollback goes one further back.

    Raises:
        NotFoundError: There is no such corpus, or nothing to go back to.
        StorageError, CatalogError: A store refuses. MLflow's refusal is told in the result instead.
    """
    with catalog_session(settings) as session:
        history = alias_history(session, settings.tenant, corpus, alias)
        entries = {entry.cartridge_id: entry for entry in list_cartridges(session, settings.tenant, corpus)}
        usable = {number for number, entry in entries.items() if entry.status is not Status.RETIRED}
        target = previous_target(history, usable)
        if target is None:
            raise NotFoundError(
                f"The alias {alias!r} of corpus {corpus!r} has no earlier Cartridge to go back to.",
                f"`cartridge list {corpus}` shows what could be promoted.",
            )
        set_alias(session, settings.tenant, corpus, alias, target, action=ROLLBACK, reason=reason, actor=actor)
        entry = resolve(session, settings.tenant, corpus, alias)
    return Promotion(entry, alias, True, None, projection_error=_project(settings, entry, alias))


def _wanted(settings: Settings, corpus: str, reference: str | None) -> CatalogEntry:
    with catalog_session(settings, read_only=True) as session:
        if reference is not None:
            entry = find_cartridge(session, settings.tenant, corpus, reference)
        else:
            entries = list_cartridges(session, settings.tenant, corpus)
            usable = [entry for entry in entries if entry.status is not Status.RETIRED]
            if not usable:
                raise NotFoundError(
                    f"Corpus {corpus!r} has no Cartridge to promote.", f"Build one: `cartridge build {corpus} PATH`."
                )
            entry = usable[0]
    if entry.status in (Status.DELETED, Status.RETIRED):
        raise PublishingError(f"Cartridge {entry.digest[:12]} of {corpus!r} is {entry.status}.", "Promote another one.")
    return entry


def _decision(settings: Settings, entry: CatalogEntry, gate: PromotionGate | None, *, required: bool) -> GateDecision:
    if entry.report_key is None:
        if required:
            raise PublishingError(
                f"Cartridge {entry.digest[:12]} was never graded, so the gate cannot judge it.",
                "Grade it (`cartridge evaluate`) and register it with the report.",
            )
        return GateDecision(passed=False, reasons=("It was never graded.",))
    return decide(load_report(settings, entry.report_key), gate)


def load_report(settings: Settings, key: str) -> EvaluationReport:
    """A report from the artifact store, verified, without its rows.

    Raises:
        StorageError: It is not there.
        EvaluationError: It was changed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, REPORT_FILE)
        open_store(settings.artifact_root).get_file(f"{key}/{REPORT_FILE}", path)
        return EvaluationReport.load(path)


def _move(
    settings: Settings, entry: CatalogEntry, alias: str, decision: GateDecision, reason: str, actor: str
) -> Promotion:
    with catalog_session(settings) as session:
        moved = set_alias(session, settings.tenant, entry.corpus, alias, entry.cartridge_id, reason=reason, actor=actor)
        entry = resolve(session, settings.tenant, entry.corpus, alias)
    error = _project(settings, entry, alias) or _tell_mlflow(settings, entry, decision)
    return Promotion(entry, alias, moved, decision, projection_error=error)


def _project(settings: Settings, entry: CatalogEntry, alias: str) -> str | None:
    try:
        project_alias(settings, entry.corpus, alias)
    except RegistryError as error:
        return str(error)
    return None


def _tell_mlflow(settings: Settings, entry: CatalogEntry, decision: GateDecision) -> str | None:
    """Show the gate's answer on the version's page."""
    if entry.model_name is None or entry.version is None:
        return None
    tags = {"gate": "passed" if decision.passed else "failed", "gate_reason": decision.sentence[:_LONGEST_TAG]}
    try:
        tag_version(settings, entry.model_name, entry.version, tags)
    except RegistryError as error:
        return str(error)
    return None
