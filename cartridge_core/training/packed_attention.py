"""The stock model over packed rows behind a trainable prefix.

The layout (several examples a row, blind to each other, one copy of the prefix) is that of the Cartridges authors'
second release, without its fork of the models. It equals the plain model behind an ordinary cache, an example at a
time, gradients to the prefix included.
"""

from torch import Tensor

from cartridge_core.attention import packed_behind
from cartridge_core.cartridge import PrefixKV
from cartridge_core.models import BaseModel
from cartridge_core.training.packed_rows import PackedRows


def packed_logits(base: BaseModel, prefix: PrefixKV, rows: PackedRows) -> Tensor:
    """Logits at the places that are compared with the teacher, from the stock model's own forward pass.

    The head is applied to those places only, at once: `[m, vocabulary]` exists. `distillation.packed_loss` goes in
    chunks. Gradients flow to the prefix.

    Args:
        base: The model.
        prefix: What precedes every example.
        rows: The examples.

    Returns:
        `[m, vocabulary]` in the type that the model computes in.

    Raises:
        UnsupportedModelError: A layer of the model attends though the prefix holds no keys for it.
    """
    with packed_behind(prefix, base.layer_specs, rows.index, rows.segment, rows.kernel) as placed:
        logits: Tensor = base.model(
            input_ids=rows.read_ids, use_cache=False, logits_to_keep=rows.read_predicting, **placed
        ).logits[0]
    # A model that does not know the argument gives all logits.
    return logits if len(logits) == len(rows.read_predicting) else logits[rows.read_predicting]


def packed_hidden(base: BaseModel, prefix: PrefixKV, rows: PackedRows) -> Tensor:
    """What the head would read at the places that are compared with the teacher: `[m, hidden size]`.

    Args and errors are those of `packed_logits`.
    """
    with packed_behind(prefix, base.layer_specs, rows.index, rows.segment, rows.kernel) as placed:
        hidden: Tensor = base.model.base_model(input_ids=rows.read_ids, use_cache=False, **placed).last_hidden_state[0]
    return hidden.index_select(0, rows.read_predicting)
