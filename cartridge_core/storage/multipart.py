"""Large files go to S3 in parts; an upload that was interrupted goes on where it stopped."""

import base64
import builtins
import hashlib
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from cartridge_core.errors import StorageError
from cartridge_core.storage.store import Unfinished

_MOST_PARTS = 10_000
_ALGORITHM = "CRC32"
_CHECKSUM = f"Checksum{_ALGORITHM}"
_NO_UPLOAD = "NoSuchUpload"
NOT_THERE = frozenset({"404", "NoSuchKey", "NotFound"})
"""What S3 says where an object is not there."""
_BEGIN_ANEW = frozenset({_NO_UPLOAD, "InvalidPart", "InvalidPartOrder", "InvalidRequest"})
"""What S3 says of an upload that was given up, or begun in another way, and of parts that somebody has replaced."""

Part = dict[str, Any]
"""What S3 says about a part: its number, its ETag, its size, and its checksum where it keeps one."""


@dataclass(frozen=True)
class FileInParts:
    """A file as it goes up: the same parts each time, so that those that are there already can be told."""

    path: Path
    """The file."""
    size: int
    """Its bytes in number, when the upload began."""
    part_bytes: int
    """Bytes of each part but the last."""

    @classmethod
    def of(cls, path: Path, part_bytes: int) -> "FileInParts":
        """Cut a file; into larger parts than asked for where it would be more than S3 takes."""
        size = path.stat().st_size
        while size > part_bytes * _MOST_PARTS:
            part_bytes *= 2
        return cls(path, size, part_bytes)

    @property
    def numbers(self) -> range:
        """Numbers of the parts, from 1."""
        return range(1, -(-self.size // self.part_bytes) + 1)

    def read(self, number: int) -> bytes:
        """A part's bytes.

        Raises:
            StorageError: The file has become shorter.
        """
        start = (number - 1) * self.part_bytes
        with self.path.open("rb") as stream:
            stream.seek(start)
            data = stream.read(self.part_bytes)
        if len(data) != min(self.part_bytes, self.size - start):
            raise StorageError(f"{self.path} was changed while it was being stored.", "Store it again.")
        return data


def is_same(part: Part, data: bytes) -> bool:
    """Whether a part that S3 has is made of these bytes: by its checksum, else by its ETag, which is mostly an MD5."""
    if part["Size"] != len(data):
        return False
    if _CHECKSUM in part:
        return bool(part[_CHECKSUM] == base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode())
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return bool(part["ETag"].strip('"') == digest)


class Uploads:
    """Multipart uploads into one bucket.

    Methods raise botocore's errors, which the store explains.

    Args:
        client: boto3's client.
        bucket: The bucket's name.
        threads: Parts at once.
    """

    def __init__(self, client: Any, bucket: str, threads: int) -> None:
        self._client, self._bucket, self._threads = client, bucket, threads
        # Every part carries a checksum that S3 verifies, unless AWS_REQUEST_CHECKSUM_CALCULATION says otherwise.
        wanted = client.meta.config.request_checksum_calculation == "when_supported"
        self._checksum = {"ChecksumAlgorithm": _ALGORITHM} if wanted else {}

    def send(self, file: FileInParts, key: str) -> None:
        """Store a file under a key; parts that an earlier upload of the key has brought there are not sent again.

        An upload that fails is left for the next one to go on with. Once the object is there, other uploads of its key
        are given up.

        Raises:
            StorageError: The file has become shorter.
        """
        upload_id, there = self._begun(file, key)
        for may_begin_anew in (True, False):
            try:
                self._finish(file, key, upload_id or self._begin(key), there)
                break
            except ClientError as error:
                if error_code(error) == _NO_UPLOAD and self._is_there(key):
                    # Another writer of this key was done first and gave our upload up: its object has replaced ours.
                    break
                if not may_begin_anew or error_code(error) not in _BEGIN_ANEW:
                    raise
            upload_id, there = None, {}
        for upload in self._listed(key):
            if upload["Key"] == key:
                self.abort(key, upload["UploadId"])

    def unfinished(self, prefix: str) -> builtins.list[Unfinished]:
        """Uploads that are going on or were left, of keys that begin so; each with its full key."""
        found = []
        for upload in self._listed(prefix):
            parts = self._parts(upload["Key"], upload["UploadId"])
            alive = [upload["Initiated"], *(part["LastModified"] for part in parts)]
            newest: datetime = max(alive).astimezone(UTC)
            size = sum(int(part["Size"]) for part in parts)
            found.append(Unfinished(upload["Key"], upload["UploadId"], newest, size))
        return found

    def abort(self, key: str, upload_id: str) -> None:
        """Give an upload's parts up; one that is gone is no error."""
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)
        except ClientError as error:
            if error_code(error) != _NO_UPLOAD:
                raise

    def _begun(self, file: FileInParts, key: str) -> tuple[str | None, dict[int, Part]]:
        """The upload of this key that has most of the file, and which of its parts."""
        best: tuple[str | None, dict[int, Part]] = (None, {})
        for upload in self._listed(key):
            algorithm = upload.get("ChecksumAlgorithm", self._checksum.get("ChecksumAlgorithm"))
            if upload["Key"] != key or algorithm != self._checksum.get("ChecksumAlgorithm"):
                continue
            parts = {int(part["PartNumber"]): part for part in self._parts(key, upload["UploadId"])}
            same = {n: parts[n] for n in file.numbers if n in parts and is_same(parts[n], file.read(n))}
            if len(same) > len(best[1]):
                best = upload["UploadId"], same
        return best

    def _begin(self, key: str) -> str:
        begun = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, **self._checksum)
        return str(begun["UploadId"])

    def _finish(self, file: FileInParts, key: str, upload_id: str, there: Mapping[int, Part]) -> None:
        place = {"Bucket": self._bucket, "Key": key, "UploadId": upload_id}

        def send(number: int) -> Part:
            data = file.read(number)
            told = self._client.upload_part(**place, PartNumber=number, Body=data, **self._checksum)
            return {"PartNumber": number, **told}

        # What has not begun when a part fails is not sent.
        with ThreadPoolExecutor(self._threads) as pool:
            sent = list(pool.map(send, [number for number in file.numbers if number not in there]))
        wanted = ("PartNumber", "ETag", _CHECKSUM)
        parts = sorted([*there.values(), *sent], key=lambda part: part["PartNumber"])
        named = [{name: part[name] for name in wanted if name in part} for part in parts]
        self._client.complete_multipart_upload(**place, MultipartUpload={"Parts": named})

    def _is_there(self, key: str) -> bool:
        try:
            self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if error_code(error) in NOT_THERE:
                return False
            raise
        return True

    def _listed(self, prefix: str) -> builtins.list[dict[str, Any]]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
        return [upload for page in pages for upload in page.get("Uploads", ())]

    def _parts(self, key: str, upload_id: str) -> builtins.list[Part]:
        asked = {"Bucket": self._bucket, "Key": key, "UploadId": upload_id}
        try:
            pages = self._client.get_paginator("list_parts").paginate(**asked)
            return [part for page in pages for part in page.get("Parts", ())]
        except ClientError as error:
            if error_code(error) != _NO_UPLOAD:  # it has just come to its end
                raise
            return []


def error_code(error: ClientError) -> str:
    """S3's own word for what went wrong."""
    return str(error.response.get("Error", {}).get("Code", ""))
