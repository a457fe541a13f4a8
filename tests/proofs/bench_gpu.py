"""`make bench-gpu`: training at Llama-3.2-3B and Llama-3.1-8B shape with random weights, p = 2048, packed rows.

Tokens a second, peak memory, and the share of the device's own rate of bf16 matrix products that the steps' needed
operations reach. First, FlexAttention's loss and gradient are held against the CPU's on a small batch. Needs torch,
transformers and a CUDA device; no network.
"""

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cartridge_core.errors import CartridgeError
from cartridge_core.proof import FOLDER, write_proof
from cartridge_core.training.base_weights import hold_in_float8
from cartridge_core.training.config import TrainingConfig
from tests.proofs.cpu_equality import difference_from_cpu
from tests.proofs.llama_shapes import LLAMA_3B, LLAMA_8B, TINY, LlamaShape, random_model
from tests.proofs.synthetic_conversations import SyntheticConversations
from tests.proofs.throughput import Throughput, matrix_rate, measure

SHAPES = {shape.name: shape for shape in (LLAMA_3B, LLAMA_8B)}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "compiled": {"compile": True},
    "checkpointed": {"activation_checkpointing": True},
    "float8": {"base_dtype": "float8"},
}
"""Name to what it changes in the configuration. The last one changes the model too, for good."""
NO_DEVICE = 2
"""Exit code where there is nothing to measure on."""


def figures_of(name: str, seen: Throughput, rate: float) -> dict[str, float]:
    """What one shape in one mode showed."""
    return {
        f"{name}_tokens_per_second": seen.tokens_per_second,
        f"{name}_share_of_matrix_rate": seen.flops_per_second / rate,
        f"{name}_peak_gib": seen.peak_bytes / 2**30,
        f"{name}_step_seconds": seen.step_seconds,
        f"{name}_first_step_seconds": seen.first_step_seconds,
        f"{name}_recompiled": seen.recompiled,
        f"{name}_micro_batch_tokens": seen.micro_batch_tokens,
    }


def measure_shape(
    shape: LlamaShape, modes: Sequence[str], base_config: TrainingConfig, device: torch.device, rate: float, **more: Any
) -> dict[str, float]:
    """All modes of a shape, and the best share of the matrix rate among them."""
    # What was compiled for another shape would count against this one's limit, and may hold on to its weights.
    torch._dynamo.reset()
    gc.collect()
    base = random_model(shape, device, torch.bfloat16)
    conversations = more.pop("conversations", SyntheticConversations(shape.vocab_size))
    figures: dict[str, float] = {}
    for mode in sorted(modes, key=list(MODES).index):
        config = TrainingConfig.model_validate(base_config.model_dump(mode="json") | MODES[mode])
        if mode == "float8":
            hold_in_float8(base.model)
        seen = figures_of(f"{shape.name}_{mode}", measure(base, shape, config, conversations, **more), rate)
        # Said at once: a lent device may be gone before all is measured.
        print(*(f"{name} {value:.4g}" for name, value in seen.items()), sep="\n", flush=True)
        figures |= seen
    best = max(value for name, value in figures.items() if name.endswith("share_of_matrix_rate"))
    return figures | {f"{shape.name}_share_of_matrix_rate": best}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the proof; the exit code says whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps that are timed in each mode")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192, help="tokens that pass the model at once")
    parser.add_argument("--tiny", action="store_true", help="a toy on any device, to see that all of this runs")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the report")
    options = parser.parse_args(arguments)
    if min(options.steps, options.micro_batch_tokens) < 1:
        parser.error("--steps and --micro-batch-tokens must be at least 1")
    if not (torch.cuda.is_available() or options.tiny):
        print(
            f"bench-gpu needs a CUDA device; torch {torch.__version__} sees none. Nothing was measured.",
            file=sys.stderr,
        )
        return NO_DEVICE
    started = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernel = "flex" if device.type == "cuda" else "auto"
    config = TrainingConfig.model_validate(
        {"num_tokens": 2048, "micro_batch_tokens": options.micro_batch_tokens, "attention": kernel, "steps": 1000}
    )
    more: dict[str, Any] = {"steps": options.steps}
    shapes = [SHAPES[name] for name in options.shapes]
    if options.tiny:
        shapes, config = [TINY], config.model_copy(update={"num_tokens": 64})
        more["conversations"] = SyntheticConversations(TINY.vocab_size, 4, (3, 20), (3, 20))
    try:
        loss, gradient = difference_from_cpu(device)
        rate = matrix_rate(device, 256 if options.tiny else 8192)
        figures = {"matrix_teraflops": rate / 1e12, "loss_off_cpu": loss, "gradient_off_cpu": gradient}
        for shape in shapes:
            figures |= measure_shape(shape, options.modes, config, device, rate, **more)
    except CartridgeError as error:
        print(error, file=sys.stderr)
        return 1
    asked = {"loss_off_cpu": {"at_most": 1e-4}, "gradient_off_cpu": {"at_most": 1e-3}}
    if not options.tiny:
        asked |= {f"{shape.name}_share_of_matrix_rate": {"at_least": 0.5} for shape in shapes}
    proof = write_proof(
        "bench-gpu",
        " ".join(["python -m tests.proofs.bench_gpu", *(arguments if arguments is not None else sys.argv[1:])]),
        figures,
        asked,
        started,
        extra={"torch": torch.__version__, "configuration": config.recipe()},
        folder=options.output,
    )
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
