"""S3 that answers 500, hangs or cuts bodies; writers that are killed."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest

from cartridge_core.errors import StorageError
from cartridge_core.storage import LocalStore, Unfinished
from cartridge_core.storage.multipart import FileInParts, is_same
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


def sent(faults: Faults) -> list[int]:
    """Numbers of the parts that were sent."""
    found = (re.search(r"partNumber=(\d+)", path) for method, path in faults.asked if method == "PUT")
    return sorted(int(number[1]) for number in found if number)


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


def test_a_large_upload_that_fails_is_gone_on_with(store: S3Store, faults: Faults, large: Path) -> None:
    faults.of = lambda method, path, times: "500" if method == "PUT" and "partNumber=3" in path else None
    with pytest.raises(StorageError, match="out of order"):
        store.put_file(large, "large")
    assert not store.exists("large")
    (left,) = store.unfinished()
    assert abs((datetime.now(UTC) - left.started_at).total_seconds()) < 60, "it was alive until now"
    faults.of = lambda method, path, times: None
    faults.asked.clear()
    store.put_file(large, "large")
    assert {3} <= set(sent(faults)) < {1, 2, 3, 4}
    assert store.read_bytes("large") == large.read_bytes()
    assert uploads() == 0


def test_a_damaged_part_is_refused_by_its_checksum(store: S3Store, large: Path) -> None:
    """Each part goes up with a checksum of its own, which the server is asked to keep."""
    sums: list[str] = []
    store._client.meta.events.register(
        "before-send.s3.UploadPart",
        lambda request, **more: sums.append(next(n for n in request.headers if n.lower().startswith("x-amz-checksum"))),
    )
    store.put_file(large, "large")
    assert len(sums) == 4


def test_an_upload_that_is_killed_goes_on_where_it_stopped(store: S3Store, faults: Faults, large: Path) -> None:
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
    there = left.size // (5 << 20)
    assert there >= 1
    faults.of = lambda method, path, times: None
    faults.asked.clear()
    store.put_file(large, "large")
    assert len(sent(faults)) == 4 - there, "only what was missing"
    assert not any(method == "POST" and path.endswith("?uploads") for method, path in faults.asked), "no new upload"
    assert store.unfinished() == []
    assert hashlib.sha256(store.read_bytes("large")).digest() == hashlib.sha256(large.read_bytes()).digest()


def left_behind(*parts: bytes, key: str = "root/large") -> str:
    """An upload of somebody who got so far."""
    client = boto3.client("s3")
    begun = client.create_multipart_upload(Bucket=BUCKET, Key=key, ChecksumAlgorithm="CRC32")
    place = {"Bucket": BUCKET, "Key": key, "UploadId": begun["UploadId"]}
    for number, data in enumerate(parts, 1):
        client.upload_part(**place, PartNumber=number, Body=data, ChecksumAlgorithm="CRC32")
    return str(begun["UploadId"])


def test_parts_that_differ_are_sent_again(store: S3Store, faults: Faults, large: Path) -> None:
    """One with a bit that is wrong, one of another length; and nothing is taken from a file that shares no part."""
    data = large.read_bytes()
    one, two, three = (data[start : start + (5 << 20)] for start in range(0, 15 << 20, 5 << 20))
    left_behind(b"x" * (5 << 20), b"y" * (5 << 20), b"z" * (5 << 20), b"z" * 17)
    gone_on_with = left_behind(one, bytes([two[0] ^ 1]) + two[1:], three[:-1])
    faults.asked.clear()
    store.put_file(large, "large")
    assert sent(faults) == [2, 3, 4]
    assert all(gone_on_with in path for method, path in faults.asked if "partNumber" in path)
    assert store.read_bytes("large") == data
    assert uploads() == 0


def test_whoever_replaces_a_part_meanwhile_does_no_harm(store: S3Store, faults: Faults, large: Path) -> None:
    """Another writer of the key goes on with the same upload and has other bytes: the file goes up again by itself."""
    data = large.read_bytes()
    shared, seen = left_behind(data[: 5 << 20]), []

    def meanwhile(**more: object) -> None:
        if not seen:
            place = {"Bucket": BUCKET, "Key": "root/large", "UploadId": shared}
            seen.append(boto3.client("s3").upload_part(**place, PartNumber=1, Body=b"x" * (5 << 20)))

    store._client.meta.events.register("before-send.s3.CompleteMultipartUpload", meanwhile)
    store.put_file(large, "large")
    assert seen
    assert store.read_bytes("large") == data
    assert uploads() == 0


def test_what_a_part_is_compared_by() -> None:
    """A checksum where the service keeps one, as AWS does; its ETag is no MD5 where a key of the KMS encrypts."""
    crc32 = {"ChecksumCRC32": "NSRBwg==", "ETag": '"of the KMS"', "Size": 3}
    assert is_same(crc32, b"abc")
    assert not is_same(crc32, b"abd")
    assert not is_same(crc32 | {"Size": 4}, b"abc")
    md5 = {"ETag": '"900150983cd24fb0d6963f7d28e17f72"', "Size": 3}
    assert is_same(md5, b"abc")
    assert not is_same(md5, b"abd")


def test_files_of_any_length_have_as_many_parts_as_s3_takes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(20_001))
    file = FileInParts.of(path, 1)
    assert (file.part_bytes, len(file.numbers)) == (4, 5001)
    assert file.read(5001) == b"\0"
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="was changed while"):
        file.read(1)


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
