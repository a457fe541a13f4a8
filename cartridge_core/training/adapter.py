"""A trained LoRA adapter (arXiv 2106.09685) and its files, which are PEFT's."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cartridge_core.atomic_file import atomic_file
from cartridge_core.digest import digest_of, sha256_bytes
from cartridge_core.errors import ArtifactError
from cartridge_core.models import BaseModel
from cartridge_core.training.adapter_layers import injected

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class Adapter:
    """A trained LoRA adapter.

    Attributes:
        config: `adapter_config.json` of PEFT.
        tensors: PEFT's names to matrices in the base model's stored type: for each adapted layer `lora_A` `[rank, in]`
            and `lora_B` `[out, rank]`. The layer's weight becomes `W + alpha / rank * B A`.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        """Rank of each layer's update."""
        return int(self.config["r"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrices: what they take beside the model while the adapter is in use."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def digest(self) -> str:
        """sha256 over configuration and matrices."""
        return digest_of({"config": dict(self.config), "tensors": sha256_bytes(self._data)})

    @cached_property
    def _data(self) -> bytes:
        return save({name: self.tensors[name].cpu() for name in sorted(self.tensors)}, metadata={"format": "pt"})

    def save(self, folder: Path) -> Path:
        """Write the folder that `peft.PeftModel.from_pretrained` reads; its configuration appears last."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        with atomic_file(folder / TENSOR_FILE) as stream:
            stream.write(self._data)
        with atomic_file(folder / CONFIG_FILE) as stream:
            stream.write(json.dumps(dict(self.config), indent=2, sort_keys=True).encode())
        return folder

    @classmethod
    def load(cls, folder: Path) -> "Adapter":
        """Read what `save` wrote.

        Raises:
            ArtifactError: Something is missing or damaged.
        """
        try:
            config = json.loads((folder / CONFIG_FILE).read_bytes())
            return cls(config, load((folder / TENSOR_FILE).read_bytes()))
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(
                f"{folder} holds no readable adapter: {error}.", "Remove it and train again."
            ) from error

    @contextmanager
    def applied(self, base: BaseModel) -> Iterator[None]:
        """Inside, the base model computes with the adapter; afterwards it is as it was."""
        names = tuple(self.config["target_modules"])
        with injected(base, self.rank, float(self.config["lora_alpha"]), names) as matrices:
            with torch.no_grad():
                for name, matrix in matrices.items():
                    matrix.requires_grad_(False).copy_(self.tensors[name])
            yield
