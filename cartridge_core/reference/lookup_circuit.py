"""The look-up circuit that is written into the reference model's initial weights.

Trained from a plain start, a model this small learns which *class* of values an attribute has and stalls there for
thousands of steps: it never binds values to names, least of all where two entities share half a name. Two layers of
attention that do bind are therefore written in (Qwen2 has q/k/v biases, so purely positional heads can be expressed);
all weights then train freely, with a learning rate that is too low to tear the circuit down before it is of use.

The residual stream starts out in orthogonal parts: what a position asks about (64 dimensions), what was said just
before it (64), and what its word is (64 for words that things are looked up by, 62 for others, two marks).
"""

import math

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from cartridge_core.reference.shape import Shape
from cartridge_core.reference.word_classes import WordClasses

QUERY_LOOK_BACK = ((1.0, 1.0), (2.0, 1.0), (4.0, 1.0))
"""For each head that gathers what is asked about: words back, sharpness. "The ward of Mara Voss is" asks at 1, 2, 4.
One more head gathers the last name that was mentioned, however far back: of whom an object in JSON is."""
KEY_LOOK_BACK = ((1.3, 0.6), (2.4, 0.6), (3.6, 0.6), (4.7, 0.6))
"""For each head that gathers what was said before: broad enough for even weights on the five words before a value,
which hold name and attribute in every phrasing."""
_POSITION_GAIN = 8.0
_FAST_PAIRS = 9  # RoPE pairs that tell neighbouring positions apart
_RECENT_PAIRS = range(5, 9)  # RoPE pairs that tell 20 words back from 40
_NAME_PAIRS = range(9, 12)  # RoPE pairs in which names are marked
_SLOW_FROM = 12  # RoPE pairs from here on hardly turn within a corpus: words are compared in these
_SLOWEST_FROM = 18  # and values are marked in these
_WORD_NORM = 0.32
_KEY_SHARE = 0.9  # of the norm of a word to look up by, in the 64 dimensions that heads gather; of other words a tenth
_OTHER_SHARE = 0.1
_MARK = 0.3
_RECENT_GAIN = 2.0
_NAME_GAIN = 12.0
_GATHER_GAIN = 0.05
_NAME_GATHER_GAIN = 0.09  # two words share this head
_MATCH_GAIN = 1.4
_VALUE_GAIN = 12.0  # only values are looked up: all else that follows the same words is the question itself
_COPY_GAIN = 0.2


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """`[rows, columns]` with orthonormal rows."""
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0].T.contiguous()


def _positional_bias(look_back: float, scale: float, shape: Shape) -> Tensor:
    """`[head_dim]`: vectors on the fast RoPE pairs, turned back by `look_back` positions."""
    half = shape.head_dim // 2
    bias = torch.zeros(shape.head_dim)
    for pair in range(_FAST_PAIRS):
        angle = look_back * shape.rope_theta ** (-pair / half)
        bias[pair], bias[pair + half] = scale * math.cos(angle), -scale * math.sin(angle)
    return bias


def _dimensions(pairs: range, shape: Shape) -> Tensor:
    """Dimensions of RoPE pairs."""
    half = shape.head_dim // 2
    return torch.tensor([*pairs, *(half + pair for pair in pairs)])


def _name_direction(shape: Shape) -> Tensor:
    """`[head_dim]`: the unit vector that marks names in the keys of layer 0."""
    direction = torch.zeros(shape.head_dim)
    direction[list(_NAME_PAIRS)] = len(_NAME_PAIRS) ** -0.5
    return direction


def _recent_name_bias(shape: Shape) -> Tensor:
    """`[head_dim]`: a query for names, the nearer the better."""
    bias = _NAME_GAIN * _name_direction(shape)
    bias[list(_RECENT_PAIRS)] = _RECENT_GAIN
    return bias


def _embed(weight: Tensor, words: WordClasses, word: Tensor, dim: int, generator: torch.Generator) -> None:
    """Every word into its part of the stream, so that heads gather keys and little else."""
    key_part, other_part, name_mark, value_mark = word.split((dim, dim - 2, 1, 1))
    directions = [torch.randn(len(weight), len(part), generator=generator) for part in (key_part, other_part)]
    in_key, in_other = (vectors / vectors.norm(dim=1, keepdim=True) for vectors in directions)
    share = torch.full((len(weight), 1), _OTHER_SHARE)
    share[[*words.names, *words.attributes]] = _KEY_SHARE
    weight.copy_(_WORD_NORM * (share * in_key @ key_part + (1 - share**2).sqrt() * in_other @ other_part))
    weight[list(words.names)] += _MARK * name_mark
    weight[list(words.values)] += _MARK * value_mark


def _gather(attention: Qwen2Attention, shape: Shape, key_part: Tensor, name_mark: Tensor, sides: list[Tensor]) -> None:
    """Layer 0: the words asked about go into the first of the `sides`, those said before into the second."""
    dim = shape.head_dim
    queries = [_positional_bias(back, _POSITION_GAIN * sharpness, shape) for back, sharpness in QUERY_LOOK_BACK]
    keys = [_positional_bias(back, _POSITION_GAIN * sharpness, shape) for back, sharpness in KEY_LOOK_BACK]
    biases = [*queries, _recent_name_bias(shape), *keys]
    attention.q_proj.weight.mul_(0.2)
    attention.k_proj.weight.mul_(0.2)
    for head, bias in enumerate(biases):
        rows = slice(head * dim, (head + 1) * dim)
        attention.q_proj.bias[rows] = bias
        gain = _NAME_GATHER_GAIN if head == len(queries) else _GATHER_GAIN
        attention.o_proj.weight[:, rows] = gain * sides[head // len(KEY_LOOK_BACK)].T
    for head in range(shape.num_kv_heads):
        rows = slice(head * dim, (head + 1) * dim)
        attention.k_proj.bias[rows] = _positional_bias(0.0, _POSITION_GAIN, shape)
        attention.k_proj.weight[rows] += torch.outer(_name_direction(shape), name_mark)
        attention.v_proj.weight[rows] = key_part


def _look_up(
    attention: Qwen2Attention,
    shape: Shape,
    copied: tuple[Tensor, ...],
    value_mark: Tensor,
    sides: list[Tensor],
    generator: torch.Generator,
) -> None:
    """Layer 1: attend to values before which the words were said that are asked about, and copy them."""
    dim, group = shape.head_dim, shape.num_heads // shape.num_kv_heads
    half = dim // 2
    slow, slowest = (_dimensions(range(first, half), shape) for first in (_SLOW_FROM, _SLOWEST_FROM))
    asked, said = sides
    for kv_head in range(shape.num_kv_heads):
        mix = torch.zeros(dim, dim)
        mix[slow] = _orthogonal(len(slow), dim, generator)
        is_value = torch.zeros(dim)
        is_value[slowest] = torch.randn(len(slowest), generator=generator)
        is_value /= is_value.norm()
        rows = slice(kv_head * dim, (kv_head + 1) * dim)
        attention.k_proj.weight[rows] = _MATCH_GAIN * mix @ said + torch.outer(is_value, value_mark)
        attention.v_proj.weight[rows] = copied[kv_head]
        for head in range(kv_head * group, (kv_head + 1) * group):
            columns = slice(head * dim, (head + 1) * dim)
            attention.q_proj.weight[columns] = _MATCH_GAIN * mix @ asked
            attention.q_proj.bias[columns] = _VALUE_GAIN * is_value
            attention.o_proj.weight[:, columns] = _COPY_GAIN * copied[kv_head].T


@torch.no_grad()
def seed_lookup(model: Qwen2ForCausalLM, shape: Shape, words: WordClasses, generator: torch.Generator) -> None:
    """Write the look-up circuit into embedding and first two layers.

    Layer 0 gathers the key words around every position twice: as a query (including itself) and as a key (before
    itself). Layer 1 lets a position attend to values that stand behind the words it asks about, and copies them.
    """
    dim, hidden = shape.head_dim, shape.hidden_size
    asked, said, word = _orthogonal(hidden, hidden, generator).split((dim, dim, hidden - 2 * dim))
    _embed(model.model.embed_tokens.weight, words, word, dim, generator)
    # Marks are not copied: they say of what kind a word is, not which.
    copied = torch.cat((word[:-2], torch.zeros(2, hidden))).split(dim)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    _gather(first, shape, word[:dim], word[-2], [asked, said])
    _look_up(second, shape, copied, word[-1], [asked, said], generator)
