"""A fresh embedded MLflow database, made without waiting for the disk."""

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, make_url

from cartridge_core.atomic_file import atomic_file


def prepare_database(uri: str) -> None:
    """Make the tables of an embedded MLflow, where its SQLite file is not there yet.

    MLflow builds its tables in some seventy migrations and waits for the disk after each statement: half a minute and
    more on a busy disk. So it builds them in a scratch file that is never flushed, and the result is put in place at
    once. From then on MLflow uses the file as it always does.

    Args:
        uri: Tracking URI; anything but a SQLite file is left alone.
    """
    if not uri.startswith("sqlite:"):
        return
    target = Path(make_url(uri).database or "")
    if target.exists() or not target.name:
        return
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="mlflow-") as folder:
        scratch = Path(folder, "mlflow.db").resolve()

        def never_flush(connection: Any, record: Any) -> None:
            # Every engine of the process is heard here; only the scratch file may lose its last writes in a power cut.
            if [row[2] for row in connection.execute("PRAGMA database_list")] == [str(scratch)]:
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute("PRAGMA journal_mode = MEMORY")

        event.listen(Engine, "connect", never_flush)
        try:
            client = MlflowClient(tracking_uri=f"sqlite:///{scratch}")
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
        finally:
            event.remove(Engine, "connect", never_flush)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Of several processes the first one's file stays: a link, unlike a move, never takes the place of another.
        fresh = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        with atomic_file(fresh) as stream:
            stream.write(scratch.read_bytes())
        try:
            os.link(fresh, target)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
