"""What a stage's key says about the base model."""

import shutil
from pathlib import Path

from cartridge_core.stages.model import identity_of, model_key
from tests.talkative import Workplace


def test_another_chat_template_is_another_key_of_the_same_model(workplace: Workplace, tmp_path: Path) -> None:
    other = tmp_path / "changed" / Path(workplace.model).name
    shutil.copytree(workplace.model, other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "{# changed #}", encoding="utf-8")
    assert identity_of(workplace.settings, workplace.model) == identity_of(workplace.settings, str(other))
    assert model_key(workplace.settings, workplace.model) != model_key(workplace.settings, str(other))
