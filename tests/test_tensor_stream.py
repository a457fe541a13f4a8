from pathlib import Path

import pytest
import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import ArtifactError
from cartridge_core.manifest import BaseModelIdentity, CartridgeManifest, LayerSpec
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.stored_tensors import TENSORS_FILE
from cartridge_core.tensor_stream import stream_tensors

LAYERS = (
    LayerSpec(num_kv_heads=2, head_dim=8),
    LayerSpec(has_kv=False, num_kv_heads=2, head_dim=8),
    *(LayerSpec(num_kv_heads=2, head_dim=8),) * 3,
)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def cartridge(request: pytest.FixtureRequest) -> Cartridge:
    generator = torch.Generator().manual_seed(0)
    sides = [
        [torch.randn(2, 5, 8, generator=generator) if layer.has_kv else None for layer in LAYERS] for _ in range(2)
    ]
    return Cartridge.from_prefix(
        PrefixKV(*sides, next_position=5),
        base_model=BaseModelIdentity(id="m", revision="r", config_digest="a" * 64, tokenizer_digest="b" * 64),
        layers=LAYERS,
        dtype=request.param,
        template_digest="c" * 64,
    )


def read(folder: Path, manifest: CartridgeManifest) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in stream_tensors(folder, manifest)}


def test_as_loaded_at_once(cartridge: Cartridge, tmp_path: Path) -> None:
    seen = read(cartridge.save(tmp_path / "c"), cartridge.manifest)
    assert len(seen) == 8
    for index in (0, 2, 3, 4):
        for side, tensors in (("key", cartridge.keys), ("value", cartridge.values)):
            expected = tensors[index]
            assert expected is not None
            assert torch.equal(seen[f"layers.{index}.{side}"], expected)


def test_a_changed_byte_is_refused_wherever_it_is(cartridge: Cartridge, tmp_path: Path) -> None:
    path = cartridge.save(tmp_path / "c") / TENSORS_FILE
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(0, header, 3), *range(header, len(whole), 11), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        with pytest.raises(ArtifactError):
            read(tmp_path / "c", cartridge.manifest)


def test_every_length_but_its_own_is_refused(cartridge: Cartridge, tmp_path: Path) -> None:
    path = cartridge.save(tmp_path / "c") / TENSORS_FILE
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            read(tmp_path / "c", cartridge.manifest)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError, match="longer"):
        read(tmp_path / "c", cartridge.manifest)
    path.unlink()
    with pytest.raises(ArtifactError, match="Cannot read"):
        read(tmp_path / "c", cartridge.manifest)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(cartridge: Cartridge, tmp_path: Path, bad: float) -> None:
    folder = cartridge.save(tmp_path / "c")
    value = cartridge.values[2]
    assert value is not None
    path = folder / TENSORS_FILE
    changed = value.clone()
    changed[1, 3, 4] = bad
    data = path.read_bytes()
    old, new = (tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in (value, changed))
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    with pytest.raises(ArtifactError, match=r"layers\.2\.value.*not finite"):
        read(folder, cartridge.manifest)


def test_another_manifests_shapes_are_refused(cartridge: Cartridge, tmp_path: Path) -> None:
    folder = cartridge.save(tmp_path / "c")
    layers = (LayerSpec(num_kv_heads=2, head_dim=16), *LAYERS[1:])
    with pytest.raises(ArtifactError, match="not as its manifest says"):
        read(folder, cartridge.manifest.model_copy(update={"layers": layers}))
    layers = (*LAYERS, LAYERS[0])
    with pytest.raises(ArtifactError, match="missing"):
        read(folder, cartridge.manifest.model_copy(update={"layers": layers}))
