"""Copies on this machine's disk: bounded in bytes, never under a reader, whatever is killed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cartridge_core.errors import ArtifactError, StorageError
from cartridge_core.publishing.artifact import CARTRIDGE_FILES
from cartridge_core.settings import Settings
from cartridge_core.stages import local_copies
from cartridge_core.stages.local_copies import HeldCopy, LocalCopies, NoRoomError, cache_folder
from cartridge_core.storage import open_store

SIZE = 1000
"""Bytes of each Cartridge's files."""
DIGESTS = "abcdef"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Six Cartridges in a store, room for two on this machine."""
    made = Settings(home=tmp_path / "home", local_copy_bytes=2 * SIZE + 10)
    store = open_store(made.artifact_root)
    for digest in DIGESTS:
        for name, size in zip(CARTRIDGE_FILES, (SIZE - 100, 100), strict=True):
            store.write_bytes(f"x/{digest}/{name}", digest.encode() * size)
    return made


def fetch(copies: LocalCopies, digest: str) -> HeldCopy:
    return copies.fetch(digest, f"x/{digest}")


def use(copies: LocalCopies, *digests: str) -> None:
    for digest in digests:
        fetch(copies, digest).release()


def there(settings: Settings) -> set[str]:
    place = cache_folder(settings, "a").parent
    return {path.name for path in place.iterdir()} if place.exists() else set()


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """Another process, once its work has come back; it lives on until the block ends."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        work()
        os.write(writer, b"!")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(reader, 1) == b"!"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_least_recently_used_goes(settings: Settings) -> None:
    copies = LocalCopies(settings)
    use(copies, "a", "b", "a", "c")
    assert there(settings) == {"a", "c"}
    # Also by another object, or process: the order is the disk's.
    use(LocalCopies(settings), "d")
    assert there(settings) == {"c", "d"}


def test_what_is_held_stays(settings: Settings) -> None:
    copies, other = LocalCopies(settings), LocalCopies(settings)
    with fetch(copies, "a") as first, fetch(copies, "a"), fetch(other, "b") as second:
        with pytest.raises(NoRoomError, match=r"take 1,000 bytes.*keeps 2,010.*others hold 2,000.*LOCAL_COPY_BYTES"):
            use(other, "c")
        assert there(settings) == {"a", "b"}
        assert {held.folder.name for held in (first, second)} == {"a", "b"}
    use(other, "c")
    assert there(settings) == {"b", "c"}


def test_what_is_pinned_stays_until_it_is_not(settings: Settings) -> None:
    copies = LocalCopies(settings)
    use(copies, "a")
    copies.pin("a", True)
    copies.pin("a", True)
    use(copies, "b", "c", "d")
    assert there(settings) == {"a", "d"} and copies.is_pinned("a")
    copies.pin("a", False)
    use(copies, "b", "c")
    assert there(settings) == {"b", "c"} and not copies.is_pinned("a")
    # What is not there cannot be kept.
    copies.pin("f", True)
    assert not copies.is_pinned("f")


def test_what_another_process_holds_stays_until_that_is_killed(settings: Settings) -> None:
    copies = LocalCopies(settings)
    with forked(lambda: [fetch(LocalCopies(settings), digest) for digest in "ab"] and None):
        with pytest.raises(NoRoomError):
            use(copies, "c")
        with pytest.raises(StorageError, match="is in use"):
            copies.give_up(cache_folder(settings, "a"))
    use(copies, "c", "d")
    assert there(settings) == {"c", "d"}


def test_what_is_on_its_way_counts_and_is_cleared_away_when_its_process_is_killed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = LocalCopies(settings)

    def begin() -> None:
        def half(store: object, key: str, folder: Path, names: object) -> None:
            (folder / CARTRIDGE_FILES[0]).write_bytes(b"half")
            begun.set()
            time.sleep(60)

        begun = threading.Event()
        monkeypatch.setattr(local_copies, "get_folder", half)
        threading.Thread(target=lambda: use(LocalCopies(settings), "a"), daemon=True).start()
        begun.wait()

    with forked(begin), fetch(copies, "b"):
        # Nothing of it is to be found, but its room is taken.
        assert copies.hold("a") is None
        with pytest.raises(NoRoomError):
            use(copies, "c")
    use(copies, "c")
    assert there(settings) == {"b", "c"}


def test_one_larger_than_all_room_costs_nobody_a_place(settings: Settings) -> None:
    open_store(settings.artifact_root).write_bytes(f"x/f/{CARTRIDGE_FILES[0]}", b"f" * 5000)
    copies = LocalCopies(settings)
    use(copies, "a", "b")
    with pytest.raises(NoRoomError, match=r"5,100 bytes.*2,010, in all"):
        use(copies, "f")
    assert there(settings) == {"a", "b"}


def test_a_store_without_it_costs_nobody_a_place(settings: Settings) -> None:
    copies = LocalCopies(settings)
    use(copies, "a", "b")
    with pytest.raises(StorageError, match="no object"):
        use(copies, "z")
    assert there(settings) == {"a", "b"}


def test_a_damaged_copy_is_replaced_once_also_under_its_readers(settings: Settings) -> None:
    copies, seen = LocalCopies(settings), list[bytes]()

    def read(folder: Path) -> bytes:
        seen.append((folder / CARTRIDGE_FILES[0]).read_bytes())
        if set(seen[-1]) != {ord("a")}:
            raise ArtifactError("damaged")
        return seen[-1]

    with fetch(copies, "a") as held:
        (held.folder / CARTRIDGE_FILES[0]).write_bytes(b"wrong")
        assert copies.read("a", "x/a", read) == b"a" * (SIZE - 100)
        # The one in its place is held for itself: the old holder keeps nothing.
        use(copies, "b", "c")
        assert there(settings) == {"b", "c"}
    open_store(settings.artifact_root).write_bytes(f"x/a/{CARTRIDGE_FILES[0]}", b"bad")
    seen.clear()
    with pytest.raises(ArtifactError):
        copies.read("a", "x/a", read)
    assert seen == [b"bad"] and there(settings) <= {"b", "c"}


def test_copies_of_before_are_counted(settings: Settings) -> None:
    for digest in "de":
        folder = cache_folder(settings, digest)
        folder.mkdir(parents=True)
        for name in CARTRIDGE_FILES:
            (folder / name).write_bytes(b"x" * (SIZE // 2))
    use(LocalCopies(settings), "a")
    assert len(there(settings)) == 2 and "a" in there(settings)


def test_many_readers_find_what_they_asked_for_within_the_bound(settings: Settings) -> None:
    everyone, most = [LocalCopies(settings) for _ in range(3)], list[int]()

    def read(folder: Path) -> set[int]:
        return {byte for name in CARTRIDGE_FILES for byte in (folder / name).read_bytes()}

    def ask(number: int) -> int:
        done = 0
        for turn in range(40):
            digest = DIGESTS[(number * 7 + turn * 5) % len(DIGESTS)]
            try:
                assert everyone[number % 3].read(digest, f"x/{digest}", read) == {ord(digest)}
                done += 1
            except NoRoomError:
                time.sleep(0.001)
            with everyone[0]._alone():  # or what is counted moves on meanwhile
                copies = there(settings) & set(DIGESTS)
            most.append(SIZE * len(copies))
        return done

    with ThreadPoolExecutor(6) as pool:
        done = sum(pool.map(ask, range(6)))
    assert done > 6 and max(most) <= settings.local_copy_bytes
    assert {name for name in there(settings) if name.startswith(".")} == set()
