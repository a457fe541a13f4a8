"""A bucket of an S3-compatible service as an object store."""

import builtins
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError

from cartridge_core.atomic_file import atomic_file
from cartridge_core.errors import StorageError
from cartridge_core.storage.multipart import NOT_THERE, FileInParts, Uploads, error_code
from cartridge_core.storage.store import Unfinished, checked_key, missing


@dataclass(frozen=True)
class S3Limits:
    """How long and how often S3 is asked, and in which pieces. No call waits longer than attempts times seconds."""

    connect_s: float = 5.0
    """Seconds to wait for a connection."""
    read_s: float = 30.0
    """Seconds to wait for the next bytes."""
    attempts: int = 4
    """How often a request is sent before it fails; AWS_MAX_ATTEMPTS wins."""
    part_bytes: int = 8 << 20
    """Size of the parts in which larger files go up and come down; S3 wants at least 5 MiB."""
    threads: int = 8
    """Parts at once."""


class S3Store:
    """Objects live in a bucket below a prefix. Credentials, region and endpoint come from the AWS_* variables.

    Args:
        bucket: An existing bucket.
        prefix: Folder in the bucket; empty for its root.
        limits: Timeouts, attempts and sizes.
    """

    def __init__(self, bucket: str, prefix: str = "", limits: S3Limits | None = None) -> None:
        limits = limits or S3Limits()
        self._bucket, self._part_bytes = bucket, limits.part_bytes
        self._prefix = checked_key(prefix.strip("/")) + "/" if prefix.strip("/") else ""
        # Services beside AWS rarely resolve bucket.host names, so a named endpoint is addressed by path.
        own_endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = Config(
            s3={"addressing_style": "path" if own_endpoint else "auto"},
            connect_timeout=limits.connect_s,
            read_timeout=limits.read_s,
            retries={
                "mode": "standard",
                **({} if "AWS_MAX_ATTEMPTS" in os.environ else {"total_max_attempts": limits.attempts}),
            },
            max_pool_connections=limits.threads + 2,
            tcp_keepalive=True,
        )
        self._transfer = TransferConfig(
            multipart_threshold=limits.part_bytes,
            multipart_chunksize=limits.part_bytes,
            max_concurrency=limits.threads,
            num_download_attempts=limits.attempts,
            preferred_transfer_client="classic",
        )
        with self._explained("open the bucket"):
            self._client: Any = boto3.client("s3", config=config)
        self._uploads = Uploads(self._client, bucket, limits.threads)

    @property
    def root(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def url(self, key: str) -> str:
        """The object's `s3://` address."""
        return f"s3://{self._bucket}/{self._key(key)}"

    def put_file(self, source: Path, key: str) -> None:
        """Store a file's bytes, replacing what was there; large files go up in parts, several at once.

        An upload in parts that was killed, or failed, is gone on with when the same file is stored under the key again.
        """
        target = self._key(key)
        if not source.is_file():
            raise StorageError(f"Cannot store {source}: it is not a file.", "Check the path.")
        with self._explained(f"store {key}"):
            if source.stat().st_size >= self._part_bytes:
                self._uploads.send(FileInParts.of(source, self._part_bytes), target)
                return
            with source.open("rb") as stream:
                self._client.put_object(Bucket=self._bucket, Key=target, Body=stream)

    def get_file(self, key: str, target: Path) -> None:
        """Write an object to a file, which appears whole or not at all."""
        source = self._key(key)
        with self._explained(f"read {key}", key):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as out:
                self._client.download_fileobj(self._bucket, source, out, Config=self._transfer)

    def read_bytes(self, key: str) -> bytes:
        """An object's bytes."""
        source = self._key(key)
        # Not get_object: only the transfer asks again where a body breaks off.
        with self._explained(f"read {key}", key), io.BytesIO() as out:
            self._client.download_fileobj(self._bucket, source, out, Config=self._transfer)
            return out.getvalue()

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store bytes, replacing what was there."""
        target = self._key(key)
        with self._explained(f"store {key}"):
            self._client.put_object(Bucket=self._bucket, Key=target, Body=data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._head(key) is not None

    def size(self, key: str) -> int:
        """An object's bytes in number."""
        head = self._head(key)
        if head is None:
            raise missing(key, self.root)
        return int(head["ContentLength"])

    def modified_at(self, key: str) -> datetime:
        """When an object was written, UTC."""
        head = self._head(key)
        if head is None:
            raise missing(key, self.root)
        written: datetime = head["LastModified"]
        return written.astimezone(UTC)

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys below the folder `prefix`."""
        folder = self._key(prefix) + "/" if prefix else self._prefix
        with self._explained(f"list {prefix or 'everything'}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=folder)
            return sorted(entry["Key"][len(self._prefix) :] for page in pages for entry in page.get("Contents", ()))

    def delete(self, key: str) -> None:
        """Remove an object."""
        target = self._key(key)
        with self._explained(f"delete {key}"):
            self._client.delete_object(Bucket=self._bucket, Key=target)

    def unfinished(self, prefix: str = "") -> builtins.list[Unfinished]:
        """Multipart uploads that are going on or were left."""
        folder = self._key(prefix) + "/" if prefix else self._prefix
        with self._explained("list unfinished uploads"):
            found = self._uploads.unfinished(folder)
        return [replace(one, key=one.key[len(self._prefix) :]) for one in found]

    def abandon(self, leftover: Unfinished) -> None:
        """Abort a multipart upload."""
        target = self._key(leftover.key)
        with self._explained(f"abandon {leftover.key}"):
            self._uploads.abort(target, leftover.mark)

    def _key(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _head(self, key: str) -> dict[str, Any] | None:
        target = self._key(key)
        with self._explained(f"look for {key}"):
            try:
                head: dict[str, Any] = self._client.head_object(Bucket=self._bucket, Key=target)
            except ClientError as error:
                if error_code(error) in NOT_THERE:
                    return None
                raise
            return head

    @contextmanager
    def _explained(self, action: str, key: str | None = None) -> Iterator[None]:
        """Turn the client's errors into ours; with a key, "not found" means that object."""
        try:
            yield
        except ClientError as error:
            if key is not None and error_code(error) in NOT_THERE:
                raise missing(key, self.root) from error
            raise StorageError(
                f"Cannot {action} in {self.root}: {error.response.get('Error', {}).get('Message') or error}.",
                "Check the bucket's name, its policy and the AWS_* variables.",
            ) from error
        # ValueError: a malformed endpoint.
        except (BotoCoreError, Boto3Error, RetriesExceededError, ValueError) as error:
            raise StorageError(
                f"Cannot {action} in {self.root}: {error}.", "Check AWS_ENDPOINT_URL, AWS_REGION and the credentials."
            ) from error
        except OSError as error:
            raise StorageError(f"Cannot {action}: {error}.", "Check the local folder and its free space.") from error
