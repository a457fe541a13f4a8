"""PEFT's own loader on what is exported here, and its own adapters imported."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import CartridgeConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from cartridge_core.cartridge import Cartridge, PrefixKV
from cartridge_core.errors import ArtifactError, BaseModelMismatchError
from cartridge_core.exchange import ForeignPrefix, read_adapter, write_adapter
from cartridge_core.inference.prefix import prefill
from cartridge_core.inference.score import logits_behind
from cartridge_core.models import BaseModel, ModelLayout

TOKENS = list(range(50, 80))
FILES = ["adapter_config.json", "adapter_model.safetensors", "cartridge_manifest.json"]


def layout(base: BaseModel, dtype: torch.dtype = torch.float32) -> ModelLayout:
    return ModelLayout(base.identity, base.layer_specs, base.max_positions, dtype)


def make(base: BaseModel, dtype: torch.dtype = torch.float32, **fields: Any) -> Cartridge:
    return Cartridge.from_prefix(
        prefill(base, list(range(10, 40))),
        base_model=base.identity,
        layers=base.layer_specs,
        dtype=dtype,
        template_digest="t" * 64,
        **fields,
    )


def exported(cartridge: Cartridge, folder: Path) -> Path:
    folder.mkdir()
    write_adapter(cartridge, folder)
    return folder


def stock(base: BaseModel) -> Any:
    """The model as PEFT's users have it: transformers' own attention."""
    model = copy.deepcopy(base.model)
    model.set_attn_implementation("sdpa")
    return model


def peft_logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


def edited(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_pefts_loader_gives_the_same_logits(each_base: BaseModel, tmp_path: Path) -> None:
    # Gemma 3 and Mistral look back 8 tokens here, and the Cartridge has 30.
    cartridge = make(each_base)
    folder = exported(cartridge, tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    theirs = peft_logits(PeftModel.from_pretrained(stock(each_base), folder).eval())
    ours = logits_behind(each_base, cartridge.prefix(), [TOKENS])[0]
    assert (theirs - ours).abs().max() < 1e-5
    assert (ours - logits_behind(each_base, None, [TOKENS])[0]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_peft_saves_what_is_written_here(tiny_base: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    base = tiny_base("llama")
    folder = exported(make(base, dtype, num_frozen_tokens=3), tmp_path / "adapter")
    PeftModel.from_pretrained(stock(base), folder).save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    for name in FILES[:2]:
        assert (folder / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_export_comes_back_as_the_very_same_cartridge(each_base: BaseModel, tmp_path: Path, dtype: Any) -> None:
    cartridge = make(each_base, dtype, corpus_digest="e" * 64, seed=3, num_frozen_tokens=2)
    again = read_adapter(exported(cartridge, tmp_path / "adapter"))
    assert isinstance(again, Cartridge)
    assert again.digest == cartridge.digest
    assert again.manifest == cartridge.manifest
    again.save(tmp_path / "again")
    assert Cartridge.load(tmp_path / "again").digest == cartridge.digest


@pytest.mark.parametrize("frozen", [0, 1, 4])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_an_adapter_that_peft_made_is_imported(
    tiny_base: Callable[[str], BaseModel], tmp_path: Path, kind: str, frozen: int
) -> None:
    base = tiny_base(kind)
    config = CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=12, num_frozen_tokens=frozen)
    model = get_peft_model(stock(base), config).eval()
    model.save_pretrained(tmp_path / "theirs")
    edited(tmp_path / "theirs", base_model_name_or_path=f"/home/someone/models/{base.identity.id}")
    found = read_adapter(tmp_path / "theirs")
    assert isinstance(found, ForeignPrefix)
    cartridge = found.cartridge(layout(base), "t" * 64, corpus_digest="e" * 64, tenant="acme")
    manifest = cartridge.manifest
    assert (manifest.num_tokens, manifest.num_frozen_tokens, manifest.next_position) == (12, frozen, 12)
    assert (manifest.corpus_digest, manifest.tenant, manifest.base_model) == ("e" * 64, "acme", base.identity)
    assert manifest.origin is not None and manifest.origin.kind == "peft"
    ours = logits_behind(base, cartridge.prefix(), [TOKENS])[0]
    assert (peft_logits(model) - ours).abs().max() < 1e-5
    again = exported(cartridge, tmp_path / "again") / FILES[1]
    assert again.read_bytes() == (tmp_path / "theirs" / FILES[1]).read_bytes()


def test_another_base_model_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    base, other = tiny_base("llama"), tiny_base("qwen2")
    folder = exported(make(base), tmp_path / "adapter")
    (folder / FILES[2]).unlink()
    found = read_adapter(folder)
    assert isinstance(found, ForeignPrefix)
    with pytest.raises(BaseModelMismatchError, match="belongs to base model 'tiny-llama', not to 'tiny-qwen2'"):
        found.cartridge(layout(other), "t")
    edited(folder, base_model_name_or_path="org/tiny-qwen2")
    found = read_adapter(folder)
    assert isinstance(found, ForeignPrefix)
    with pytest.raises(BaseModelMismatchError, match=r"heads of 16; tiny-qwen2 has 2 layers with 2 .* of 12"):
        found.cartridge(layout(other), "t")
    edited(folder, base_model_name_or_path=None, revision="a" * 40)
    found = read_adapter(folder)
    assert isinstance(found, ForeignPrefix) and found.base_name is None
    identity = base.identity.model_copy(update={"revision": "b" * 40})
    with pytest.raises(BaseModelMismatchError, match="at revision aaaa"):
        found.cartridge(ModelLayout(identity, base.layer_specs, 1024, torch.float32), "t")
    with pytest.raises(BaseModelMismatchError, match="30 tokens leave no room in the 30 positions"):
        found.cartridge(ModelLayout(base.identity, base.layer_specs, 30, torch.float32), "t")


def test_what_an_adapter_cannot_hold_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("llama")
    with pytest.raises(ArtifactError, match="stored as int8 and cannot be written as a PEFT adapter"):
        write_adapter(make(base).quantized("int8"), tmp_path)
    layers = (base.layer_specs[0], base.layer_specs[1].model_copy(update={"head_dim": 8}))
    sides = [[torch.ones(2, 3, 16), torch.ones(2, 3, 8)]] * 2
    for prefix, specs, message in (
        (PrefixKV(*sides, 3), layers, "layers of different shapes"),
        (PrefixKV(sides[0][:1], sides[1][:1], 9), layers[:1], "expects the user's first at 9"),
    ):
        cartridge = Cartridge.from_prefix(
            prefix, base_model=base.identity, layers=specs, dtype=torch.float32, template_digest="t"
        )
        with pytest.raises(ArtifactError, match=message):
            write_adapter(cartridge, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_was_trained_on_is_not_taken_for_the_exported(tiny_base: Any, tmp_path: Path) -> None:
    folder = exported(make(tiny_base("llama")), tmp_path / "adapter")
    tensors = load_file(folder / FILES[1])
    tensors["prompt_embeddings"][3, 5] += 1
    save_file(tensors, folder / FILES[1])
    with pytest.raises(ArtifactError, match=r"not the one that was exported there.*Remove cartridge_manifest"):
        read_adapter(folder)
    (folder / FILES[2]).unlink()
    assert isinstance(read_adapter(folder), ForeignPrefix)


def _reshaped(folder: Path) -> None:
    save_file({"prompt_embeddings": torch.ones(3, 4)}, folder / FILES[1])


def _renamed(folder: Path) -> None:
    save_file({"base_model.lora_A": torch.ones(3, 4)}, folder / FILES[1])


def _pickled(folder: Path) -> None:
    (folder / FILES[1]).unlink()
    torch.save({}, folder / "adapter_model.bin")


def _linked(folder: Path) -> None:
    (folder / FILES[1]).rename(folder.parent / "elsewhere")
    (folder / FILES[1]).symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edited(f, peft_type="LORA"), "adapter of type 'LORA'"),
        (lambda f: edited(f, task_type="SEQ_2_SEQ_LM"), "no adapter of a decoder"),
        (lambda f: edited(f, num_layers=0), "has num_layers 0"),
        (lambda f: edited(f, token_dim="32"), "has token_dim '32'"),
        (lambda f: edited(f, num_attention_heads=3), "contradicts itself"),
        (lambda f: edited(f, num_frozen_tokens=31), "contradicts itself"),
        (lambda f: edited(f, num_virtual_tokens=31), r"its configuration says \(31, 128\)"),
        (lambda f: (f / FILES[0]).write_text("{"), "is not JSON"),
        (lambda f: (f / FILES[0]).write_text("[]"), "adapter of type None"),
        (lambda f: (f / FILES[1]).write_bytes(b"rot"), "not a readable safetensors file"),
        (lambda f: (f / FILES[2]).write_text("{}"), "is not a manifest"),
        (_reshaped, r"is torch.float32 \(3, 4\)"),
        (_renamed, "holds .*lora_A"),
        (_pickled, r"adapter_model\.bin is a pickle"),
        (_linked, "not a regular file"),
    ],
)
def test_what_is_no_such_adapter_is_refused(
    tiny_base: Any, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    folder = exported(make(tiny_base("llama")), tmp_path / "adapter")
    change(folder)
    with pytest.raises(ArtifactError, match=message):
        read_adapter(folder)


def test_a_lora_adapter_of_peft_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    get_peft_model(stock(tiny_base("llama")), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "lora")
    with pytest.raises(ArtifactError, match="adapter of type 'LORA'"):
        read_adapter(tmp_path / "lora")


def test_no_peft_is_needed() -> None:
    import subprocess
    import sys

    code = "import sys, cartridge_core.exchange; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
