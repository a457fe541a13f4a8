"""The frozen base model parted over the ranks (FSDP2): each holds a share, and gathers a layer when it is passed."""

import torch
from torch import nn

from cartridge_core.models import BaseModel


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that a hidden state passes one after another."""
    return list(model.get_decoder().layers)  # type: ignore[operator]  # transformers' models have it


def shard(base: BaseModel) -> None:
    """Part a model's weights over the process group, layer by layer; the rest is one more unit.

    The prefix reaches the attention from outside of the modules and is replicated, so its gradient needs no hook of
    FSDP: it is summed like that of any run of many ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(base.device.type, (torch.distributed.get_world_size(),))
    for layer in decoder_layers(base.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(base.model, mesh=mesh)
    with torch.no_grad():
        # The first pass makes the buffers that weights are gathered in. Made in a prefill, which runs in inference
        # mode, they could not be written to in training.
        base.model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=base.device), use_cache=False)
