"""One process of a training run, for `torchrun`.

On one machine `cartridge train --processes N` starts these. On a cluster, with the same arguments and a folder that all
machines see:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m cartridge_core.training.launch --model HUB_ID_OR_FOLDER --corpus CORPUS_FOLDER --dataset DATASET_FOLDER \\
        --config training.toml --folder RUN_FOLDER
"""

import argparse
import json
import logging
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import CartridgeError, TrainingError
from cartridge_core.models import load_tokenizer, read_layout
from cartridge_core.rendering import template_digest
from cartridge_core.training.base_weights import load_frozen_model
from cartridge_core.training.checks import check_inputs
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loop import train
from cartridge_core.training.process_group import process_group
from cartridge_core.training.ranks import Ranks
from cartridge_core.training.sharding import shard


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one of the ranks that `torchrun` started, or alone without it; the exit code."""
    told = _parser().parse_args(arguments)
    try:
        _train(told)
    except CartridgeError as error:
        _tell(told.json, {"error": [type(error).__name__, error.problem, error.remedy]}, f"Error: {error}")
        return 1
    return 0


def _train(told: argparse.Namespace) -> None:
    if told.threads:
        torch.set_num_threads(told.threads)
    config = _config(told.config)
    corpus = Corpus.load(told.corpus)
    dataset = ConversationDataset.load(told.dataset) if told.dataset else None
    layout, template = read_layout(told.model), template_digest(load_tokenizer(told.model))
    with process_group(told.device, config.shard_base) as (ranks, device):
        _listen(told.json, ranks)
        check_inputs(layout.identity, layout.max_positions, template, corpus, dataset, config, ranks.count)
        base = load_frozen_model(told.model, device, config.base_dtype)
        if ranks.lockstep:
            shard(base)

        def progress(done: int, total: int, what: str) -> None:
            _tell(told.json, {"progress": [done, total, what]}, f"{done}/{total} {what}")

        result = train(base, corpus, dataset, config, told.folder, tenant=told.tenant, progress=progress, ranks=ranks)
        if ranks.first:
            _tell(told.json, {"digest": result.cartridge.digest}, f"Cartridge {result.cartridge.digest}")


def _config(file: Path) -> TrainingConfig:
    # JSON can say null, which TOML cannot.
    parsed = json.loads if file.suffix == ".json" else tomllib.loads
    try:
        return TrainingConfig.model_validate(parsed(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # errors of JSON, TOML and pydantic are ValueErrors
        reason = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else error
        raise TrainingError(f"{file} is not a training configuration: {reason}.", "Correct the file.") from error


def _listen(as_json: bool, ranks: Ranks) -> None:
    """Messages of rank 0 go to who started the run; those of the others would only repeat them."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _tell(as_json, {"message": record.getMessage()}, record.getMessage())

    logger = logging.getLogger("cartridge_core")
    logger.propagate = False
    logger.addHandler(Teller() if ranks.first else logging.NullHandler())


def _tell(as_json: bool, value: dict[str, Any], text: str) -> None:
    sys.stdout.write((json.dumps(value) if as_json else text) + "\n")
    # Where nobody reads any more this fails, and the run ends: it must not outlive the command that started it.
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cartridge_core.training.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="hub id or folder of the base model")
    parser.add_argument("--corpus", required=True, type=Path, help="folder of the corpus")
    parser.add_argument("--dataset", type=Path, help="folder of the study; none for next-token training")
    parser.add_argument("--config", required=True, type=Path, help="TOML or JSON file with fields of TrainingConfig")
    parser.add_argument("--folder", required=True, type=Path, help="where the run's files go; every rank sees it")
    parser.add_argument("--tenant", default="default", help="who the corpus belongs to")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    parser.add_argument("--json", action="store_true", help="tell progress as JSON lines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
