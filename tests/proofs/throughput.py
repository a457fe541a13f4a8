"""Optimizer steps on synthetic conversations, timed; and how fast the device multiplies at all."""

import statistics
import time
from dataclasses import dataclass

import torch

from cartridge_core.models import BaseModel
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.layer_modes import compiled_layers
from cartridge_core.training.optimizer import set_learning_rate
from cartridge_core.training.packed_rows import input_length
from cartridge_core.training.ranks import ALONE
from cartridge_core.training.schedule import learning_rate
from cartridge_core.training.state import TrainingState
from cartridge_core.training.step import batch_gradient
from tests.proofs.llama_shapes import LlamaShape, random_prefix
from tests.proofs.synthetic_conversations import SyntheticConversations
from tests.proofs.training_flops import training_flops


@dataclass(frozen=True)
class Throughput:
    """What some timed steps showed."""

    tokens_per_second: float
    """Tokens of conversations, padding left out."""
    flops_per_second: float
    """Operations that the steps need (`training_flops`)."""
    first_step_seconds: float
    """With whatever is compiled then."""
    step_seconds: float
    """Median of the timed steps."""
    peak_bytes: int
    """Most device memory in use, weights included; 0 without CUDA."""
    recompiled: int
    """Graphs compiled while steps were timed."""
    micro_batch_tokens: int
    """Tokens that passed the model at once at the end: fewer than configured if memory ran out."""
    loss: float
    """Of the last step, nats a predicted token."""


def matrix_rate(device: torch.device, size: int = 8192, rounds: int = 5, products: int = 10) -> float:
    """Operations a second of large bf16 matrix products: the best of some rounds."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    best = 0.0
    for _ in range(rounds + 1):  # in the first one the device wakes up
        synchronize(device)
        started = time.perf_counter()
        for _ in range(products):
            left @ right
        synchronize(device)
        best = max(best, 2 * size**3 * products / (time.perf_counter() - started))
    return best


def measure(
    base: BaseModel,
    shape: LlamaShape,
    config: TrainingConfig,
    conversations: SyntheticConversations,
    *,
    steps: int = 10,
) -> Throughput:
    """Train for some steps, after as many on the same batches: every length of a row is compiled before it counts."""
    if base.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(base.device)
    state = TrainingState(random_prefix(base, config.num_tokens), config, base.device)
    seconds, tokens, flops, compiled, loss = [], [], [], 0, 0.0
    with compiled_layers(base, config.compile):
        for step in range(2 * steps):
            if step == steps:
                compiled = _graphs()
            examples = conversations.batch(step % steps)
            set_learning_rate(state.optimizer, learning_rate(config, state.step))
            synchronize(base.device)
            started = time.perf_counter()
            loss = batch_gradient(base, state, examples, config, ALONE).loss
            state.update()
            synchronize(base.device)
            seconds.append(time.perf_counter() - started)
            tokens.append(sum(input_length(example) for example in examples))
            flops.append(training_flops(shape, examples, config.num_tokens))
        recompiled = _graphs() - compiled
    timed = sum(seconds[steps:])
    return Throughput(
        tokens_per_second=sum(tokens[steps:]) / timed,
        flops_per_second=sum(flops[steps:]) / timed,
        first_step_seconds=seconds[0],
        step_seconds=statistics.median(seconds[steps:]),
        peak_bytes=torch.cuda.max_memory_allocated(base.device) if base.device.type == "cuda" else 0,
        recompiled=recompiled,
        micro_batch_tokens=state.micro_batch.tokens,
        loss=loss,
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
