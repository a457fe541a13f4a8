"""Packed training on a GPU: compiled FlexAttention, the dense fallback, and the CPU's own numbers."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cartridge_core.attention import choose_kernel
from cartridge_core.models import BaseModel, from_parts
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.training.base_weights import hold_in_float8
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.layer_modes import compiled_layers
from cartridge_core.training.packed_rows import pack_rows
from cartridge_core.training.ranks import ALONE
from cartridge_core.training.state import TrainingState
from cartridge_core.training.step import batch_gradient
from tests.proofs.bench_gpu import main
from tests.proofs.cpu_equality import difference_from_cpu
from tests.proofs.llama_shapes import TINY, LlamaShape, random_model
from tests.proofs.llama_shapes import random_prefix as prefix_of_length
from tests.proofs.synthetic_conversations import SyntheticConversations
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
        (rows,) = pack_rows(examples(), 256, base.device, kernel=kernel)
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
        for rows in pack_rows(some, 256, base.device, kernel="flex"):  # type: ignore[arg-type]
            packed_loss(base, prefix, rows).loss.backward()

    # 64 and 192 tokens: half of what may pass at once, and all of it.
    step(examples())
    step(examples() * 3)
    compiled = counters["stats"]["unique_graphs"]
    step(examples()[:3])
    step(examples() * 4)
    assert counters["stats"]["unique_graphs"] == compiled


LLAMA_3_HEADS = LlamaShape("heads", 768, 512, 2, 6, 2, 128, 512, tied=True, rope_factor=32.0)
"""Head width and group size of Llama-3.2-3B: three query heads a KV head are no power of two."""
CONFIG = TrainingConfig(num_tokens=200, micro_batch_tokens=512)


@pytest.mark.parametrize("shape", [TINY, LLAMA_3_HEADS], ids=lambda shape: shape.name)
def test_the_configured_step_equals_the_cpu(shape: LlamaShape) -> None:
    loss, gradient = difference_from_cpu(torch.device("cuda"), shape)
    assert loss < 1e-4
    assert gradient < 1e-3


def step_on(
    device: str, dtype: torch.dtype = torch.float32, weights: str = "as made", **more: Any
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a training step, `weights` being what every variant starts from."""
    # Made in its type and not cast: that would take the digits of RoPE's frequencies too.
    base = random_model(LLAMA_3_HEADS, torch.device(device), dtype)
    base.model.load_state_dict(random_model(LLAMA_3_HEADS, torch.device("cpu"), torch.float32).model.state_dict())
    if weights == "float8":
        hold_in_float8(base.model)
    config = CONFIG.model_copy(update={"precision": "float32", **more})
    state = TrainingState(prefix_of_length(base, CONFIG.num_tokens), config, base.device)
    examples = SyntheticConversations(LLAMA_3_HEADS.vocab_size, 6, (3, 40), (3, 60)).batch(0)
    with compiled_layers(base, config.compile):
        loss = batch_gradient(base, state, examples, config, ALONE).loss
    gradients = [master.grad for master in state.prefix.parameters() if master.grad is not None]
    return loss, torch.cat([gradient.flatten().cpu() for gradient in gradients])


@pytest.mark.parametrize("weights", ["as made", "float8"])
def test_half_precision_weights_are_close_to_the_cpu(weights: str) -> None:
    exact, rough = step_on("cpu"), step_on("cuda", torch.bfloat16, weights)
    assert rough[0] == pytest.approx(exact[0], rel=0.02)
    assert torch.nn.functional.cosine_similarity(rough[1], exact[1], dim=0) > (0.99 if weights == "as made" else 0.97)


@pytest.mark.parametrize("change", [{"compile": True}, {"activation_checkpointing": True}], ids=str)
def test_other_ways_through_the_layers_give_the_same_gradient(change: dict[str, bool]) -> None:
    plain, other = step_on("cuda"), step_on("cuda", **change)
    assert other[0] == pytest.approx(plain[0], rel=1e-5)
    assert (other[1] - plain[1]).norm() < 1e-3 * plain[1].norm()


def test_a_micro_batch_more_or_less_gives_the_same_gradient() -> None:
    plain, parted = step_on("cuda"), step_on("cuda", micro_batch_tokens=256)
    assert parted[0] == pytest.approx(plain[0], rel=1e-5)
    assert (parted[1] - plain[1]).norm() < 1e-3 * plain[1].norm()


def test_the_bench_runs_at_a_toy_size(tmp_path: Path) -> None:
    assert main(["--tiny", "--steps", "2", "--output", str(tmp_path)]) == 0
