"""How fast vLLM's worker has a Cartridge in memory that lies on this machine's disk: read, hashed, checked, cut."""

import statistics
import time
from pathlib import Path

import torch

from cartridge_core.serving.engine_cartridges import EngineCartridges, LayerShape
from cartridge_core.settings import Settings
from cartridge_core.stages.local_copies import cache_folder
from tests.proofs.llama_shapes import LLAMA_3B
from tests.proofs.serving_arms import random_cartridge

NUM_TOKENS = 2048
"""Of Llama-3.2-3B's shape: 224 MiB."""


def cold_load_figures(folder: Path, rounds: int = 7) -> dict[str, float]:
    """Bytes of keys and values a second, from a file that the system has read before to tensors in host memory.

    Args:
        folder: For the Cartridge.
        rounds: Loads; the first one is not counted.
    """
    cartridge = random_cartridge(LLAMA_3B, "m", NUM_TOKENS)
    settings, digest = Settings(home=folder / "cold"), cartridge.digest
    cartridge.save(cache_folder(settings, digest))
    layers = {
        f"layer.{i}": LayerShape(i, spec.num_kv_heads, spec.head_dim)
        for i, spec in enumerate(cartridge.manifest.layers)
    }
    rates = []
    for _ in range(rounds):
        worker = EngineCartridges(settings, layers, torch.bfloat16, 0, 1, pinned=False)
        started = time.perf_counter()
        worker.load("default", (digest,), cartridge.num_tokens).result()
        rates.append(cartridge.kv_bytes / (time.perf_counter() - started))
        worker.close()
    return {
        "cold_load_bytes_per_s": statistics.median(rates[1:]),
        "cold_load_bytes_per_s_lowest": min(rates[1:]),
        "cold_load_bytes": float(cartridge.kv_bytes),
    }
