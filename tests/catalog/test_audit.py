from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from cartridge_core.catalog import (
    Action,
    catalog_session,
    clear_alias,
    list_events,
    models,
    record_event,
    record_tombstone,
    retire,
    set_alias,
)
from cartridge_core.catalog.api_keys import create_api_key, revoke_api_key
from cartridge_core.errors import CatalogError
from cartridge_core.settings import Settings
from tests.catalog.rows import add_cartridge


def test_every_deed_is_written_down_once(settings: Settings) -> None:
    with catalog_session(settings) as session:
        first, second = add_cartridge(session, seed=0), add_cartridge(session, seed=1)
        set_alias(session, "default", "clinic", "champion", first.id, reason="good", actor="ann")
        set_alias(session, "default", "clinic", "champion", first.id, actor="ann")
        clear_alias(session, "default", "clinic", "champion", actor="bob")
        retire(session, second, reason="old", actor="bob")
        retire(session, second, actor="bob")
        record_tombstone(session, first, ["a", "b"], reason="asked to", actor="cid")
        key, token = create_api_key(session, "default", "intranet", actor="ann")
        revoke_api_key(session, "default", key.key_id, actor="ann")
        revoke_api_key(session, "default", key.key_id, actor="ann")
        record_event(session, "default", Action.PIN, "clinic@champion", actor=f"key {key.key_id}")
    with catalog_session(settings, read_only=True) as session:
        events = list_events(session, "default")
        assert [(event.actor, event.action, event.subject) for event in reversed(events)] == [
            ("ann", "promote", "clinic@champion"),
            ("bob", "clear", "clinic@champion"),
            ("bob", "retire", f"clinic/{second.digest}"),
            ("cid", "erase", f"clinic/{first.digest}"),
            ("ann", "key-create", f"key {key.key_id}"),
            ("ann", "key-revoke", f"key {key.key_id}"),
            (f"key {key.key_id}", "pin", "clinic@champion"),
        ]
        assert events[-1].details == {"cartridge_id": first.id, "reason": "good"}
        assert token not in str(events)


def test_filters_and_pages(settings: Settings) -> None:
    with catalog_session(settings) as session:
        for number in range(5):
            record_event(session, "default", Action.LOAD, f"clinic/{number}", actor="ann")
        record_event(session, "default", Action.LOAD, "clinic-b@champion", actor="bob")
        record_event(session, "acme", Action.LOAD, "clinic@champion", actor="ann")
    with catalog_session(settings, read_only=True) as session:
        assert len(list_events(session, "default")) == 6
        assert len(list_events(session, "default", subject="clinic")) == 5
        assert len(list_events(session, "default", subject="clinic/3")) == 1
        assert len(list_events(session, "default", actor="bob", action=Action.LOAD)) == 1
        assert list_events(session, "default", action=Action.PROMOTE) == []
        assert list_events(session, "default", since=datetime.now(UTC) + timedelta(hours=1)) == []
        page = list_events(session, "default", limit=4)
        rest = list_events(session, "default", limit=4, before=page[-1].event_id)
        assert [len(page), len(rest)] == [4, 2]
        assert not {event.event_id for event in page} & {event.event_id for event in rest}


def test_what_is_rolled_back_was_never_done(settings: Settings) -> None:
    with pytest.raises(RuntimeError), catalog_session(settings) as session:
        record_event(session, "default", Action.LOAD, "clinic")
        raise RuntimeError
    with catalog_session(settings, read_only=True) as session:
        assert list_events(session, "default") == []


@pytest.mark.parametrize("change", ["UPDATE audit_events SET actor = 'nobody'", "DELETE FROM audit_events"])
def test_the_log_cannot_be_changed(settings: Settings, engine: Engine, change: str) -> None:
    with catalog_session(settings) as session:
        record_event(session, "default", Action.LOAD, "clinic", actor="ann")
    with pytest.raises(DBAPIError, match="never changed or removed"), engine.begin() as connection:
        connection.execute(text(change))
    with pytest.raises(CatalogError, match="never changed or removed"), catalog_session(settings) as session:
        session.query(models.AuditEventRow).one().actor = "nobody"
    with catalog_session(settings, read_only=True) as session:
        assert list_events(session, "default")[0].actor == "ann"
