"""A learned start in the digest store: found again, started from, and forgotten with its corpora."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cartridge_core.errors import TrainingError
from cartridge_core.models import BaseModel
from cartridge_core.stages.fit import FittedCartridge, fit
from cartridge_core.stages.ingest import IngestedCorpus, ingest, store_of
from cartridge_core.stages.start import learned_start, starts
from cartridge_core.stages.study import StudiedDataset, find_dataset, newest_studies, study
from cartridge_core.training.start_config import StartConfig
from cartridge_core.upkeep.forgetting import dependents, forget, withdraw
from tests.initialization.test_initializers import tensors
from tests.stages.test_warm_start import warm
from tests.talkative import STUDY, Workplace, save_talkative

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
        with pytest.raises(TrainingError, match="cannot start from a corpus 'ward' of"):
            learned_start(settings, [wards, rooms], CONFIG.model_copy(update={"num_tokens": 300}))
        # Killed after the start was there and before the stage's own mark.
        (start.product.directory / "stage.json").unlink()
        again = learned_start(settings, [wards, rooms], CONFIG)
        assert (again.digest, again.product.cached) == (start.digest, False)
    theirs = settings.model_copy(update={"tenant": "theirs"})
    assert (len(starts(settings)), starts(theirs)) == (1, [])

    begun: FittedCartridge = fit(settings, *nurses, warm(start.digest[:8]))
    assert begun.product.inputs["config"]["initialization_options"] == {"cartridge": start.digest}
    later: FittedCartridge = fit(settings, *nurses, warm(begun.digest[:8]))
    # A room's document is in the start, and so in what began with it, also behind a Cartridge that is gone.
    store_of(settings).forget(begun.product)
    work = {product.key for product in dependents(settings, "room").work}
    assert {start.product.key, later.product.key} <= work
    ingest(theirs, "room", [files["room"]])
    assert not {product.key for product in dependents(theirs, "room").work} & {start.product.key, later.product.key}
    forget(settings, dependents(settings, "room"))
    assert not starts(settings)
    assert not later.folder.exists()
    assert not start.folder.exists()


def test_other_corpora_go_on_from_it(workplace: Workplace) -> None:
    settings = workplace.settings
    wards, rooms, nurses = (
        studied(workplace, name, [workplace.documents / f"{name}.md"]) for name in ("ward", "room", "nurse")
    )
    first = learned_start(settings, [wards, rooms], CONFIG)
    further = learned_start(settings, [rooms, nurses], CONFIG, begin=first)
    assert further.digest not in (first.digest, learned_start(settings, [rooms, nurses], CONFIG).digest)
    assert learned_start(settings, [rooms, nurses], CONFIG, begin=first).product.cached
    # By hand: each trains from the first one, and the mean is taken.
    alone = [
        fit(
            settings,
            *one,
            CONFIG.training(0, initialization="cartridge", initialization_options={"cartridge": first.digest}),
        )
        .load()
        .prefix()
        for one in (rooms, nurses)
    ]
    for mean, *parts in zip(*(tensors(prefix) for prefix in (further.load().prefix(), *alone)), strict=True):
        assert torch.equal(mean, torch.stack([part.float() for part in parts]).mean(dim=0).to(mean.dtype))
    with pytest.raises(TrainingError, match="cannot start from it"):
        learned_start(settings, [rooms, nurses], CONFIG.model_copy(update={"num_tokens": 20}), begin=first)
    work = {product.key for product in dependents(settings, "ward").work}
    assert further.product.key in work
    withdraw(settings, dependents(settings, "ward"))
    with pytest.raises(TrainingError, match="made of corpus 'ward'"):
        learned_start(settings, [rooms, nurses], CONFIG, begin=first)


def test_what_was_withdrawn_is_not_begun_with(workplace: Workplace) -> None:
    settings = workplace.settings
    wards, rooms, nurses = (
        studied(workplace, name, [workplace.documents / f"{name}.md"]) for name in ("ward", "room", "nurse")
    )
    start = learned_start(settings, [wards, rooms], CONFIG)
    withdraw(settings, dependents(settings, "room"))
    with pytest.raises(TrainingError, match=r"made of corpus 'room' .* withdrawn"):
        fit(settings, *nurses, warm(start.digest))
    with pytest.raises(TrainingError, match=r"made of corpus 'room' .* withdrawn"):
        fit(settings, *nurses, warm(str(start.folder)))
    ingest(settings, "room", [workplace.documents / "room.md"])
    assert fit(settings, *nurses, warm(start.digest)).product.facts["ancestry"] == sorted(
        [start.digest, wards[0].digest, rooms[0].digest]
    )


def test_the_newest_study_of_the_same_model_counts(
    workplace: Workplace, tiny_base: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    corpus, own = studied(workplace, "ward", [workplace.documents / "ward.md"])
    other = str(save_talkative(tmp_path / "other", tiny_base("llama")))
    theirs = study(workplace.settings, corpus, STUDY, model=other)
    assert find_dataset(workplace.settings, corpus).digest == theirs.digest
    ((_, found),) = newest_studies(workplace.settings, ["ward"])
    assert found.digest == own.digest
