import dataclasses
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from cartridge_core.catalog import (
    Catalog,
    Status,
    catalog_session,
    change_status,
    find_cartridge,
    list_cartridges,
    list_corpora,
    list_served,
    manifest_of,
    models,
    record_corpus,
    record_evaluation,
    record_registration,
    record_tombstone,
    retire,
    set_alias,
    status_of,
)
from cartridge_core.catalog.statuses import statuses_of
from cartridge_core.errors import CatalogError, NotFoundError, SettingsError
from cartridge_core.settings import Settings
from tests.catalog.rows import WHEREABOUTS, add_cartridge, manifest
from tests.samples import REFERENCE


def test_the_same_content_is_the_same_version(settings: Settings) -> None:
    with catalog_session(settings) as session:
        numbers = [
            record_corpus(session, "default", "clinic", digest * 64, num_documents=2).number for digest in "abab"
        ]
    assert numbers == [1, 2, 1, 2]
    with catalog_session(settings, read_only=True) as session:
        (entry,) = list_corpora(session, "default")
    assert (entry.name, entry.version, entry.digest, entry.num_documents) == ("clinic", 2, "b" * 64, 2)
    assert datetime.now(UTC) - entry.created_at < timedelta(minutes=5)


def test_recording_twice_adds_nothing(settings: Settings) -> None:
    with catalog_session(settings) as session:
        first = add_cartridge(session)
    with catalog_session(settings) as session:
        assert add_cartridge(session).id == first.id
        for table in (models.CartridgeRow, models.DatasetRow, models.BaseModelRow, models.CorpusVersionRow):
            assert session.scalar(select(func.count()).select_from(table)) == 1


def test_many_writers_write_one_row(settings: Settings) -> None:
    """Between looking and inserting, another writer inserts: the loser looks again."""
    catalog, start, errors = Catalog(settings), threading.Barrier(4), list[Exception]()

    def write(number: int) -> None:
        try:
            start.wait()
            with catalog.session() as session:
                add_cartridge(session)
                record_corpus(session, "default", "clinic", str(number) * 64)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with catalog.session(read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(models.CartridgeRow)) == 1
        numbers = session.scalars(select(models.CorpusVersionRow.number).order_by(models.CorpusVersionRow.number)).all()
    assert numbers == [1, 2, 3, 4, 5]
    catalog.close()


def test_an_entry_tells_everything(settings: Settings) -> None:
    with catalog_session(settings) as session:
        row = add_cartridge(session)
        record_registration(session, row, WHEREABOUTS)
        for digest, score in (("1", 0.5), ("2", 0.9)):
            record_evaluation(
                session,
                row,
                digest=digest * 64,
                benchmark="closed_answer",
                num_questions=20,
                score=score,
                icl_score=0.95,
                figures={"self_study_accuracy": score},
                report_key=f"default/reports/{digest}",
            )
        set_alias(session, "default", "clinic", "champion", row.id)
        set_alias(session, "default", "clinic", "canary", row.id)
    with catalog_session(settings, read_only=True) as session:
        entry = find_cartridge(session, "default", "clinic", "champion")
        assert manifest_of(session, entry) == manifest()
    assert entry.digest == manifest().digest
    assert entry.base_model == REFERENCE
    assert (entry.corpus, entry.corpus_version, entry.corpus_digest) == ("clinic", 1, "a" * 64)
    assert (entry.num_tokens, entry.kv_bytes) == (6, manifest().kv_bytes)
    assert (entry.model_name, entry.version, entry.model_id) == ("default.clinic.reference", 1, "m-1")
    assert (entry.artifact_uri, entry.size_bytes) == ("s3://bucket/default/cartridges/x", 3000)
    assert (entry.score, entry.icl_score, entry.num_questions, entry.report_digest) == (0.9, 0.95, 20, "2" * 64)
    assert entry.aliases == ("canary", "champion")
    assert entry.status is Status.PUBLISHED
    assert type(entry).model_validate_json(entry.model_dump_json()) == entry


def test_a_cartridge_that_was_only_written_down_has_an_entry(settings: Settings) -> None:
    with catalog_session(settings) as session:
        add_cartridge(session)
        (entry,) = list_cartridges(session, "default")
    assert (entry.status, entry.version, entry.score, entry.aliases) == (Status.REGISTERED, None, None, ())


def test_the_newest_whereabouts_count(settings: Settings) -> None:
    moved = dataclasses.replace(WHEREABOUTS, artifact_uri="/srv/x")
    with catalog_session(settings) as session:
        row = add_cartridge(session)
        for place in (WHEREABOUTS, WHEREABOUTS, moved, moved, WHEREABOUTS):
            record_registration(session, row, place)
        assert session.scalar(select(func.count()).select_from(models.RegistrationRow)) == 3
        assert list_cartridges(session, "default")[0].artifact_uri == WHEREABOUTS.artifact_uri


def test_finding_by_version_and_digest(settings: Settings) -> None:
    other = REFERENCE.model_copy(update={"id": "other"})
    with catalog_session(settings) as session:
        rows = [add_cartridge(session, seed=seed) for seed in range(3)]
        rows.append(add_cartridge(session, seed=9, base_model=other))
        for version, row in enumerate(rows[:3], start=1):
            record_registration(
                session, row, dataclasses.replace(WHEREABOUTS, version=version, model_id=f"m-{version}")
            )
        record_registration(session, rows[3], dataclasses.replace(WHEREABOUTS, model_name="other", model_id="m-9"))
        ids, digests = [row.id for row in rows], [row.digest for row in rows]

        def find(reference: str) -> int:
            return find_cartridge(session, "default", "clinic", reference).cartridge_id

        assert find("2") == ids[1]
        assert find(digests[2][:8]) == ids[2]
        assert find(digests[0]) == ids[0]
        with pytest.raises(CatalogError, match=r"'1' could be any of .*reference.*other|'1' could be any of .*other"):
            find("1")
        for reference in ("4", "champion", "abc", "no such", digests[0][:5] + "x"):
            with pytest.raises(NotFoundError, match=f"Corpus 'clinic' has no Cartridge '{reference}'"):
                find(reference)
        with pytest.raises(NotFoundError, match=r"no corpus 'clinik' .*There are clinic"):
            find_cartridge(session, "default", "clinik", "1")


def test_listing_is_newest_first_and_hides_what_was_deleted(settings: Settings) -> None:
    with catalog_session(settings) as session:
        rows = [add_cartridge(session, seed=seed) for seed in range(3)]
        add_cartridge(session, "handbook")
        record_tombstone(session, rows[1], ["gone"], reason="asked to")
        ids = [row.id for row in rows]
        assert [entry.cartridge_id for entry in list_cartridges(session, "default", "clinic")] == [ids[2], ids[0]]
        everything = list_cartridges(session, "default", "clinic", include_deleted=True)
        assert [entry.status for entry in everything] == [Status.REGISTERED, Status.DELETED, Status.REGISTERED]
        assert len(list_cartridges(session, "default")) == 3


def test_statuses_are_written_down_one_after_the_other(settings: Settings) -> None:
    with catalog_session(settings) as session:
        row = add_cartridge(session)
        for status in (Status.REGISTERED, Status.REGISTERED, Status.PUBLISHED, Status.PUBLISHED, Status.RETIRED):
            change_status(session, row, status, reason="why", actor="me")
        assert status_of(session, row) is Status.RETIRED
        written = session.scalars(select(models.StatusChangeRow.status).order_by(models.StatusChangeRow.id)).all()
        assert written == ["registered", "published", "retired"]
        assert statuses_of(session, "default", []) == {}


def test_what_is_served_cannot_be_retired(settings: Settings) -> None:
    with catalog_session(settings) as session:
        first, second = add_cartridge(session), add_cartridge(session, seed=1)
        set_alias(session, "default", "clinic", "champion", first.id)
        with pytest.raises(CatalogError, match="the alias champion points at it"):
            retire(session, first)
        retire(session, second, reason="old")
        with pytest.raises(CatalogError, match="is retired"):
            set_alias(session, "default", "clinic", "champion", second.id)


def test_tenants_do_not_see_each_other(settings: Settings) -> None:
    with catalog_session(settings) as session:
        mine = add_cartridge(session)
        theirs = add_cartridge(session, tenant="acme")
        assert mine.id != theirs.id
        assert mine.corpus_version_id != theirs.corpus_version_id
        set_alias(session, "acme", "clinic", "champion", theirs.id)
        assert [entry.cartridge_id for entry in list_cartridges(session, "default")] == [mine.id]
        assert [entry.cartridge_id for entry in list_cartridges(session, "acme")] == [theirs.id]
        assert [entry.name for entry in list_corpora(session, "nobody")] == []
        with pytest.raises(NotFoundError):
            find_cartridge(session, "default", "clinic", "champion")
        with pytest.raises(NotFoundError):
            set_alias(session, "default", "clinic", "champion", theirs.id)


def test_the_database_refuses_references_across_tenants(settings: Settings) -> None:
    with catalog_session(settings) as session:
        mine = add_cartridge(session)
        with pytest.raises(IntegrityError, match=r"(?i)foreign key"), session.begin_nested():
            session.add(models.StatusChangeRow(tenant="acme", cartridge_id=mine.id, status="published"))


@pytest.mark.parametrize("name", ["Clinic", "a/b", ""])
def test_names_are_checked_here_too(settings: Settings, name: str) -> None:
    with catalog_session(settings) as session:
        with pytest.raises(SettingsError, match="corpus name"):
            record_corpus(session, "default", name, "a" * 64)
        with pytest.raises(SettingsError, match="tenant"):
            record_corpus(session, name, "clinic", "a" * 64)


def test_an_error_takes_everything_back(settings: Settings) -> None:
    with pytest.raises(RuntimeError), catalog_session(settings) as session:
        add_cartridge(session)
        raise RuntimeError
    with catalog_session(settings) as session:
        assert list_corpora(session, "default") == []


def test_pages_hold_every_cartridge_once(settings: Settings) -> None:
    with catalog_session(settings) as session:
        rows = [add_cartridge(session, seed=seed) for seed in range(7)]
        record_tombstone(session, rows[3], [])
        add_cartridge(session, "other")
    with catalog_session(settings, read_only=True) as session:
        seen: list[int] = []
        while page := list_cartridges(session, "default", "clinic", limit=2, before=seen[-1] if seen else None):
            assert len(page) <= 2
            seen += [entry.cartridge_id for entry in page]
        assert seen == [row.id for row in reversed(rows) if row is not rows[3]]
        assert len(list_cartridges(session, "default", include_deleted=True)) == 8


def test_pages_of_corpora_and_what_is_served(settings: Settings) -> None:
    with catalog_session(settings) as session:
        for number in range(5):
            row = add_cartridge(session, f"corpus-{number}", seed=number)
            if number % 2:
                set_alias(session, "default", f"corpus-{number}", "champion", row.id)
        record_corpus(session, "default", "corpus-1", "b" * 64)
        add_cartridge(session, "corpus-1", tenant="acme")
    with catalog_session(settings, read_only=True) as session:
        first = list_corpora(session, "default", limit=3)
        rest = list_corpora(session, "default", limit=3, after=first[-1].name)
        assert [one.name for one in (*first, *rest)] == [f"corpus-{number}" for number in range(5)]
        assert [one.version for one in first] == [1, 2, 1]
        served = [one.name for one in list_corpora(session, "default", served=True)]
        assert served == ["corpus-1", "corpus-3"]
        assert [entry.corpus for entry in list_served(session, "default", served)] == served
        assert [entry.corpus for entry in list_served(session, "default", served[:1])] == served[:1]
