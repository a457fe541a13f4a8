"""A Cartridge's files from the artifact store onto this machine, verified; MLflow's server is not asked."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cartridge_core.errors import ArtifactError, StorageError
from cartridge_core.manifest import CartridgeManifest
from cartridge_core.publishing.artifact import CARTRIDGE_FILES, cartridge_key, read_artifact
from cartridge_core.serving.errors import ArtifactUnavailableError, DamagedCartridgeError
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.settings import Settings
from cartridge_core.stages.ask import cache_folder
from cartridge_core.storage import get_folder, open_store

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge

T = TypeVar("T")

_RETRY_S = 5.0


def fetch_cartridge(settings: Settings, resolved: ResolvedCartridge) -> "Cartridge":
    """The Cartridge that was resolved, with its tensors.

    Raises:
        ArtifactUnavailableError, DamagedCartridgeError: As `fetched`.
    """
    from cartridge_core.cartridge import Cartridge

    def read(folder: Path) -> Cartridge:
        cartridge = Cartridge.load(folder)
        _check(folder, cartridge.manifest, resolved.tenant, resolved.digest)
        cartridge.check_base_model(resolved.base_model)
        return cartridge

    return fetched(settings, resolved.digest, resolved.artifact_key, read)


def fetch_files(settings: Settings, tenant: str, digest: str) -> int:
    """Have a Cartridge's files on this machine; needs no torch.

    Returns:
        Their tensors' bytes.

    Raises:
        ArtifactUnavailableError, DamagedCartridgeError: As `fetched`.
        PublishingError: It is another tenant's, or cannot be served.
    """

    def read(folder: Path) -> int:
        manifest = read_artifact(folder, tenant).manifest
        _check(folder, manifest, tenant, digest)
        return manifest.stored_bytes

    return fetched(settings, digest, cartridge_key(tenant, digest), read)


def fetched(settings: Settings, digest: str, artifact_key: str, read: Callable[[Path], T]) -> T:
    """What is read from this machine's copy of a Cartridge or else from the artifact store's.

    A copy that is damaged is fetched again once.

    Args:
        settings: Name the store and the folder of the copies.
        digest: Of the Cartridge.
        artifact_key: Its folder in the store.
        read: Reads and verifies a folder; raises `ArtifactError`.

    Raises:
        ArtifactUnavailableError: The store does not give it, or this machine cannot hold it.
        DamagedCartridgeError: The store's files are not those that the catalog lists.
    """
    folder = cache_folder(settings, digest)
    if folder.is_dir():
        try:
            return read(folder)
        except ArtifactError:
            shutil.rmtree(folder, ignore_errors=True)
    try:
        _fetch(settings, digest, artifact_key, folder)
        return read(folder)
    except ArtifactError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DamagedCartridgeError(
            f"The files of Cartridge {digest[:12]} are not those that were registered.",
            "The operator has to store them again.",
        ) from error
    except (StorageError, OSError) as error:
        raise ArtifactUnavailableError(
            f"The files of Cartridge {digest[:12]} cannot be fetched.",
            "Ask again in a few seconds; the operator finds the reason in the log.",
            retry_after=_RETRY_S,
        ) from error


def _check(folder: Path, manifest: CartridgeManifest, tenant: str, digest: str) -> None:
    # Files that are whole can still be another Cartridge's.
    if manifest.digest != digest or manifest.tenant != tenant:
        raise ArtifactError(f"{folder} holds Cartridge {manifest.digest[:12]}, not {digest[:12]}.")
    if manifest.next_position != manifest.num_tokens:
        raise ArtifactError(f"Cartridge {digest[:12]} does not end where a user's first token would start.")


def _fetch(settings: Settings, digest: str, artifact_key: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Fetched beside its place and moved into it, so that nobody finds half an artifact there.
    arriving = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}-", dir=folder.parent))
    try:
        get_folder(open_store(settings.artifact_root), artifact_key, arriving, CARTRIDGE_FILES)
        arriving.chmod(0o755)
        try:
            arriving.rename(folder)
        except OSError:
            # Another process was first; content is addressed by digest, so theirs is ours.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
