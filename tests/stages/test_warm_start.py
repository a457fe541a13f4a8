"""The Cartridge that a training starts from: how it is found, and that it is part of the stage's identity."""

import shutil
from pathlib import Path

import pytest

from cartridge_core.benchmarks import load_questions
from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import BaseModelMismatchError, NotFoundError, TrainingError
from cartridge_core.stages.fit import FittedCartridge, fit
from cartridge_core.stages.grade import grade
from cartridge_core.stages.ingest import IngestedCorpus, ingest
from cartridge_core.stages.register import register
from cartridge_core.stages.study import StudiedDataset, study
from cartridge_core.training.config import TrainingConfig
from tests.samples import save_cartridge
from tests.stages.test_chain import EVALUATION, TRAINING
from tests.talkative import STUDY, Workplace


def products(workplace: Workplace) -> tuple[IngestedCorpus, StudiedDataset, FittedCartridge]:
    corpus = ingest(workplace.settings, "wards", [workplace.documents])
    dataset = study(workplace.settings, corpus, STUDY)
    return corpus, dataset, fit(workplace.settings, corpus, dataset, TRAINING)


def warm(reference: str | Path, **changed: object) -> TrainingConfig:
    fields = TRAINING.model_dump() | {"initialization_options": {"cartridge": str(reference)}} | changed
    return TrainingConfig.model_validate(fields | {"initialization": "cartridge"})


def test_it_is_found_by_digest_folder_and_version_and_is_the_same(workplace: Workplace, tmp_path: Path) -> None:
    settings = workplace.settings
    corpus, dataset, before = products(workplace)
    by_digest = fit(settings, corpus, dataset, warm(before.digest[:8]))
    assert not by_digest.product.cached
    assert by_digest.product.inputs["config"]["initialization_options"] == {"cartridge": before.digest}
    assert by_digest.digest != before.digest
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(before.folder, elsewhere)
    assert fit(settings, corpus, dataset, warm(elsewhere)).product.cached
    questions = load_questions(workplace.questions)
    register(settings, corpus, before, grade(settings, corpus, {"self_study": before}, questions, config=EVALUATION))
    assert fit(settings, corpus, dataset, warm("1")).product.cached
    assert Cartridge.load(by_digest.folder).manifest.training_config_digest == warm(before.digest).digest
    longer = fit(settings, corpus, dataset, warm(before.digest, num_tokens=30))
    assert longer.num_tokens == 30

    # Of another version of the corpus too: that is what a warm start is for.
    (workplace.documents / "more.md").write_text("# More\n\nThe desk of patient 3 is new.\n", encoding="utf-8")
    grown = ingest(settings, "wards", [workplace.documents])
    assert grown.digest != corpus.digest
    onward = fit(settings, grown, study(settings, grown, STUDY), warm(before.digest))
    assert onward.product.inputs["config"]["initialization_options"] == {"cartridge": before.digest}


def test_what_cannot_be_started_from_is_refused_without_the_model(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = workplace.settings
    corpus, dataset, before = products(workplace)

    def untouchable(*arguments: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("cartridge_core.stages.fit.borrowed_model", untouchable)
    for nowhere in ("abcdef", "champion", "7", "no such thing"):
        with pytest.raises(NotFoundError, match=f"no Cartridge '{nowhere}' to start from"):
            fit(settings, corpus, dataset, warm(nowhere))
    with pytest.raises(TrainingError, match="Choose at least 24"):
        fit(settings, corpus, dataset, warm(before.digest, num_tokens=12))
    save_cartridge(tmp_path / "foreign")
    with pytest.raises(BaseModelMismatchError, match="belongs to reference"):
        fit(settings, corpus, dataset, warm(tmp_path / "foreign"))
    save_cartridge(tmp_path / "theirs", tenant="theirs")
    with pytest.raises(TrainingError, match="tenant 'theirs'"):
        fit(settings, corpus, dataset, warm(tmp_path / "theirs"))
