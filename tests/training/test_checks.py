"""Wrong inputs are refused before the model is touched: there is no model here at all."""

from collections.abc import Callable

import pytest

from cartridge_core.corpus import Corpus, Document
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import BaseModelMismatchError, CartridgeError, DatasetError, TrainingError
from cartridge_core.models import BaseModel
from cartridge_core.training.checks import check_inputs
from cartridge_core.training.config import TrainingConfig


@pytest.fixture
def check(base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig) -> Callable[..., None]:
    def run(**changed: object) -> None:
        good = {
            "identity": base.identity,
            "max_positions": base.max_positions,
            "rendering": study.manifest.template_digest,
            "corpus": corpus,
            "dataset": study,
            "config": config,
        }
        check_inputs(**(good | changed))  # type: ignore[arg-type]

    return run


def test_good_inputs_pass(check: Callable[..., None]) -> None:
    check()


@pytest.mark.parametrize("field", ["id", "revision", "config_digest", "tokenizer_digest"])
def test_another_base_model_or_tokenizer(check: Callable[..., None], base: BaseModel, field: str) -> None:
    with pytest.raises(BaseModelMismatchError, match=field):
        check(identity=base.identity.model_copy(update={field: "other"}))


def test_unknown_initialisation(check: Callable[..., None], config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match=r"'magic'.*first_tokens"):
        check(config=config.model_copy(update={"initialization": "magic"}))


def test_options_of_another_initialisation(check: Callable[..., None], config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match=r"'attention_matching' was given the options of another"):
        check(config=config.model_copy(update={"initialization": "attention_matching"}))


def test_attention_matching_needs_conversations(check: Callable[..., None], config: TrainingConfig) -> None:
    matching = TrainingConfig.model_validate(
        config.model_dump(exclude={"initialization_options"}) | {"initialization": "attention_matching"}
    )
    check(config=matching)
    with pytest.raises(TrainingError, match=r"needs a study's conversations"):
        check(config=matching.model_copy(update={"objective": "next_token"}), dataset=None)


def test_a_cartridge_longer_than_the_window(
    check: Callable[..., None], study: ConversationDataset, config: TrainingConfig
) -> None:
    shortest = int(study.lengths.min())
    assert shortest < study.lengths.max()
    check(max_positions=config.num_tokens + shortest)
    with pytest.raises(TrainingError, match=f"at most {config.num_tokens - 1} tokens"):
        check(max_positions=config.num_tokens + shortest - 1)
    next_token = config.model_copy(update={"objective": "next_token", "num_tokens": 1000, "window_tokens": 100})
    with pytest.raises(TrainingError, match="1024 positions"):
        check(config=next_token, dataset=None)


def test_rows_shorter_than_every_conversation(
    check: Callable[..., None], study: ConversationDataset, config: TrainingConfig
) -> None:
    shortest = int(study.lengths.min())
    check(config=config.model_copy(update={"row_tokens": shortest - 1}))
    with pytest.raises(TrainingError, match=f"a row of {shortest - 2} tokens: the shortest has {shortest}"):
        check(config=config.model_copy(update={"row_tokens": shortest - 2}))


def test_objective_and_dataset_go_together(check: Callable[..., None], config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match="needs the conversations"):
        check(dataset=None)
    with pytest.raises(TrainingError, match="conversations were given"):
        check(config=config.model_copy(update={"objective": "next_token"}))


def test_conversations_about_another_corpus(check: Callable[..., None]) -> None:
    other = Corpus("other", (Document("b.txt", "B", "text/plain", "Something else."),))
    with pytest.raises(DatasetError, match="'other'"):
        check(corpus=other)


def test_another_rendering(check: Callable[..., None]) -> None:
    with pytest.raises(DatasetError, match="rendered in another way"):
        check(rendering="0" * 64)


def test_no_conversations(check: Callable[..., None], study: ConversationDataset) -> None:
    with pytest.raises(DatasetError, match="no conversation"):
        check(dataset=study.select([]))


def test_every_refusal_names_a_remedy(check: Callable[..., None], study: ConversationDataset) -> None:
    for changed in ({"dataset": None}, {"dataset": study.select([])}, {"rendering": "x"}, {"max_positions": 3}):
        with pytest.raises(CartridgeError) as caught:
            check(**changed)
        assert caught.value.remedy
