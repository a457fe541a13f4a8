import sqlite3
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, UniqueConstraint, delete, insert, text, update
from sqlalchemy.exc import DBAPIError

from cartridge_core.catalog import (
    Status,
    catalog_session,
    change_status,
    models,
    record_composition,
    record_evaluation,
    record_registration,
    record_tombstone,
    set_alias,
)
from cartridge_core.catalog.base import AppendOnly, Base
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.errors import CatalogError
from cartridge_core.settings import Settings
from tests.catalog.rows import WHEREABOUTS, add_cartridge

GUARDED = sorted(
    mapper.class_.__tablename__ for mapper in Base.registry.mappers if issubclass(mapper.class_, AppendOnly)
)


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """A catalog with a row in every table: a published, graded, deleted Cartridge."""
    with catalog_session(settings) as session:
        row = add_cartridge(session)
        record_registration(session, row, WHEREABOUTS)
        record_evaluation(
            session,
            row,
            digest="e" * 64,
            benchmark="closed_answer",
            num_questions=9,
            score=0.9,
            icl_score=None,
            figures={"n_questions": 9},
            report_key="default/reports/e",
        )
        change_status(session, row, Status.REGISTERED)
        set_alias(session, "default", "clinic", "champion", row.id)
        record_tombstone(session, row, ["somewhere"])
        record_composition(
            session,
            "default",
            ["a" * 64, "b" * 64],
            digest="e" * 64,
            num_questions=9,
            score=0.9,
            icl_score=None,
            figures={},
            passed=True,
            gate={},
            reason="",
        )
    return settings


def test_all_tables_but_aliases_and_keys_are_guarded() -> None:
    assert set(Base.metadata.tables) - set(GUARDED) == {"aliases", "api_keys"}


def test_raw_sql_cannot_change_history(filled: Settings, engine: Engine) -> None:
    before = contents(engine)
    for table in GUARDED:
        assert before[table], table
        for statement in (
            f"UPDATE {table} SET tenant = 'other'",
            f"UPDATE {table} SET id = id",
            f"DELETE FROM {table}",
        ):
            with pytest.raises(DBAPIError, match=f"rows of {table} are never changed or removed"):
                execute(engine, statement)
    assert contents(engine) == before


def test_postgresql_cannot_truncate_history(filled: Settings, engine: Engine) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no TRUNCATE")
    before = contents(engine)
    for table in GUARDED:
        with pytest.raises(DBAPIError, match="never changed or removed"):
            execute(engine, f"TRUNCATE {table} CASCADE")
    assert contents(engine) == before


def test_sqlite_cannot_replace_history(filled: Settings, engine: Engine) -> None:
    """Not even on a connection of somebody's own, which has none of our settings."""
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has no REPLACE")
    before = contents(engine)
    stranger = sqlite3.connect(str(engine.url.database), isolation_level=None)
    for table in GUARDED:
        columns = [column.name for column in Base.metadata.tables[table].columns if column.name != "id"]
        statements = [f"REPLACE INTO {table} SELECT * FROM {table}"]
        if has_natural_key(table):
            names = ", ".join(columns)
            statements.append(f"INSERT OR REPLACE INTO {table} ({names}) SELECT {names} FROM {table}")
        for statement in statements:
            with pytest.raises(sqlite3.IntegrityError, match=f"rows of {table} are never changed or removed"):
                stranger.execute(statement)
    stranger.close()
    assert contents(engine) == before


def contents(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {table: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))] for table in GUARDED}


def execute(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def has_natural_key(table: str) -> bool:
    keys = [key for key in Base.metadata.tables[table].constraints if isinstance(key, UniqueConstraint)]
    return any("id" not in key.columns for key in keys)


def test_new_rows_can_still_be_added(filled: Settings, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            insert(models.CorpusRow).values(tenant="default", name="other", created_at=datetime.now(UTC))
        )
        names = connection.scalars(text("SELECT name FROM corpora WHERE name = 'other'")).all()
    assert names == ["other"]


def test_aliases_can_move(filled: Settings, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE aliases SET name = 'canary'"))
        assert set(connection.scalars(text("SELECT name FROM aliases"))) == {"canary"}
        connection.execute(text("DELETE FROM aliases"))
        assert not connection.scalars(text("SELECT name FROM aliases")).all()


def test_a_session_refuses_before_the_database_does(filled: Settings) -> None:
    refusal = "Rows of cartridges are never changed or removed"
    with pytest.raises(CatalogError, match=refusal), catalog_session(filled) as session:
        cartridge_row(session, "default", 1).num_tokens = 7
    with pytest.raises(CatalogError, match=refusal), catalog_session(filled) as session:
        session.delete(cartridge_row(session, "default", 1))
    with pytest.raises(CatalogError, match=refusal), catalog_session(filled) as session:
        session.execute(update(models.CartridgeRow).values(num_tokens=7))
    with pytest.raises(CatalogError, match=refusal), catalog_session(filled) as session:
        session.execute(delete(models.CartridgeRow))
    with catalog_session(filled) as session:
        assert cartridge_row(session, "default", 1).num_tokens == 6


def test_what_the_database_refuses_is_told_in_one_sentence(filled: Settings) -> None:
    with (
        pytest.raises(CatalogError, match=r"refused: .*rows of corpora are never changed"),
        catalog_session(filled) as s,
    ):
        s.execute(text("DELETE FROM corpora"))
