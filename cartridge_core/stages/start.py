"""A learned start: where Cartridges of a base model begin, from the studies of several corpora."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.errors import NotFoundError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.ancestry import ancestry, check_standing
from cartridge_core.stages.ingest import IngestedCorpus, store_of
from cartridge_core.stages.model import borrowed_model, identity_of, model_key, model_name, rendering_of, window_of
from cartridge_core.stages.store import Facts, Finished
from cartridge_core.stages.study import StudiedDataset
from cartridge_core.training.start_config import StartConfig, check_corpora

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge
    from cartridge_core.corpus import Corpus
    from cartridge_core.dataset import ConversationDataset

STAGE, CARTRIDGE = "start", "cartridge"


@dataclass(frozen=True)
class LearnedStart:
    """A learned start in the digest store."""

    product: Finished
    """Where it lies and how it was made."""

    @property
    def digest(self) -> str:
        """What `cartridge train --init-from` takes."""
        return str(self.product.facts["digest"])

    @property
    def folder(self) -> Path:
        """The artifact: tensors and manifest of a Cartridge that stands in for no corpus."""
        return self.product.directory / CARTRIDGE

    def load(self) -> Cartridge:
        """The start, verified."""
        from cartridge_core.cartridge import Cartridge

        return Cartridge.load(self.folder)


def learned_start(
    settings: Settings,
    studies: Sequence[tuple[IngestedCorpus, StudiedDataset]],
    config: StartConfig,
    model: str | None = None,
    progress: Progress = no_progress,
    begin: LearnedStart | None = None,
) -> LearnedStart:
    """Learn a start, or find that this was done; a killed run goes on from the newest checkpoint.

    Forgetting a corpus forgets the starts that were learnt from it, and the Cartridges that began with those.

    Args:
        settings: Store, device, default model.
        studies: Two or more corpora, each with what is distilled about it; their order is part of the recipe.
        config: Length, rounds, steps.
        model: Hub id or folder; None for the settings' own.
        progress: Told about steps.
        begin: An earlier start that these corpora go on from; None for their first tokens.

    Raises:
        TrainingError: There are fewer than two different corpora, or one cannot be trained on, or is shorter than
            the start, or the earlier start does not fit or was made of a corpus that was withdrawn; said before the
            model's weights are loaded.
        DatasetError: A study has too few questions to hold any out, or is about another corpus; said as early.
        BaseModelMismatchError: A study was made with another model; said as early.
    """
    digests = [corpus.digest for corpus, _ in studies]
    check_corpora(digests)
    ancestors = ancestry(begin.digest, [begin.product]) if begin else []
    check_standing(settings, ancestors)
    inputs = {
        "tenant": settings.tenant,
        "begin": begin.digest if begin else None,
        "corpora": digests,
        "datasets": [dataset.digest for _, dataset in studies],
        "base_model": model_key(settings, model),
        "config": config.model_dump(mode="json"),
        "training": config.training(0).recipe(),
    }

    def work(directory: Path) -> Facts:
        from cartridge_core.cartridge import MANIFEST_FILE, Cartridge
        from cartridge_core.initialization.previous_cartridge import check_previous
        from cartridge_core.training.learned_start import learn_start

        loaded = [(corpus.load(), dataset.load()) for corpus, dataset in studies]
        for study in loaded:
            _check(settings, model, config, *study)
        if begin:
            check_previous(begin.load(), identity_of(settings, model), rendering_of(settings, model), config.num_tokens)
        learnt, runs = directory / CARTRIDGE, directory / "runs"
        # It is there already where a kill fell between here and the stage's own mark.
        if not (learnt / MANIFEST_FILE).exists():
            with borrowed_model(settings, model) as base:
                learn_start(
                    base,
                    loaded,
                    config,
                    runs,
                    begin=begin.folder if begin else None,
                    tenant=settings.tenant,
                    progress=progress,
                ).save(learnt)
        start = Cartridge.load(learnt)
        shutil.rmtree(runs, ignore_errors=True)
        return {
            "digest": start.digest,
            "num_tokens": start.num_tokens,
            "corpora": [corpus.name for corpus, _ in studies],
            "ancestry": ancestors,
        }

    return LearnedStart(store_of(settings).run(STAGE, inputs, work, resumable=True))


def _check(
    settings: Settings, model: str | None, config: StartConfig, corpus: Corpus, dataset: ConversationDataset
) -> None:
    """Refuse what cannot be trained on: before the first of several corpora has been."""
    from cartridge_core.initialization.first_tokens import check_length
    from cartridge_core.models import load_tokenizer
    from cartridge_core.rendering import prefix_token_ids
    from cartridge_core.training.checks import check_inputs
    from cartridge_core.training.objective import split_study

    window, training = window_of(settings, model), config.training(0)
    identity, rendering = identity_of(settings, model), rendering_of(settings, model)
    check_inputs(identity, window, rendering, corpus, dataset, training)
    length = len(prefix_token_ids(load_tokenizer(model_name(settings, model)), corpus.text()))
    check_length(config.num_tokens, length, f"corpus {corpus.name!r}")
    split_study(dataset, training, window)


def starts(settings: Settings) -> list[LearnedStart]:
    """The tenant's learned starts, oldest first."""
    products = store_of(settings).finished(STAGE)
    return [LearnedStart(product) for product in products if product.inputs["tenant"] == settings.tenant]


def find_start(settings: Settings, digest: str) -> LearnedStart:
    """The tenant's learned start whose digest begins so.

    Raises:
        NotFoundError: None or several of the tenant's begin with that digest.
    """
    found = [start for start in starts(settings) if start.digest.startswith(digest)]
    if len(found) != 1:
        problem = f"{len(found) or 'No'} learned starts begin with {digest!r}."
        raise NotFoundError(problem, "`cartridge starts` lists them.")
    return found[0]


def forget_start(settings: Settings, digest: str) -> None:
    """Remove a learned start from the digest store; what has begun with it stays, and remembers where it is from.

    Raises:
        NotFoundError: None or several of the tenant's begin with that digest.
    """
    store_of(settings).forget(find_start(settings, digest).product)
