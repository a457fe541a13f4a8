"""A Cartridge's files from the artifact store onto this machine, verified; MLflow's server is not asked."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cartridge_core.errors import ArtifactError, StorageError
from cartridge_core.manifest import CartridgeManifest
from cartridge_core.publishing.artifact import cartridge_key, read_artifact
from cartridge_core.serving.errors import ArtifactUnavailableError, DamagedCartridgeError, NotLoadedError
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.settings import Settings
from cartridge_core.stages.local_copies import LocalCopies, NoRoomError, cache_folder

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge

T = TypeVar("T")

_RETRY_S = 5.0


def fetch_cartridge(copies: LocalCopies, resolved: ResolvedCartridge) -> "Cartridge":
    """The Cartridge that was resolved, with its tensors.

    Raises:
        ServingError: As `fetched`.
    """
    from cartridge_core.cartridge import Cartridge

    def read(folder: Path) -> Cartridge:
        cartridge = Cartridge.load(folder)
        _check(folder, cartridge.manifest, resolved.tenant, resolved.digest)
        cartridge.check_base_model(resolved.base_model)
        return cartridge

    return fetched(copies, resolved.digest, resolved.artifact_key, read)


def fetch_files(copies: LocalCopies, tenant: str, digest: str) -> int:
    """Have a Cartridge's files on this machine; needs no torch.

    Returns:
        Their tensors' bytes.

    Raises:
        ServingError: As `fetched`.
        PublishingError: It is another tenant's, or cannot be served.
    """

    def read(folder: Path) -> int:
        manifest = read_artifact(folder, tenant).manifest
        _check(folder, manifest, tenant, digest)
        return manifest.stored_bytes

    return fetched(copies, digest, cartridge_key(tenant, digest), read)


def fetched(copies: LocalCopies, digest: str, artifact_key: str, read: Callable[[Path], T]) -> T:
    """What is read from this machine's copy of a Cartridge or else from the artifact store's.

    Args:
        copies: This machine's.
        digest: Of the Cartridge.
        artifact_key: Its folder in the store.
        read: Reads and verifies a folder; raises `ArtifactError`.

    Raises:
        ArtifactUnavailableError: The store does not give it, or this machine cannot hold it.
        NotLoadedError: What is in use leaves no room for it on the disk.
        DamagedCartridgeError: The store's files are not those that the catalog lists.
    """
    try:
        return copies.read(digest, artifact_key, read)
    except ArtifactError as error:
        raise DamagedCartridgeError(
            f"The files of Cartridge {digest[:12]} are not those that were registered.",
            "The operator has to store them again.",
        ) from error
    except NoRoomError as error:
        raise NotLoadedError(
            f"There is no room for the files of Cartridge {digest[:12]}.",
            "Ask again shortly; the operator finds the reason in the log.",
            retry_after=_RETRY_S,
        ) from error
    except (StorageError, OSError) as error:
        raise ArtifactUnavailableError(
            f"The files of Cartridge {digest[:12]} cannot be fetched.",
            "Ask again in a few seconds; the operator finds the reason in the log.",
            retry_after=_RETRY_S,
        ) from error


def copies_here(settings: Settings) -> frozenset[str]:
    """Digests of the Cartridges whose files are on this machine."""
    root = cache_folder(settings, "any").parent
    # What begins with a dot is on its way, in one direction or the other.
    return frozenset(path.name for path in root.iterdir() if path.name[0] != ".") if root.is_dir() else frozenset()


def erased_here(copies: LocalCopies, settings: Settings, digest: str) -> bool:
    """Remove this machine's copy of a Cartridge, pinned or not, unless somebody reads it.

    Returns:
        Whether there is none any more.
    """
    copies.pin(digest, False)
    folder = cache_folder(settings, digest)
    if not folder.is_dir():
        return True
    try:
        copies.give_up(folder)
    except StorageError:
        return False
    return True


def _check(folder: Path, manifest: CartridgeManifest, tenant: str, digest: str) -> None:
    # Files that are whole can still be another Cartridge's.
    if manifest.digest != digest or manifest.tenant != tenant:
        raise ArtifactError(f"{folder} holds Cartridge {manifest.digest[:12]}, not {digest[:12]}.")
    if manifest.next_position != manifest.num_tokens:
        raise ArtifactError(f"Cartridge {digest[:12]} does not end where a user's first token would start.")
