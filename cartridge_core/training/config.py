"""How a Cartridge is trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cartridge_core.digest import digest_of
from cartridge_core.initialization.options import (
    NEED_CONVERSATIONS,
    AnyOptions,
    CartridgeOptions,
    InitializationOptions,
    check_name,
    options_of,
)

DEFAULT_LEARNING_RATES: dict[str, float] = {"adamw": 0.02, "muon": 1.0}
"""By optimizer. AdamW's is the paper's (arXiv 2506.06266, appendix); Muon's updates have another scale."""
DEFAULT_VALUE_RATIOS: dict[str, float] = {"adamw": 1.0, "muon": 3.0}
"""By optimizer. Keys decide what is found, values what is said: the former bear smaller steps."""


def _default_learning_rate(stated: dict[str, Any]) -> float:
    return DEFAULT_LEARNING_RATES[stated["optimizer"]]


def _default_value_ratio(stated: dict[str, Any]) -> float:
    return DEFAULT_VALUE_RATIOS[stated["optimizer"]]


BOOKKEEPING = frozenset(
    {"checkpoint_every", "checkpoint_seconds", "keep_checkpoints", "activation_checkpointing", "shard_base"}
)
"""Fields that change how a run is carried out, not what it ends with."""
ON_POLICY = frozenset({"on_policy_steps", "on_policy_temperature"})
"""Fields that decide nothing in a run without an on-policy phase. They are no part of its recipe, so that what was
trained before there was such a phase is found again."""

UNSTATED: dict[str, Any] = {"sampling": "uniform"}
"""What a recipe that says nothing of it was trained with, for the same reason."""


class TrainingConfig(BaseModel):
    """Size of the Cartridge, objective, optimizer, data order, and how the run is carried out.

    Configurations with equal recipes give equal tensors.
    """

    # The docstrings are the descriptions in the JSON schema (`cartridge train --print-config-schema`).
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_tokens: int = Field(gt=0)
    """Virtual tokens of the Cartridge, p in the paper."""
    num_frozen_tokens: int = Field(default=1, ge=0)
    """Leading tokens that keep their initial keys and values: the attention sink."""
    initialization: str = "auto"
    """Where keys and values start: a name in `cartridge_core.initialization.initializers.INITIALIZERS`. `auto` takes
    the learned start that ships for the base model, if there is one that is not longer, or else the first tokens."""
    initialization_options: AnyOptions = Field(default_factory=dict, validate_default=True)
    """What that initialiser can be told: the fields of its class in `cartridge_core.initialization.options`."""
    objective: Literal["distillation", "next_token"] = "distillation"
    """Learn the teacher's distributions on a study's answers, or the corpus's text word by word (a baseline)."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon` lets all directions of a KV head move alike; `adamw`, the paper's, takes several times the steps."""
    learning_rate: float = Field(default_factory=_default_learning_rate, gt=0)
    """Highest learning rate, reached after the warm-up; 1.0 for Muon and 0.02 for AdamW where nobody says."""
    value_learning_rate_ratio: float = Field(default_factory=_default_value_ratio, ge=0)
    """Learning rate of values over that of keys; 3 for Muon and 1 for AdamW where nobody says; 0 trains keys only."""
    momentum: float = Field(default=0.7, ge=0, lt=1)
    """Of Muon (AdamW's moments decay at 0.9 and 0.999)."""
    steps: int = Field(default=600, gt=0)
    """Optimizer steps."""
    on_policy_steps: int = Field(default=0, ge=0)
    """The last of `steps` that learn from answers which the Cartridge itself samples to the study's questions, as the
    teacher judges them (distillation)."""
    on_policy_temperature: float = Field(default=1.0, ge=0)
    """At which these answers are sampled; 0 takes the likeliest token."""
    warmup_steps: int = Field(default=5, ge=0)
    """Steps over which the learning rate rises, the first included."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to zero after the warm-up, if it does."""
    sampling: Literal["balanced", "uniform"] = "balanced"
    """How often each conversation is drawn (distillation): `balanced`, the more seldom the more others say the same
    about the corpus (`training.balance`); `uniform`, all alike."""
    batch_size: int = Field(default=32, gt=0)
    """Conversations a step (distillation)."""
    window_tokens: int = Field(default=256, gt=1)
    """Tokens of a window of text (next_token)."""
    windows_per_batch: int = Field(default=6, gt=0)
    """Windows of text a step (next_token): by default about as many tokens as 32 short conversations have."""
    micro_batch_tokens: int = Field(default=8192, gt=0)
    """Most tokens that pass through the model at once; a larger batch is accumulated, with the same result."""
    row_tokens: int | None = Field(default=None, gt=0)
    """Most tokens of a conversation; a longer one is left out and counted. None: as many as the window behind the
    Cartridge holds, and if need be more than pass through the model at once otherwise."""
    attention: Literal["auto", "flex", "dense"] = "auto"
    """What computes the attention of packed rows. `auto` takes compiled FlexAttention on CUDA, matrix products
    elsewhere."""
    temperature: float = Field(default=1.0, gt=0)
    """Flattens both sides' top-k-and-tail distributions in distillation (`training.loss.cross_entropy`)."""
    hidden_state_weight: float = Field(default=0.0, ge=0)
    """Of the distance between student's and teacher's hidden states, beside the cross-entropy's 1 (deep context
    distillation, `training.hidden_states`). The teacher then reads the study's chunks again in this process."""
    hidden_state_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    """Layers whose outputs are compared, counted from 0; None for all."""
    loss_chunk_tokens: int = Field(default=512, gt=0)
    """Predicted tokens whose logits are in memory at once; the result does not depend on it."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm that the gradient of all keys and values is clipped to."""
    eval_every: int = Field(default=25, gt=0)
    """Steps between looks at the held-out examples."""
    patience: int | None = Field(default=12, gt=0)
    """Looks without improvement after which training stops; None never stops early."""
    held_out_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the study's questions that is not trained on and picks the best step."""
    max_held_out: int = Field(default=128, gt=0)
    """Most held-out examples: more make each look slower and hardly surer."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products in training. `auto` takes bfloat16 where the processor multiplies it natively (a step then
    takes 0.6 of the time and ends at the same held-out loss); masters and optimizer are fp32 in any case."""
    base_dtype: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    """Type that the frozen model's weights are held in; `auto` is fp32 on a CPU, the stored type elsewhere. `float8`
    holds matrices in 8 bits with a scale for each output, and computes in bfloat16."""
    compile: bool = False
    """Compile the model's layers (`torch.compile`): a slow first step, faster ones after it."""
    activation_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass instead of keeping them: less memory, slower steps."""
    shard_base: bool = False
    """Part the frozen model's weights over the processes (FSDP2) instead of keeping a copy in each."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Serve the exponential moving average of keys and values with this decay, such as 0.98; None serves them as they
    are. The held-out looks score what would be served."""
    checkpoint_every: int | None = Field(default=100, gt=0)
    """Steps between checkpoints; None leaves it to `checkpoint_seconds`."""
    checkpoint_seconds: float | None = Field(default=300.0, gt=0)
    """Seconds after which a checkpoint is written in any case; None leaves it to `checkpoint_every`."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """The newest checkpoints that are kept until training ends; the best Cartridge is kept always."""
    seed: int = 0
    """Decides initialisation, held-out questions and the order of examples."""

    @field_validator("initialization")
    @classmethod
    def _known(cls, name: str) -> str:
        check_name(name)
        return name

    @field_validator("initialization_options", mode="before")
    @classmethod
    def _of_that_name(cls, stated: Any, info: ValidationInfo) -> InitializationOptions:
        # Without a name that one was refused already, with a message of its own.
        return options_of(info.data.get("initialization", "auto"), stated)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.num_frozen_tokens >= self.num_tokens:
            raise ValueError(
                f"num_frozen_tokens={self.num_frozen_tokens} leaves nothing to train of num_tokens={self.num_tokens}"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be fewer than steps={self.steps}")
        if self.on_policy_steps > self.steps:
            raise ValueError(f"on_policy_steps={self.on_policy_steps} must be at most steps={self.steps}")
        if self.objective == "next_token" and self.on_policy_steps:
            raise ValueError(f"on_policy_steps={self.on_policy_steps} needs the questions of a study")
        if self.row_tokens is not None and self.row_tokens > self.micro_batch_tokens:
            raise ValueError(
                f"row_tokens={self.row_tokens} must be at most micro_batch_tokens={self.micro_batch_tokens}"
            )
        if self.objective == "next_token" and self.temperature != 1:
            raise ValueError(
                f"temperature={self.temperature} has no meaning for next_token: its teacher is certain of every token"
            )
        if self.objective == "next_token" and self.row_tokens is not None and self.row_tokens < self.window_tokens - 1:
            raise ValueError(f"row_tokens={self.row_tokens} cannot hold window_tokens={self.window_tokens}")
        if self.hidden_state_weight and self.objective == "next_token":
            raise ValueError("hidden_state_weight has no meaning for next_token: its teacher has read nothing more")
        for other in ("compile", "shard_base"):
            if self.hidden_state_weight and getattr(self, other):
                raise ValueError(f"hidden_state_weight cannot be combined with {other}: layers are looked into")
        if self.initialization in NEED_CONVERSATIONS and self.objective == "next_token":
            raise ValueError(f"initialization={self.initialization!r} needs the conversations of a study")
        return self

    def recipe(self) -> dict[str, Any]:
        """The fields that decide the tensors, as JSON values; `from_recipe` reads them."""
        unused = set(BOOKKEEPING)
        if not self.on_policy_steps:
            unused |= ON_POLICY
        # Windows of text are not drawn by it: the baselines of before are found again, too.
        if self.objective == "next_token" or self.sampling == UNSTATED["sampling"]:
            unused |= UNSTATED.keys()
        return self.model_dump(mode="json", exclude=unused)

    @classmethod
    def from_recipe(cls, recipe: dict[str, Any]) -> Self:
        """The configuration that has this recipe, also one of before a field was there."""
        return cls.model_validate(UNSTATED | recipe)

    @property
    def first_on_policy_step(self) -> int:
        """The step, counted from 0, with which the on-policy phase begins; `steps` where there is none."""
        return self.steps - self.on_policy_steps

    def for_another_process(self) -> dict[str, Any]:
        """The configuration as JSON values, with the places of files that are no part of its identity."""
        options = self.initialization_options
        stated = self.model_dump(mode="json")
        if isinstance(options, CartridgeOptions) and options.folder is not None:
            stated["initialization_options"]["folder"] = str(options.folder.absolute())
        return stated

    @property
    def digest(self) -> str:
        """sha256 of the canonical recipe."""
        return digest_of(self.recipe())
