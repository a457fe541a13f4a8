"""Quantised Cartridges: how far off they are, what is stored, and that everything else sees an ordinary Cartridge."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cartridge_core.cartridge import MANIFEST_FILE, TENSORS_FILE, Cartridge, PrefixKV
from cartridge_core.digest import canonical_json, sha256_file
from cartridge_core.errors import ArtifactError
from cartridge_core.inference.prefix import prefill
from cartridge_core.inference.score import logits_behind
from cartridge_core.manifest import BaseModelIdentity, CartridgeManifest, LayerSpec, read_manifest
from cartridge_core.quantization import KEY_AXIS, VALUE_AXIS, dequantize, quantize
from cartridge_core.rendering import template_digest

IDENTITY = BaseModelIdentity(id="tiny", revision="abc", config_digest="c" * 64, tokenizer_digest="d" * 64)
LAYERS = (LayerSpec(num_kv_heads=2, head_dim=4), LayerSpec(num_kv_heads=2, head_dim=4))
# Half a step: 1/127 of the largest apart, and three bits of mantissa.
HALF_STEP = {"int8": 0.5 / 127, "fp8": 2.0**-4}


def make(tokens: int = 9, dtype: torch.dtype = torch.bfloat16, num_frozen_tokens: int = 1) -> Cartridge:
    generator = torch.Generator().manual_seed(0)
    keys, values = ([torch.randn(2, tokens, 4, generator=generator) for _ in LAYERS] for _ in range(2))
    return Cartridge.from_prefix(
        PrefixKV(keys, values, tokens),
        base_model=IDENTITY,
        layers=LAYERS,
        dtype=dtype,
        template_digest="t" * 64,
        num_frozen_tokens=num_frozen_tokens,
        corpus_digest="e" * 64,
    )


@pytest.mark.parametrize("axis", [KEY_AXIS, VALUE_AXIS])
@pytest.mark.parametrize("storage", ["int8", "float8_e4m3fn"])
def test_rounding_is_within_half_a_step_of_its_own_scale(storage: Any, axis: int) -> None:
    exact = torch.randn(3, 17, 8, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 8)
    small, scale = quantize(exact, storage, axis)
    assert scale.shape == (torch.Size([3, 8]) if axis == KEY_AXIS else torch.Size([3, 17]))
    error = (dequantize(small, scale, axis, torch.float32) - exact).abs()
    if storage == "int8":
        assert (error <= 0.5001 * scale.unsqueeze(axis)).all()
    else:
        # Relative to each value, until the values become subnormal at 2**-6 of the scale.
        assert (error <= exact.abs() * 2.0**-4 + scale.unsqueeze(axis) * 2.0**-10).all()


def test_one_scale_a_channel_saves_the_small_channels_of_keys() -> None:
    keys = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 1.0, 1.0, 1000.0])
    errors = {
        axis: float(
            (dequantize(*quantize(keys, "int8", axis), axis, torch.float32) - keys)[..., :3].square().mean().sqrt()
        )
        for axis in (KEY_AXIS, VALUE_AXIS)
    }
    assert errors[KEY_AXIS] < 0.02
    assert errors[VALUE_AXIS] > 0.5


@pytest.mark.parametrize("value", [0.0, 1e-30, 65504.0])
@pytest.mark.parametrize("storage", ["int8", "float8_e4m3fn"])
def test_extreme_tensors_stay_finite(storage: Any, value: float) -> None:
    small, scale = quantize(torch.full((1, 3, 2), value), storage, KEY_AXIS)
    again = dequantize(small, scale, KEY_AXIS, torch.float16 if value > 1 else torch.float32)
    assert torch.isfinite(again).all()
    assert torch.allclose(again.float(), torch.full((1, 3, 2), value), rtol=1e-3, atol=0)


@pytest.mark.parametrize("storage", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_round_trip(tmp_path: Path, storage: str, dtype: torch.dtype) -> None:
    exact = make(dtype=dtype)
    saved = exact.quantized(storage)
    loaded = Cartridge.load(saved.save(tmp_path / "c"))
    assert loaded.digest == saved.digest != exact.digest
    assert loaded.manifest == saved.manifest
    assert loaded.manifest.origin is not None and loaded.manifest.origin.digest == exact.digest
    assert loaded.manifest.corpus_digest == exact.manifest.corpus_digest
    for ours, theirs, original in zip(
        saved.keys + saved.values, loaded.keys + loaded.values, exact.keys + exact.values, strict=True
    ):
        assert ours is not None and theirs is not None and original is not None
        assert theirs.dtype == dtype
        assert torch.equal(ours, theirs)
        assert not torch.equal(theirs, original)
        assert torch.equal(theirs[:, :1], original[:, :1])
        assert (theirs - original).abs().max() <= (HALF_STEP[storage] + 2.0**-8) * original.abs().max()
    assert Cartridge.load(loaded.save(tmp_path / "again")).digest == saved.digest
    assert (tmp_path / "again" / TENSORS_FILE).read_bytes() == (tmp_path / "c" / TENSORS_FILE).read_bytes()


@pytest.mark.parametrize("exact_tokens", [0, 1, 3])
def test_tensors_on_disk_are_named_and_shaped_as_promised(tmp_path: Path, exact_tokens: int) -> None:
    cartridge = make().quantized("int8", exact_tokens)
    tensors = load_file(cartridge.save(tmp_path / "c") / TENSORS_FILE)
    rest = 9 - exact_tokens
    wanted = {}
    for i in range(2):
        for side, others in (("key", 4), ("value", rest)):
            name = f"layers.{i}.{side}"
            wanted[name] = ((2, rest, 4), torch.int8)
            wanted[f"{name}_scale"] = ((2, others), torch.float32)
            if exact_tokens:
                wanted[f"{name}_exact"] = ((2, exact_tokens, 4), torch.bfloat16)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == wanted
    assert cartridge.stored_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert cartridge.kv_bytes == make().kv_bytes == make().stored_bytes
    for side in ("key", "value"):
        assert tensors[f"layers.0.{side}"].abs().max() == 127


def test_the_frozen_tokens_are_the_exact_ones() -> None:
    quantization = make(num_frozen_tokens=3).quantized("fp8").manifest.quantization
    assert quantization is not None
    assert (quantization.storage_dtype, quantization.num_exact_tokens) == ("float8_e4m3fn", 3)


def test_the_manifest_of_an_exact_cartridge_is_as_it_was(tmp_path: Path) -> None:
    # Written before there was quantisation; its digest names Cartridges in catalogs.
    written = (
        '{"base_model":{"config_digest":"c","id":"tiny","revision":"abc","tokenizer_digest":"d"},"corpus_digest":null,'
        '"dataset_digest":null,"dtype":"bfloat16","format_version":1,"key_positions":[0,1],"layers":[{"has_kv":true,'
        '"head_dim":4,"num_kv_heads":2,"rope":{},"window":null}],"next_position":2,"num_frozen_tokens":1,'
        '"num_tokens":2,"seed":null,"software_version":"0.1.0","template_digest":"t","tenant":"default",'
        '"tensors_sha256":"s","training_config_digest":null}'
    )
    manifest = CartridgeManifest.model_validate_json(written)
    assert canonical_json(manifest.model_dump(mode="json")) == written
    assert manifest.digest == "c135b2c9ee8116ae9727e91c3811a93f5f94de5318038ec2ff0c8d99594efc4d"
    assert not {"quantization", "origin"} & json.loads((make().save(tmp_path / "c") / MANIFEST_FILE).read_text()).keys()


@pytest.mark.parametrize("where", [0, 20, 0.5, -1])
def test_one_changed_byte_is_refused(tmp_path: Path, where: float) -> None:
    folder = make().quantized("int8").save(tmp_path / "c")
    data = bytearray((folder / TENSORS_FILE).read_bytes())
    data[int(where * len(data)) if isinstance(where, float) else where] ^= 1
    (folder / TENSORS_FILE).write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged"):
        Cartridge.load(folder)


def tamper(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors and make the manifest vouch for them."""
    tensors = load_file(folder / TENSORS_FILE)
    change(tensors)
    save_file(tensors, folder / TENSORS_FILE)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["tensors_sha256"] = sha256_file(folder / TENSORS_FILE)
    (folder / MANIFEST_FILE).write_text(canonical_json(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.0.key_scale"), r"layers\.0\.key_scale is missing"),
        (lambda t: t.pop("layers.1.value_exact"), r"layers\.1\.value_exact is missing"),
        (lambda t: t.update({"layers.0.key": t["layers.0.key"].float()}), r"layers\.0\.key is float32"),
        (lambda t: t.update({"layers.0.key_scale": torch.ones(2, 8)}), r"layers\.0\.key_scale has shape \(2, 8\)"),
        (lambda t: t.update({"layers.0.value_scale": torch.ones(2, 8).half()}), r"value_scale is float16"),
        (lambda t: t.update({"layers.0.key_zero": torch.ones(1)}), r"does not know: \['layers\.0\.key_zero'\]"),
        (lambda t: t["layers.1.key_scale"].fill_(float("nan")), r"layers\.1\.key .* not finite"),
        (lambda t: t["layers.1.value_scale"].fill_(3e38), r"layers\.1\.value .* not finite"),
    ],
)
def test_other_tensors_than_the_manifest_says_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    folder = make().quantized("int8").save(tmp_path / "c")
    tamper(folder, change)
    with pytest.raises(ArtifactError, match=message):
        Cartridge.load(folder)


def test_nan_of_the_eight_bits_is_refused(tmp_path: Path) -> None:
    folder = make().quantized("fp8").save(tmp_path / "c")
    tamper(folder, lambda tensors: tensors["layers.0.key"].view(torch.uint8).fill_(0x7F))
    with pytest.raises(ArtifactError, match=r"layers\.0\.key .* not finite"):
        Cartridge.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["quantization"].update(storage_dtype="int4"), "storage_dtype"),
        (lambda m: m["quantization"].update(num_exact_tokens=9), "nothing to quantise"),
        (lambda m: m.pop("origin"), "has an exact one as its origin"),
        (lambda m: m.pop("quantization"), "has an exact one as its origin"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = make().quantized("int8").save(tmp_path / "c")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    change(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message):
        read_manifest(folder)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"no quantised storage 'int4'\. Choose one of int8, fp8"):
        make().quantized("int4")
    with pytest.raises(ArtifactError, match="Storing 9 of 9 tokens exactly"):
        make().quantized("int8", 9)
    exact, quantized = make(), make().quantized("int8")
    with pytest.raises(ArtifactError, match=f"stored as int8 and cannot be quantised again.*{exact.digest[:12]}"):
        quantized.quantized("fp8")
    exact.check_exact("trained further")


def test_layers_without_a_cache_of_their_own(tmp_path: Path) -> None:
    layers = (LAYERS[0], LAYERS[1].model_copy(update={"has_kv": False}))
    side = [torch.randn(2, 3, 4), None]
    cartridge = Cartridge.from_prefix(
        PrefixKV(side, side, 3), base_model=IDENTITY, layers=layers, dtype=torch.float32, template_digest="t"
    ).quantized("int8")
    loaded = Cartridge.load(cartridge.save(tmp_path / "c"))
    assert loaded.keys[1] is None and loaded.values[1] is None
    assert loaded.stored_bytes == sum(
        t.numel() * t.element_size() for t in load_file(tmp_path / "c" / TENSORS_FILE).values()
    )


@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_the_model_reads_a_quantised_cartridge_nearly_as_the_exact_one(each_base: Any, storage: str) -> None:
    base = each_base
    prefix = prefill(base, list(range(10, 40)))
    exact = Cartridge.from_prefix(
        prefix,
        base_model=base.identity,
        layers=base.layer_specs,
        dtype=torch.float32,
        template_digest=template_digest(base.tokenizer),
    )
    behind, other = (
        logits_behind(base, c.prefix(), [range(50, 80)])[0].log_softmax(-1) for c in (exact, exact.quantized(storage))
    )
    kl = float((behind.exp() * (behind - other)).sum(-1).mean())
    nothing = logits_behind(base, None, [range(50, 80)])[0].log_softmax(-1)
    far = float((behind.exp() * (behind - nothing)).sum(-1).mean())
    assert 0 < kl < far * {"int8": 0.001, "fp8": 0.01}[storage]
