import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cartridge_core.errors import StorageError
from cartridge_core.storage import LocalStore, ObjectStore, delete_folder, get_folder, open_store, put_folder
from cartridge_core.storage.s3 import S3Store
from tests.s3 import left_upload, make_bucket, s3_server, s3_variables

BUCKET = "foundry"


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The endpoint, with the variables set that a user would set; the bucket is there and empty."""
    for name, value in s3_variables(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    make_bucket(BUCKET)
    return s3_endpoint


@pytest.fixture(params=["local", "s3", "s3-without-prefix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("s3")
    return open_store(f"s3://{BUCKET}/some/prefix" if request.param == "s3" else f"s3://{BUCKET}")


class TestStore:
    """What every store does."""

    def test_bytes_come_back(self, store: ObjectStore) -> None:
        store.write_bytes("a/b.bin", b"\x00one")
        assert store.read_bytes("a/b.bin") == b"\x00one"
        assert store.size("a/b.bin") == 4
        assert abs((datetime.now(UTC) - store.modified_at("a/b.bin")).total_seconds()) < 60
        assert store.unfinished() == []
        assert store.exists("a/b.bin")

    def test_files_come_back(self, store: ObjectStore, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "new" / "target"
        source.write_bytes(os.urandom(100_000))
        store.put_file(source, "deep/er/file")
        store.get_file("deep/er/file", target)
        assert target.read_bytes() == source.read_bytes()

    def test_a_file_larger_than_one_part_comes_back(self, store: ObjectStore, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(os.urandom(9 << 20))
        store.put_file(source, "large")
        assert store.size("large") == 9 << 20
        store.get_file("large", target)
        assert target.read_bytes() == source.read_bytes()

    def test_writing_again_replaces(self, store: ObjectStore) -> None:
        store.write_bytes("key", b"long before")
        store.write_bytes("key", b"after")
        assert store.read_bytes("key") == b"after"

    def test_empty_objects_are_objects(self, store: ObjectStore) -> None:
        store.write_bytes("empty", b"")
        assert store.exists("empty")
        assert store.size("empty") == 0
        assert store.read_bytes("empty") == b""

    def test_what_is_not_there(self, store: ObjectStore, tmp_path: Path) -> None:
        assert not store.exists("gone")
        for read in (
            store.read_bytes,
            store.size,
            store.modified_at,
            lambda key: store.get_file(key, tmp_path / "target"),
        ):
            with pytest.raises(StorageError, match=r"no object .gone. in .*Check the artifact root"):
                read("gone")
        assert not (tmp_path / "target").exists()
        assert not list(tmp_path.glob(".target*"))

    def test_a_folder_is_no_object(self, store: ObjectStore) -> None:
        store.write_bytes("folder/file", b"1")
        assert not store.exists("folder")

    def test_listing_is_sorted_and_by_folder(self, store: ObjectStore) -> None:
        assert store.list() == []
        for key in ("b/2", "b/1", "ba/3", "a", "b/c/4"):
            store.write_bytes(key, b"x")
        assert store.list() == ["a", "b/1", "b/2", "b/c/4", "ba/3"]
        assert store.list("b") == ["b/1", "b/2", "b/c/4"]
        assert store.list("nothing") == []

    def test_deleting_can_be_repeated(self, store: ObjectStore) -> None:
        store.write_bytes("a/b/c", b"1")
        store.write_bytes("a/d", b"2")
        store.delete("a/b/c")
        store.delete("a/b/c")
        assert store.list() == ["a/d"]

    def test_the_url_leads_to_the_object(self, store: ObjectStore) -> None:
        store.write_bytes("folder/key", b"here")
        url = store.url("folder/key")
        root, _, key = url.rpartition("/")
        assert open_store(root).read_bytes(key) == b"here"
        assert url == f"{store.root}/folder/key"

    @pytest.mark.parametrize(
        "key",
        ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", ".", "a/./b", ".hidden", "a\\..\\b", "a\nb", "a\0b"],
    )
    def test_keys_cannot_leave_the_root(self, store: ObjectStore, key: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x")
        for use in (
            lambda: store.write_bytes(key, b"x"),
            lambda: store.read_bytes(key),
            lambda: store.put_file(tmp_path / "file", key),
            lambda: store.get_file(key, tmp_path / "target"),
            lambda: store.exists(key),
            lambda: store.size(key),
            lambda: store.delete(key),
            lambda: store.url(key),
        ):
            with pytest.raises(StorageError, match="cannot be the key"):
                use()
        if key:
            with pytest.raises(StorageError, match="cannot be the key"):
                store.list(key)

    def test_keys_are_no_longer_than_every_store_can_bear(self, store: ObjectStore) -> None:
        store.write_bytes("/".join(["x" * 100] * 8), b"x")
        for key in ("x" * 201, "/".join(["x" * 100] * 10)):
            with pytest.raises(StorageError, match="too long"):
                store.write_bytes(key, b"x")

    def test_odd_but_harmless_keys_work(self, store: ObjectStore) -> None:
        for key in ("with space", "plus+and%percent", "umläut", "a..b", "tilde~"):
            store.write_bytes(key, key.encode())
        assert all(store.read_bytes(key) == key.encode() for key in store.list())
        assert len(store.list()) == 5

    def test_a_source_that_is_no_file(self, store: ObjectStore, tmp_path: Path) -> None:
        for source in (tmp_path / "gone", tmp_path):
            with pytest.raises(StorageError, match="Cannot store"):
                store.put_file(source, "key")
        assert store.list() == []

    def test_folders_are_committed_by_their_last_file(self, store: ObjectStore, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "data").write_bytes(b"12345")
        (folder / "other").write_bytes(b"not asked for")
        with pytest.raises(StorageError):
            put_folder(store, folder, "f", ("data", "manifest"))
        with pytest.raises(StorageError, match="nothing complete at 'f'"):
            get_folder(store, "f", tmp_path / "out", ("data", "manifest"))
        (folder / "manifest").write_bytes(b"12")
        assert put_folder(store, folder, "f", ("data", "manifest")) == 7
        assert store.list() == ["f/data", "f/manifest"]
        get_folder(store, "f", tmp_path / "out", ("data", "manifest"))
        assert (tmp_path / "out" / "data").read_bytes() == b"12345"
        assert delete_folder(store, "f", "manifest") == ("f/data", "f/manifest")
        assert delete_folder(store, "f", "manifest") == ()

    def test_what_was_begun_in_a_folder_goes_with_it(self, store: ObjectStore) -> None:
        for key in ("f/data", "f2/data"):
            left_upload(store.root, key)
        assert [left.key for left in store.unfinished()] == ["f/data", "f2/data"]
        assert [left.key for left in store.unfinished("f")] == ["f/data"]
        store.write_bytes("f/manifest", b"12")
        assert delete_folder(store, "f", "manifest") == ("f/manifest",)
        assert [(left.key, left.size) for left in store.unfinished()] == [("f2/data", 4)]


def test_a_writer_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """The source is a pipe that never ends, so the writer is surely killed in the middle."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = (
        "import sys; from pathlib import Path; from cartridge_core.storage import LocalStore;"
        f"LocalStore({str(tmp_path / 'store')!r}).put_file(Path({str(pipe)!r}), 'folder/key')"
    )
    LocalStore(tmp_path / "store").write_bytes("folder/key", b"before")
    writer = subprocess.Popen([sys.executable, "-c", code])
    with pipe.open("wb") as stream:
        stream.write(b"half")
        stream.flush()
        deadline = time.monotonic() + 30
        while len(list((tmp_path / "store" / "folder").iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    store = LocalStore(tmp_path / "store")
    assert len(list((tmp_path / "store" / "folder").iterdir())) == 2, "the writer was killed before it began"
    assert store.list() == ["folder/key"]
    assert store.read_bytes("folder/key") == b"before"


def test_a_link_in_a_local_store_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"secret")
    store = LocalStore(tmp_path / "store")
    store.write_bytes("a", b"1")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    for use in (
        lambda: store.read_bytes("link/file"),
        lambda: store.write_bytes("link/new", b"x"),
        lambda: store.delete("link/file"),
        lambda: store.list("link"),
    ):
        with pytest.raises(StorageError, match="leads out of"):
            use()
    assert store.list() == ["a"]
    assert (tmp_path / "secret" / "file").read_bytes() == b"secret"


def test_deleting_leaves_no_empty_folders(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.write_bytes("a/b/c", b"1")
    store.delete("a/b/c")
    assert list((tmp_path / "store").iterdir()) == []


def test_objects_can_be_read_by_a_server_that_runs_as_another_user(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write_bytes("key", b"1")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("url", ["s3://", "gs://bucket/x", "file://host/x"])
def test_what_is_no_artifact_root(url: str) -> None:
    with pytest.raises(StorageError, match="not an artifact root"):
        open_store(url)


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert open_store((tmp_path / "with space").as_uri()).root == str(tmp_path / "with space")


def test_a_bucket_that_is_not_there(s3: str) -> None:
    store = S3Store("no-such-bucket", "prefix")
    for use in (lambda: store.write_bytes("key", b"x"), store.list):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket/prefix: .*Check the bucket's name"):
            use()


def test_an_endpoint_that_does_not_answer(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match="Check AWS_ENDPOINT_URL"):
        S3Store(BUCKET).read_bytes("key")
