"""Taking a Cartridge elsewhere: a folder or a `.tar` with its files and its report."""

import shutil
import tarfile
import tempfile
from pathlib import Path

from cartridge_core.atomic_file import atomic_file
from cartridge_core.catalog import CHAMPION, CatalogEntry, Status, catalog_session, find_cartridge
from cartridge_core.errors import ArtifactError, PublishingError
from cartridge_core.publishing.artifact import (
    CARTRIDGE_FILES,
    MANIFEST_FILE,
    REPORT_FILES,
    read_artifact,
)
from cartridge_core.publishing.registering import CorpusSource, Evidence, register_cartridge
from cartridge_core.report import REPORT_FILE, EvaluationReport
from cartridge_core.settings import Settings
from cartridge_core.storage import get_folder, open_store

_KNOWN_FILES = (*CARTRIDGE_FILES[:-1], *REPORT_FILES, MANIFEST_FILE)
"""Files of an export, the Cartridge's manifest last."""


def export_cartridge(
    settings: Settings, corpus: str, target: Path, reference: str = CHAMPION, quantize: str | None = None
) -> Path:
    """Write a Cartridge and its newest report to a folder, or to a `.tar` where the target ends so.

    `Cartridge.load` reads the folder. The same Cartridge gives the same bytes.

    Args:
        settings: Names the stores and the tenant.
        corpus: Name of the corpus.
        target: A new or empty folder, or a file that ends in `.tar`, which is replaced.
        reference: A version, an alias or the start of a digest.
        quantize: Storage to quantise it to, a key of `manifest.STORAGE`: another Cartridge, which brings a report only
            if the newest one graded it too.

    Returns:
        The target.

    Raises:
        NotFoundError: There is no such corpus or Cartridge.
        PublishingError: It was deleted, or the folder is not empty.
        StorageError, ArtifactError: The files are gone or damaged, or it cannot be quantised so.
    """
    with catalog_session(settings, read_only=True) as session:
        entry = find_cartridge(session, settings.tenant, corpus, reference)
    if entry.status is Status.DELETED or entry.artifact_key is None:
        raise PublishingError(f"Cartridge {entry.digest[:12]} of corpus {corpus!r} was deleted.", "Export another one.")
    if target.suffix != ".tar":
        check_new_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    store = open_store(settings.artifact_root)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        get_folder(store, entry.artifact_key, staging, CARTRIDGE_FILES)
        if entry.report_key is not None:
            get_folder(store, entry.report_key, staging, REPORT_FILES)
        read_artifact(staging, settings.tenant)
        if quantize is not None:
            _quantize(staging, quantize)
        if target.suffix == ".tar":
            _pack(staging, target)
        else:
            staging.chmod(0o755)
            staging.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def check_new_folder(target: Path) -> None:
    """Refuse to write an export over something else.

    Raises:
        PublishingError: The target exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PublishingError(f"{target} exists and is not an empty folder.", "Name a new folder or a .tar file.")


def import_cartridge(
    settings: Settings, source: Path, corpus: str, *, restore: bool = False, actor: str = ""
) -> CatalogEntry:
    """Register a Cartridge from a folder or a `.tar`, with its report if there is one.

    Nothing outside the source is read and nothing is written where the source says: only the known files are taken, and
    only as regular files.

    Args:
        settings: Names the stores and the tenant.
        source: An export, or any folder that `Cartridge.save` wrote.
        corpus: What the corpus shall be called here.
        restore: Take it although it was deleted here once.
        actor: Who asks, for the record.

    Raises:
        ArtifactError: The source is no export, is damaged, or holds something that is not a regular file.
        PublishingError: As `register_cartridge`; or the Cartridge does not say which corpus it stands in for.
    """
    with tempfile.TemporaryDirectory() as staging:
        folder = Path(staging)
        if source.is_dir():
            _copy(source, folder)
        else:
            _unpack(source, folder)
        manifest = read_artifact(folder, settings.tenant).manifest
        if manifest.corpus_digest is None:
            raise PublishingError(
                f"Cartridge {manifest.digest[:12]} does not say which content it stands in for.",
                "Only Cartridges that were trained on a corpus can be registered.",
            )
        report = EvaluationReport.load(folder) if (folder / REPORT_FILE).is_file() else None
        return register_cartridge(
            settings,
            folder,
            CorpusSource(corpus, manifest.corpus_digest),
            Evidence(report=report),
            restore=restore,
            actor=actor,
        )


def _quantize(folder: Path, storage: str) -> None:
    """Put the quantised Cartridge in the exact one's place, with the report on it if there is one."""
    # Imported late: plain exports need no torch.
    from cartridge_core.cartridge import Cartridge

    cartridge = Cartridge.load(folder).quantized(storage)
    report = EvaluationReport.load(folder) if (folder / REPORT_FILE).is_file() else None
    for name in _KNOWN_FILES:
        (folder / name).unlink(missing_ok=True)
    if report is not None:
        graded = [arm.name for arm in report.arms if arm.cartridge_digest == cartridge.digest]
        if graded:
            report.about(graded[0]).save(folder)
    cartridge.save(folder)


def _pack(folder: Path, target: Path) -> None:
    # Plain headers: who packed it, and when, is no part of a Cartridge.
    with atomic_file(target) as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in _KNOWN_FILES:
            path = folder / name
            if not path.exists():
                continue
            member = tarfile.TarInfo(name)
            member.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(member, content)


def _copy(source: Path, folder: Path) -> None:
    for name in _KNOWN_FILES:
        path = source / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ArtifactError(f"{path} is not a regular file.", "Export the Cartridge again.")
        if path.is_file():
            shutil.copyfile(path, folder / name)


def _unpack(source: Path, folder: Path) -> None:
    try:
        with tarfile.open(source, mode="r:") as archive:
            for member in archive:
                _take(archive, member, source, folder)
    except (OSError, tarfile.TarError) as error:
        raise ArtifactError(
            f"{source} cannot be read as a .tar file: {error}.", "Export the Cartridge again."
        ) from error


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, source: Path, folder: Path) -> None:
    # Names are compared, never followed: a path out of the root, a link or a device is simply not a known file.
    name = member.name.removeprefix("./")
    if name in ("", ".") and member.isdir():
        return
    content = archive.extractfile(member) if member.isreg() and name in _KNOWN_FILES else None
    if content is None or (folder / name).exists():
        raise ArtifactError(
            f"{source} holds {member.name!r}, which is not part of an export.", "Do not trust it; export again."
        )
    with content, (folder / name).open("wb") as stream:
        shutil.copyfileobj(content, stream, 1 << 20)
