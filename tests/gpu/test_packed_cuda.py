"""Packed training on a GPU: compiled FlexAttention, the dense fallback, and the CPU's own numbers."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch

from cartridge_core.attention import choose_kernel
from cartridge_core.models import BaseModel, from_parts
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.packed_rows import pack_rows
from tests.training.test_packed_attention import build
from tests.unpacked import check_equal, examples, random_prefix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KINDS = ("llama", "qwen2", "qwen3", "gemma3", "mistral", "gemma2", "gemma3n", "phi3")


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """fp32 products in fp32: TF32 keeps three digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def on_gpu(tiny_base: Callable[[str], BaseModel]) -> Callable[[str], BaseModel]:
    def make(kind: str) -> BaseModel:
        base = build(kind) if kind in ("gemma2", "gemma3n", "phi3") else tiny_base(kind)
        return from_parts(copy.deepcopy(base.model).cuda(), base.tokenizer, kind)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_flex_equals_unpacked(on_gpu: Callable[[str], BaseModel], kind: str) -> None:
    check_equal(on_gpu(kind), kernel="flex", atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_equals_unpacked(on_gpu: Callable[[str], BaseModel], kind: str) -> None:
    check_equal(on_gpu(kind), kernel="dense", atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_flex_equals_the_cpu(
    on_gpu: Callable[[str], BaseModel], tiny_base: Callable[[str], BaseModel], kind: str
) -> None:
    there = on_gpu(kind)
    here = build(kind) if kind == "gemma2" else tiny_base(kind)
    results = []
    for base, kernel in ((here, choose_kernel("auto", "cpu")), (there, choose_kernel("auto", "cuda"))):
        prefix = random_prefix(here).to(base.device)
        keys = [key.detach().requires_grad_() for key in prefix.keys if key is not None]
        (rows,) = pack_rows(examples(), 256, base.device, kernel=kernel, row_tokens=128)
        loss = packed_loss(base, PrefixKV(keys, prefix.values, prefix.next_position), rows, chunk_tokens=16).loss
        results.append((loss.item(), [gradient.cpu() for gradient in torch.autograd.grad(loss, keys)]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-4)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)


def test_nothing_is_compiled_twice(on_gpu: Callable[[str], BaseModel]) -> None:
    from torch._dynamo.utils import counters

    base = on_gpu("llama")
    prefix = random_prefix(base)

    def step(some: list[object]) -> None:
        for rows in pack_rows(some, 256, base.device, kernel="flex", row_tokens=128):  # type: ignore[arg-type]
            packed_loss(base, prefix, rows).loss.backward()

    step(examples())
    compiled = counters["stats"]["unique_graphs"]
    step(examples()[:3])
    step(examples() * 4)
    assert counters["stats"]["unique_graphs"] == compiled
