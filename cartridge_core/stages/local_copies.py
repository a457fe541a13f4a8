"""This machine's copies of registered Cartridges: fetched when they are wanted, bounded in bytes, least recently used
ones go first.

All processes of a home share them. Whoever reads one holds it, and what is held is not removed to make room. A hold is
a lock of the kernel's, which gives it back when its holder dies; how recently a copy was used is its lock file's time.
"""

import fcntl
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from cartridge_core.errors import ArtifactError, StorageError
from cartridge_core.publishing.artifact import CARTRIDGE_FILES
from cartridge_core.settings import Settings
from cartridge_core.storage import get_folder, open_store

T = TypeVar("T")

_LOCK = ".lock"
_ARRIVING = re.compile(r"\.arriving-(\d+)-.+")
"""A folder whose files are on their way, with the bytes that they will take."""
_ATTEMPTS = 5


class NoRoomError(StorageError):
    """A Cartridge's files do not fit beside those that are held."""


def cache_folder(settings: Settings, digest: str) -> Path:
    """Where a Cartridge's files are on this machine, if they are."""
    return settings.home / "cache" / digest


@dataclass
class _Hold:
    descriptor: int
    holders: int = 0


class HeldCopy:
    """A copy that stays until it is released; a context manager that releases it."""

    def __init__(self, folder: Path, release: Callable[[], None]) -> None:
        self.folder = folder
        """Its files."""
        self.release = release
        """Let it go like others; to be called once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class LocalCopies:
    """The copies of one home. Safe to use from several threads, and beside other processes.

    Args:
        settings: Name the home, the artifact store and the bound.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._max_bytes = settings, settings.local_copy_bytes
        self._root = cache_folder(settings, "any").parent
        self._holds: dict[str, _Hold] = {}
        self._pins: dict[str, HeldCopy] = {}
        self._mutex = threading.Lock()

    def hold(self, digest: str) -> HeldCopy | None:
        """The copy of a Cartridge, which stays until it is released; None where there is none."""
        folder = cache_folder(self._settings, digest)
        with self._mutex:
            hold = self._holds.get(digest)
            if hold is None or not _same(hold.descriptor, folder):
                descriptor = _locked(folder, fcntl.LOCK_SH)
                if descriptor is None:
                    return None
                hold = self._holds[digest] = _Hold(descriptor)
            hold.holders += 1
            os.utime(hold.descriptor)
        return HeldCopy(folder, lambda: self._release(digest, hold))

    def fetch(self, digest: str, artifact_key: str) -> HeldCopy:
        """The copy of a Cartridge, fetched where there is none; its bytes are for the reader to verify.

        Args:
            digest: Of the Cartridge.
            artifact_key: Its folder in the artifact store.

        Raises:
            StorageError: The store does not give it, or this machine cannot hold it.
        """
        for _ in range(_ATTEMPTS):
            held = self.hold(digest)
            if held is not None:
                return held
            self._fetch(digest, artifact_key)
        raise NoRoomError(
            f"The files of Cartridge {digest[:12]} are removed as soon as they are there.",
            "Ask again, or raise CARTRIDGE_LOCAL_COPY_BYTES.",
        )

    def read(self, digest: str, artifact_key: str, read: Callable[[Path], T]) -> T:
        """What is read from the copy of a Cartridge, which stays meanwhile; a damaged one is fetched again once.

        Args:
            digest: Of the Cartridge.
            artifact_key: Its folder in the artifact store.
            read: Reads and verifies a folder; raises `ArtifactError`.

        Raises:
            StorageError: As `fetch`.
            ArtifactError: The store's files are damaged as well.
        """
        held = self.hold(digest)
        if held is not None:
            with held:
                try:
                    return read(held.folder)
                except ArtifactError:
                    self.discard(digest)
        with self.fetch(digest, artifact_key) as held:
            try:
                return read(held.folder)
            except ArtifactError:
                self.discard(digest)
                raise

    def pin(self, digest: str, pinned: bool) -> None:
        """Hold a copy, if there is one, as long as this process lives, or no longer."""
        before = self._pins.pop(digest, None)
        if pinned and (held := self.hold(digest)) is not None:
            self._pins[digest] = held
        if before is not None:
            before.release()

    def is_pinned(self, digest: str) -> bool:
        """Whether this process holds a copy whatever comes."""
        return digest in self._pins

    def discard(self, digest: str) -> None:
        """Remove a copy, held or not: it is damaged, or must not exist any longer. Who has its files open reads on."""
        folder = cache_folder(self._settings, digest)
        if folder.is_dir():
            shutil.rmtree(self._away(folder), ignore_errors=True)

    def give_up(self, folder: Path) -> None:
        """Remove a copy, or what a fetch that was killed has left, unless somebody holds it.

        Raises:
            StorageError: Somebody does.
        """
        with self._alone():
            if not self._evicted(folder):
                raise StorageError(f"{folder.name[:12]} in {self._root} is in use.", "Ask again later.")

    def _release(self, digest: str, hold: _Hold) -> None:
        with self._mutex:
            hold.holders -= 1
            if hold.holders:
                return
            os.close(hold.descriptor)
            if self._holds.get(digest) is hold:
                del self._holds[digest]

    def _fetch(self, digest: str, artifact_key: str) -> None:
        store = open_store(self._settings.artifact_root)
        needed = sum(store.size(f"{artifact_key}/{name}") for name in CARTRIDGE_FILES)
        with self._alone():
            self._make_room(digest, needed)
            arriving = Path(tempfile.mkdtemp(prefix=f".arriving-{needed}-", dir=self._root))
            descriptor = _locked(arriving, fcntl.LOCK_EX)
        try:
            # Fetched beside its place and moved into it, so that nobody finds half an artifact there.
            get_folder(store, artifact_key, arriving, CARTRIDGE_FILES)
            arriving.chmod(0o755)
            # Alone: who counts would find it neither here nor there.
            with self._alone():
                try:
                    arriving.rename(cache_folder(self._settings, digest))
                except OSError:
                    # Another process was first; content is addressed by digest, so theirs is ours.
                    if not cache_folder(self._settings, digest).is_dir():
                        raise
        finally:
            if descriptor is not None:
                os.close(descriptor)
            shutil.rmtree(arriving, ignore_errors=True)

    def _make_room(self, digest: str, needed: int) -> None:
        copies, taken = list[_Copy](), needed
        for folder in self._folders():
            found = _Copy.of(folder)
            # What begins with a dot is on its way, or was left by a process that was killed.
            if folder.name.startswith(".") and self._evicted(folder):
                continue
            taken += found.num_bytes
            if not folder.name.startswith("."):
                copies.append(found)
        idle = [copy for copy in sorted(copies, key=lambda copy: copy.used_at) if self._is_idle(copy.folder)]
        if taken - sum(copy.num_bytes for copy in idle) <= self._max_bytes:
            for copy in idle:
                if taken <= self._max_bytes:
                    break
                taken -= copy.num_bytes if self._evicted(copy.folder) else 0
        if taken > self._max_bytes:
            others = f"of which others hold {taken - needed:,}" if needed <= self._max_bytes else "in all"
            raise NoRoomError(
                f"There is no room for the files of Cartridge {digest[:12]}: they take {needed:,} bytes, and this "
                f"machine keeps {self._max_bytes:,}, {others}.",
                "Raise CARTRIDGE_LOCAL_COPY_BYTES, or unpin some.",
            )

    def _folders(self) -> list[Path]:
        return [path for path in self._root.iterdir() if path.is_dir()]

    def _is_idle(self, folder: Path) -> bool:
        descriptor = _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def _evicted(self, folder: Path) -> bool:
        """Remove a folder that nobody holds; whether it is gone."""
        descriptor = _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            return not folder.is_dir()
        try:
            away = self._away(folder)
        finally:
            os.close(descriptor)
        shutil.rmtree(away, ignore_errors=True)
        return True

    def _away(self, folder: Path) -> Path:
        """Move a folder to where nobody looks for a Cartridge, at once: half of one must not be found."""
        away = Path(tempfile.mkdtemp(prefix=".gone-", dir=self._root))
        with suppress(FileNotFoundError):  # another process was first
            folder.rename(away)
        return away

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time counts and makes room."""
        self._root.mkdir(parents=True, exist_ok=True)
        with self._root.with_name(f".{self._root.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True)
class _Copy:
    folder: Path
    num_bytes: int
    used_at: int

    @classmethod
    def of(cls, folder: Path) -> Self:
        """What a folder takes, or will take once its files have come, and when it was last used, in nanoseconds."""
        num_bytes, used_at = 0, 0
        with suppress(FileNotFoundError):  # somebody removes it
            used_at = folder.stat().st_mtime_ns
            for path in folder.iterdir():
                with suppress(FileNotFoundError):  # a file that comes changes its name
                    state = path.stat()
                    num_bytes, used_at = num_bytes + state.st_size, max(used_at, state.st_mtime_ns)
        announced = _ARRIVING.fullmatch(folder.name)
        return cls(folder, max(num_bytes, int(announced[1])) if announced else num_bytes, used_at)


def _locked(folder: Path, operation: int) -> int | None:
    """A descriptor that holds a folder's lock; None where there is no folder, or (LOCK_NB) somebody else has it."""
    while True:
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _same(descriptor, folder):
            return descriptor
        # Moved away meanwhile; another copy may be in its place.
        os.close(descriptor)


def _same(descriptor: int, folder: Path) -> bool:
    """Whether a descriptor is still that of the folder's lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), (folder / _LOCK).stat())
    except FileNotFoundError:
        return False
