"""Base models: what loads, under which identity, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    DiffLlamaConfig,
    Gemma2Config,
    Gemma3nConfig,
    Gemma3nTextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GptOssConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3NextConfig,
    T5Config,
)

from cartridge_core.architectures import check_architecture, layer_specs
from cartridge_core.errors import CartridgeError, UnsupportedModelError
from cartridge_core.identity import tokenizer_digest
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import REFERENCE_PATH, BaseModel, from_parts, identify, load_base_model

KINDS = ["sliding_attention", "full_attention"] * 3
Tiny = Callable[[str], BaseModel]


@pytest.fixture(scope="module")
def folder(tiny_base: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 on disk in bf16."""
    base, path = tiny_base("qwen3"), tmp_path_factory.mktemp("models") / "tiny-qwen3"
    from copy import deepcopy

    deepcopy(base.model).to(torch.bfloat16).save_pretrained(path)
    base.tokenizer.save_pretrained(path)
    return path


def test_a_local_folder_loads(folder: Path) -> None:
    base = load_base_model(folder)
    assert base.identity.id == "tiny-qwen3" and len(base.identity.revision) == 16
    assert base.device.type in ("cpu", "cuda")
    assert base.kv_dtype == torch.bfloat16
    assert base.dtype == (torch.float32 if base.device.type == "cpu" else torch.bfloat16)
    assert base.max_positions == 1024 and base.vocab_size == 512
    assert base.eos_ids == {base.tokenizer.eos_token_id}
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert load_base_model(folder, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_identity_needs_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = load_base_model(folder).identity

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("weights were loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    assert identify(folder) == identity == identify(str(folder))


def test_identity_follows_content(folder: Path, tmp_path: Path) -> None:
    first = identify(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "tiny-qwen3"))
    assert identify(copy) == first

    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert identify(copy).revision != first.revision

    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9.9"}))
    assert identify(copy).config_digest == first.config_digest
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert identify(copy).config_digest != first.config_digest


def test_the_tokenizers_digest_ignores_how_it_was_used(tiny_base: Tiny) -> None:
    tokenizer = tiny_base("qwen2").tokenizer
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer_digest(tiny_base("gemma3").tokenizer) != before


def test_from_parts_names_weights_by_content(tiny_base: Tiny, tmp_path: Path) -> None:
    base = tiny_base("llama")
    again = from_parts(base.model, base.tokenizer, "tiny-llama")
    assert again.identity == base.identity
    base.model.save_pretrained(tmp_path)
    assert from_parts(base.model, base.tokenizer, "tiny-llama").identity == base.identity
    assert from_parts(base.model, base.tokenizer, "tiny-llama", revision="r1").identity.revision == "r1"


@pytest.mark.parametrize(
    ("kind", "windows", "thetas"),
    [
        ("llama", [None, None], [1e4, 1e4]),
        ("qwen2", [None, None], [1e4, 1e4]),
        ("qwen3", [None, None], [1e4, 1e4]),
        ("gemma3", [8, None], [1e4, 1e6]),
        ("mistral", [8, 8], [1e4, 1e4]),
    ],
)
def test_layer_specs(tiny_base: Tiny, kind: str, windows: list[int | None], thetas: list[float]) -> None:
    base = tiny_base(kind)
    assert [spec.window for spec in base.layer_specs] == windows
    assert [spec.rope["rope_theta"] for spec in base.layer_specs] == thetas
    # The specification is what the cache really holds.
    for spec, key in zip(base.layer_specs, prefill(base, [10, 11, 12]).keys, strict=True):
        assert key is not None and tuple(key.shape) == (spec.num_kv_heads, 3, spec.head_dim)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(), "'mamba' keeps a recurrent state"),
        (JambaConfig(), "'jamba' keeps a recurrent state"),
        (DeepseekV3Config(), "'deepseek_v3' uses multi-head latent attention"),
        (BertConfig(), "'bert' is not a decoder that writes text"),
        (T5Config(), "'t5' is an encoder-decoder"),
        (GPT2Config(), "'gpt2' does not encode positions by RoPE"),
        (GptOssConfig(), "'gpt_oss' has learned attention sinks"),
        (DiffLlamaConfig(), "'diffllama' subtracts one attention from another"),
        (Gemma4TextConfig(), "'gemma4_text' has key heads of several widths"),
        (Gemma3nConfig(), "'gemma3n' shares one cache"),
        (DeepseekV2Config(), "'deepseek_v2' uses multi-head latent attention"),
        (Mamba2Config(), "'mamba2' keeps a recurrent state"),
        (Llama4TextConfig(), "'llama4_text' has layers of kind chunked_attention"),
        (Qwen3NextConfig(), "'qwen3_next' has layers of kind linear_attention"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_models_without_a_plain_cache_are_refused_by_name(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{reason}.*Use a decoder of the Llama, Qwen, Gemma or Mistral"):
        check_architecture(config)


@pytest.mark.parametrize("kind", ["granite_swa", "hrm_text", "jetmoe", "mimo_v2_flash", "moshi", "doge", "blt"])
def test_decoders_with_another_attention_are_refused_by_name(kind: str) -> None:
    # Not every release of transformers has all of these; the name alone decides.
    with pytest.raises(UnsupportedModelError, match=f"Model type '{kind}' "):
        check_architecture(SimpleNamespace(model_type=kind))


@pytest.mark.parametrize("config", [Gemma2Config(), Gemma3nTextConfig(), Phi3Config()], ids=lambda c: c.model_type)
def test_models_with_a_plain_cache_pass(config: PreTrainedConfig) -> None:
    check_architecture(config)
    assert len(layer_specs(config)) == config.num_hidden_layers


def test_layers_that_read_anothers_cache_have_none() -> None:
    specs = layer_specs(Gemma3nTextConfig(num_hidden_layers=6, num_kv_shared_layers=2, layer_types=KINDS))
    assert [spec.has_kv for spec in specs] == [True] * 4 + [False] * 2
    assert [spec.window is None for spec in specs] == [kind == "full_attention" for kind in KINDS]


def test_grouped_heads_and_derived_widths() -> None:
    config = LlamaConfig(num_hidden_layers=3, hidden_size=128, num_attention_heads=8, num_key_value_heads=2)
    check_architecture(config)
    assert [(spec.num_kv_heads, spec.head_dim) for spec in layer_specs(config)] == [(2, 16)] * 3


def test_a_refused_model_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    MambaConfig().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not weights")
    for call in (load_base_model, identify):
        with pytest.raises(UnsupportedModelError, match="'mamba'"):
            call(tmp_path / "m")


def test_a_model_in_the_hubs_cache_needs_no_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    commit, cache = "a" * 40, tmp_path / "hub"
    repository = cache / "models--nobody--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    base = load_base_model("nobody/tiny")
    assert (base.identity.id, base.identity.revision) == ("nobody/tiny", commit)
    assert identify("nobody/tiny", revision=commit) == base.identity
    # The same weights under another name are another base model, with the same content.
    assert identify(folder).config_digest == base.identity.config_digest
    assert identify(folder).tokenizer_digest == base.identity.tokenizer_digest

    # A download that stopped half-way is not taken for the model.
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    assert identify("nobody/tiny") == base.identity
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CartridgeError, match="Cannot get model 'nobody/tiny'"):
        load_base_model("nobody/tiny")


@pytest.mark.parametrize("name", ["nobody/no-such-model", "/no/such/folder", "a b"])
def test_a_model_that_is_nowhere(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CartridgeError) as caught:
        load_base_model(name)
    message = str(caught.value)
    assert f"Cannot get model {name!r}" in message and "path of a folder" in message
    assert "\n" not in message


def test_folders_that_are_no_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CartridgeError, match="holds no weight files"):
        load_base_model(tmp_path)
    copy = Path(shutil.copytree(folder, tmp_path / "other"))
    with pytest.raises(CartridgeError, match="is a local folder, which has no revision 'v1'"):
        identify(copy, revision="v1")
    (copy / "config.json").write_text("{")
    with pytest.raises(CartridgeError, match=r"Cannot read a model from .*other"):
        identify(copy)
    # Pickled weights are not even looked at.
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CartridgeError, match=r"holds no weight files.*safetensors"):
        identify(copy)


def test_changing_frequencies_cannot_be_moved(tiny_base: Tiny) -> None:
    from dataclasses import replace

    base = tiny_base("llama")
    specs = tuple(spec.model_copy(update={"rope": {"rope_type": "dynamic"}}) for spec in base.layer_specs)
    with pytest.raises(UnsupportedModelError, match="'dynamic' RoPE"):
        replace(base, layer_specs=specs).inv_freq(0)


@pytest.mark.skipif(not (REFERENCE_PATH / "config.json").exists(), reason="the reference model is not trained yet")
def test_the_reference_model_has_its_name() -> None:
    identity = identify("reference")
    assert identity.id == "reference"
    assert identity.revision == identify(REFERENCE_PATH).revision
