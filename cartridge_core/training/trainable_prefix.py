"""The fp32 tensors that training changes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cartridge_core.cartridge import PrefixKV


class TrainablePrefix:
    """Master keys and values of a Cartridge in training.

    They are fp32 whatever the model's type: at a learning rate of 0.02 most updates of a bf16 key would round to
    nothing. Each layer's keys, and its values, are `[num_kv_heads, num_tokens - num_frozen_tokens, head_dim]`. The
    frozen head is kept apart and never changes.
    """

    def __init__(self, initial: PrefixKV, num_frozen_tokens: int, device: torch.device | str = "cpu") -> None:
        """Start from a prefix.

        Args:
            initial: Where keys and values start; it is copied.
            num_frozen_tokens: Leading tokens that stay as they are.
            device: Where the masters are kept.
        """
        self._next_position = initial.next_position
        self._frozen: list[Tensor | None] = []
        self._masters: list[Tensor | None] = []
        for tensor in (*initial.keys, *initial.values):
            if tensor is None:
                self._frozen.append(None)
                self._masters.append(None)
                continue
            exact = tensor.detach().to(device=device, dtype=torch.float32, copy=True)
            self._frozen.append(exact[:, :num_frozen_tokens])
            self._masters.append(exact[:, num_frozen_tokens:].clone().requires_grad_())

    def parameters(self) -> list[Tensor]:
        """The tensors to train: all layers' keys, then all layers' values."""
        return [master for master in self._masters if master is not None]

    def prefix(self, matrices: Sequence[Tensor] | None = None) -> PrefixKV:
        """The whole prefix in fp32, `[num_kv_heads, num_tokens, head_dim]` a layer; gradients flow to the matrices.

        Args:
            matrices: Others in the form and order of `parameters()`, such as their average; None for the masters.
        """
        inner = iter(self.parameters() if matrices is None else matrices)
        tensors = [None if frozen is None else torch.cat((frozen, next(inner)), dim=1) for frozen in self._frozen]
        layers = len(tensors) // 2
        return PrefixKV(tensors[:layers], tensors[layers:], self._next_position)
