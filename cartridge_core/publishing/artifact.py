"""A Cartridge's files before and in the artifact store."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cartridge_core.digest import sha256_file
from cartridge_core.errors import ArtifactError, PublishingError
from cartridge_core.manifest import CartridgeManifest
from cartridge_core.report import REPORT_FILE, ROWS_FILE

MANIFEST_FILE = "manifest.json"
CARTRIDGE_FILES = ("cartridge.safetensors", MANIFEST_FILE)
"""Files of a Cartridge; the manifest commits."""
REPORT_FILES = (ROWS_FILE, REPORT_FILE)
"""Files of a report; the report commits."""


@dataclass(frozen=True)
class Artifact:
    """A Cartridge's folder whose tensors are those that its manifest vouches for."""

    folder: Path
    manifest: CartridgeManifest

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths of the files, the manifest last."""
        return tuple(self.folder / name for name in CARTRIDGE_FILES)


def cartridge_key(tenant: str, digest: str) -> str:
    """Folder of a Cartridge in the artifact store."""
    return f"{tenant}/cartridges/{digest}"


def report_key(tenant: str, digest: str) -> str:
    """Folder of a report in the artifact store."""
    return f"{tenant}/reports/{digest}"


def read_artifact(folder: Path, tenant: str) -> Artifact:
    """Read and check a Cartridge's folder; needs no torch, so it can be done where nothing is trained.

    Args:
        folder: Holds the two files.
        tenant: Whose Cartridge it must be.

    Raises:
        ArtifactError: A file is missing or damaged.
        PublishingError: It is another tenant's, or cannot be served.
    """
    again = "Copy the whole folder again, or build the Cartridge again."
    try:
        manifest = CartridgeManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
        tensors = sha256_file(folder / CARTRIDGE_FILES[0])
    except OSError as error:
        raise ArtifactError(f"{folder} holds no Cartridge: {error.filename}: {error.strerror}.", again) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{folder / MANIFEST_FILE} is not a manifest: {where} {first['msg']}.", again) from error
    if tensors != manifest.tensors_sha256:
        raise ArtifactError(f"{folder / CARTRIDGE_FILES[0]} is damaged: its sha256 is not the manifest's.", again)
    name = f"Cartridge {manifest.digest[:12]}"
    if manifest.tenant != tenant:
        raise PublishingError(
            f"{name} belongs to tenant {manifest.tenant!r}, not to {tenant!r}.", "Set CARTRIDGE_TENANT to its owner."
        )
    if manifest.next_position != manifest.num_tokens:
        raise PublishingError(
            f"{name} has {manifest.num_tokens} tokens but expects the user's first at {manifest.next_position}; "
            "a server starts the user right behind the Cartridge.",
            "Re-rotate its keys first.",
        )
    return Artifact(folder, manifest)
