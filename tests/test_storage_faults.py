"""S3 that answers 500, hangs or cuts bodies; writers that are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cartridge_core.errors import StorageError
from cartridge_core.storage import LocalStore, Unfinished
from cartridge_core.storage.s3 import S3Limits, S3Store
from tests.s3 import make_bucket, s3_server, s3_variables
from tests.s3_proxy import Faults, s3_proxy

BUCKET = "faulty"
LARGE = 3 * (5 << 20) + 17
LIMITS = S3Limits(connect_s=1, read_s=0.4, attempts=3, part_bytes=5 << 20, threads=3)


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[str, str, Faults]]:
    with s3_server() as endpoint, s3_proxy(endpoint) as (url, faults):
        yield endpoint, url, faults


@pytest.fixture
def faults(proxied: tuple[str, str, Faults], monkeypatch: pytest.MonkeyPatch) -> Faults:
    endpoint, url, faults = proxied
    for name, value in s3_variables(endpoint).items():
        monkeypatch.setenv(name, value)
    make_bucket(BUCKET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    faults.of, faults.hang_s = (lambda method, path, times: None), 1.0
    faults.asked.clear()
    return faults


@pytest.fixture
def store(faults: Faults) -> S3Store:
    return S3Store(BUCKET, "root", LIMITS)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE))
    return path


def uploads() -> int:
    return len(boto3.client("s3").list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()))


@pytest.mark.parametrize("fault", ["500", "hang", "cut"])
def test_what_goes_wrong_once_is_done_again(store: S3Store, faults: Faults, fault: str, large: Path) -> None:
    faults.of = lambda method, path, times: fault if times == 0 and (method, fault) != ("HEAD", "cut") else None
    store.write_bytes("small", b"small" * 100)
    assert store.read_bytes("small") == b"small" * 100
    store.put_file(large, "large")
    target = large.with_name("target")
    store.get_file("large", target)
    assert target.read_bytes() == large.read_bytes()
    assert store.size("large") == LARGE
    assert store.list() == ["large", "small"]
    assert uploads() == 0
    assert max(faults.asked.values()) > 1


@pytest.mark.parametrize("fault", ["500", "hang", "cut"])
def test_what_goes_wrong_for_good_is_told_in_bounded_time(
    store: S3Store, faults: Faults, fault: str, large: Path
) -> None:
    store.put_file(large, "large")
    faults.of = lambda method, path, times: fault if method in ("GET", "PUT") else None
    started = time.monotonic()
    target = large.with_name("target")
    for use in (
        lambda: store.get_file("large", target),
        lambda: store.read_bytes("large"),
        *([lambda: store.write_bytes("small", b"x")] if fault != "cut" else []),
    ):
        with pytest.raises(StorageError, match=r"Cannot (read large|store small) in s3://faulty/root"):
            use()
    assert time.monotonic() - started < 60
    assert not target.exists()
    assert not list(large.parent.glob(".target*"))


def test_a_large_upload_that_fails_is_taken_back(store: S3Store, faults: Faults, large: Path) -> None:
    faults.of = lambda method, path, times: "500" if method == "PUT" and "partNumber=3" in path else None
    with pytest.raises(StorageError, match="out of order"):
        store.put_file(large, "large")
    assert not store.exists("large")
    assert uploads() == 0
    faults.of = lambda method, path, times: None
    store.put_file(large, "large")
    assert store.size("large") == LARGE


def test_a_damaged_part_is_refused_by_its_checksum(store: S3Store, large: Path) -> None:
    """Each part goes up with a checksum of its own, which the server is asked to keep."""
    sums: list[str] = []
    store._client.meta.events.register(
        "before-send.s3.UploadPart",
        lambda request, **more: sums.append(next(n for n in request.headers if n.lower().startswith("x-amz-checksum"))),
    )
    store.put_file(large, "large")
    assert len(sums) == 4


def test_an_upload_that_is_killed_is_seen_and_given_up_by_the_next(store: S3Store, faults: Faults, large: Path) -> None:
    faults.of = lambda method, path, times: "hang" if method == "PUT" and "partNumber=4" in path else None
    faults.hang_s = 20
    code = (
        "import sys; from pathlib import Path; from cartridge_core.storage.s3 import S3Store, S3Limits;"
        f"S3Store({BUCKET!r}, 'root', S3Limits(part_bytes=5 << 20)).put_file(Path({str(large)!r}), 'large')"
    )
    writer = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    # Parts go up at the same time: the last one hangs, one of the others has to be there.
    while sum(one.size for one in store.unfinished()) < 5 << 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (left,) = store.unfinished()
    assert (left.key, store.exists("large")) == ("large", False)
    assert left.size >= 5 << 20
    faults.of = lambda method, path, times: None
    store.put_file(large, "large")
    assert store.unfinished() == []
    assert store.size("large") == LARGE


def test_the_second_of_two_writers_gives_the_first_ones_upload_up(store: S3Store, faults: Faults, large: Path) -> None:
    """The first finds its upload gone, and the object there: as if the second had replaced its own."""
    other = S3Store(BUCKET, "root", LIMITS)
    seen = []

    def meanwhile(**more: object) -> None:
        if not seen:
            seen.append(True)
            other.put_file(large, "large")
            # As S3 says it; the server of these tests answers 500 instead.
            faults.of = lambda method, path, times: "gone" if method == "POST" else None

    store._client.meta.events.register("before-send.s3.CompleteMultipartUpload", meanwhile)
    store.put_file(large, "large")
    assert seen
    assert store.size("large") == LARGE
    assert store.unfinished() == []


def test_leftovers_of_other_keys_stay(store: S3Store, large: Path) -> None:
    client = boto3.client("s3")
    client.create_multipart_upload(Bucket=BUCKET, Key="root/large-2")
    client.create_multipart_upload(Bucket=BUCKET, Key="elsewhere")
    store.put_file(large, "large")
    (left,) = store.unfinished()
    assert left.key == "large-2"
    store.abandon(left)
    store.abandon(left)
    assert store.unfinished() == []
    assert uploads() == 1


def test_leftovers_of_a_local_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write_bytes("folder/key", b"here")
    (tmp_path / "folder" / ".key.abcd1234.tmp").write_bytes(b"half")
    (tmp_path / "folder" / ".hidden").write_bytes(b"not ours")
    (left,) = store.unfinished()
    assert (left.key, left.size) == ("folder/key", 4)
    with pytest.raises(StorageError, match="no writer's leftover"):
        store.abandon(Unfinished("folder/key", "folder/key", left.started_at, 4))
    store.abandon(left)
    store.abandon(left)
    assert store.unfinished() == []
    assert (tmp_path / "folder" / ".hidden").exists()
    assert store.read_bytes("folder/key") == b"here"
