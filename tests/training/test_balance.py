from typing import Any

import numpy as np
import pytest

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.models import BaseModel
from cartridge_core.training import balance, objective, on_policy
from cartridge_core.training.balance import balanced_weights
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.conversation_stream import ConversationStream
from tests.talkative import ChunkedStudy

CORPUS = list(range(100))
"""Two neighbours n, n + 1 are a phrase of it; 100 and above are words that only an asker uses."""


def said(*phrases: int, wording: int) -> np.ndarray:
    """A conversation about some phrases, in one of several wordings of five words."""
    words = [100 + 5 * wording + place for place in range(5)]
    return np.array([*words, *(token for phrase in phrases for token in (phrase, phrase + 1, 100))], dtype=np.int32)


def study(often: int = 12, others: int = 20) -> list[np.ndarray]:
    """One phrase asked about often, in as many wordings; then others, each once, all in one wording."""
    return [
        *(said(0, wording=wording) for wording in range(often)),
        *(said(4 * number + 4, wording=99) for number in range(others)),
    ]


def test_what_is_said_seldom_weighs_more_than_what_is_said_often() -> None:
    weights = balanced_weights(study(), CORPUS, seed=0)
    often, seldom = weights[:12], weights[12:]
    assert seldom.min() > 3 * often.max()
    assert weights.mean() == pytest.approx(1)
    assert weights.min() > 0


def test_a_common_wording_does_not_make_conversations_alike() -> None:
    weights = balanced_weights(study(), CORPUS, seed=0)
    assert np.ptp(weights[12:]) < 1e-9, "twenty that share nothing but their wording count as if alone"
    with_wording = balanced_weights(study(), range(1000), seed=0)
    assert with_wording[12] / with_wording[0] < 0.9 * weights[12] / weights[0]


def test_a_conversation_that_nothing_is_like_is_drawn_a_few_times_as_often_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crowd = [said(0, 8, wording=n) for n in range(500)] + [said(0, 12, wording=n) for n in range(500)]
    weights = balanced_weights([*crowd, said(40, wording=1)], CORPUS, seed=0)
    assert weights[-1] == pytest.approx(balance.MOST * weights[0], rel=0.05)
    monkeypatch.setattr(balance, "MOST", 1e9)
    unlimited = balanced_weights([*crowd, said(40, wording=1)], CORPUS, seed=0)
    assert unlimited[-1] > 100 * unlimited[0], "by its density alone it would weigh hundreds of times the others"


def test_a_conversation_without_a_word_of_the_corpus_weighs_the_mean() -> None:
    weights = balanced_weights([*study(), np.array([150, 151], dtype=np.int32)], CORPUS, seed=0)
    assert weights[-1] == pytest.approx(1)
    assert (balanced_weights([said(wording=n) for n in range(4)], CORPUS, seed=0) == 1).all()
    assert (balanced_weights(study(), [], seed=0) == 1).all(), "nor has a corpus without words any to share"


def test_one_conversation_or_equal_ones_are_drawn_alike() -> None:
    assert balanced_weights([said(0, wording=0)], CORPUS, seed=0).tolist() == [1]
    assert balanced_weights([said(0, wording=0)] * 3, CORPUS, seed=0) == pytest.approx(1)
    assert balanced_weights([np.array([7], dtype=np.int32)], [7], seed=0).tolist() == [1], "too short for a pair"


def test_a_large_study_is_compared_with_a_sample_that_the_seed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    many = [said(4 * int(phrase), wording=n) for n, phrase in enumerate(generator.geometric(0.15, 2000).clip(max=20))]
    exact = balanced_weights(many, CORPUS, seed=0)
    monkeypatch.setattr(balance, "REFERENCES", 500)
    sampled = [balanced_weights(many, CORPUS, seed=seed) for seed in (0, 0, 1)]
    assert (sampled[0] == sampled[1]).all()
    assert (sampled[0] != sampled[2]).any()
    assert np.corrcoef(np.log(exact), np.log(sampled[0]))[0, 1] > 0.9
    unique = [said(phrase, wording=phrase) for phrase in range(82, 98, 2)]
    alone = balanced_weights([*many, *unique], CORPUS, seed=0)[-len(unique) :]
    assert np.ptp(alone) < 0.1 * alone.mean(), "whether the sample holds a conversation says nothing about it"


def test_of_a_large_study_progress_is_told(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, "_BLOCK", 10)
    told: list[tuple[int, int, str]] = []
    material = objective.distillation(base, corpus, study, config, lambda *event: told.append(event))
    count = material.num_examples
    assert told == [(min(done, count), count, "comparing conversations") for done in range(10, count + 10, 10)]
    assert len(told) > 1


def test_a_study_on_disk_is_balanced_by_the_words_of_its_corpus(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig
) -> None:
    streams = [
        objective.distillation(
            base, corpus, study, config.model_copy(update={"sampling": sampling, "batch_size": 32})
        ).stream
        for sampling in ("balanced", "uniform")
    ]
    balanced, uniform = (
        [example.token_ids.tobytes() for step in range(20) for example in stream.batch(step)] for stream in streams
    )
    assert set(balanced) <= set(uniform)
    count = len(set(uniform))
    assert len(set(uniform[:count])) == count
    assert len(set(balanced[:count])) < count, "in an epoch some conversation stands twice"


@pytest.mark.parametrize("sampling", ["balanced", "uniform"])
def test_ordinary_and_on_policy_steps_draw_as_the_configuration_says(
    chunked: ChunkedStudy, config: TrainingConfig, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    class Remembered(ConversationStream):  # type: ignore[type-arg]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            drawn.append([example.token_ids.tolist() for step in range(30) for example in self.batch(step)])

    for module in (objective, on_policy):
        monkeypatch.setattr(module, "ConversationStream", Remembered)
    # What the tiny model says has hardly a word of the corpus.
    monkeypatch.setattr(
        objective, "balanced_weights", lambda conversations, *_: np.linspace(0.5, 1.5, len(conversations))
    )
    config = config.model_copy(update={"sampling": sampling, "on_policy_steps": 2})
    objective.distillation(chunked.base, chunked.corpus, chunked.dataset, config)
    ordinary, own = drawn
    assert ordinary == own
    train, _, _ = objective.split_study(chunked.dataset, config, chunked.base.max_positions)
    epoch = sorted(ordinary[: len(train)])
    each_once = sorted(conversation.token_ids.tolist() for conversation in train)
    assert (epoch == each_once) == (sampling == "uniform")
