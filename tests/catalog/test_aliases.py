import threading
from datetime import UTC, datetime

import pytest

from cartridge_core.catalog import (
    AliasChange,
    Catalog,
    Status,
    alias_history,
    catalog_session,
    clear_alias,
    record_tombstone,
    resolve,
    retire,
    set_alias,
)
from cartridge_core.catalog.aliases import previous_target, valid_alias
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.errors import CatalogError, NotFoundError, SettingsError
from cartridge_core.settings import Settings
from tests.catalog.rows import add_cartridge


def moves(*steps: str | int) -> list[AliasChange]:
    """A history in short: 3 promotes 3, "<2" rolls back to 2, "-" clears."""
    history = []
    for step in steps:
        action = "promote" if isinstance(step, int) else "clear" if step == "-" else "rollback"
        target = None if step == "-" else int(str(step).removeprefix("<"))
        history.append(AliasChange(action, target, "", "", datetime.now(UTC)))
    return history


@pytest.mark.parametrize(
    ("history", "usable", "target"),
    [
        (moves(), {1}, None),
        (moves(1), {1}, None),
        (moves(1, 2), {1, 2}, 1),
        (moves(1, 2, 3), {1, 2, 3}, 2),
        (moves(1, 2, 3, "<2"), {1, 2, 3}, 1),
        (moves(1, 2, 3, "<2", "<1"), {1, 2, 3}, None),
        (moves(1, 2, 3, "<2", 4), {1, 2, 3, 4}, 2),
        (moves(1, 2, 3), {1, 3}, 1),
        (moves(1, 2, 3, "<1"), {1, 2, 3}, None),
        (moves(1, 2, 1), {1, 2}, 2),
        (moves(1, 2, 1), {1}, None),
        (moves(1, 2, "-"), {1, 2}, 2),
        (moves(1, 2, "-"), {1}, 1),
        (moves(1, "-", 2), {1, 2}, 1),
    ],
)
def test_where_a_rollback_leads(history: list[AliasChange], usable: set[int], target: int | None) -> None:
    assert previous_target(history, usable) == target


def test_an_alias_moves_and_every_move_is_written_down(settings: Settings) -> None:
    with catalog_session(settings) as session:
        first, second = add_cartridge(session), add_cartridge(session, seed=1)
        with pytest.raises(NotFoundError, match="Corpus 'clinic' has no alias 'champion'"):
            resolve(session, "default", "clinic")
        assert set_alias(session, "default", "clinic", "champion", first.id, reason="good", actor="me")
        assert not set_alias(session, "default", "clinic", "champion", first.id)
        assert set_alias(session, "default", "clinic", "champion", second.id)
        assert resolve(session, "default", "clinic").cartridge_id == second.id
        assert clear_alias(session, "default", "clinic", "champion", reason="enough")
        assert not clear_alias(session, "default", "clinic", "champion")
        with pytest.raises(NotFoundError):
            resolve(session, "default", "clinic")
    with catalog_session(settings, read_only=True) as session:
        history = alias_history(session, "default", "clinic")
    assert [(change.action, change.cartridge_id) for change in history] == [
        ("promote", first.id),
        ("promote", second.id),
        ("clear", None),
    ]
    assert (history[0].reason, history[0].actor, history[2].reason) == ("good", "me", "enough")


def test_being_promoted_publishes(settings: Settings) -> None:
    with catalog_session(settings) as session:
        row = add_cartridge(session)
        set_alias(session, "default", "clinic", "canary", row.id)
        assert resolve(session, "default", "clinic", "canary").status is Status.PUBLISHED


def test_an_alias_stays_within_its_corpus(settings: Settings) -> None:
    with catalog_session(settings) as session:
        add_cartridge(session)
        other = add_cartridge(session, "handbook")
        with pytest.raises(CatalogError, match="is not of corpus 'clinic'"):
            set_alias(session, "default", "clinic", "champion", other.id)


def test_what_was_deleted_cannot_be_served(settings: Settings) -> None:
    with catalog_session(settings) as session:
        row = add_cartridge(session)
        record_tombstone(session, row, [])
        with pytest.raises(CatalogError, match="is deleted"):
            set_alias(session, "default", "clinic", "champion", row.id)


@pytest.mark.parametrize("name", ["latest", "v1", "v42", "3", "abcdef", "0123456789ab", "Champion", "a b", ""])
def test_names_that_are_no_alias(name: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot be an? alias"):
        valid_alias(name)


def test_an_entry_stays_as_it_was_read(settings: Settings) -> None:
    with catalog_session(settings) as session:
        first, second = add_cartridge(session), add_cartridge(session, seed=1)
        set_alias(session, "default", "clinic", "champion", first.id)
        entry = resolve(session, "default", "clinic")
        set_alias(session, "default", "clinic", "champion", second.id)
    assert entry.cartridge_id == first.id
    assert entry.aliases == ("champion",)


def test_promotions_at_once_are_written_down_in_the_order_they_took_place(settings: Settings) -> None:
    with catalog_session(settings) as session:
        ids = [add_cartridge(session, seed=seed).id for seed in range(4)]
    catalog, start, errors = Catalog(settings), threading.Barrier(4), list[Exception]()

    def promote(cartridge_id: int) -> None:
        try:
            start.wait()
            with catalog.session() as session:
                set_alias(session, "default", "clinic", "champion", cartridge_id)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=promote, args=(cartridge_id,)) for cartridge_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with catalog.session(read_only=True) as session:
        history = alias_history(session, "default", "clinic")
        assert sorted(change.cartridge_id or 0 for change in history) == ids
        assert resolve(session, "default", "clinic").cartridge_id == history[-1].cartridge_id
    catalog.close()


def test_a_promotion_waits_for_the_one_before_it(settings: Settings) -> None:
    """Also when that one finds nothing to change: what it saw stays true until it ends."""
    with catalog_session(settings) as session:
        first, second = add_cartridge(session).id, add_cartridge(session, seed=1).id
        set_alias(session, "default", "clinic", "champion", first)
    catalog, done = Catalog(settings), threading.Event()

    def promote() -> None:
        with catalog.session() as session:
            set_alias(session, "default", "clinic", "champion", second)
        done.set()

    thread = threading.Thread(target=promote)
    with catalog.session() as session:
        assert not set_alias(session, "default", "clinic", "champion", first)
        thread.start()
        assert not done.wait(0.5)
    thread.join(30)
    assert done.is_set()
    catalog.close()


def test_nobody_retires_what_is_being_promoted(settings: Settings) -> None:
    """Whoever comes second sees what the first one did, and is refused."""
    with catalog_session(settings) as session:
        number = add_cartridge(session).id
    catalog, refused = Catalog(settings), list[CatalogError]()

    def take_away() -> None:
        try:
            with catalog.session() as session:
                retire(session, cartridge_row(session, "default", number))
        except CatalogError as error:
            refused.append(error)

    thread = threading.Thread(target=take_away)
    with catalog.session() as session:
        set_alias(session, "default", "clinic", "champion", number)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "it did not wait"
    thread.join(30)
    assert len(refused) == 1 and "the alias champion points at it" in str(refused[0])
    with catalog.session(read_only=True) as session:
        assert resolve(session, "default", "clinic").status is Status.PUBLISHED
    catalog.close()
