"""The artifact: what is saved is what is loaded, and damage is never served."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cartridge_core.cartridge import MANIFEST_FILE, TENSORS_FILE, Cartridge, PrefixKV, read_manifest
from cartridge_core.digest import canonical_json, sha256_file
from cartridge_core.errors import ArtifactError, BaseModelMismatchError
from cartridge_core.inference.prefix import prefill
from cartridge_core.manifest import BaseModelIdentity, CartridgeManifest, LayerSpec

IDENTITY = BaseModelIdentity(id="tiny", revision="abc", config_digest="c" * 64, tokenizer_digest="d" * 64)
LAYERS = (LayerSpec(num_kv_heads=2, head_dim=4, rope={"rope_theta": 10000.0}), LayerSpec(num_kv_heads=2, head_dim=4))


def make(tokens: int = 5, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **fields: Any) -> Cartridge:
    generator = torch.Generator().manual_seed(seed)
    keys, values = ([torch.randn(2, tokens, 4, generator=generator) for _ in LAYERS] for _ in range(2))
    prefix = PrefixKV(keys, values, fields.pop("next_position", tokens))
    return Cartridge.from_prefix(
        prefix, base_model=IDENTITY, layers=LAYERS, dtype=dtype, template_digest="t" * 64, **fields
    )


def tamper(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors and make the manifest vouch for them, so that only a check of the tensors can see it."""
    tensors = load_file(folder / TENSORS_FILE)
    change(tensors)
    save_file(tensors, folder / TENSORS_FILE)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["tensors_sha256"] = sha256_file(folder / TENSORS_FILE)
    (folder / MANIFEST_FILE).write_text(canonical_json(manifest))


def test_round_trip(tmp_path: Path) -> None:
    saved = make(corpus_digest="e" * 64, seed=3, tenant="acme")
    loaded = Cartridge.load(saved.save(tmp_path / "c"))
    assert loaded.digest == saved.digest
    assert loaded.manifest == saved.manifest
    assert loaded.manifest.tenant == "acme"
    for ours, theirs in zip(saved.keys + saved.values, loaded.keys + loaded.values, strict=True):
        assert ours is not None and theirs is not None
        assert theirs.dtype == torch.bfloat16
        assert torch.equal(ours, theirs)
    assert {file.name for file in tmp_path.rglob("*")} == {"c", TENSORS_FILE, MANIFEST_FILE}


def test_digest_follows_content() -> None:
    assert make().digest == make().digest
    different = [make(seed=1), make(corpus_digest="e" * 64), make(dtype=torch.float32), make(num_frozen_tokens=2)]
    assert len({make().digest, *(cartridge.digest for cartridge in different)}) == 5


def test_tensors_on_disk_are_named_and_shaped_as_promised(tmp_path: Path) -> None:
    tensors = load_file(make().save(tmp_path / "c") / TENSORS_FILE)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        f"layers.{i}.{side}": (2, 5, 4) for i in range(2) for side in ("key", "value")
    }


def test_kv_bytes_are_the_stored_tensors_bytes() -> None:
    cartridge = make()
    stored = sum(t.numel() * t.element_size() for t in cartridge.keys + cartridge.values if t is not None)
    assert cartridge.kv_bytes == stored == cartridge.prefix().kv_bytes(torch.bfloat16)


def test_later_changes_of_the_callers_tensors_do_not_reach_it() -> None:
    keys, values = [torch.ones(2, 3, 4)] * 2, [torch.ones(2, 3, 4)] * 2
    cartridge = Cartridge.from_prefix(
        PrefixKV(keys, values, 3), base_model=IDENTITY, layers=LAYERS, dtype=torch.float32, template_digest="t"
    )
    keys[0].zero_()
    assert cartridge.keys[0] is not None and cartridge.keys[0].eq(1).all()


@pytest.mark.parametrize("where", ["first", "header", "middle", "last"])
def test_one_changed_byte_is_refused(tmp_path: Path, where: str) -> None:
    folder = make().save(tmp_path / "c")
    data = bytearray((folder / TENSORS_FILE).read_bytes())
    place = {"first": 0, "header": 20, "middle": len(data) // 2, "last": len(data) - 1}[where]
    data[place] ^= 1
    (folder / TENSORS_FILE).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"cartridge\.safetensors is damaged.*Copy the whole folder"):
        Cartridge.load(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int, verify: bool) -> None:
    folder = make().save(tmp_path / "c")
    data = (folder / TENSORS_FILE).read_bytes()
    (folder / TENSORS_FILE).write_bytes(data[:kept])
    with pytest.raises(ArtifactError, match=r"cartridge\.safetensors"):
        Cartridge.load(folder, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"layers.0.key": torch.zeros(2, 6, 4, dtype=torch.bfloat16)}), r"layers\.0\.key has shape"),
        (lambda t: t.update({"layers.1.value": t["layers.1.value"].float()}), r"layers\.1\.value is float32"),
        (lambda t: t.pop("layers.1.key"), r"layers\.1\.key is missing"),
        (lambda t: t.update({"layers.2.key": torch.zeros(1)}), r"does not know: \['layers\.2\.key'\]"),
    ],
)
def test_other_tensors_than_the_manifest_says_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str, verify: bool
) -> None:
    folder = make().save(tmp_path / "c")
    tamper(folder, change)
    with pytest.raises(ArtifactError, match=message):
        Cartridge.load(folder, verify=verify)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["layers.1.value"][1, 2, 3] = value

    folder = make().save(tmp_path / "c")
    tamper(folder, poison)
    with pytest.raises(ArtifactError, match=r"layers\.1\.value .* not finite"):
        Cartridge.load(folder)


def test_values_that_overflow_the_stored_type_are_refused() -> None:
    keys, values = ([torch.full((2, 3, 4), 1e5)] * 2 for _ in range(2))
    with pytest.raises(ArtifactError, match="not finite"):
        Cartridge.from_prefix(
            PrefixKV(keys, values, 3), base_model=IDENTITY, layers=LAYERS, dtype=torch.float16, template_digest="t"
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "format version None"),
        ('{"format_version": 99}', "format version 99; this software reads 1. Upgrade"),
        ('{"format_version": 1}', "is not a valid manifest"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    folder = make().save(tmp_path / "c")
    (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(ArtifactError, match=message):
        Cartridge.load(folder)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    folder = make().save(tmp_path / "c")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "surprise": 1}))
    with pytest.raises(ArtifactError, match="surprise"):
        read_manifest(folder)


@pytest.mark.parametrize("missing", [MANIFEST_FILE, TENSORS_FILE])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = make().save(tmp_path / "c")
    (folder / missing).unlink()
    with pytest.raises(ArtifactError, match=missing.replace(".", r"\.")):
        Cartridge.load(folder)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    folder = make().save(tmp_path / "c")
    torch.save({"layers.0.key": torch.zeros(1)}, folder / TENSORS_FILE)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["tensors_sha256"] = sha256_file(folder / TENSORS_FILE)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        Cartridge.load(folder)


def test_saving_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    folder = make().save(tmp_path / "c")
    before = (folder / TENSORS_FILE).stat().st_mtime_ns
    make().save(folder)
    assert (folder / TENSORS_FILE).stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match="already holds another Cartridge"):
        make(seed=1).save(folder)
    assert Cartridge.load(folder).digest == make().digest


def test_other_files_of_the_folder_are_kept(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "curve.jsonl").write_text("{}")
    make().save(tmp_path / "c")
    assert Cartridge.load(tmp_path / "c").digest == make().digest
    assert (tmp_path / "c" / "curve.jsonl").exists()


def test_an_interrupted_save_leaves_no_cartridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real = Path.replace

    def replace(source: Path, target: Path) -> Path:
        # The process dies when the manifest, the commit marker, would be moved.
        written.append(target.name)
        if target.name == MANIFEST_FILE:
            raise KeyboardInterrupt
        return real(source, target)

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "other").touch()
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        make().save(tmp_path / "c")
    assert written == [TENSORS_FILE, MANIFEST_FILE]
    with pytest.raises(ArtifactError, match="holds no Cartridge"):
        Cartridge.load(tmp_path / "c")
    monkeypatch.undo()
    assert Cartridge.load(make().save(tmp_path / "c")).digest == make().digest


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"id": "big"}, "belongs to tiny at revision abc, not to big at revision abc. Load tiny at revision abc"),
        ({"revision": "xyz"}, "belongs to tiny at revision abc, not to tiny at revision xyz. Load tiny at"),
        ({"config_digest": "0"}, "the configuration of the loaded model differs"),
        ({"tokenizer_digest": "0"}, "the tokenizer of the loaded model differs"),
    ],
)
def test_another_base_model_is_refused_by_name(other: dict[str, str], message: str) -> None:
    make().check_base_model(IDENTITY)
    with pytest.raises(BaseModelMismatchError, match=message):
        make().check_base_model(IDENTITY.model_copy(update=other))


def test_publishable_asks_where_the_user_starts() -> None:
    assert make().publishable()
    assert not make(next_position=9, key_positions=[0, 2, 4, 6, 8]).publishable()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key_positions": [0, 1]}, "key_positions has 2 entries for num_tokens=5"),
        ({"num_frozen_tokens": 6}, "num_frozen_tokens=6 exceeds"),
        ({"dtype": torch.int8}, "dtype"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        make(**fields)


def test_layers_without_a_cache_of_their_own(tmp_path: Path) -> None:
    layers = (LAYERS[0], LAYERS[1].model_copy(update={"has_kv": False}))
    side = [torch.ones(2, 3, 4), None]
    cartridge = Cartridge.from_prefix(
        PrefixKV(side, side, 3), base_model=IDENTITY, layers=layers, dtype=torch.float32, template_digest="t"
    )
    loaded = Cartridge.load(cartridge.save(tmp_path / "c"))
    assert loaded.keys[1] is None and loaded.values[1] is None
    assert loaded.kv_bytes == 2 * 2 * 3 * 4 * 4


def test_a_prefix_must_be_consistent() -> None:
    good, longer = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    with pytest.raises(ArtifactError, match="different numbers of tokens"):
        PrefixKV([good, longer], [good, longer], 3)
    with pytest.raises(ArtifactError, match="keys or values but not both"):
        PrefixKV([None], [good], 3)
    with pytest.raises(ArtifactError, match="Give both as"):
        PrefixKV([good], [longer], 3)
    with pytest.raises(ArtifactError, match="Cannot take 4 tokens from a prefix of 3"):
        PrefixKV([good], [good], 3).first(4)


def test_the_head_of_a_prefill_is_the_prefill_of_the_head(tiny_base: Any) -> None:
    base = tiny_base("gemma3")
    whole, head = prefill(base, range(10, 50)).first(20), prefill(base, range(10, 30))
    assert whole.next_position == head.next_position == 20
    for ours, theirs in zip(whole.keys, head.keys, strict=True):
        assert ours is not None and theirs is not None
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_manifest_is_read_without_torch() -> None:
    # The registry and the gateway run where no torch is.
    import subprocess
    import sys

    code = "import sys, cartridge_core.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert CartridgeManifest.model_validate_json(make().manifest.model_dump_json()) == make().manifest
