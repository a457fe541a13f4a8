"""Where a run's keys and values start."""

from cartridge_core.cartridge import PrefixKV
from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.initialization.initializers import INITIALIZERS
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import BaseModel
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.objective import split_study


def initial_prefix(
    base: BaseModel, corpus: Corpus, dataset: ConversationDataset | None, config: TrainingConfig
) -> PrefixKV:
    """The prefix that the configured initialiser makes; held-out conversations are kept from it.

    Raises:
        TrainingError: The initialiser lacks something, or the Cartridge has a length that it cannot give.
    """
    source = InitializationSource(
        base,
        corpus,
        config.num_tokens,
        config.seed,
        split_study(dataset, config, base.max_positions)[0] if dataset is not None else None,
        config.initialization_options,
    )
    return INITIALIZERS[config.initialization](source)
