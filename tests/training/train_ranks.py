"""Trains runs one after another in two processes over gloo, forked from this one, since importing takes seconds.

RUNS_JSON names a file with a list of runs: model, corpus, dataset, config and folder of each.
"""

import json
import os
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
from tests.ports import free_port

COUNT = 2


def train_as(rank: int, port: int, runs: Path) -> None:
    """All runs, as one of the ranks."""
    # As `torchrun` tells its processes.
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": COUNT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    with process_group("cpu") as (ranks, device):
        for run in json.loads(runs.read_text(encoding="utf-8")):
            config = TrainingConfig.model_validate(run["config"])
            base = load_frozen_model(run["model"], device, config.base_dtype)
            if config.shard_base:
                shard(base)
            corpus, dataset = Corpus.load(Path(run["corpus"])), ConversationDataset.load(Path(run["dataset"]))
            mine = replace(ranks, lockstep=config.shard_base)
            train(base, corpus, dataset, config, Path(run["folder"]), ranks=mine)


def main() -> None:
    torch.set_num_threads(1)
    port = free_port()
    torch.multiprocessing.start_processes(train_as, (port, Path(sys.argv[1])), nprocs=COUNT, start_method="fork")


if __name__ == "__main__":
    main()
