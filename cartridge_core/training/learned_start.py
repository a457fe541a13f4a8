"""A learned start: keys and values that Cartridges of many corpora are near to, so that a new one has less to learn.

In rounds: from where the round starts each corpus trains a Cartridge for some steps, and the mean of their keys and
values is where the next round starts. That is Reptile (arXiv 1803.02999, batched and with a step of 1), or federated
averaging (1602.05629) over corpora. Most of what the corpora do not share averages out; how questions are answered from
a Cartridge stays.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cartridge_core.cartridge import MANIFEST_FILE, Cartridge, PrefixKV
from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.digest import digest_of
from cartridge_core.initialization.options import CartridgeOptions
from cartridge_core.models import BaseModel
from cartridge_core.progress import Progress, no_progress
from cartridge_core.rendering import template_digest
from cartridge_core.training.loop import train
from cartridge_core.training.start_config import StartConfig, check_corpora

logger = logging.getLogger(__name__)

Study = tuple[Corpus, ConversationDataset]
"""A corpus and what there is to distil about it."""


def learn_start(
    base: BaseModel,
    studies: Sequence[Study],
    config: StartConfig,
    folder: Path,
    *,
    begin: Path | None = None,
    tenant: str = "default",
    progress: Progress = no_progress,
) -> Cartridge:
    """Learn where Cartridges of a base model should start, or go on where a killed run of the same inputs was.

    Args:
        base: The frozen model.
        studies: At least two; corpora that are like those to come.
        config: Length, rounds, steps.
        folder: Where the runs lie while they are needed; one round's mean is kept until the next one is there.
        begin: Folder of an earlier start that the first round goes on from; None for each corpus's first tokens.
        tenant: Who the corpora belong to.
        progress: Told about steps over all rounds and corpora.

    Returns:
        The last round's mean. It stands in for no corpus: its `corpus_digest` is that of the list of all.

    Raises:
        TrainingError: There are fewer than two corpora, one is given twice, or one cannot be trained on.
    """
    check_corpora([corpus.digest for corpus, _ in studies])
    total = config.rounds * len(studies) * config.steps
    ended = [number for number in range(config.rounds) if (folder / f"round-{number}" / MANIFEST_FILE).exists()]
    newest = max(ended, default=-1)
    where = folder / f"round-{newest}" if ended else begin
    start = Cartridge.load(where) if where else None
    for number in range(newest + 1, config.rounds):
        trained = []
        for place, (corpus, dataset) in enumerate(studies):
            done = (number * len(studies) + place) * config.steps

            def told(step: int, _: int, doing: str, done: int = done, number: int = number) -> None:
                progress(done + step, total, f"round {number + 1} of {config.rounds}: {doing}")

            training = config.training(number, **_where(start, where))
            run = folder / f"round-{number}-corpus-{place}"
            result = train(base, corpus, dataset, training, run, tenant=tenant, progress=told)
            if not result.best_step:
                logger.warning(
                    "Round %d: corpus %r stays where it began; more steps may help.", number + 1, corpus.name
                )
            trained.append(result.cartridge)
        start = _mean(base, trained, studies, config, tenant)
        where = start.save(folder / f"round-{number}")
        for left in (*folder.glob(f"round-{number}-corpus-*"), folder / f"round-{number - 1}"):
            shutil.rmtree(left, ignore_errors=True)
    assert start is not None  # There is at least one round.
    return start


def _where(start: Cartridge | None, folder: Path | None) -> dict[str, Any]:
    if start is None:
        return {"initialization": "first_tokens"}
    options = CartridgeOptions(cartridge=start.digest, folder=folder)
    return {"initialization": "cartridge", "initialization_options": options}


def _mean(
    base: BaseModel, trained: Sequence[Cartridge], studies: Sequence[Study], config: StartConfig, tenant: str
) -> Cartridge:
    prefixes = [cartridge.prefix() for cartridge in trained]
    keys, values = (
        [
            None if layer[0] is None else torch.stack([t.float() for t in layer if t is not None]).mean(dim=0)
            for layer in zip(*sides, strict=True)
        ]
        for sides in ([p.keys for p in prefixes], [p.values for p in prefixes])
    )
    return Cartridge.from_prefix(
        PrefixKV(keys, values, prefixes[0].next_position),
        base_model=base.identity,
        layers=base.layer_specs,
        dtype=base.kv_dtype,
        template_digest=template_digest(base.tokenizer),
        num_frozen_tokens=trained[0].manifest.num_frozen_tokens,
        tenant=tenant,
        corpus_digest=digest_of([corpus.digest for corpus, _ in studies]),
        dataset_digest=digest_of([dataset.manifest.digest for _, dataset in studies]),
        training_config_digest=config.digest,
        seed=config.seed,
    )
