"""Where a base model's files are: shipped, in a folder, or on the hub and in its cache."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.errors import CartridgeError
from cartridge_core.identity import files_digest

REFERENCE_PATH = Path(__file__).parent / "reference" / "weights"
"""Folder of the model that is shipped with the library; its name is "reference"."""

_DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.txt")
# Weights in pickles are not fetched: reading them would run code.
_WEIGHTS = ("*.safetensors",)
_ELSEWHERE = ("original/*", "onnx/*", "openvino/*")


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine.

    Attributes:
        id: Hub id, folder name, or "reference".
        revision: Hub commit, or a digest of the weight files.
        folder: Where they are.
    """

    id: str
    revision: str
    folder: Path


def locate(id_or_path: str | Path, revision: str | None = None, weights: bool = True) -> ModelFiles:
    """Find a model's files; what the hub's cache holds is used as it is, without asking the hub.

    Args:
        id_or_path: "reference", a local folder, or a hub id.
        revision: Hub commit, branch or tag; `main` where nobody says.
        weights: Whether weights have to be there too.

    Raises:
        CartridgeError: The model is neither here nor can it be fetched.
    """
    if str(id_or_path) == "reference":
        if not (REFERENCE_PATH / "config.json").is_file():
            raise CartridgeError(
                f"The reference model is not at {REFERENCE_PATH}.", "Run `make reference-model`, or reinstall."
            )
        return ModelFiles("reference", files_digest(REFERENCE_PATH)[:16], REFERENCE_PATH)
    folder = Path(id_or_path)
    if folder.is_dir():
        if revision is not None:
            raise CartridgeError(
                f"{folder} is a local folder, which has no revision {revision!r}.", "Leave the revision out."
            )
        return ModelFiles(folder.resolve().name, files_digest(folder)[:16], folder)
    snapshot = _snapshot(str(id_or_path), revision, weights)
    # The cache names a snapshot's folder by its commit.
    return ModelFiles(str(id_or_path), snapshot.name, snapshot)


def _snapshot(hub_id: str, revision: str | None, weights: bool) -> Path:
    # By way of transformers: imported by itself, the client's lazy modules meet in a circle and print that to stdout.
    from transformers.utils.hub import snapshot_download

    with suppress(OSError, ValueError):
        # Not in the cache, or not a hub id at all: the call below says which.
        cached = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
        if _complete(cached, weights):
            return cached
    patterns = [*_DESCRIPTION, *(_WEIGHTS if weights else ())]
    try:
        fetched = Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=list(_ELSEWHERE))
        )
    except (OSError, ValueError) as error:
        # Connection, access and not-found errors of the hub's client are OSErrors; a malformed id is a ValueError.
        raise _nowhere(hub_id, (str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    if not _complete(fetched, weights):
        raise _nowhere(hub_id, "it holds no config.json, no tokenizer or no complete *.safetensors")
    return fetched


def _nowhere(hub_id: str, reason: str) -> CartridgeError:
    return CartridgeError(
        f"Cannot get model {hub_id!r}: there is no such folder, and neither the hub nor its cache gave it ({reason}).",
        "Check the name, log in if the model is gated, or give the path of a folder that holds it.",
    )


def _complete(folder: Path, weights: bool) -> bool:
    """Whether a cached snapshot holds what is needed; an interrupted download leaves part of it."""
    if not (folder / "config.json").is_file():
        return False
    if not weights:
        return any(folder.glob("tokenizer*"))
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)
