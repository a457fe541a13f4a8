"""Object stores: a local folder and S3 behind one protocol."""

from cartridge_core.storage.folder import delete_folder, get_folder, put_folder
from cartridge_core.storage.local import LocalStore
from cartridge_core.storage.opening import open_store
from cartridge_core.storage.store import ObjectStore, Unfinished, checked_key

__all__ = [
    "LocalStore",
    "ObjectStore",
    "Unfinished",
    "checked_key",
    "delete_folder",
    "get_folder",
    "open_store",
    "put_folder",
]
