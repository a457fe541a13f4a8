"""From an artifact root to the store behind it."""

from urllib.parse import unquote, urlsplit

from cartridge_core.errors import StorageError
from cartridge_core.storage.local import LocalStore
from cartridge_core.storage.store import ObjectStore


def open_store(url: str) -> ObjectStore:
    """The store at a folder, `file:///folder` or `s3://bucket/prefix`.

    Raises:
        StorageError: Another scheme, or no bucket.
    """
    if "://" not in url:
        return LocalStore(url)
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc:
        return LocalStore(unquote(parts.path))
    if parts.scheme == "s3" and parts.netloc:
        # Imported where it is used: boto3 takes half a second that a local store need not pay.
        from cartridge_core.storage.s3 import S3Store

        return S3Store(parts.netloc, parts.path)
    raise StorageError(f"{url!r} is not an artifact root.", "Use a folder or s3://bucket/prefix.")
