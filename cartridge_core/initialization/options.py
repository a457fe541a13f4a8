"""What each initialiser can be told. Light to import: configurations are read where there is no torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class InitializationOptions(BaseModel):
    """Options of an initialiser that has none, and the root of the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SampledChunksOptions(InitializationOptions):
    """Of `sampled_chunks`."""

    window_tokens: int = Field(default=64, gt=0)
    """Tokens of a window of the corpus."""


class TextOptions(InitializationOptions):
    """Of `text`."""

    text: str = Field(min_length=1)
    """What the Cartridge starts from; at least as many tokens as it has, the system message around it counted."""


class CartridgeOptions(InitializationOptions):
    """Of `cartridge`."""

    cartridge: str = Field(min_length=1)
    """Digest of the previous Cartridge. A stage also takes the beginning of one, an alias or version of the corpus, or
    an artifact's folder, and puts the whole digest here before it trains."""
    folder: Path | None = Field(default=None, exclude=True, repr=False)
    """Where that Cartridge lies; no part of the configuration's identity."""


class AttentionMatchingOptions(InitializationOptions):
    """Of `attention_matching`."""

    keys: Literal["optimized", "rms", "omp", "merged"] = "optimized"
    """`rms` keeps the keys with the highest root mean square of attention, `omp` those that together restore the
    attention's mass, `merged` the centres of a clustering of all keys; `optimized` moves the keys of `rms` by gradient
    so that values fit the corpus's attention output best."""
    max_queries: int = Field(default=32_768, gt=0)
    """Most reference queries of a key/value head; a token gives one for each of its query heads."""
    ridge: float = Field(default=1e-3, gt=0)
    """Pull of the fitted values towards the corpus's own, as a share of the mean diagonal of the normal equations."""
    key_steps: int = Field(default=200, gt=0)
    """Gradient steps on the keys (`optimized`); none of them passes through the model."""
    key_step_size: float = Field(default=0.3, gt=0)
    """Largest step of a key's channel (`optimized`), as a share of the keys' standard deviation."""
    max_piece_tokens: int | None = Field(default=None, gt=0)
    """Most tokens of the corpus that are read at once; None for as many as the model's window has room for."""


AnyOptions = AttentionMatchingOptions | SampledChunksOptions | TextOptions | CartridgeOptions | InitializationOptions
"""Options of any initialiser."""

OPTIONS: dict[str, type[InitializationOptions]] = {
    "auto": InitializationOptions,
    "first_tokens": InitializationOptions,
    "random_vectors": InitializationOptions,
    "sampled_chunks": SampledChunksOptions,
    "text": TextOptions,
    "cartridge": CartridgeOptions,
    "attention_matching": AttentionMatchingOptions,
}
"""Name of an initialiser to the kind of its options."""

NEED_CONVERSATIONS = ("attention_matching",)
"""Initialisers that look at a study's conversations."""


def check_name(name: str) -> None:
    """Refuse a name that no initialiser has.

    Raises:
        ValueError: Names all.
    """
    if name not in OPTIONS:
        raise ValueError(f"there is no initialisation named {name!r}; choose one of {', '.join(OPTIONS)}")


def options_of(name: str, stated: Any) -> InitializationOptions:
    """The options of an initialiser from what a file or a caller states.

    Raises:
        ValueError: There is no such initialiser, or it has no such option or value; names both.
    """
    check_name(name)
    kind = OPTIONS[name]
    if isinstance(stated, InitializationOptions):
        if type(stated) is not kind:
            raise ValueError(f"options of another initialisation were given to {name!r}")
        return stated
    try:
        return kind.model_validate(stated)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        known = ", ".join(kind.model_fields) or "none"
        raise ValueError(f"{field}: {first['msg']} for {name!r}, whose options are: {known}") from error
