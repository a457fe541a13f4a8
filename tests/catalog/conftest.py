"""Catalogs on both databases: a SQLite file, and a real PostgreSQL that the tests start themselves."""

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine

from cartridge_core.catalog.migration import upgrade
from cartridge_core.catalog.session import open_engine
from cartridge_core.settings import Settings
from tests.postgres import patiently, short_folder, start_postgres

_NUMBERS = itertools.count()


class Postgres:
    """A running server that hands out empty places: schemas of one database, which cost next to nothing."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def stop(self) -> None:
        """Stop it: open connections end, and who asks finds nobody."""
        self._server.stop()

    def start(self) -> None:
        """Start it again where it was."""
        patiently(self._server.ensure_postgres_running)

    def place(self) -> str:
        """URL of a new, empty schema."""
        name = f"catalog{next(_NUMBERS)}"
        self._server.psql(f"create schema {name};")
        folder = self._server.get_uri().split("host=")[1]
        return f"postgresql://postgres:@/postgres?host={folder}&options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL on a socket."""
    with short_folder() as folder:
        server = start_postgres(folder, durable=False)
        yield Postgres(server)
        process = psutil.Process(server.get_pid())
        process.send_signal(signal.SIGQUIT)
        process.wait(60)
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.db"
    url: str = request.getfixturevalue("postgres").place()
    return url


@pytest.fixture
def catalog_url(empty_url: str) -> str:
    """An up-to-date catalog without rows."""
    engine = open_engine(empty_url)
    upgrade(engine)
    engine.dispose()
    return empty_url


@pytest.fixture
def engine(catalog_url: str) -> Iterator[Engine]:
    """An engine on an up-to-date catalog."""
    engine = open_engine(catalog_url)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(catalog_url: str, tmp_path: Path) -> Settings:
    """Settings that name an up-to-date catalog."""
    return Settings(home=tmp_path / "home", catalog_url=catalog_url)
