"""Checkpoints as the reference implementation saves them, in both namings; and files that only look like them."""

import os
import pickle  # to write what must be refused
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cartridge_core.errors import ArtifactError, BaseModelMismatchError
from cartridge_core.exchange import read_checkpoint
from cartridge_core.inference.prefix import prefill
from cartridge_core.inference.score import logits_behind
from cartridge_core.models import BaseModel, ModelLayout

HEADS, TOKENS, WIDTH, LAYERS = 2, 7, 16, 2


def split(tensors: list[torch.Tensor], frozen: int) -> tuple[nn.ParameterList, nn.ParameterList]:
    """What `TrainableCache` keeps: the first tokens without gradients, and the rest."""
    first = [nn.Parameter(t[:, :, :frozen].contiguous(), requires_grad=False) for t in tensors] if frozen else []
    return nn.ParameterList(first), nn.ParameterList([nn.Parameter(t[:, :, frozen:].contiguous()) for t in tensors])


def checkpoint(keys: list[Any], values: list[Any], frozen: int, word: str) -> dict[str, Any]:
    """The dictionary that `TrainableCache.save` writes."""
    (frozen_keys, trainable_keys), (frozen_values, trainable_values) = split(keys, frozen), split(values, frozen)
    return {
        "trainable_keys": trainable_keys,
        "trainable_values": trainable_values,
        f"{word}_keys": frozen_keys,
        f"{word}_values": frozen_values,
    }


def tensors(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, HEADS, TOKENS, WIDTH, generator=generator).to(dtype) for _ in range(LAYERS)]


@pytest.fixture
def plain() -> dict[str, Any]:
    return checkpoint(tensors(0), tensors(1), 1, "frozen")


def save(content: Any, folder: Path) -> Path:
    path = folder / "cache-step100.pt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("word", ["fixed", "frozen"])
@pytest.mark.parametrize("frozen", [0, 1, 3, TOKENS])
@pytest.mark.parametrize("as_lists", [False, True])
def test_both_namings(tmp_path: Path, word: str, frozen: int, as_lists: bool) -> None:
    keys, values = tensors(0), tensors(1)
    content = checkpoint(keys, values, frozen, word)
    if as_lists:
        content = {name: [p.data for p in parameters] for name, parameters in content.items()}
    path = save(content, tmp_path)
    found = read_checkpoint(path)
    # The reference's own loader would say 2, the number of heads.
    assert found.num_frozen_tokens == frozen
    assert (found.prefix.num_tokens, found.prefix.next_position) == (TOKENS, TOKENS)
    assert found.origin.kind == "reference" and len(found.origin.digest) == 64
    for ours, theirs in zip([*found.prefix.keys, *found.prefix.values], keys + values, strict=True):
        assert ours is not None and not ours.requires_grad
        assert torch.equal(ours, theirs[0])


def test_no_frozen_tokens_may_be_none(tmp_path: Path) -> None:
    content = checkpoint(tensors(0), tensors(1), 0, "frozen") | {"frozen_keys": None, "frozen_values": None}
    assert read_checkpoint(save(content, tmp_path)).num_frozen_tokens == 0


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_model_reads_it_as_the_prefix_it_was(tiny_base: Any, tmp_path: Path, kind: str) -> None:
    base: BaseModel = tiny_base(kind)
    prefix = prefill(base, list(range(10, 30)))
    keys, values = ([t[None] for t in side if t is not None] for side in (prefix.keys, prefix.values))
    found = read_checkpoint(save(checkpoint(keys, values, 1, "fixed"), tmp_path))
    layout = ModelLayout(base.identity, base.layer_specs, base.max_positions, torch.float32)
    cartridge = found.cartridge(layout, "t" * 64, corpus_digest="e" * 64)
    assert (cartridge.manifest.num_frozen_tokens, cartridge.publishable()) == (1, True)
    ours, theirs = (logits_behind(base, p, [range(50, 70)])[0] for p in (cartridge.prefix(), prefix))
    assert torch.equal(ours, theirs)


def test_another_base_model_is_refused(tiny_base: Any, tmp_path: Path, plain: dict[str, Any]) -> None:
    base: BaseModel = tiny_base("qwen2")
    layout = ModelLayout(base.identity, base.layer_specs, base.max_positions, torch.float32)
    with pytest.raises(BaseModelMismatchError, match=r"2 key/value heads of 16; tiny-qwen2 has .* heads of 12\."):
        read_checkpoint(save(plain, tmp_path)).cartridge(layout, "t")


class Evil:
    """A pickle that would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["whole", "entry", "state"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, plain: dict[str, Any], place: str) -> None:
    marker = tmp_path / "ran"
    evil: Any = Evil(marker)
    if place == "state":
        plain["frozen_keys"].__dict__["_forward_hooks"] = evil
    content = evil if place == "whole" else plain | ({"frozen_values": evil} if place == "entry" else {})
    path = save(content, tmp_path)
    with pytest.raises(ArtifactError, match=r"asks for \w+\.system, which no .* Do not trust") as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()
    with path.open("rb"):
        # The file is a real one: whoever trusts it runs the command.
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(ArtifactError, match="was not loaded"):
        read_checkpoint(tmp_path / "x.pt")
    assert not marker.exists()


def test_another_module_is_not_built(tmp_path: Path, plain: dict[str, Any]) -> None:
    path = save(plain | {"frozen_keys": nn.Linear(2, 2)}, tmp_path)
    with pytest.raises(ArtifactError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(path)
    # What was allowed while reading is not allowed afterwards.
    read_checkpoint(save(plain, tmp_path))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("content", [b"", b"no checkpoint" * 50, b"PK\x03\x04" + bytes(200), b"\x80\x02}q\x00."])
def test_damage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.pt"):
        read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=r"gone\.pt is not a file"):
        read_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize("cut", [0.02, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, plain: dict[str, Any], cut: float) -> None:
    path = save(plain, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(ArtifactError, match="was not loaded"):
        read_checkpoint(path)


def with_(name: str, value: Any) -> Any:
    return lambda content: content.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("frozen_values"), r"holds \['frozen_keys', 'trainable_keys', 'trainable_values'\]"),
        (with_("segment_keys", None), "segment_keys"),
        (with_("fixed_keys", None), "fixed_keys"),
        (with_("trainable_keys", nn.ParameterList([])), "has 2 layers of frozen_keys for 0"),
        (with_("trainable_keys", {"0": torch.ones(1)}), "trainable_keys in .* is no list of"),
        (with_("trainable_keys", [torch.ones(2, 3)] * LAYERS), "trainable_keys in .* is no list of"),
        (
            with_("trainable_keys", [torch.ones(1, 2, 6, 16, dtype=torch.int64)] * LAYERS),
            "trainable_keys in .* no list",
        ),
        (
            with_("trainable_keys", [torch.ones(1, 1, 1, 1).expand(1, 2, 6, 16)] * LAYERS),
            "trainable_keys in .* no list",
        ),
        (with_("trainable_keys", [torch.ones(1, 2, 6, 16).to_sparse()] * LAYERS), "no list of"),
        (with_("trainable_keys", [torch.ones(1, 2, 6, 16, device="meta")] * LAYERS), "no list of"),
        (with_("trainable_keys", [torch.ones(1, 2, 6, 16)]), "has 2 layers of frozen_keys for 1"),
        (with_("trainable_keys", [torch.ones(1, 4, 6, 16)] * LAYERS), "have different heads"),
        (with_("trainable_keys", [torch.ones(1, 2, 5, 16)] * LAYERS), "Keys and values in .* different shapes"),
        (with_("frozen_keys", [torch.ones(1, 2, 2, 16)] * LAYERS), "Keys and values in .* different shapes"),
        (with_("frozen_keys", [torch.ones(1, 2, n, 16) for n in (1, 2)]), "different numbers of frozen tokens"),
        (lambda c: c.update({n: [torch.ones(1, 2, k, 16) for k in (5, 6)] for n in list(c)[:2]}), "different numbers"),
        (lambda c: c.update({n: [] for n in c}), "hold different numbers of tokens, or none"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, plain: dict[str, Any], change: Any, message: str
) -> None:
    change(plain)
    with pytest.raises(ArtifactError, match=message):
        read_checkpoint(save(plain, tmp_path))
