"""Floating-point operations that training a Cartridge needs, whatever a program happens to do."""

from collections.abc import Sequence

from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.packed_rows import input_length
from tests.proofs.llama_shapes import LlamaShape


def layer_parameters(shape: LlamaShape) -> int:
    """Weights of all layers' matrices, which every token passes."""
    attention = shape.hidden_size * shape.head_dim * 2 * (shape.num_heads + shape.num_kv_heads)
    return shape.num_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)


def training_flops(shape: LlamaShape, examples: Sequence[Targets], num_prefix_tokens: int) -> int:
    """Operations of one optimizer step; padding, masked scores and anything computed again are not counted.

    A weight costs 2 operations a token forward and 2 backward: it is frozen, so the 2 of its own gradient fall away.
    The head is passed by predicted tokens only. Attention costs, for each query head and each pair of a query and a key
    it sees, 4 operations a dimension forward (scores, mix) and 8 backward (both sides of both products).

    Args:
        shape: Of the model.
        examples: The batch.
        num_prefix_tokens: Length of the Cartridge.
    """
    tokens, predicted, pairs = 0, 0, 0
    for example in examples:
        length = input_length(example)
        tokens += length
        predicted += int(example.assistant_mask.sum())
        pairs += length * num_prefix_tokens + length * (length + 1) // 2
    head = shape.hidden_size * shape.vocab_size
    attention = 12 * shape.num_layers * shape.num_heads * shape.head_dim * pairs
    return 4 * layer_parameters(shape) * tokens + 4 * head * predicted + attention
