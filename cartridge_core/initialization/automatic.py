"""The default initialisation: the learned start that ships for the base model, or else the corpus's first tokens."""

from pathlib import Path

from cartridge_core.cartridge import Cartridge, PrefixKV, read_manifest
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.previous_cartridge import continued
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.model_files import REFERENCE_PATH
from cartridge_core.rendering import template_digest

SHIPPED_STARTS = (REFERENCE_PATH.parent / "start",)
"""Learned starts (`training.learned_start`) that are part of the library; none was learnt from a sample corpus.

Where one changes, `fit` in `stages.store.RECIPES` is raised: the same inputs then give another Cartridge.
"""


def automatic(source: InitializationSource) -> PrefixKV:
    """The shipped start, if there is one for this model and of at most so many tokens; else `first_tokens`.

    The next-token objective begins with the first tokens: it is a baseline, and no study taught it anything.

    Raises:
        TrainingError: The corpus is shorter than the Cartridge.
    """
    start = shipped_start(source) if source.conversations is not None else None
    return first_tokens(source) if start is None else continued(source, Cartridge.load(start))


def shipped_start(source: InitializationSource) -> Path | None:
    """Folder of the shipped start of a base model, or None."""
    for folder in SHIPPED_STARTS:
        manifest = read_manifest(folder)
        if (
            manifest.base_model == source.base.identity
            and manifest.template_digest == template_digest(source.base.tokenizer)
            and manifest.num_tokens <= source.num_tokens
        ):
            return folder
    return None
