"""Trains runs one after another in the ranks that `torchrun` started: starting those takes seconds, training does not.

RUNS_JSON names a file with a list of runs: model, corpus, dataset, config and folder of each.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.training.base_weights import load_frozen_model
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loop import train
from cartridge_core.training.process_group import process_group
from cartridge_core.training.sharding import shard


def main() -> None:
    torch.set_num_threads(1)
    with process_group("cpu") as (ranks, device):
        for run in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            config = TrainingConfig.model_validate(run["config"])
            base = load_frozen_model(run["model"], device, config.base_dtype)
            if config.shard_base:
                shard(base)
            corpus, dataset = Corpus.load(Path(run["corpus"])), ConversationDataset.load(Path(run["dataset"]))
            mine = replace(ranks, lockstep=config.shard_base)
            train(base, corpus, dataset, config, Path(run["folder"]), ranks=mine)


if __name__ == "__main__":
    main()
