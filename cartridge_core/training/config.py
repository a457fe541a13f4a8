"""How a Cartridge is trained."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cartridge_core.digest import digest_of

DEFAULT_LEARNING_RATES: dict[str, float] = {"adamw": 0.02, "muon": 0.5}
"""By optimizer. AdamW's is the paper's (arXiv 2506.06266, appendix); an orthogonalised update has another scale."""


def _default_learning_rate(stated: dict[str, Any]) -> float:
    return DEFAULT_LEARNING_RATES[stated["optimizer"]]


BOOKKEEPING = frozenset(
    {"checkpoint_every", "checkpoint_seconds", "keep_checkpoints", "activation_checkpointing", "shard_base"}
)
"""Fields that change how a run is carried out, not what it ends with."""


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
    initialization: str = "first_tokens"
    """Where keys and values start: a name in `cartridge_core.initialization.INITIALIZERS`."""
    objective: Literal["distillation", "next_token"] = "distillation"
    """Learn the teacher's distributions on a study's answers, or the corpus's text word by word (a baseline)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises each layer's update: it takes fewer steps, at a learning rate near 0.5."""
    learning_rate: float = Field(default_factory=_default_learning_rate, gt=0)
    """Highest learning rate, reached after the warm-up; 0.02 for AdamW and 0.5 for Muon where nobody says."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of Muon (AdamW's moments decay at 0.9 and 0.999)."""
    steps: int = Field(default=600, gt=0)
    """Optimizer steps."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises, the first included."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to zero after the warm-up, if it does."""
    batch_size: int = Field(default=32, gt=0)
    """Conversations a step (distillation)."""
    window_tokens: int = Field(default=256, gt=1)
    """Tokens of a window of text (next_token)."""
    windows_per_batch: int = Field(default=6, gt=0)
    """Windows of text a step (next_token): by default about as many tokens as 32 short conversations have."""
    micro_batch_tokens: int = Field(default=8192, gt=0)
    """Most tokens that pass through the model at once; a larger batch is accumulated, with the same result."""
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

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.num_frozen_tokens >= self.num_tokens:
            raise ValueError(
                f"num_frozen_tokens={self.num_frozen_tokens} leaves nothing to train of num_tokens={self.num_tokens}"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be fewer than steps={self.steps}")
        return self

    def recipe(self) -> dict[str, Any]:
        """The fields that decide the tensors, as JSON values."""
        return self.model_dump(mode="json", exclude=set(BOOKKEEPING))

    @property
    def digest(self) -> str:
        """sha256 of the canonical recipe."""
        return digest_of(self.recipe())
