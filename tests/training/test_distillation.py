"""The chunked loss: the same numbers, without the logits of all tokens at once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cartridge_core.models import BaseModel
from cartridge_core.training.distillation import chunked_cross_entropy, packed_loss
from cartridge_core.training.loss import TeacherTokens, cross_entropy
from cartridge_core.training.packed_attention import packed_logits
from cartridge_core.training.packed_rows import pack_rows
from cartridge_core.training.text_windows import next_token_targets
from tests.unpacked import random_prefix

VOCAB, WIDTH, TOKENS, K = 4000, 8, 60, 5


class Spy(TorchDispatchMode):
    """The most rows of the vocabulary's width that any operation gives out."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.width, self.rows = vocab_size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == self.width:
                self.rows = max(self.rows, tensor.numel() // self.width)
        return out


def teacher() -> TeacherTokens:
    generator = torch.Generator().manual_seed(0)
    top, ids = torch.randn(TOKENS, VOCAB, generator=generator).mul_(3).log_softmax(dim=1).topk(K, dim=1)
    return TeacherTokens(ids, top, torch.log1p(-top.exp().sum(dim=1)))


def head_and_hidden(dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(WIDTH, VOCAB, bias=False, dtype=dtype).requires_grad_(False)
    head.weight.copy_(torch.randn(VOCAB, WIDTH, generator=generator))
    return head, torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_chunks_give_the_whole(chunk: int, temperature: float) -> None:
    head, hidden = head_and_hidden()
    whole = cross_entropy(head(hidden), teacher(), temperature).sum()
    parted = chunked_cross_entropy(hidden, head, teacher(), temperature, chunk)
    torch.testing.assert_close(parted, whole)
    (wanted,) = torch.autograd.grad(3 * whole, hidden)
    (seen,) = torch.autograd.grad(3 * parted, hidden)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(chunked_cross_entropy(hidden, head, teacher(), temperature, chunk), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_vocabularys_width_exists_for_a_chunk_only(dtype: torch.dtype) -> None:
    (head, hidden), target = head_and_hidden(dtype), teacher()
    # The head's own weight, transposed, has WIDTH rows.
    with Spy(VOCAB) as spy:
        chunked_cross_entropy(hidden, head, target, chunk_tokens=2 * WIDTH).backward()
    assert spy.rows == 2 * WIDTH
    with Spy(VOCAB) as spy:
        cross_entropy(head(hidden), target).sum().backward()
    assert spy.rows == TOKENS


def test_a_whole_step_never_holds_all_logits(tiny_base: Callable[[str], BaseModel]) -> None:
    base = tiny_base("qwen2")
    prefix = random_prefix(base)
    texts = [next_token_targets(np.arange(10, 60, dtype=np.int32)) for _ in range(4)]
    (rows,) = pack_rows(texts, 1000)
    assert len(rows.teacher) == 196
    with Spy(base.vocab_size) as spy:
        packed_loss(base, prefix, rows, chunk_tokens=64).loss.backward()
    assert spy.rows == 64
    with Spy(base.vocab_size) as spy:
        packed_logits(base, prefix, rows)
    assert spy.rows == 196


def test_sums_of_parts_are_the_sum_of_the_whole(tiny_base: Callable[[str], BaseModel]) -> None:
    base = tiny_base("qwen2")
    prefix = random_prefix(base)
    texts = [next_token_targets(np.arange(10, 10 + n, dtype=np.int32)) for n in (5, 30, 12, 17)]
    whole = [packed_loss(base, prefix, rows) for rows in pack_rows(texts, 1000)]
    parts = [packed_loss(base, prefix, rows) for rows in pack_rows(texts, 30)]
    assert len(whole) == 1 < len(parts)
    assert sum(part.tokens for part in parts) == whole[0].tokens == 4 + 29 + 11 + 16
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole[0].loss.item(), rel=1e-5)
