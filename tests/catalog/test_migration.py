import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect
from typer.testing import CliRunner

import cartridge_core
from cartridge_core.catalog import Catalog, catalog_session, models, record_corpus
from cartridge_core.catalog.base import Base
from cartridge_core.catalog.migration import alembic_config, head_revision, migrations_folder, upgrade
from cartridge_core.catalog.session import open_engine
from cartridge_core.cli.main import app
from cartridge_core.errors import CatalogError
from cartridge_core.settings import Settings
from tests.catalog.conftest import Postgres

ROOT = Path(__file__).resolve().parents[2]


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def functions(engine: Engine) -> int:
    if engine.dialect.name == "sqlite":
        return 0
    with engine.connect() as connection:
        return connection.exec_driver_sql(
            "SELECT count(*) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"
        ).scalar_one()


def test_up_down_up_gives_the_models_schema(empty_url: str) -> None:
    engine = open_engine(empty_url)
    upgrade(engine)
    assert differences(engine) == []
    assert tables(engine) == set(Base.metadata.tables)
    with engine.execution_options(sqlite_begin="EXCLUSIVE").begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert tables(engine) == set()
    assert functions(engine) == 0
    upgrade(engine)
    assert differences(engine) == []
    assert tables(engine) == set(Base.metadata.tables)
    engine.dispose()


def test_the_comparison_sees_a_difference(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE evaluations ADD COLUMN extra INTEGER")
        connection.exec_driver_sql("DROP INDEX ix_tombstones_tenant_cartridge_id")
    assert len(differences(engine)) == 2


def test_every_table_and_every_unique_key_carries_the_tenant(engine: Engine) -> None:
    found = inspect(engine)
    for table in tables(engine):
        columns = {column["name"]: column for column in found.get_columns(table)}
        assert columns["tenant"]["nullable"] is False
        uniques = found.get_unique_constraints(table)
        assert uniques
        assert all(key["column_names"][0] == "tenant" for key in uniques), table
        assert all(key["constrained_columns"][0] == "tenant" for key in found.get_foreign_keys(table)), table


def test_data_survives_a_second_upgrade(settings: Settings, engine: Engine) -> None:
    with catalog_session(settings) as session:
        record_corpus(session, "default", "clinic", "a" * 64)
    upgrade(engine)
    with catalog_session(settings) as session:
        assert session.query(models.CorpusRow).one().name == "clinic"


def test_an_embedded_catalog_is_made_on_opening(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "new" / "home")
    with Catalog(settings) as catalog:
        assert differences(catalog.engine) == []
    assert (tmp_path / "new" / "home" / "catalog.db").is_file()


def test_an_embedded_catalog_is_made_once_by_many(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    errors: list[Exception] = []

    def use(number: int) -> None:
        try:
            with catalog_session(settings) as session:
                record_corpus(session, "default", f"corpus-{number}", "a" * 64)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with catalog_session(settings, read_only=True) as session:
        assert session.query(models.CorpusRow).count() == 4


def test_a_server_is_never_upgraded_behind_its_back(postgres: Postgres, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, catalog_url=postgres.place())
    with pytest.raises(CatalogError, match=r"has schema none, this software needs .* run `cartridge catalog upgrade`"):
        Catalog(settings)
    engine = open_engine(settings.catalog_url)
    assert inspect(engine).get_table_names() == []
    upgrade(engine)
    Catalog(settings).close()
    engine.dispose()


def test_a_command_upgrades_a_server_and_then_finds_nothing_to_do(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.place()
    monkeypatch.setenv("CARTRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("CARTRIDGE_CATALOG_URL", url)
    runs = [CliRunner().invoke(app, ["catalog", "upgrade", "--json"], catch_exceptions=False) for _ in range(2)]
    assert [run.exit_code for run in runs] == [0, 0]
    assert [json.loads(run.stdout)["before"] for run in runs] == [None, head_revision()]
    Catalog(Settings(home=tmp_path, catalog_url=url)).close()


def test_the_command_refuses_a_newer_catalog(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    monkeypatch.setenv("CARTRIDGE_CATALOG_URL", settings.catalog_url)
    run = CliRunner().invoke(app, ["catalog", "upgrade"])
    assert run.exit_code == 1 and "newer than this software's" in run.stderr


def test_a_newer_catalog_is_refused(settings: Settings, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CatalogError, match=r"has schema 9999, newer than this software's .*Upgrade cartridge-foundry"):
        Catalog(settings)


def test_a_server_that_does_not_answer_is_an_error_without_its_password(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, catalog_url="postgresql://me:secret@127.0.0.1:1/catalog")
    with pytest.raises(CatalogError, match=r"postgresql://me:\*\*\*@127\.0\.0\.1:1/catalog refused") as refusal:
        Catalog(settings)
    assert "secret" not in str(refusal.value)


def test_migrations_are_found_in_a_checkout_and_in_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert migrations_folder() == ROOT / "migrations"
    package = tmp_path / "100% odd" / "cartridge_core"
    package.mkdir(parents=True)
    monkeypatch.setattr(cartridge_core, "__file__", str(package / "__init__.py"))
    with pytest.raises(CatalogError, match="migrations are missing"):
        migrations_folder()
    shutil.copytree(ROOT / "migrations", package / "migrations")
    assert migrations_folder() == package / "migrations"
    assert head_revision() == "0005"
    engine = open_engine(f"sqlite:///{tmp_path}/catalog.db")
    upgrade(engine)
    assert tables(engine) == set(Base.metadata.tables)


def test_alembic_itself_works_from_the_checkout(tmp_path: Path) -> None:
    environment = {"CARTRIDGE_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
    for arguments in (["upgrade", "head"], ["check"], ["upgrade", "head", "--sql"]):
        answer = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
    assert "CREATE TABLE cartridges" in answer.stdout
    assert (tmp_path / "catalog.db").is_file()


def test_a_failed_migration_leaves_nothing_behind(engine: Engine) -> None:
    """Schema changes are part of the transaction on both databases."""
    with pytest.raises(RuntimeError, match="in the middle"), engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
        raise RuntimeError("in the middle")
    assert tables(engine) == set(Base.metadata.tables)
    assert differences(engine) == []
