"""What an initialiser works from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cartridge_core.corpus import Corpus
from cartridge_core.errors import TrainingError
from cartridge_core.initialization.options import InitializationOptions
from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.conversation import Conversation

Options = TypeVar("Options", bound=InitializationOptions)


@dataclass(frozen=True, eq=False)
class InitializationSource:
    """Everything that an initialiser may look at."""

    base: BaseModel
    """The frozen model."""
    corpus: Corpus
    """What the Cartridge is to stand in for."""
    num_tokens: int
    """Length of the Cartridge, p in the paper."""
    seed: int = 0
    """Decides every draw."""
    conversations: Sequence[Conversation] | None = None
    """The study's conversations that are trained on, the held-out ones not among them; None without a study."""
    options: InitializationOptions | None = None
    """Of the initialiser; None for its defaults."""

    def options_for(self, kind: type[Options]) -> Options:
        """The options as the initialiser knows them.

        Raises:
            TrainingError: They are another initialiser's, or there are none and it needs some.
        """
        if isinstance(self.options, kind):
            return self.options
        if self.options is None and not any(field.is_required() for field in kind.model_fields.values()):
            return kind()
        raise TrainingError(
            f"{type(self.options).__name__} were given where {kind.__name__} are needed.",
            "State `initialization` and `initialization_options` together.",
        )
