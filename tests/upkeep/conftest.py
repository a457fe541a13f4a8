"""Stores to look after, their files in a folder or in a bucket; the workplace that some of these tests work in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cartridge_core.settings import Settings
from tests.s3 import make_bucket, s3_server, s3_variables
from tests.samples import embedded
from tests.talkative import talkative, workplace

__all__ = ["talkative", "workplace"]

BUCKET = "upkeep"


@pytest.fixture(scope="package")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server over HTTP."""
    with s3_server() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Embedded catalog and MLflow; the files of both lie in a folder, or in an empty bucket."""
    if request.param == "folder":
        return embedded(tmp_path / "home")
    for name, value in s3_variables(request.getfixturevalue("s3_endpoint")).items():
        monkeypatch.setenv(name, value)
    make_bucket(BUCKET)
    return embedded(tmp_path / "home", artifact_root=f"s3://{BUCKET}/root")
