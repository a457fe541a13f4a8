"""Trains in child processes that die by SIGKILL at a chosen file operation, for tests of resuming.

MODEL CORPUS DATASET CONFIG_JSON FOLDER RUNS_JSON: RUNS_JSON maps a run's name, also its folder's below FOLDER, to its
attempts. Each attempt is a process of its own that kills itself at that many-th operation on the run's files (0:
never). Prints how the attempts ended, as JSON in the same form. The children are forked from one parent that has loaded
everything, because importing takes seconds.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.models import load_base_model
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loop import train

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"}


def die_at(moment: int, folder: Path) -> None:
    """Die before the `moment`-th operation that touches the folder is carried out."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in OPERATIONS and str(folder) in str(arguments[0]):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(moment: int, folder: Path, train_in: Callable[[Path], object]) -> int:
    """Exit code of a process that trains in a folder and may die on the way."""
    child = os.fork()
    if not child:
        status = 1
        try:
            if moment:
                die_at(moment, folder)
            train_in(folder)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    model, corpus_folder, dataset_folder, config_json, home, runs = sys.argv[1:]
    torch.set_num_threads(1)
    base = load_base_model(model, device="cpu")
    corpus = Corpus.load(Path(corpus_folder))
    dataset = ConversationDataset.load(Path(dataset_folder))
    config = TrainingConfig.model_validate_json(config_json)

    def train_in(folder: Path) -> object:
        return train(base, corpus, dataset, config, folder)

    ends = {
        name: [attempt(moment, Path(home, name), train_in) for moment in moments]
        for name, moments in json.loads(runs).items()
    }
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
