"""What may not be served any longer: found among what gateways hold, and pinned by nobody."""

import dataclasses

import pytest

from cartridge_core.catalog import (
    Status,
    catalog_session,
    change_status,
    find_version,
    list_cartridges,
    list_gone,
    list_pins,
    pinned_digests,
    record_pin,
    record_registration,
    record_tombstone,
    retire,
)
from cartridge_core.errors import NotFoundError
from cartridge_core.settings import Settings
from tests.catalog.rows import REFERENCE, WHEREABOUTS, add_cartridge

OTHER = REFERENCE.model_copy(update={"id": "other"})


def test_pins_end_when_a_cartridge_is_retired_or_erased(settings: Settings) -> None:
    with catalog_session(settings) as session:
        rows = [add_cartridge(session, seed=seed) for seed in range(3)]
        for row in rows:
            record_pin(session, "default", "clinic", row.digest)
        retire(session, rows[0])
        record_tombstone(session, rows[1], [])
        assert pinned_digests(session, "default") == {rows[2].digest}
        # One that comes back is not kept again by somebody's wish of long ago.
        change_status(session, rows[1], Status.RESTORED)
        assert [entry.digest for entry in list_pins(session, REFERENCE)] == [rows[2].digest]


def test_what_is_gone_is_told_of_all_tenants_and_only_of_what_is_held(settings: Settings) -> None:
    with catalog_session(settings) as session:
        served, retired, erased, unasked = (add_cartridge(session, seed=seed) for seed in range(4))
        theirs = add_cartridge(session, tenant="acme")
        for row in (retired, unasked, theirs):
            retire(session, row)
        record_tombstone(session, erased, [])
        held = {row.digest for row in (served, retired, erased, theirs)} | {"9" * 64}
        found = {(entry.tenant, entry.digest, entry.status) for entry in list_gone(session, held)}
        assert found == {
            ("default", retired.digest, Status.RETIRED),
            ("default", erased.digest, Status.DELETED),
            ("acme", theirs.digest, Status.RETIRED),
        }
        assert list_gone(session, ()) == []
        change_status(session, erased, Status.RESTORED)
        assert erased.digest not in {entry.digest for entry in list_gone(session, held)}


def test_one_that_another_corpus_still_has_is_not_gone(settings: Settings) -> None:
    with catalog_session(settings) as session:
        here, there = add_cartridge(session), add_cartridge(session, "copy")
        assert here.digest == there.digest
        retire(session, here)
        assert list_gone(session, {here.digest}) == []
        retire(session, there)
        assert [entry.digest for entry in list_gone(session, {here.digest})] == [here.digest]


def test_many_digests_are_asked_about_at_once(settings: Settings) -> None:
    with catalog_session(settings) as session:
        row = add_cartridge(session)
        retire(session, row)
        held = {f"{number:064x}" for number in range(40_000)} | {row.digest}
        assert [entry.digest for entry in list_gone(session, held)] == [row.digest]


def test_a_version_is_that_of_the_registered_model_that_is_meant(settings: Settings) -> None:
    with catalog_session(settings) as session:
        ours, theirs = add_cartridge(session), add_cartridge(session, seed=1, base_model=OTHER)
        only_theirs = add_cartridge(session, seed=2, base_model=OTHER)
        mine, other = WHEREABOUTS.model_name, "default.clinic.other"
        for row, name, version in ((ours, mine, 1), (theirs, other, 1), (only_theirs, other, 2)):
            record_registration(session, row, dataclasses.replace(WHEREABOUTS, model_name=name, version=version))
        retire(session, ours)

        def digest(version: int, name: str) -> str:
            return find_version(session, "default", "clinic", version, name).digest

        assert (digest(1, mine), digest(1, other)) == (ours.digest, theirs.digest)
        # Another model's, so that a caller can be told so.
        assert digest(2, mine) == only_theirs.digest
        for corpus, version in (("clinic", 3), ("law", 1)):
            with pytest.raises(NotFoundError):
                find_version(session, "default", corpus, version, mine)
        # The newest registration counts: the files were stored again.
        record_registration(session, ours, dataclasses.replace(WHEREABOUTS, version=7))
        assert digest(7, mine) == ours.digest
        assert digest(1, mine) == theirs.digest


def test_a_list_may_be_bound_to_some_corpora(settings: Settings) -> None:
    with catalog_session(settings) as session:
        for corpus in ("clinic", "law", "clinic", "food"):
            add_cartridge(session, corpus, seed=len(list_cartridges(session, "default")))

        def listed(*names: str, **more: int) -> list[str]:
            return [entry.corpus for entry in list_cartridges(session, "default", within=set(names), **more)]

        assert listed("clinic", "law") == ["clinic", "law", "clinic"]
        # The bound counts what is listed, not what is left out.
        assert listed("clinic", limit=2) == ["clinic", "clinic"]
        assert listed() == listed("nope") == []
