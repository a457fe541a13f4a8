"""Registering a Cartridge: its files into the store, a version into MLflow, rows into the catalog, in this order."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cartridge_core.baselines import ICL
from cartridge_core.catalog import (
    Action,
    CatalogEntry,
    Status,
    Whereabouts,
    catalog_session,
    change_status,
    find_cartridge,
    list_cartridges,
    record_base_model,
    record_cartridge,
    record_corpus,
    record_dataset,
    record_evaluation,
    record_event,
    record_registration,
    status_of,
)
from cartridge_core.catalog.corpora import corpus_named
from cartridge_core.errors import PublishingError
from cartridge_core.publishing.artifact import (
    CARTRIDGE_FILES,
    REPORT_FILES,
    Artifact,
    cartridge_key,
    read_artifact,
    report_key,
)
from cartridge_core.registry import RegisteredVersion, VersionContent, register_version
from cartridge_core.report import EvaluationReport
from cartridge_core.settings import Settings, valid_name
from cartridge_core.storage import open_store, put_folder


@dataclass(frozen=True)
class CorpusSource:
    """The corpus a Cartridge stands in for, as far as it is known."""

    name: str
    """Name, `[a-z0-9-]{1,63}`."""
    digest: str
    """Digest of the content."""
    num_documents: int | None = None
    """Documents read."""
    num_skipped: int | None = None
    """Files that could not be read."""
    uri: str | None = None
    """Where the documents came from."""


@dataclass(frozen=True)
class Evidence:
    """What speaks for a Cartridge and tells how it was made."""

    report: EvaluationReport | None = None
    """How it was graded, with its rows; without one it can be registered but not promoted."""
    num_conversations: int | None = None
    """Conversations it was trained on."""
    training_plots: tuple[Path, ...] = ()
    """Pictures of the training, such as the loss curve."""
    evaluation_plots: tuple[Path, ...] = ()
    """Pictures of the grading."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Training parameters to show in MLflow."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the MLflow runs, such as the flow run's id."""


def register_cartridge(
    settings: Settings,
    folder: Path,
    corpus: CorpusSource,
    evidence: Evidence | None = None,
    *,
    restore: bool = False,
    actor: str = "",
) -> CatalogEntry:
    """Make a Cartridge known: files, MLflow version, catalog rows. No alias moves.

    Doing it again changes nothing; a new report is added. After an interruption, doing it again completes it: the
    catalog comes last, so that what it lists is complete.

    Args:
        settings: Names the stores and the tenant.
        folder: The Cartridge's files.
        corpus: What it stands in for.
        evidence: Report, plots and parameters.
        restore: Register a Cartridge although it was deleted once.
        actor: Who asks, for the record.

    Returns:
        The catalog's entry.

    Raises:
        ArtifactError: The files are damaged.
        PublishingError: The Cartridge is another tenant's or another corpus's, cannot be served, or was deleted.
        StorageError, RegistryError, CatalogError: A store refuses.
    """
    evidence = evidence or Evidence()
    valid_name(corpus.name, "corpus name")
    artifact = read_artifact(folder, settings.tenant)
    _check_belongs(artifact, corpus, evidence)
    deleted = _deleted_before(settings, corpus, artifact)
    if deleted and not restore:
        raise PublishingError(
            f"Cartridge {artifact.manifest.digest[:12]} of corpus {corpus.name!r} was deleted.",
            "Register it with `--restore` if it shall come back, or build another, for instance with a new seed.",
        )
    size = _store(settings, artifact)
    stored_report = _store_report(settings, evidence.report)
    version = register_version(settings, _content(artifact, corpus, evidence))
    _record(settings, artifact, corpus, evidence, _whereabouts(settings, artifact, size, version), stored_report, actor)
    with catalog_session(settings, read_only=True) as session:
        return find_cartridge(session, settings.tenant, corpus.name, artifact.manifest.digest)


def _check_belongs(artifact: Artifact, corpus: CorpusSource, evidence: Evidence) -> None:
    manifest = artifact.manifest
    name = f"Cartridge {manifest.digest[:12]}"
    if manifest.corpus_digest is not None and manifest.corpus_digest != corpus.digest:
        raise PublishingError(
            f"{name} was trained on content {manifest.corpus_digest[:12]}, not on {corpus.digest[:12]}, which corpus "
            f"{corpus.name!r} has now.",
            "Build a Cartridge of the present content.",
        )
    report = evidence.report
    if report is not None and report.cartridge_digest != manifest.digest:
        raise PublishingError(
            f"The report grades Cartridge {report.cartridge_digest[:12]}, not {manifest.digest[:12]}.",
            "Grade this Cartridge.",
        )


def _deleted_before(settings: Settings, corpus: CorpusSource, artifact: Artifact) -> bool:
    with catalog_session(settings, read_only=True) as session:
        if corpus_named(session, settings.tenant, corpus.name) is None:
            return False
        entries = list_cartridges(session, settings.tenant, corpus.name, include_deleted=True)
    same = [entry for entry in entries if entry.digest == artifact.manifest.digest]
    return any(entry.status is Status.DELETED for entry in same)


def _store(settings: Settings, artifact: Artifact) -> int:
    """Put the files into the store unless they are there; returns their bytes."""
    store = open_store(settings.artifact_root)
    key = cartridge_key(settings.tenant, artifact.manifest.digest)
    if not store.exists(f"{key}/{CARTRIDGE_FILES[-1]}"):
        put_folder(store, artifact.folder, key, CARTRIDGE_FILES)
    return sum(path.stat().st_size for path in artifact.files)


def _whereabouts(settings: Settings, artifact: Artifact, size: int, version: RegisteredVersion) -> Whereabouts:
    key = cartridge_key(settings.tenant, artifact.manifest.digest)
    return Whereabouts(
        model_name=version.name,
        version=version.version,
        model_id=version.model_id,
        run_id=version.run_id,
        artifact_uri=open_store(settings.artifact_root).url(key),
        artifact_key=key,
        size_bytes=size,
    )


def _store_report(settings: Settings, report: EvaluationReport | None) -> str | None:
    if report is None:
        return None
    store = open_store(settings.artifact_root)
    key = report_key(settings.tenant, report.digest)
    if not store.exists(f"{key}/{REPORT_FILES[-1]}"):
        with tempfile.TemporaryDirectory() as folder:
            report.save(folder)
            put_folder(store, Path(folder), key, REPORT_FILES)
    return key


def _content(artifact: Artifact, corpus: CorpusSource, evidence: Evidence) -> VersionContent:
    return VersionContent(
        corpus=corpus.name,
        corpus_digest=corpus.digest,
        corpus_uri=corpus.uri,
        manifest=artifact.manifest,
        files=artifact.files,
        report=evidence.report,
        training_plots=evidence.training_plots,
        evaluation_plots=evidence.evaluation_plots,
        params=evidence.params,
        tags=evidence.tags,
    )


def _record(
    settings: Settings,
    artifact: Artifact,
    corpus: CorpusSource,
    evidence: Evidence,
    place: Whereabouts,
    stored_report: str | None,
    actor: str,
) -> None:
    manifest, report = artifact.manifest, evidence.report
    with catalog_session(settings) as session:
        content = record_corpus(
            session,
            settings.tenant,
            corpus.name,
            corpus.digest,
            num_documents=corpus.num_documents,
            num_skipped=corpus.num_skipped,
            uri=corpus.uri,
        )
        base = record_base_model(session, settings.tenant, manifest.base_model)
        dataset = None
        if manifest.dataset_digest is not None:
            dataset = record_dataset(
                session, content, base, manifest.dataset_digest, num_conversations=evidence.num_conversations
            )
        row = record_cartridge(session, content, base, dataset, manifest)
        record_registration(session, row, place)
        if report is not None and stored_report is not None:
            icl = report.find(ICL)
            record_evaluation(
                session,
                row,
                digest=report.digest,
                benchmark=report.benchmark,
                num_questions=report.cartridge.n,
                score=report.cartridge.score,
                icl_score=icl.score if icl else None,
                figures=report.figures(),
                report_key=stored_report,
            )
        status = status_of(session, row)
        restored = status is Status.DELETED and change_status(session, row, Status.RESTORED, actor=actor)
        first = status is Status.REGISTERED and change_status(session, row, Status.REGISTERED, actor=actor)
        if first or restored:
            details = {"model": place.model_name, "version": place.version, "restored": restored}
            subject = f"{corpus.name}/{manifest.digest}"
            record_event(session, settings.tenant, Action.REGISTER, subject, actor=actor, details=details)
