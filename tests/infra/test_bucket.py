"""The bucket's scripts against a real S3 server: made once, waited for, copied out and in."""

import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest

from tests.compose_file import ROOT
from tests.s3 import s3_server, s3_variables


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"infra/s3/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_server() as endpoint:
        for name, value in s3_variables(endpoint).items():
            monkeypatch.setenv(name, value)
        yield boto3.client("s3")


def keys(client: Any, bucket: str) -> set[str]:
    return {entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", ())}


def test_the_bucket_is_made_once_and_keeps_what_it_has(client: Any) -> None:
    make_bucket = script("make_bucket").make_bucket
    make_bucket("made-once")
    client.put_object(Bucket="made-once", Key="kept", Body=b"1")
    make_bucket("made-once")
    assert keys(client, "made-once") == {"kept", "bucket-ready"}


def test_a_server_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for name, value in s3_variables(f"http://127.0.0.1:{port}").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SystemExit, match="The bucket nowhere cannot be made"):
        script("make_bucket").make_bucket("nowhere", seconds=0)


def test_a_backup_comes_back_whole(client: Any, tmp_path: Path) -> None:
    copy_bucket = script("copy_bucket")
    for bucket in ("backed-up", "restored"):
        client.create_bucket(Bucket=bucket)
    for key, body in (("a/b/c", b"x" * 100), ("top", b"")):
        client.put_object(Bucket="backed-up", Key=key, Body=body)
    assert copy_bucket.copy_out(client, "backed-up", tmp_path) == 2
    client.put_object(Bucket="backed-up", Key="a/new", Body=b"2")
    assert copy_bucket.copy_out(client, "backed-up", tmp_path) == 3
    assert copy_bucket.copy_in(client, "restored", tmp_path) == 3
    assert keys(client, "restored") == {"a/b/c", "top", "a/new"}
    assert client.get_object(Bucket="restored", Key="a/b/c")["Body"].read() == b"x" * 100


def test_an_object_that_leads_out_of_the_folder_is_refused(client: Any, tmp_path: Path) -> None:
    client.create_bucket(Bucket="hostile")
    client.put_object(Bucket="hostile", Key="../outside", Body=b"1")
    with pytest.raises(SystemExit, match="leads out"):
        script("copy_bucket").copy_out(client, "hostile", tmp_path / "folder")
    assert not (tmp_path / "outside").exists()
