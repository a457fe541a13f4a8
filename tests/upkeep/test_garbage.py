"""What nobody needs goes; what anything needs never does."""

import os
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from cartridge_core.cartridge import Cartridge
from cartridge_core.catalog import (
    CatalogEntry,
    Status,
    catalog_session,
    find_cartridge,
    list_cartridges,
    record_pin,
    retire,
)
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.errors import CartridgeError
from cartridge_core.publishing import CorpusSource, Evidence, delete, promote, register_cartridge, rollback
from cartridge_core.publishing.artifact import CARTRIDGE_FILES
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import store_of
from cartridge_core.stages.local_copies import cache_folder
from cartridge_core.stages.retire import retire as retire_stage
from cartridge_core.storage import get_folder, open_store
from cartridge_core.upkeep.doctor import examine
from cartridge_core.upkeep.garbage import collectable, find_garbage, remove_garbage
from tests.s3 import left_upload
from tests.samples import SOURCE, embedded, grade, save_cartridge

NOW = timedelta(0)


def register(settings: Settings, folder: Path, seed: int = 0, corpus: str = "clinic") -> CatalogEntry:
    cartridge = save_cartridge(folder / str(seed), seed)
    source = CorpusSource(corpus, SOURCE.digest)
    return register_cartridge(settings, folder / str(seed), source, Evidence(report=grade(cartridge.digest)))


def is_whole(settings: Settings, entry: CatalogEntry, folder: Path) -> bool:
    """Whether what is stored of a Cartridge can be loaded, and is it."""
    found = get_folder(
        open_store(settings.artifact_root), str(entry.artifact_key), folder / entry.digest, CARTRIDGE_FILES
    )
    return Cartridge.load(found).digest == entry.digest


def retired(settings: Settings, corpus: str, reference: str) -> None:
    with catalog_session(settings) as session:
        entry = find_cartridge(session, "default", corpus, reference)
        retire(session, cartridge_row(session, "default", entry.cartridge_id))


@examples(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(Status)), st.booleans(), st.integers(0, 90), st.integers(0, 5), st.booleans()),
        max_size=30,
    ),
    st.integers(0, 60),
)
def test_nothing_that_is_needed_is_ever_collected(
    catalog: list[tuple[Status, bool, int, int, bool]], grace_days: int
) -> None:
    """Random catalogs, also such as no code of ours would write: aliases on what is retired, missing statuses."""
    now, grace = datetime.now(UTC), timedelta(days=grace_days)
    entries = [
        cast(
            CatalogEntry,
            SimpleNamespace(
                cartridge_id=number, status=status, aliases=("champion",) if aliased else (), digest=f"{digest:064}"
            ),
        )
        for number, (status, aliased, _, digest, _) in enumerate(catalog)
    ]
    since = {number: now - timedelta(days=age) for number, (_, _, age, _, told) in enumerate(catalog) if told}
    pinned = {entry.digest for entry in entries if entry.digest.endswith("5")}
    gone = collectable(entries, since, now, grace, pinned)
    for entry in gone:
        assert entry.status is Status.RETIRED
        assert entry.aliases == ()
        assert entry.digest not in pinned
        assert now - since[entry.cartridge_id] >= grace
    stay = [entry for entry in entries if entry not in gone and entry.status is Status.RETIRED]
    for entry in stay:
        young = entry.cartridge_id not in since or now - since[entry.cartridge_id] < grace
        assert entry.aliases or entry.digest in pinned or young


@pytest.mark.parametrize(
    ("settings", "seed"), [("folder", 0), ("folder", 1), ("folder", 2), ("s3", 0)], indirect=["settings"]
)
def test_random_histories_lose_nothing(settings: Settings, tmp_path: Path, seed: int) -> None:
    """Real stores after a random history: whatever is not retired is whole afterwards, what is served is served."""
    chance = random.Random(seed)
    corpora = ["clinic", "copy"]
    for _ in range(14):
        corpus = chance.choice(corpora)
        deed = chance.choice(["register", "register", "promote", "promote", "retire", "retire", "rollback", "delete"])
        reference = str(chance.randint(1, 4))
        try:
            if deed == "register":
                register(settings, tmp_path, chance.randint(0, 4), corpus)
            elif deed == "promote":
                promote(settings, corpus, reference, alias=chance.choice(["champion", "canary"]), force=True)
            elif deed == "retire":
                retired(settings, corpus, reference)
            elif deed == "rollback":
                rollback(settings, corpus)
            else:
                delete(settings, corpus, reference, force=chance.random() < 0.5)
        except CartridgeError:  # such as promoting what is retired: refused, as it should be
            continue
    with catalog_session(settings, read_only=True) as session:
        before = list_cartridges(session, "default")
    found = find_garbage(settings, NOW)
    with catalog_session(settings, read_only=True) as session:
        assert list_cartridges(session, "default") == before, "looking changed something"
    assert all(removal.removed for removal in remove_garbage(found))
    with catalog_session(settings, read_only=True) as session:
        after = list_cartridges(session, "default")
    assert after == [entry for entry in before if entry.status is not Status.RETIRED]
    for entry in after:
        assert is_whole(settings, entry, tmp_path / "out")
    assert examine(settings, grace=NOW) == []
    assert find_garbage(settings, NOW) == []


def test_the_grace_period_and_the_dry_run(settings: Settings, tmp_path: Path) -> None:
    register(settings, tmp_path, 0)
    entry = register(settings, tmp_path, 1)
    retired(settings, "clinic", "2")
    assert find_garbage(settings, timedelta(days=1)) == []
    (garbage,) = find_garbage(settings, NOW)
    assert (garbage.kind, garbage.size) == ("retired", entry.size_bytes)
    remove_garbage([garbage])
    with catalog_session(settings, read_only=True) as session:
        assert [one.version for one in list_cartridges(session, "default")] == [1]
        assert find_cartridge(session, "default", "clinic", entry.digest).status is Status.DELETED
    assert not [key for key in open_store(settings.artifact_root).list() if entry.digest in key]


def test_one_that_was_pinned_before_it_was_retired_goes(settings: Settings, tmp_path: Path) -> None:
    register(settings, tmp_path, 0)
    with catalog_session(settings) as session:
        record_pin(session, "default", "clinic", "1")
    retire_stage(settings, "clinic", "1")
    assert [(garbage.kind, garbage.subject[:7]) for garbage in find_garbage(settings, NOW)] == [("retired", "clinic/")]


def test_files_that_another_corpus_needs_stay(settings: Settings, tmp_path: Path) -> None:
    register(settings, tmp_path, 0, "clinic")
    kept = register(settings, tmp_path, 0, "copy")
    retired(settings, "clinic", "1")
    (garbage,) = find_garbage(settings, NOW)
    assert garbage.size == 0
    assert remove_garbage([garbage])[0].removed
    assert is_whole(settings, kept, tmp_path / "out")
    assert examine(settings, grace=NOW) == []


def test_uploads_of_writers_that_were_killed(settings: Settings) -> None:
    """What goes on, or may yet be gone on with, is left alone for the grace period."""
    left_upload(settings.artifact_root, "default/cartridges/half/cartridge.safetensors", b"1234")
    assert find_garbage(settings, timedelta(minutes=5)) == []
    (garbage,) = find_garbage(settings, NOW)
    assert (garbage.kind, garbage.size) == ("upload", 4)
    assert remove_garbage([garbage])[0].removed
    assert open_store(settings.artifact_root).unfinished() == []


def test_leftovers_on_this_machine(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "home")
    entry = register(settings, tmp_path)
    work = store_of(settings)

    def interrupted(folder: Path) -> dict[str, Any]:
        (folder / "half").write_bytes(b"1234")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run("ingest", {"a": 1}, interrupted)
    for digest in ("9" * 64, entry.digest):
        cache_folder(settings, digest).mkdir(parents=True)
    assert find_garbage(settings, timedelta(minutes=5)) == []
    assert [(one.kind, one.size) for one in find_garbage(settings, NOW)] == [("unfinished", 4), ("copy", 0)]
    remove_garbage(find_garbage(settings, NOW))
    assert find_garbage(settings, NOW) == []
    assert cache_folder(settings, entry.digest).is_dir()


def test_work_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    settings = embedded(tmp_path / "home")
    work = store_of(settings)

    def long(folder: Path) -> dict[str, Any]:
        (folder / "half").write_bytes(b"1234")
        (unfinished,) = work.unfinished()
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:  # a lock is between processes
            os.write(writer, b"gone" if work.discard(unfinished) else b"kept")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 4) == b"kept"
        return {"at": time.time()}

    work.run("ingest", {"a": 1}, long)
    assert work.unfinished() == []
    (product,) = work.finished("ingest")
    assert not work.discard(product.directory)
