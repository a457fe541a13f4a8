import pytest
from pydantic import ValidationError

from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.objective import OBJECTIVES
from cartridge_core.training.optimizer import OPTIMIZERS


def test_learning_rate_depends_on_the_optimizer_unless_stated() -> None:
    assert TrainingConfig(num_tokens=8, optimizer="adamw").learning_rate == 0.02
    assert TrainingConfig(num_tokens=8).learning_rate == 1.0
    assert TrainingConfig(num_tokens=8, optimizer="muon", learning_rate=0.3).learning_rate == 0.3


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_tokens": 0},
        {"num_tokens": 4, "num_frozen_tokens": 4},
        {"num_tokens": 4, "optimizer": "sgd"},
        {"num_tokens": 4, "objective": "masked"},
        {"num_tokens": 4, "steps": 5, "warmup_steps": 5},
        {"num_tokens": 4, "held_out_fraction": 0.0},
        {"num_tokens": 4, "steps": 40, "on_policy_steps": 41},
        {"num_tokens": 4, "on_policy_steps": -1},
        {"num_tokens": 4, "on_policy_steps": 5, "on_policy_temperature": -0.1},
        {"num_tokens": 4, "objective": "next_token", "on_policy_steps": 5},
        {"num_tokens": 4, "learning_rte": 0.1},
        {"num_tokens": 4, "attention": "sdpa"},
        {"num_tokens": 4, "temperature": 0.0},
        {"num_tokens": 4, "loss_chunk_tokens": 0},
        {"num_tokens": 4, "row_tokens": 4096, "micro_batch_tokens": 2048},
        {"num_tokens": 4, "objective": "next_token", "temperature": 2.0},
        {"num_tokens": 4, "objective": "next_token", "row_tokens": 100, "window_tokens": 256},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate(wrong)


def test_digest_names_every_field() -> None:
    assert TrainingConfig(num_tokens=8).digest == TrainingConfig(num_tokens=8, learning_rate=1.0).digest
    assert TrainingConfig(num_tokens=8).digest != TrainingConfig(num_tokens=8, seed=1).digest


def test_only_a_run_with_an_on_policy_phase_has_it_in_its_recipe() -> None:
    """What was trained before there was such a phase has the digest that it had."""
    plain = TrainingConfig(num_tokens=8)
    assert not {"on_policy_steps", "on_policy_temperature"} & set(plain.recipe())
    assert plain.digest == TrainingConfig(num_tokens=8, on_policy_temperature=0.5).digest
    own = TrainingConfig(num_tokens=8, on_policy_steps=600)
    other = TrainingConfig(num_tokens=8, on_policy_steps=600, on_policy_temperature=0.5)
    assert len({plain.digest, own.digest, other.digest}) == 3
    assert TrainingConfig.model_validate(own.recipe()) == own


def test_a_recipe_of_before_conversations_were_balanced_is_found_again_and_read_as_it_was_trained() -> None:
    balanced, uniform = TrainingConfig(num_tokens=8), TrainingConfig(num_tokens=8, sampling="uniform")
    assert balanced.recipe()["sampling"] == "balanced"
    assert "sampling" not in uniform.recipe()
    assert balanced.digest != uniform.digest
    assert TrainingConfig.from_recipe(balanced.recipe()) == balanced
    assert TrainingConfig.from_recipe(uniform.recipe()) == uniform
    words = [TrainingConfig(num_tokens=8, objective="next_token", sampling=name) for name in ("balanced", "uniform")]
    assert words[0].digest == words[1].digest
    assert "sampling" not in words[0].recipe()


def test_every_named_choice_exists() -> None:
    fields = TrainingConfig.model_json_schema()["properties"]
    assert set(fields["optimizer"]["enum"]) == set(OPTIMIZERS)
    assert set(fields["objective"]["enum"]) == set(OBJECTIVES)
