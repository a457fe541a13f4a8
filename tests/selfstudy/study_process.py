"""Runs a study in a process of its own, for a test that kills it: MODEL CORPUS CONFIG_JSON FOLDER SECONDS_PER_CHUNK."""

import sys
import time
from pathlib import Path

from cartridge_core.corpus import Corpus
from cartridge_core.models import load_base_model
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.synthesize import synthesize
from cartridge_core.teacher.local import LocalTeacher

model, corpus, config, folder, pause = sys.argv[1:]
base = load_base_model(model, device="cpu")


def linger(done: int, total: int, what: str) -> None:
    """Leave the killer time to strike in the middle of a shard."""
    time.sleep(float(pause))


synthesize(
    Corpus.load(Path(corpus)),
    LocalTeacher(base),
    base.tokenizer,
    SelfStudyConfig.model_validate_json(config),
    Path(folder),
    linger,
)
