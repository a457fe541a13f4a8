"""Whether what is asked of training can be done. Needs no model in memory, so that a wrong input is refused at once."""

from collections.abc import Iterable

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import DatasetError, TrainingError
from cartridge_core.initialization.options import NEED_CONVERSATIONS, OPTIONS
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.optimizer import OPTIMIZERS
from cartridge_core.training.packed_rows import fitting
from cartridge_core.training.schedule import SCHEDULES


def check_inputs(
    identity: BaseModelIdentity,
    max_positions: int,
    rendering: str,
    corpus: Corpus,
    dataset: ConversationDataset | None,
    config: TrainingConfig,
    processes: int = 1,
) -> None:
    """Refuse inputs that do not go together.

    Args:
        identity: The model to train for.
        max_positions: Its window in tokens.
        rendering: `rendering.template_digest` of its tokenizer.
        corpus: What the Cartridge is to stand in for.
        dataset: The study, for distillation.
        config: How to train.
        processes: How many processes train together.

    Raises:
        TrainingError: Unknown initialiser, optimizer or schedule, no process to train with, Cartridge and examples
            longer than the window, or a dataset missing or beside the point.
        BaseModelMismatchError: The study was made with another model, revision or tokenizer.
        DatasetError: The study is empty, about another corpus, or rendered in another way.
    """
    _check_names(config)
    if processes < 1:
        raise TrainingError(f"{processes} processes cannot train.", "Ask for one or more.")
    if config.shard_base and processes == 1:
        raise TrainingError(
            "shard_base parts the base model over several processes, but there is one.",
            "Train with --processes, or leave shard_base out.",
        )
    _check_initialization(config)
    if config.objective == "next_token":
        if dataset is not None:
            raise TrainingError(
                "Next-token training learns the corpus's text, but conversations were given too.",
                "Leave the dataset out, or choose the objective 'distillation'.",
            )
        _check_length(identity, max_positions, config, config.window_tokens, "a window of text")
        return
    if dataset is None:
        raise TrainingError("Distillation needs the conversations of a study.", "Study the corpus first.")
    dataset.check_base_model(identity)
    manifest = dataset.manifest
    if manifest.corpus_digest != corpus.digest:
        raise DatasetError(
            f"The conversations are about corpus {manifest.corpus_digest[:12]}, not about {corpus.name!r} "
            f"({corpus.digest[:12]}).",
            "Study this corpus, or train with the corpus version that was studied.",
        )
    if manifest.template_digest != rendering:
        raise DatasetError(
            f"The conversations are rendered in another way ({manifest.template_digest[:12]}) than {identity.id} is "
            f"served in now ({rendering[:12]}).",
            "Study the corpus again.",
        )
    if not len(dataset):
        raise DatasetError("The dataset holds no conversation.", "Study with more conversations, or longer answers.")
    # Some that do not fit are left out and counted; all of them are a mistake.
    shortest = int(dataset.lengths.min())
    _check_length(identity, max_positions, config, shortest, "the shortest conversation")
    if not fitting(dataset.lengths, config, max_positions).any():
        raise TrainingError(
            f"No conversation fits a row of {config.row_tokens} tokens: the shortest has {shortest}.",
            "Raise row_tokens, or leave it out.",
        )


def _check_names(config: TrainingConfig) -> None:
    choices: dict[str, tuple[str, Iterable[str]]] = {
        "optimizer": (config.optimizer, OPTIMIZERS),
        "schedule": (config.schedule, SCHEDULES),
    }
    for what, (name, known) in choices.items():
        if name not in known:
            raise TrainingError(f"There is no {what} named {name!r}.", f"Choose one of {', '.join(known)}.")


def _check_initialization(config: TrainingConfig) -> None:
    # A configuration checks itself when it is made; a changed copy of one does not.
    name = config.initialization
    if name not in OPTIONS:
        raise TrainingError(f"There is no initialisation named {name!r}.", f"Choose one of {', '.join(OPTIONS)}.")
    if type(config.initialization_options) is not OPTIONS[name]:
        raise TrainingError(
            f"Initialisation {name!r} was given the options of another one.",
            "State `initialization` and `initialization_options` together.",
        )
    if name in NEED_CONVERSATIONS and config.objective == "next_token":
        raise TrainingError(
            f"Initialisation {name!r} needs a study's conversations, which next-token training has not.",
            "Choose another initialisation, or the objective 'distillation'.",
        )


def _check_length(
    identity: BaseModelIdentity, max_positions: int, config: TrainingConfig, longest: int, what: str
) -> None:
    if config.num_tokens + longest > max_positions:
        raise TrainingError(
            f"A Cartridge of {config.num_tokens} tokens and {what} of {longest} exceed the "
            f"{max_positions} positions of {identity.id}.",
            f"Choose at most {max(max_positions - longest, 0)} tokens for the Cartridge.",
        )
