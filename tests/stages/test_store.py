"""The digest store: work is done once, whatever happens on the way."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cartridge_core.errors import ArtifactError, StorageError
from cartridge_core.stages import store as store_module
from cartridge_core.stages.store import MARKER, StageStore


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "stages")


def writes(text: str, calls: list[str] | None = None):  # type: ignore[no-untyped-def]
    def work(directory: Path) -> dict[str, str]:
        if calls is not None:
            calls.append(text)
        (directory / "product.txt").write_text(text, encoding="utf-8")
        return {"text": text}

    return work


def test_work_is_done_once(store: StageStore) -> None:
    calls: list[str] = []
    first = store.run("fit", {"corpus": "a"}, writes("one", calls))
    second = store.run("fit", {"corpus": "a"}, writes("two", calls))
    assert calls == ["one"]
    assert (first.cached, second.cached) == (False, True)
    assert second.facts == {"text": "one"}
    assert second.directory == first.directory
    assert second.seconds == first.seconds


def test_key_depends_on_stage_inputs_and_recipe(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = store.key("fit", {"a": 1, "b": 2})
    assert key == store.key("fit", {"b": 2, "a": 1})
    assert key != store.key("study", {"a": 1, "b": 2})
    assert key != store.key("fit", {"a": 1, "b": 3})
    monkeypatch.setitem(store_module.RECIPES, "fit", store_module.RECIPES["fit"] + 1)
    assert key != store.key("fit", {"a": 1, "b": 2})


def test_failed_work_is_not_finished_and_starts_clean(store: StageStore) -> None:
    def fails(directory: Path) -> dict[str, str]:
        (directory / "half.txt").write_text("half", encoding="utf-8")
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError):
        store.run("fit", {}, fails)
    assert store.find("fit", {}) is None
    done = store.run("fit", {}, writes("whole"))
    assert sorted(path.name for path in done.directory.iterdir()) == ["product.txt", MARKER]


def test_resumable_work_finds_what_it_left(store: StageStore) -> None:
    def stops(directory: Path) -> dict[str, str]:
        (directory / "shard-0").write_text("kept", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run("study", {}, stops, resumable=True)
    done = store.run("study", {}, lambda directory: {"found": (directory / "shard-0").exists()}, resumable=True)
    assert done.facts == {"found": True}


def test_a_killed_owner_leaves_no_lock(store: StageStore) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from cartridge_core.stages.store import StageStore\n"
        "StageStore(Path(sys.argv[1])).run('fit', {}, lambda directory: os.kill(os.getpid(), signal.SIGKILL))"
    )
    died = subprocess.run([sys.executable, "-c", code, str(store.root)], check=False)
    assert died.returncode == -9
    assert store.run("fit", {}, writes("after")).facts == {"text": "after"}


def test_two_at_once_work_once(store: StageStore) -> None:
    calls: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def slow(directory: Path) -> dict[str, str]:
        entered.set()
        assert leave.wait(10)
        return writes("slow", calls)(directory)  # type: ignore[no-any-return]

    results = {}
    owner = threading.Thread(target=lambda: results.update(owner=store.run("fit", {}, slow)))
    other = threading.Thread(target=lambda: results.update(other=store.run("fit", {}, writes("other", calls))))
    owner.start()
    assert entered.wait(10)
    other.start()
    leave.set()
    owner.join(10)
    other.join(10)
    assert calls == ["slow"]
    assert results["other"].cached
    assert results["other"].facts == {"text": "slow"}


def test_finished_lists_oldest_first_without_unfinished(store: StageStore) -> None:
    for name in ("b", "a"):
        store.run("fit", {"name": name}, writes(name))
    (store.root / "fit" / "unfinished").mkdir()
    assert [product.facts["text"] for product in store.finished("fit")] == ["b", "a"]
    assert store.finished("study") == []


def test_forgotten_work_is_done_again(store: StageStore) -> None:
    product = store.run("fit", {}, writes("one"))
    store.forget(product)
    assert not product.directory.exists()
    assert not store.run("fit", {}, writes("two")).cached


def test_a_marker_that_is_not_json_is_refused_by_name(store: StageStore) -> None:
    product = store.run("fit", {}, writes("one"))
    (product.directory / MARKER).write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"stage\.json is not JSON"):
        store.find("fit", {})


def test_marker_says_what_it_was_made_from(store: StageStore) -> None:
    product = store.run("fit", {"corpus": "a"}, writes("one"))
    record = json.loads((product.directory / MARKER).read_text(encoding="utf-8"))
    assert record["inputs"] == {"corpus": "a"}
    assert record["key"] == product.key == product.directory.name


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_and_the_work_goes_on_once_there_is_room(store: StageStore) -> None:
    def full(directory: Path) -> dict[str, str]:
        (directory / "shard-0").write_text("kept", encoding="utf-8")
        with Path("/dev/full").open("w") as device:
            device.write("more")
        return {}

    with pytest.raises(StorageError, match="no space left") as told:
        store.run("study", {"corpus": "a"}, full, resumable=True)
    assert str(store.root) in str(told.value)
    made = store.run("study", {"corpus": "a"}, lambda directory: {"there": (directory / "shard-0").read_text()}, True)
    assert made.facts == {"there": "kept"}
