"""The attention of a device against that of the CPU: loss and gradient of one small batch."""

import torch

from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.packed_rows import pack_batch
from tests.proofs.llama_shapes import TINY, LlamaShape, random_model, random_prefix
from tests.proofs.synthetic_conversations import SyntheticConversations


def difference_from_cpu(device: torch.device, shape: LlamaShape = TINY, num_tokens: int = 200) -> tuple[float, float]:
    """Relative differences of loss and of the gradient to all keys and values (fp32, `attention = "auto"` on both).

    On CUDA that is compiled FlexAttention, on a CPU the dense products.
    """
    config = TrainingConfig(num_tokens=num_tokens)
    conversations = SyntheticConversations(shape.vocab_size, 6, (3, 40), (3, 60)).batch(0)
    here = random_model(shape, torch.device("cpu"), torch.float32)
    there = random_model(shape, device, torch.float32)
    # Generators of different devices draw different weights.
    there.model.load_state_dict(here.model.state_dict())
    seen = []
    for base in (here, there):
        start = random_prefix(base, num_tokens)
        tensors = [tensor.requires_grad_() for tensor in (*start.keys, *start.values) if tensor is not None]
        prefix = PrefixKV(tensors[: len(start.keys)], tensors[len(start.keys) :], num_tokens)
        parts = pack_batch(conversations, config, 512, base.device)
        loss = torch.stack([packed_loss(base, prefix, part).loss for part in parts]).sum()
        gradients = torch.autograd.grad(loss, tensors)
        seen.append((float(loss.detach()), torch.cat([gradient.flatten().cpu() for gradient in gradients])))
    (loss, gradient), (other_loss, other_gradient) = seen
    return abs(other_loss - loss) / abs(loss), float((other_gradient - gradient).norm() / gradient.norm())
