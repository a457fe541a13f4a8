"""How a start is learnt."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cartridge_core.digest import digest_of
from cartridge_core.errors import TrainingError
from cartridge_core.training.config import TrainingConfig


class StartConfig(BaseModel):
    """Length of the start and how long it is learnt; all else is the recipe of training, values at twice the rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_tokens: int = Field(gt=1)
    """Tokens of the start: of the shortest Cartridge that is to begin with it."""
    rounds: int = Field(default=6, gt=0)
    """How often the mean is taken; each round starts from the mean before."""
    steps: int = Field(default=150, gt=5)
    """Optimizer steps of each corpus in each round."""
    batch_size: int = Field(default=32, gt=0)
    """Conversations a step."""
    seed: int = 0
    """Decides the order of examples, with the round's number."""

    @property
    def digest(self) -> str:
        """sha256 of the canonical configuration."""
        return digest_of(self.model_dump(mode="json"))

    def training(self, number: int, **where: Any) -> TrainingConfig:
        """How a corpus trains in a round.

        Args:
            number: Of the round, counted from 0.
            **where: `initialization` and its options.
        """
        return TrainingConfig(
            num_tokens=self.num_tokens,
            steps=self.steps,
            batch_size=self.batch_size,
            eval_every=self.steps,
            patience=None,
            seed=self.seed + number,
            # The rates and the order that starts were measured with; what begins with one trains at the defaults.
            sampling="uniform",
            value_learning_rate_ratio=2.0,
            momentum=0.8,
            **where,
        )


def check_corpora(digests: Sequence[str]) -> None:
    """Refuse a list of corpora that have nothing to share: a mean is of several.

    Raises:
        TrainingError: They are fewer than two, or one is given twice.
    """
    if len(set(digests)) < max(len(digests), 2):
        raise TrainingError(
            f"A start cannot be learnt from {len(digests)} corpora of {len(set(digests))} different contents.",
            "Give two or more different corpora.",
        )
