"""What a model's small files say, read without torch: configuration, tokenizer, identity."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from cartridge_core.errors import CartridgeError
from cartridge_core.identity import config_digest, tokenizer_digest
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.model_files import ModelFiles, locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelDescription:
    """A base model as one that only talks to it needs to know it.

    Attributes:
        identity: Which model it is.
        tokenizer: Its tokenizer.
        max_positions: Longest sequence the model was made for, in tokens.
        eos_ids: Tokens that end an answer.
    """

    identity: BaseModelIdentity
    tokenizer: "PreTrainedTokenizerBase"
    max_positions: int
    eos_ids: frozenset[int]


def describe_model(id_or_path: str | Path, revision: str | None = None) -> ModelDescription:
    """Read a model's small files.

    Raises:
        CartridgeError: It cannot be found, reached or read.
    """
    files = locate(id_or_path, revision, weights=False)
    tokenizer = read_tokenizer(files)
    config = read_config(files)
    ends = eos_ids(tokenizer.eos_token_id, getattr(config, "eos_token_id", None), _generation_ends(files))
    return ModelDescription(identity_of(files, tokenizer), tokenizer, longest_sequence(config), ends)


def load_tokenizer(id_or_path: str | Path, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """A model's tokenizer alone.

    Raises:
        CartridgeError: It cannot be found, reached or read.
    """
    return read_tokenizer(locate(id_or_path, revision, weights=False))


def read_config(files: ModelFiles) -> Any:
    """The parsed configuration.

    Raises:
        CartridgeError: It cannot be read.
    """
    from transformers import AutoConfig

    with readable(files):
        return AutoConfig.from_pretrained(files.folder)


def read_tokenizer(files: ModelFiles) -> "PreTrainedTokenizerBase":
    """The tokenizer.

    Raises:
        CartridgeError: It cannot be read.
    """
    from transformers import AutoTokenizer

    with readable(files):
        return AutoTokenizer.from_pretrained(files.folder)


def identity_of(files: ModelFiles, tokenizer: "PreTrainedTokenizerBase") -> BaseModelIdentity:
    """Which model these files are."""
    # The file as it is, because a parsed configuration grows defaults with every release of transformers.
    stated = json.loads((files.folder / "config.json").read_bytes())
    return BaseModelIdentity(
        id=files.id,
        revision=files.revision,
        config_digest=config_digest(stated),
        tokenizer_digest=tokenizer_digest(tokenizer),
    )


def eos_ids(*stated: int | list[int] | None) -> frozenset[int]:
    """Tokens that end an answer: all that tokenizer, configuration and generation configuration state."""
    return frozenset(int(token) for ends in stated if ends is not None for token in _listed(ends))


def _listed(ends: int | list[int]) -> list[int]:
    return ends if isinstance(ends, list) else [ends]


def _generation_ends(files: ModelFiles) -> int | list[int] | None:
    path = files.folder / "generation_config.json"
    with readable(files):
        ends: int | list[int] | None = json.loads(path.read_bytes()).get("eos_token_id") if path.exists() else None
        return ends


def longest_sequence(config: Any) -> int:
    """Most tokens that a model with this configuration was made for."""
    return int(config.get_text_config(decoder=True).max_position_embeddings)


@contextmanager
def readable(files: ModelFiles) -> Iterator[None]:
    """Turns the loader's many errors into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CartridgeError(
            f"Cannot read a model from {files.folder}: {reason}",
            "Check that the folder holds a config.json, a tokenizer and *.safetensors.",
        ) from error
