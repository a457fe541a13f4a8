"""Where keys and values go in vLLM's workers, without vLLM."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import ArtifactError
from cartridge_core.models import BaseModel
from cartridge_core.serving.engine_cartridges import EngineCartridges, LayerShape
from cartridge_core.serving.kv_blocks import local_heads, slots
from cartridge_core.settings import Settings
from cartridge_core.stages.local_copies import cache_folder
from tests.samples import cartridge_of


def test_slots_follow_the_blocks() -> None:
    positions, places = slots([7, 3, 9], 4, 2, 10)
    assert positions.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert places.tolist() == [30, 31, 12, 13, 14, 15, 36, 37]


def test_what_a_window_has_left_behind_has_no_slot() -> None:
    positions, places = slots([0, 0, 9], 4, 0, 9)
    assert (positions.tolist(), places.tolist()) == ([8], [36])


@pytest.mark.parametrize(
    ("num_heads", "ranks", "expected"),
    [(8, 1, [(0, 8)]), (8, 2, [(0, 4), (4, 8)]), (2, 4, [(0, 1), (0, 1), (1, 2), (1, 2)])],
)
def test_heads_of_each_worker(num_heads: int, ranks: int, expected: list[tuple[int, int]]) -> None:
    found = [local_heads(num_heads, rank, ranks) for rank in range(ranks)]
    assert [(part.start, part.stop) for part in found] == expected


@pytest.fixture
def stored(tiny_base: Callable[[str], BaseModel], tmp_path: Path) -> tuple[Settings, Cartridge]:
    base, settings = tiny_base("llama"), Settings(home=tmp_path)
    cartridge = cartridge_of(base, list(range(20, 31)))
    cartridge.save(cache_folder(settings, cartridge.digest))
    return settings, cartridge


def shapes(cartridge: Cartridge, ranks: int = 1, **changes: int) -> dict[str, LayerShape]:
    return {
        f"model.layers.{index}.self_attn.attn": LayerShape(
            index,
            changes.get("num_kv_heads", max(1, layer.num_kv_heads // ranks)),
            changes.get("head_dim", layer.head_dim),
        )
        for index, layer in enumerate(cartridge.manifest.layers)
    }


def test_each_worker_gets_its_heads(stored: tuple[Settings, Cartridge]) -> None:
    settings, cartridge = stored
    num_heads = cartridge.manifest.layers[0].num_kv_heads
    for ranks in (1, num_heads, 2 * num_heads):
        parts = []
        for rank in range(ranks):
            workers = EngineCartridges(settings, shapes(cartridge, ranks), torch.float32, rank, ranks, pinned=False)
            shard = workers.load("default", (cartridge.digest,), cartridge.num_tokens).result(20)
            assert workers.shard((cartridge.digest,)) is shard
            parts.append(shard.layers["model.layers.1.self_attn.attn"])
            workers.close()
        for side, tensors in ((0, cartridge.keys), (1, cartridge.values)):
            whole = tensors[1]
            assert whole is not None
            seen = torch.cat([part[side] for part in parts][:: max(1, ranks // num_heads)], dim=1)
            assert torch.equal(seen, whole.float().transpose(0, 1))


@pytest.mark.parametrize("change", [{"num_kv_heads": 3}, {"head_dim": 4}])
def test_another_models_shapes_are_refused(stored: tuple[Settings, Cartridge], change: dict[str, int]) -> None:
    settings, cartridge = stored
    workers = EngineCartridges(settings, shapes(cartridge, **change), torch.float32, 0, 1, pinned=False)
    with pytest.raises(ArtifactError, match=r"model\.layers\.0"):
        workers.load("default", (cartridge.digest,), cartridge.num_tokens).result(20)
    workers.close()


def test_another_length_is_refused(stored: tuple[Settings, Cartridge]) -> None:
    settings, cartridge = stored
    workers = EngineCartridges(settings, shapes(cartridge), torch.float32, 0, 1, pinned=False)
    with pytest.raises(ArtifactError, match="11 tokens stand in front, 12 were attached"):
        workers.load("default", (cartridge.digest,), cartridge.num_tokens + 1).result(20)
    workers.close()


def test_a_failed_load_is_tried_again(stored: tuple[Settings, Cartridge]) -> None:
    settings, cartridge = stored
    workers = EngineCartridges(settings, shapes(cartridge), torch.float32, 0, 1, pinned=False)
    with pytest.raises(ArtifactError):
        workers.load("other", (cartridge.digest,), cartridge.num_tokens).result(20)
    workers.load("default", (cartridge.digest,), cartridge.num_tokens).result(20)
    workers.drop((cartridge.digest,))
    with pytest.raises(KeyError):
        workers.shard((cartridge.digest,))
    workers.close()
