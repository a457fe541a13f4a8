"""Three users on a real PostgreSQL: each does its work, and is refused everything else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cartridge_core.catalog import (
    Action,
    Whereabouts,
    catalog_session,
    list_cartridges,
    list_events,
    record_event,
    record_registration,
    resolve,
    retire,
    set_alias,
)
from cartridge_core.catalog.api_keys import create_api_key, list_api_keys, revoke_api_key
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.catalog.migration import upgrade
from cartridge_core.catalog.roles import CatalogRoles, apply_roles, role_statements
from cartridge_core.catalog.session import open_engine
from cartridge_core.errors import CatalogError, SettingsError
from cartridge_core.settings import Settings
from tests.catalog.conftest import Postgres
from tests.catalog.rows import WHEREABOUTS, add_cartridge

REFUSED = "permission denied"


@pytest.fixture
def owner(postgres: Postgres, tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path, catalog_url=postgres.place())
    engine = open_engine(settings.catalog_url)
    upgrade(engine)
    apply_roles(settings)
    apply_roles(settings)
    with engine.begin() as connection:
        for role in vars(CatalogRoles()).values():
            user = f"{role}-user"
            connection.execute(text(f'DROP ROLE IF EXISTS "{user}"'))
            connection.execute(text(f'CREATE ROLE "{user}" LOGIN IN ROLE "{role}"'))
    engine.dispose()
    with catalog_session(settings) as session:
        row = add_cartridge(session)
        record_registration(session, row, WHEREABOUTS)
        set_alias(session, "default", "clinic", "champion", row.id)
    yield settings
    engine = open_engine(settings.catalog_url)
    with engine.begin() as connection:
        for role in vars(CatalogRoles()).values():
            connection.execute(text(f'DROP ROLE IF EXISTS "{role}-user"'))
    engine.dispose()


def as_user(owner: Settings, role: str) -> Settings:
    return owner.model_copy(update={"catalog_url": owner.catalog_url.replace("postgres:@", f"{role}-user:@")})


def run(settings: Settings, statement: str) -> None:
    with catalog_session(settings) as session:
        session.execute(text(statement))


def test_the_serving_role_resolves_and_writes_nothing(owner: Settings) -> None:
    serving = as_user(owner, CatalogRoles.serving)
    with catalog_session(serving, read_only=True) as session:
        entry = resolve(session, "default", "clinic")
        assert list_cartridges(session, "default") == [entry]
        list_api_keys(session, "default")
    for use in (
        lambda session: add_cartridge(session, seed=1),
        lambda session: set_alias(session, "default", "clinic", "canary", entry.cartridge_id),
        lambda session: create_api_key(session, "default", "mine"),
        lambda session: record_event(session, "default", Action.LOAD, "clinic"),
    ):
        with pytest.raises(CatalogError, match=REFUSED), catalog_session(serving) as session:
            use(session)
    for statement in ("UPDATE aliases SET cartridge_id = 1", "DELETE FROM api_keys", "CREATE TABLE mine (id int)"):
        with pytest.raises(CatalogError, match=REFUSED):
            run(serving, statement)


def test_the_flows_role_registers_and_promotes_but_sees_no_keys(owner: Settings) -> None:
    flows = as_user(owner, CatalogRoles.flows)
    with catalog_session(flows) as session:
        row = add_cartridge(session, seed=1)
        record_registration(session, row, Whereabouts(**{**vars(WHEREABOUTS), "version": 2}))
        assert set_alias(session, "default", "clinic", "champion", row.id, actor="prefect")
        assert resolve(session, "default", "clinic").version == 2
    for statement in (
        "SELECT token_sha256 FROM api_keys",
        "INSERT INTO api_keys DEFAULT VALUES",
        "UPDATE cartridges SET digest = ''",
        "DELETE FROM audit_events",
        "TRUNCATE aliases",
    ):
        with pytest.raises(CatalogError, match=REFUSED):
            run(flows, statement)


def test_the_operator_role_moves_aliases_and_keys_but_registers_nothing(owner: Settings) -> None:
    operator = as_user(owner, CatalogRoles.operator)
    with catalog_session(owner) as session:
        other = add_cartridge(session, seed=1)
    with catalog_session(operator) as session:
        assert set_alias(session, "default", "clinic", "champion", other.id, actor="ann")
        key, _ = create_api_key(session, "default", "intranet", actor="ann")
        revoke_api_key(session, "default", key.key_id, actor="ann")
        first = min(entry.cartridge_id for entry in list_cartridges(session, "default"))
        retire(session, cartridge_row(session, "default", first), actor="ann")
        assert [event.action for event in list_events(session, "default", actor="ann")] == [
            "retire",
            "key-revoke",
            "key-create",
            "promote",
        ]
    with pytest.raises(CatalogError, match=REFUSED), catalog_session(operator) as session:
        add_cartridge(session, seed=2)
    with pytest.raises(CatalogError, match=REFUSED):
        run(operator, "UPDATE audit_events SET actor = 'nobody'")


def test_names_of_roles(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be a role"):
        role_statements(CatalogRoles(flows='x"; DROP TABLE aliases'))
    with pytest.raises(SettingsError, match="the same name"):
        role_statements(CatalogRoles(flows="a", serving="a"))
    with pytest.raises(SettingsError, match="has no roles"):
        apply_roles(Settings(home=tmp_path))
