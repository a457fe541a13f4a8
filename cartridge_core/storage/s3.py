"""A bucket of an S3-compatible service as an object store."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cartridge_core.atomic_file import atomic_file
from cartridge_core.errors import StorageError
from cartridge_core.storage.store import checked_key, missing

_NOT_THERE = {"404", "NoSuchKey", "NotFound"}


class S3Store:
    """Objects live in a bucket below a prefix. Credentials, region and endpoint come from the AWS_* variables.

    Args:
        bucket: An existing bucket.
        prefix: Folder in the bucket; empty for its root.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._prefix = checked_key(prefix.strip("/")) + "/" if prefix.strip("/") else ""
        # Services beside AWS rarely resolve bucket.host names, so a named endpoint is addressed by path.
        own_endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = Config(
            s3={"addressing_style": "path" if own_endpoint else "auto"},
            retries={"max_attempts": 4, "mode": "standard"},
        )
        with self._explained("open the bucket"):
            self._client: Any = boto3.client("s3", config=config)

    @property
    def root(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def url(self, key: str) -> str:
        """The object's `s3://` address."""
        return f"s3://{self._bucket}/{self._key(key)}"

    def put_file(self, source: Path, key: str) -> None:
        """Store a file's bytes, replacing what was there; large files go up in parts."""
        target = self._key(key)
        if not source.is_file():
            raise StorageError(f"Cannot store {source}: it is not a file.", "Check the path.")
        with self._explained(f"store {key}"):
            self._client.upload_file(str(source), self._bucket, target)

    def get_file(self, key: str, target: Path) -> None:
        """Write an object to a file, which appears whole or not at all."""
        source = self._key(key)
        with self._explained(f"read {key}", key):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as out:
                self._client.download_fileobj(self._bucket, source, out)

    def read_bytes(self, key: str) -> bytes:
        """An object's bytes."""
        source = self._key(key)
        with self._explained(f"read {key}", key):
            data: bytes = self._client.get_object(Bucket=self._bucket, Key=source)["Body"].read()
            return data

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

    def _key(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _head(self, key: str) -> dict[str, Any] | None:
        target = self._key(key)
        with self._explained(f"look for {key}"):
            try:
                head: dict[str, Any] = self._client.head_object(Bucket=self._bucket, Key=target)
            except ClientError as error:
                if _code(error) in _NOT_THERE:
                    return None
                raise
            return head

    @contextmanager
    def _explained(self, action: str, key: str | None = None) -> Iterator[None]:
        """Turn the client's errors into ours; with a key, "not found" means that object."""
        try:
            yield
        except ClientError as error:
            if key is not None and _code(error) in _NOT_THERE:
                raise missing(key, self.root) from error
            raise StorageError(
                f"Cannot {action} in {self.root}: {error.response.get('Error', {}).get('Message') or error}.",
                "Check the bucket's name, its policy and the AWS_* variables.",
            ) from error
        except (BotoCoreError, Boto3Error, ValueError) as error:  # ValueError: a malformed endpoint
            raise StorageError(
                f"Cannot {action} in {self.root}: {error}.", "Check AWS_ENDPOINT_URL, AWS_REGION and the credentials."
            ) from error
        except OSError as error:
            raise StorageError(f"Cannot {action}: {error}.", "Check the local folder and its free space.") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
