"""How a LoRA adapter is trained beside a Cartridge, to compare the two."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cartridge_core.errors import TrainingError
from cartridge_core.training.config import TrainingConfig

ALL_LINEAR = "all-linear"
"""PEFT's word for all linear layers but the head."""

_NOT_OF_ADAPTERS = {
    "num_frozen_tokens": 0,
    "initialization": "auto",
    "initialization_options": {},
    "objective": "distillation",
    "optimizer": "adamw",
    "value_learning_rate_ratio": 1.0,
    "momentum": 0.7,
    "window_tokens": 256,
    "windows_per_batch": 6,
    "ema_decay": None,
    "compile": False,
    "shard_base": False,
}
"""Fields of a `TrainingConfig` that say nothing about an adapter, each at one value: adapters of Cartridges that differ
in these alone are the same."""


class AdapterConfig(BaseModel):
    """Size and optimisation of a LoRA adapter (arXiv 2106.09685).

    Where nobody says otherwise, the adapter is trained as the Cartridge it is compared with: the same conversations,
    batches, number of steps, schedule, held-out examples and seed. AdamW without weight decay changes its matrices; the
    Cartridge's optimizer, initialisation and moving average have no meaning for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: int | None = Field(default=None, gt=0)
    """Rank of each update; None for the rank whose weights take as many bytes as the Cartridge."""
    alpha: float | None = Field(default=None, gt=0)
    """An update is multiplied by `alpha / rank`; None for twice the rank."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """Names of the linear layers that are adapted, such as `q_proj`; `all-linear` for all of attention and MLP."""
    learning_rate: float = Field(default=0.003, gt=0)
    """Highest learning rate, reached after the warm-up."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; None for the Cartridge's. So too the next fields."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant"] | None = None
    """How the learning rate falls after the warm-up."""
    batch_size: int | None = Field(default=None, gt=0)
    """Conversations a step."""
    eval_every: int | None = Field(default=None, gt=0)
    """Steps between looks at the held-out examples."""
    seed: int | None = None
    """Decides the first matrices, the held-out questions and the order of examples."""

    @field_validator("target_modules")
    @classmethod
    def _named(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(names, str):
            if names != ALL_LINEAR:
                raise ValueError(f"must be {ALL_LINEAR!r} or a list of names of layers")
            return names
        if not names:
            raise ValueError("must name at least one layer")
        return tuple(sorted(set(names)))

    def beside(self, config: TrainingConfig) -> TrainingConfig:
        """How the adapter's data, schedule and looks are, given the configuration of the Cartridge beside it.

        Raises:
            TrainingError: The two do not go together, such as fewer steps than the warm-up has.
        """
        own = self.model_dump(mode="json", exclude={"rank", "alpha", "target_modules"}, exclude_none=True)
        try:
            return TrainingConfig.model_validate(config.model_dump(mode="json") | _NOT_OF_ADAPTERS | own)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise TrainingError(
                f"The adapter cannot be trained beside this Cartridge: {reason}.", "Correct the adapter's fields."
            ) from error

    def recipe(self, config: TrainingConfig) -> dict[str, Any]:
        """All that decides the adapter's tensors beside data and model, as JSON values."""
        own = self.model_dump(mode="json", include={"rank", "alpha", "target_modules"})
        return own | {"training": self.beside(config).recipe()}
