"""A learned start in the digest store: found again, started from, and forgotten with its corpora."""

from pathlib import Path

import pytest

from cartridge_core.errors import TrainingError
from cartridge_core.stages.fit import FittedCartridge, fit
from cartridge_core.stages.ingest import IngestedCorpus, ingest
from cartridge_core.stages.start import learned_start, starts
from cartridge_core.stages.study import StudiedDataset, study
from cartridge_core.training.start_config import StartConfig
from cartridge_core.upkeep.forgetting import dependents, forget
from tests.stages.test_warm_start import warm
from tests.talkative import STUDY, Workplace

CONFIG = StartConfig(num_tokens=24, rounds=1, steps=6, batch_size=4)


def studied(workplace: Workplace, name: str, paths: list[Path]) -> tuple[IngestedCorpus, StudiedDataset]:
    corpus = ingest(workplace.settings, name, paths)
    return corpus, study(workplace.settings, corpus, STUDY)


def test_it_is_made_once_started_from_and_forgotten(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = workplace.settings
    files = {name: workplace.documents / f"{name}.md" for name in ("ward", "room", "nurse")}
    wards, rooms, nurses = (studied(workplace, name, [file]) for name, file in files.items())
    start = learned_start(settings, [wards, rooms], CONFIG)
    assert not start.product.cached
    assert sorted(path.name for path in start.product.directory.iterdir()) == ["cartridge", "stage.json"]
    assert start.load().digest == start.digest

    def untouchable(*arguments: object) -> None:
        raise AssertionError("the model was loaded")

    with monkeypatch.context() as watched:
        watched.setattr("cartridge_core.stages.start.borrowed_model", untouchable)
        assert learned_start(settings, [wards, rooms], CONFIG).product.cached
        with pytest.raises(TrainingError, match="two or more different"):
            learned_start(settings, [wards], CONFIG)
        with pytest.raises(TrainingError, match="positions"):
            learned_start(settings, [wards, rooms], CONFIG.model_copy(update={"num_tokens": 10_000}))
    theirs = settings.model_copy(update={"tenant": "theirs"})
    assert (len(starts(settings)), starts(theirs)) == (1, [])

    begun: FittedCartridge = fit(settings, *nurses, warm(start.digest[:8]))
    assert begun.product.inputs["config"]["initialization_options"] == {"cartridge": start.digest}
    # A room's document is in the start, and so in what began with it.
    work = {product.key for product in dependents(settings, "room").work}
    assert {start.product.key, begun.product.key} <= work
    forget(settings, dependents(settings, "room"))
    assert not starts(settings)
    assert not begun.folder.exists()
    assert not start.folder.exists()
