"""Digests that name a base model: of its configuration, its tokenizer and its weights."""

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartridge_core.digest import digest_of, sha256_file
from cartridge_core.errors import CartridgeError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of what turns text into token ids; the chat template has a digest of its own.

    Raises:
        UnsupportedModelError: It is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} is not a fast tokenizer.", "Convert it to a tokenizer.json."
        )
    rules = json.loads(backend.to_str())
    # Callers switch these two on and off; they are no part of the vocabulary.
    for switch in ("padding", "truncation"):
        rules.pop(switch, None)
    return digest_of(rules)


def config_digest(stated: dict[str, Any]) -> str:
    """sha256 of a model's configuration as its file states it."""
    # What the loading software adds says nothing about the model.
    return digest_of({k: v for k, v in stated.items() if not k.startswith("_") and k != "transformers_version"})


def weights_digest(model: "PreTrainedModel") -> str:
    """sha256 of the weights of a model in memory."""
    import torch

    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def files_digest(folder: Path) -> str:
    """sha256 of the weight files in a folder.

    Raises:
        CartridgeError: There are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CartridgeError(f"{folder} holds no weight files.", "Give a folder with *.safetensors in it.")
    return digest_of([[file.name, _file_digest(file, *_stamp(file))] for file in files])


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1024)
def _file_digest(file: Path, size: int, modified: int) -> str:
    """Hashing a large model takes a minute; size and time say whether it has to be done again."""
    return sha256_file(file)
