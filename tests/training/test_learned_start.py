"""A learned start is the mean of what each corpus trains, round by round."""

from pathlib import Path

import pytest
import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.corpus import Corpus, Document
from cartridge_core.errors import TrainingError
from cartridge_core.initialization.options import CartridgeOptions
from cartridge_core.models import BaseModel
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.learned_start import Study, learn_start
from cartridge_core.training.loop import train
from cartridge_core.training.start_config import StartConfig
from tests.training.conftest import Study as MakeStudy

CONFIG = StartConfig(num_tokens=8, rounds=2, steps=6, batch_size=8, seed=5)


@pytest.fixture(scope="module")
def studies(base: BaseModel, make_study: MakeStudy) -> list[Study]:
    corpora = []
    for thing in ("ward", "room", "nurse"):
        text = "\n".join(f"The {thing} of patient {i} is {i * 7}." for i in range(12))
        corpora.append(Corpus(thing, (Document("a.txt", thing, "text/plain", text),)))
    return [(corpus, make_study(base, corpus, 20)) for corpus in corpora]


def test_each_round_trains_all_corpora_from_the_mean_before(
    base: BaseModel, studies: list[Study], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    start = learn_start(base, studies, CONFIG, tmp_path / "runs", progress=lambda a, b, what: told.append((a, b)))
    assert told == [(step, 36) for step in range(1, 37)]

    begin: dict[str, object] = {"initialization": "first_tokens"}
    for number in range(2):
        trained = []
        for corpus, dataset in studies:
            config = TrainingConfig.model_validate(
                {"num_tokens": 8, "steps": 6, "batch_size": 8, "eval_every": 6, "patience": None, "seed": 5 + number}
                | {"value_learning_rate_ratio": 2.0, "momentum": 0.8, "sampling": "uniform"}
                | begin
            )
            folder = tmp_path / f"alone-{number}-{corpus.name}"
            trained.append(train(base, corpus, dataset, config, folder).cartridge)
        by_hand = trained[0]
        for mine, *theirs in zip(*((*c.keys, *c.values) for c in (by_hand, *trained)), strict=True):
            # To the bit: Muon makes whole steps of directions that hardly differ from rounding.
            mine.copy_(torch.stack(theirs).mean(dim=0))
        moved = Cartridge.from_prefix(
            by_hand.prefix(),
            base_model=base.identity,
            layers=base.layer_specs,
            dtype=base.kv_dtype,
            template_digest=by_hand.manifest.template_digest,
        )
        folder = moved.save(tmp_path / f"mean-{number}")
        options = CartridgeOptions(cartridge=moved.digest, folder=folder)
        begin = {"initialization": "cartridge", "initialization_options": options}
    for ours, theirs in zip((*start.keys, *start.values), (*moved.keys, *moved.values), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    manifest = start.manifest
    assert (manifest.num_tokens, manifest.next_position, manifest.training_config_digest) == (8, 8, CONFIG.digest)
    assert manifest.corpus_digest not in {corpus.digest for corpus, _ in studies}


def test_a_stopped_run_goes_on_and_ends_the_same(base: BaseModel, studies: list[Study], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"rounds": 3})
    whole = learn_start(base, studies, config, tmp_path / "whole")

    def stop(done: int, total: int, doing: str) -> None:
        if done == 45:  # in the third round's second corpus
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_start(base, studies, config, tmp_path / "runs", progress=stop)
    told: list[int] = []
    again = learn_start(base, studies, config, tmp_path / "runs", progress=lambda done, *_: told.append(done))
    assert again.digest == whole.digest
    assert min(told) > 42
    # What is left is what somebody may still need.
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["round-2"]


def test_corpora_that_have_nothing_to_share_are_refused(base: BaseModel, studies: list[Study], tmp_path: Path) -> None:
    for few in ([], studies[:1], [studies[0], studies[1], studies[0]]):
        with pytest.raises(TrainingError, match="two or more different"):
            learn_start(base, few, CONFIG, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
