"""Ingest and study over the digest store."""

import pytest

from cartridge_core.benchmarks import load_questions
from cartridge_core.errors import NotFoundError
from cartridge_core.stages.ingest import corpora, find_corpus, ingest
from cartridge_core.stages.study import find_dataset, study
from tests.talkative import STUDY, Workplace


def test_the_same_content_is_the_same_version(workplace: Workplace) -> None:
    first = ingest(workplace.settings, "wards", [workplace.documents])
    again = ingest(workplace.settings, "wards", [workplace.documents])
    assert (first.product.cached, again.product.cached) == (False, True)
    assert first.digest == again.digest == first.load().digest
    assert len(corpora(workplace.settings)) == 1


def test_changed_content_is_a_new_version_and_the_newest(workplace: Workplace) -> None:
    first = ingest(workplace.settings, "wards", [workplace.documents])
    (workplace.documents / "more.txt").write_text("Patient 99 left.", encoding="utf-8")
    second = ingest(workplace.settings, "wards", [workplace.documents])
    assert second.digest != first.digest
    assert find_corpus(workplace.settings, "wards").digest == second.digest
    assert find_corpus(workplace.settings, "wards", first.digest[:10]).digest == first.digest


def test_skipped_files_are_named(workplace: Workplace) -> None:
    (workplace.documents / "scan.bin").write_bytes(b"\0\1\2")
    corpus = ingest(workplace.settings, "wards", [workplace.documents])
    (skipped,) = corpus.product.facts["skipped"]
    assert skipped["uri"].endswith("scan.bin")
    assert skipped["reason"]


def test_unknown_names_say_what_to_do(workplace: Workplace) -> None:
    with pytest.raises(NotFoundError, match="cartridge corpus add wards"):
        find_corpus(workplace.settings, "wards")
    corpus = ingest(workplace.settings, "wards", [workplace.documents])
    with pytest.raises(NotFoundError, match="no version ffff"):
        find_corpus(workplace.settings, "wards", "ffff")
    with pytest.raises(NotFoundError, match="cartridge synthesize wards"):
        find_dataset(workplace.settings, corpus)


def test_a_study_is_found_again(workplace: Workplace) -> None:
    corpus = ingest(workplace.settings, "wards", [workplace.documents])
    told: list[tuple[int, int]] = []
    first = study(workplace.settings, corpus, STUDY, progress=lambda done, total, what: told.append((done, total)))
    again = study(workplace.settings, corpus, STUDY)
    assert told and told[-1][0] == told[-1][1]
    assert (first.product.cached, again.product.cached) == (False, True)
    assert first.digest == again.digest == first.load().manifest.digest
    assert find_dataset(workplace.settings, corpus, first.digest[:8]).digest == first.digest
    assert first.product.facts["num_conversations"] == len(first.load()) > 0


def test_another_configuration_or_exam_is_another_study(workplace: Workplace) -> None:
    corpus = ingest(workplace.settings, "wards", [workplace.documents])
    first = study(workplace.settings, corpus, STUDY)
    other_seed = study(workplace.settings, corpus, STUDY.model_copy(update={"seed": 1}))
    with_exam = study(workplace.settings, corpus, STUDY, load_questions(workplace.questions))
    assert not other_seed.product.cached and not with_exam.product.cached
    assert other_seed.digest != first.digest
