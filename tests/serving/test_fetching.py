"""Files of a Cartridge from a store, and what is done about wrong ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import PublishingError
from cartridge_core.models import BaseModel
from cartridge_core.publishing.artifact import CARTRIDGE_FILES, cartridge_key
from cartridge_core.serving.errors import ArtifactUnavailableError, DamagedCartridgeError
from cartridge_core.serving.fetching import fetch_cartridge, fetch_files
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.settings import Settings
from cartridge_core.stages.local_copies import LocalCopies, cache_folder
from cartridge_core.storage import open_store, put_folder
from tests.samples import cartridge_of


def stored(settings: Settings, cartridge: Cartridge, folder: Path) -> ResolvedCartridge:
    key = cartridge_key("default", cartridge.digest)
    put_folder(open_store(settings.artifact_root), cartridge.save(folder), key, CARTRIDGE_FILES)
    return resolved(cartridge, key)


def resolved(cartridge: Cartridge, key: str, corpus: str = "clinic") -> ResolvedCartridge:
    return ResolvedCartridge(
        tenant="default",
        corpus=corpus,
        version=1,
        alias="champion",
        aliases=("champion",),
        digest=cartridge.digest,
        base_model=cartridge.manifest.base_model,
        num_tokens=cartridge.num_tokens,
        kv_bytes=cartridge.kv_bytes,
        artifact_key=key,
        corpus_digest="a" * 64,
        created_at="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def wanted(settings: Settings, tiny_base: Callable[[str], BaseModel], tmp_path: Path) -> ResolvedCartridge:
    return stored(settings, cartridge_of(tiny_base("qwen2"), [5, 6, 7, 8]), tmp_path / "made")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_fetched_once_and_found_again(settings: Settings, wanted: ResolvedCartridge) -> None:
    assert fetch_cartridge(LocalCopies(settings), wanted).digest == wanted.digest
    for name in CARTRIDGE_FILES:
        open_store(settings.artifact_root).delete(f"{wanted.artifact_key}/{name}")
    assert fetch_cartridge(LocalCopies(settings), wanted).digest == wanted.digest
    assert [path.name for path in cache_folder(settings, wanted.digest).parent.iterdir()] == [wanted.digest]


def test_a_damaged_copy_is_fetched_again(settings: Settings, wanted: ResolvedCartridge) -> None:
    fetch_cartridge(LocalCopies(settings), wanted)
    flip(cache_folder(settings, wanted.digest) / CARTRIDGE_FILES[0])
    assert fetch_cartridge(LocalCopies(settings), wanted).digest == wanted.digest


def test_a_damaged_original_is_refused_each_time(settings: Settings, wanted: ResolvedCartridge) -> None:
    flip(Path(settings.artifact_root, wanted.artifact_key, CARTRIDGE_FILES[0]))
    for _ in range(2):
        with pytest.raises(DamagedCartridgeError, match="not those that were registered"):
            fetch_cartridge(LocalCopies(settings), wanted)
    assert not cache_folder(settings, wanted.digest).exists()


def test_no_byte_can_change_unseen(settings: Settings, wanted: ResolvedCartridge) -> None:
    served = [cache_folder(settings, wanted.digest) / name for name in CARTRIDGE_FILES]
    fetch_cartridge(LocalCopies(settings), wanted)
    whole = [path.read_bytes() for path in served]
    originals = [Path(settings.artifact_root, wanted.artifact_key, name) for name in CARTRIDGE_FILES]
    for original, data in zip(originals, whole, strict=True):
        for place in {*range(0, len(data), 7), *range(16), len(data) - 1}:
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            original.write_bytes(changed)
            with pytest.raises(DamagedCartridgeError):
                shutil.rmtree(served[0].parent, ignore_errors=True)
                fetch_cartridge(LocalCopies(settings), wanted)
        for cut in (b"", data[:-1], data + b"\0"):
            original.write_bytes(cut)
            with pytest.raises(DamagedCartridgeError):
                fetch_cartridge(LocalCopies(settings), wanted)
        original.write_bytes(data)
    assert fetch_cartridge(LocalCopies(settings), wanted).digest == wanted.digest


def test_another_whole_cartridge_in_its_place_is_refused(
    settings: Settings, wanted: ResolvedCartridge, tiny_base: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    other = cartridge_of(tiny_base("qwen2"), [9, 9, 9]).save(tmp_path / "other")
    put_folder(open_store(settings.artifact_root), other, wanted.artifact_key, CARTRIDGE_FILES)
    with pytest.raises(DamagedCartridgeError):
        fetch_cartridge(LocalCopies(settings), wanted)


def test_a_store_without_it_may_have_it_later(settings: Settings, wanted: ResolvedCartridge) -> None:
    open_store(settings.artifact_root).delete(f"{wanted.artifact_key}/{CARTRIDGE_FILES[-1]}")
    with pytest.raises(ArtifactUnavailableError) as refusal:
        fetch_cartridge(LocalCopies(settings), wanted)
    assert (refusal.value.status, refusal.value.retry_after) == (503, 5.0)
    assert not cache_folder(settings, wanted.digest).parent.exists()


def test_files_alone_are_verified_and_another_tenants_wish_removes_nothing(
    tiny_base: Callable[[str], BaseModel], settings: Settings, tmp_path: Path
) -> None:
    cartridge = cartridge_of(tiny_base("llama"), [5, 6, 7, 8])
    stored(settings, cartridge, tmp_path / "made")
    assert fetch_files(LocalCopies(settings), "default", cartridge.digest) == cartridge.stored_bytes
    tensors = cache_folder(settings, cartridge.digest) / CARTRIDGE_FILES[0]
    with pytest.raises(PublishingError, match="belongs to tenant 'default'"):
        fetch_files(LocalCopies(settings), "other", cartridge.digest)
    assert tensors.exists()
    # A damaged copy is fetched again.
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert fetch_files(LocalCopies(settings), "default", cartridge.digest) == cartridge.stored_bytes
