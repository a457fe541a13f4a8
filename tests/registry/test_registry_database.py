import sqlite3
import threading
from pathlib import Path

from mlflow import MlflowClient
from sqlalchemy import text

from cartridge_core.catalog.session import open_engine
from cartridge_core.registry.database import prepare_database


def test_a_fresh_database_is_made_once_and_is_durable_afterwards(tmp_path: Path) -> None:
    target = tmp_path / "home" / "mlflow.db"
    uri = f"sqlite:///{target}"
    threads = [threading.Thread(target=prepare_database, args=(uri,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.name for file in target.parent.iterdir()] == ["mlflow.db"]
    made = target.stat().st_ino
    prepare_database(uri)
    assert target.stat().st_ino == made

    experiment = MlflowClient(tracking_uri=uri).create_experiment("first")
    with sqlite3.connect(target) as connection:
        assert connection.execute("SELECT name FROM experiments WHERE experiment_id = ?", (experiment,)).fetchone()
    engine = open_engine(uri)
    with engine.connect() as connection:
        # What made the scratch file fast must not reach any later connection of the process.
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "delete"
    engine.dispose()


def test_other_trackers_are_left_alone(tmp_path: Path) -> None:
    prepare_database("http://127.0.0.1:1")
    prepare_database("sqlite://")
    assert not list(tmp_path.iterdir())
