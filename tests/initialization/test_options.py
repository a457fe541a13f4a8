"""Names and options are refused when a configuration is made, long before a model is loaded."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cartridge_core.errors import SettingsError
from cartridge_core.initialization.options import AttentionMatchingOptions, CartridgeOptions, InitializationOptions
from cartridge_core.stages.config import config_of
from cartridge_core.stages.initialization_fields import initialization_fields
from cartridge_core.training.config import TrainingConfig


def test_a_file_states_name_and_options(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text(
        'num_tokens = 8\ninitialization = "attention_matching"\n[initialization_options]\nkeys = "omp"\nridge = 0.1\n',
        encoding="utf-8",
    )
    config = config_of(TrainingConfig, file)
    assert config.initialization_options == AttentionMatchingOptions(keys="omp", ridge=0.1)
    assert TrainingConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.digest != TrainingConfig(num_tokens=8, initialization="attention_matching").digest
    assert type(TrainingConfig(num_tokens=8).initialization_options) is InitializationOptions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initialization": "magic"}, "named 'magic'; choose one of auto, first_tokens"),
        ({"initialization_options": {"keys": "omp"}}, "keys: Extra inputs .* 'auto', whose options are: none"),
        ({"initialization": "text"}, "text: Field required"),
        ({"initialization": "cartridge"}, "cartridge: Field required"),
        ({"initialization": "attention_matching", "initialization_options": {"keys": "best"}}, "'rms'"),
        ({"initialization": "sampled_chunks", "initialization_options": AttentionMatchingOptions()}, "another"),
        ({"initialization": "attention_matching", "objective": "next_token"}, "needs the conversations"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(num_tokens=8, **fields)  # type: ignore[arg-type]


def test_the_content_of_a_text_is_part_of_the_identity_and_a_folder_is_not() -> None:
    one, other = (
        TrainingConfig(num_tokens=8, initialization="text", initialization_options={"text": text})  # type: ignore[arg-type]
        for text in ("one", "other")
    )
    assert one.digest != other.digest
    here, there, another = (
        TrainingConfig(
            num_tokens=8,
            initialization="cartridge",
            initialization_options=CartridgeOptions(cartridge=digest, folder=folder),
        )
        for digest, folder in (("a" * 64, Path("here")), ("a" * 64, Path("there")), ("b" * 64, Path("here")))
    )
    assert here.digest == there.digest != another.digest
    passed_on = TrainingConfig.model_validate(there.for_another_process())
    assert passed_on.digest == there.digest
    assert isinstance(passed_on.initialization_options, CartridgeOptions)
    assert passed_on.initialization_options.folder == Path("there").absolute()


def test_words_of_commands_become_fields(tmp_path: Path) -> None:
    assert initialization_fields() == {}
    assert initialization_fields("random_vectors") == {"initialization": "random_vectors"}
    previous = {"initialization": "cartridge", "initialization_options": {"cartridge": "champion"}}
    assert initialization_fields(None, "champion") == initialization_fields("cartridge", "champion") == previous
    file = tmp_path / "text.txt"
    file.write_text("Wörter", encoding="utf-8")
    text = {"initialization": "text", "initialization_options": {"text": "Wörter"}}
    assert initialization_fields(None, None, file) == text
    for wrong, message in (
        (("text", "champion", None), "does not start from a cartridge"),
        ((None, "champion", file), "not from both"),
        ((None, None, tmp_path / "nowhere"), "cannot be read as text"),
    ):
        with pytest.raises(SettingsError, match=message):
            initialization_fields(*wrong)  # type: ignore[arg-type]
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SettingsError, match="cannot be read as text"):
        initialization_fields(None, None, file)
