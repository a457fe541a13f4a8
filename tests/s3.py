"""A real S3 server over HTTP, in this process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server(port: int = 0) -> Iterator[str]:
    """Its URL while the block runs; buckets outlive it, so one on the same port is the same service again."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        _forget_clients()


def _forget_clients() -> None:
    """MLflow keeps S3 clients for minutes, for the address that the variables named when it made them."""
    repository = sys.modules.get("mlflow.store.artifact.s3_artifact_repo")
    if repository is not None:
        repository._cached_get_s3_client.cache_clear()


def s3_variables(endpoint: str) -> dict[str, str]:
    """What a user sets to be served by it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def make_bucket(name: str) -> None:
    """An empty bucket of that name, whatever was in it."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
    for entry in client.list_objects_v2(Bucket=name).get("Contents", ()):
        client.delete_object(Bucket=name, Key=entry["Key"])


def left_upload(root: str, key: str, data: bytes = b"half") -> None:
    """What the writer of an object leaves in a store that was killed in the middle: in a folder, or in a bucket."""
    if not root.startswith("s3://"):
        path = Path(root, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.abcd1234.tmp").write_bytes(data)
        return
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    client, place = boto3.client("s3"), {"Bucket": bucket, "Key": f"{prefix}/{key}".lstrip("/")}
    upload = client.create_multipart_upload(**place)["UploadId"]
    client.upload_part(**place, UploadId=upload, PartNumber=1, Body=data)
