"""A Cartridge's files from the artifact store onto this machine, verified; MLflow's server is not asked."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.errors import ArtifactError, StorageError
from cartridge_core.publishing.artifact import CARTRIDGE_FILES
from cartridge_core.serving.errors import ArtifactUnavailableError, DamagedCartridgeError
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.settings import Settings
from cartridge_core.stages.ask import cache_folder
from cartridge_core.storage import get_folder, open_store

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge

_RETRY_S = 5.0


def fetch_cartridge(settings: Settings, resolved: ResolvedCartridge) -> "Cartridge":
    """The Cartridge that was resolved, from this machine's copy or else from the artifact store.

    A copy that is damaged is fetched again once. What is returned has the catalog's digest, whatever the files say.

    Raises:
        ArtifactUnavailableError: The store does not give it, or this machine cannot hold it.
        DamagedCartridgeError: The store's files are not those that the catalog lists.
    """
    folder = cache_folder(settings, resolved.digest)
    if folder.is_dir():
        try:
            return _verified(folder, resolved)
        except ArtifactError:
            shutil.rmtree(folder, ignore_errors=True)
    try:
        _fetch(settings, resolved, folder)
        return _verified(folder, resolved)
    except ArtifactError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DamagedCartridgeError(
            f"The files of Cartridge {resolved.digest[:12]} are not those that were registered.",
            "The operator has to store them again.",
        ) from error
    except (StorageError, OSError) as error:
        raise ArtifactUnavailableError(
            f"The files of Cartridge {resolved.digest[:12]} cannot be fetched.",
            "Ask again in a few seconds; the operator finds the reason in the log.",
            retry_after=_RETRY_S,
        ) from error


def _verified(folder: Path, resolved: ResolvedCartridge) -> "Cartridge":
    from cartridge_core.cartridge import Cartridge

    cartridge = Cartridge.load(folder)
    # Files that are whole can still be another Cartridge's.
    if cartridge.digest != resolved.digest or cartridge.manifest.tenant != resolved.tenant:
        raise ArtifactError(f"{folder} holds Cartridge {cartridge.digest[:12]}, not {resolved.digest[:12]}.")
    cartridge.check_base_model(resolved.base_model)
    if not cartridge.publishable():
        raise ArtifactError(f"Cartridge {resolved.digest[:12]} does not end where a user's first token would start.")
    return cartridge


def _fetch(settings: Settings, resolved: ResolvedCartridge, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Fetched beside its place and moved into it, so that nobody finds half an artifact there.
    arriving = Path(tempfile.mkdtemp(prefix=f".{resolved.digest[:12]}-", dir=folder.parent))
    try:
        get_folder(open_store(settings.artifact_root), resolved.artifact_key, arriving, CARTRIDGE_FILES)
        arriving.chmod(0o755)
        try:
            arriving.rename(folder)
        except OSError:
            # Another process was first; content is addressed by digest, so theirs is ours.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
