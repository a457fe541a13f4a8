"""The program that measures training on a GPU, at a toy size on a CPU: its counts and its logic, no speeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from tests.proofs.bench_gpu import MODES, NO_DEVICE, main
from tests.proofs.cpu_equality import difference_from_cpu
from tests.proofs.llama_shapes import LLAMA_3B, LLAMA_8B, LLAMA_100M, TINY, LlamaShape, random_model
from tests.proofs.synthetic_conversations import SyntheticConversations
from tests.proofs.throughput import matrix_rate, measure
from tests.proofs.training_flops import layer_parameters, training_flops

CPU = torch.device("cpu")
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")


def model_of(shape: LlamaShape) -> torch.nn.Module:
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(shape.config())


@pytest.mark.parametrize(("shape", "billions"), [(LLAMA_3B, 3.213), (LLAMA_8B, 8.030), (LLAMA_100M, 0.100)])
def test_shapes_have_the_published_sizes(shape: LlamaShape, billions: float) -> None:
    model = model_of(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.005)
    matrices = [m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]  # type: ignore[union-attr]
    assert layer_parameters(shape) == sum(matrices)


def test_operations_are_those_counted_by_hand() -> None:
    # One layer: query 4 x 8, key and value 4 x 4 each, output 8 x 4, three matrices of 4 x 10; the head 4 x 7.
    shape = LlamaShape("hand", 4, 10, 1, 2, 1, 4, 7, tied=True, rope_factor=8.0)
    some = np.zeros((2, 3), np.float32)
    text = Targets(np.arange(5, dtype=np.int32), np.arange(5) >= 3, some.astype(np.int32), some, some[:, 0])
    assert layer_parameters(shape) == 32 + 16 + 16 + 32 + 120
    # Four tokens are read (the last is only predicted) and two predicted; with 3 keys of the Cartridge before them the
    # four see 4 + 5 + 6 + 7 keys. Two heads of width 4, 12 operations a pair and dimension.
    assert training_flops(shape, [text], 3) == 4 * 216 * 4 + 4 * 28 * 2 + 12 * 2 * 4 * 22
    assert training_flops(shape, [text, text], 3) == 2 * training_flops(shape, [text], 3)


def test_conversations_are_valid_and_repeatable() -> None:
    source = SyntheticConversations(300, 5, (3, 9), (2, 7), top_k=4)
    batch = source.batch(3)
    assert [len(one.token_ids) for one in batch] == [len(one.token_ids) for one in source.batch(3)]
    assert [one.token_ids.tolist() for one in batch] != [one.token_ids.tolist() for one in source.batch(4)]
    for one in batch:
        mass = np.exp(one.topk_logprobs).sum(1) + np.exp(one.tail_logprob)
        assert mass == pytest.approx(np.ones(len(mass)), abs=1e-4)
        assert all(len(set(row)) == 4 for row in one.topk_ids.tolist())
        assert one.topk_ids.max() < 300


def base_of(dtype: torch.dtype = torch.float32) -> BaseModel:
    return random_model(TINY, CPU, dtype)


def test_a_random_model_is_stock_and_frozen() -> None:
    base = base_of(torch.bfloat16)
    assert base.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.inv_freq(0).dtype == torch.float32


def test_steps_are_timed_and_train() -> None:
    conversations = SyntheticConversations(TINY.vocab_size, 3, (3, 9), (4, 9))
    config = TrainingConfig(num_tokens=16, steps=60, warmup_steps=1)
    first = measure(base_of(), TINY, config, conversations, steps=1)
    same = SyntheticConversations(TINY.vocab_size, 3, (3, 9), (4, 9))
    object.__setattr__(same, "batch", lambda step: conversations.batch(0))
    seen = measure(base_of(), TINY, config, same, steps=11)
    assert seen.loss < first.loss - 0.1
    assert seen.peak_bytes == 0
    assert seen.recompiled == 0
    tokens = sum(len(one.token_ids) - 1 for one in conversations.batch(0))
    flops = training_flops(TINY, conversations.batch(0), 16)
    assert seen.flops_per_second / seen.tokens_per_second == pytest.approx(flops / tokens)
    # Mean against median: other load on the machine parts them.
    assert 0.05 < seen.tokens_per_second * seen.step_seconds / tokens < 2


def test_the_matrix_rate_is_that_of_products() -> None:
    assert 1e8 < matrix_rate(CPU, 64, rounds=2, products=4) < 1e14


def test_equality_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert difference_from_cpu(CPU) == (0, 0)
    monkeypatch.setattr("tests.proofs.cpu_equality.random_prefix", shifting())
    loss, gradient = difference_from_cpu(CPU)
    assert loss > 1e-4
    assert gradient > 1e-2


def shifting() -> object:
    from tests.proofs.llama_shapes import random_prefix

    seeds = iter(range(10))
    return lambda base, count: random_prefix(base, count, next(seeds))


def test_the_whole_program_on_a_toy(tmp_path: Path) -> None:
    modes = [mode for mode in MODES if mode != "compiled"]  # compiling takes half a minute
    assert main(["--tiny", "--steps", "2", "--output", str(tmp_path), "--modes", *modes]) == 0
    report = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert report["asked"].keys() == {"loss_off_cpu", "gradient_off_cpu"}
    shares = [report["figures"][f"tiny_{mode}_share_of_matrix_rate"] for mode in modes]
    assert report["figures"]["tiny_share_of_matrix_rate"] == max(shares) > 0
    assert report["figures"]["tiny_plain_micro_batch_tokens"] == 8192


@NO_CUDA
def test_without_a_device_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path)]) == NO_DEVICE
    assert "needs a CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--steps", "0"], ["--shapes", "llama_70b"], ["--modes", "fast"]):
        with pytest.raises(SystemExit):
            main(wrong)
    assert "llama_70b" in capsys.readouterr().err
