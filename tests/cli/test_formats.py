"""Quantised Cartridges and other software's files from the command line: out, in, graded, asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cartridge_core.cartridge import Cartridge
from tests.cli.test_commands import answer, refusal
from tests.talkative import Workplace


@pytest.fixture
def trained(workplace: Workplace, tmp_path: Path) -> dict[str, Any]:
    """A trained Cartridge of the corpus `wards`, not yet registered."""
    answer("corpus", "add", "wards", workplace.documents)
    answer("synthesize", "wards", "--config", workplace.study_file, "--questions", workplace.questions)
    training = tmp_path / "train.toml"
    training.write_text("num_tokens = 24\nwarmup_steps = 1\nbatch_size = 4\neval_every = 2\n", encoding="utf-8")
    cartridge: dict[str, Any] = answer("train", "wards", "--config", training, "--steps", "2")
    return cartridge


def test_a_quantised_cartridge_from_grading_to_an_answer(
    workplace: Workplace, trained: dict[str, Any], tmp_path: Path
) -> None:
    report = answer(
        "evaluate", "wards", "--questions", workplace.questions, "--quantized", "int8", "--quantized", "fp8"
    )
    assert report["cartridge"] == trained["digest"]
    assert {"self_study_accuracy", "int8_accuracy", "fp8_accuracy"} <= report["figures"].keys()
    kl = report["held_out_kl"]
    assert set(kl) == {"exact", "int8", "fp8"}
    assert len(set(kl.values())) == 3
    assert kl["int8"] == pytest.approx(kl["exact"], abs=0.05)

    answer("register", "wards")
    folder = answer("export", "wards", tmp_path / "int8", "-r", "1", "--quantize", "int8")["path"]
    cartridge = Cartridge.load(folder)
    entry = answer("import", "wards", folder)
    assert (entry["digest"], entry["version"]) == (cartridge.digest, 2)
    assert entry["manifest"]["origin"] == {"kind": "quantization", "digest": trained["digest"]}
    assert entry["score"] == report["figures"]["int8_accuracy"]
    assert answer("promote", "wards", "2", "--force", "--reason", "test")["moved"]
    reply = answer("ask", "wards", "Which ward has patient 3?", "--max-new-tokens", "8")
    assert reply["cartridge"] == cartridge.digest
    assert "quantised again" in refusal("export", "wards", tmp_path / "again", "--quantize", "fp8")
    assert "PEFT adapter" in refusal("export", "wards", tmp_path / "again", "--format", "peft")
    assert "no quantised storage" in refusal("export", "wards", tmp_path / "again", "-r", "1", "--quantize", "int4")
    assert "no quantised storage" in refusal("evaluate", "wards", "--quantized", "int4")
    assert not (tmp_path / "again").exists()


def test_a_peft_adapter_out_and_in(workplace: Workplace, trained: dict[str, Any], tmp_path: Path) -> None:
    answer("register", "wards")
    folder = Path(answer("export", "wards", tmp_path / "adapter", "-r", "1", "--format", "peft")["path"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "cartridge_manifest.json",
    ]
    # Our own export is the very same Cartridge.
    same = answer("import", "wards", folder, "--format", "peft", "--model", workplace.model)
    assert (same["digest"], same["version"]) == (trained["digest"], 1)
    # Anybody else's adapter names its base model alone; the rest is known here.
    (folder / "cartridge_manifest.json").unlink()
    entry = answer("import", "wards", folder, "--format", "peft")
    assert entry["version"] == 2
    manifest = entry["manifest"]
    assert manifest["base_model"] == same["base_model"]
    assert manifest["corpus_digest"] == same["corpus_digest"]
    assert manifest["template_digest"] == same["manifest"]["template_digest"]
    assert (manifest["origin"]["kind"], manifest["dataset_digest"]) == ("peft", None)
    stored, original = (load_file(Path(e["artifact_uri"]) / "cartridge.safetensors") for e in (entry, same))
    assert all(torch.equal(stored[name], original[name]) for name in original)

    assert "There is no corpus 'other'" in refusal("import", "other", folder, "--format", "peft")
    assert "is not an empty folder" in refusal("export", "wards", folder, "-r", "1", "--format", "peft")
    assert "a folder, not" in refusal("export", "wards", tmp_path / "x.tar", "-r", "1", "--format", "peft")
    both = ("--format", "peft", "--quantize", "int8")
    assert "cannot hold int8" in refusal("export", "wards", tmp_path / "x", "-r", "1", *both)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert "does not say which base model" in refusal("import", "wards", folder, "--format", "peft")
    assert "--format peft" not in refusal("import", "wards", folder)


def test_a_reference_checkpoint_is_imported_graded_and_promoted(
    workplace: Workplace, trained: dict[str, Any], tmp_path: Path
) -> None:
    cartridge = Cartridge.load(trained["directory"])
    sides = {"keys": cartridge.keys, "values": cartridge.values}
    content = {
        f"{word}_{side}": torch.nn.ParameterList(
            [torch.nn.Parameter(t[None, :, part].clone()) for t in tensors if t is not None]
        )
        for word, part in (("frozen", slice(0, 1)), ("trainable", slice(1, None)))
        for side, tensors in sides.items()
    }
    path = tmp_path / "cache-step2.pt"
    torch.save(content, path)
    assert "does not say which base model" in refusal("import", "wards", path, "--format", "reference")
    entry = answer("import", "wards", path, "--format", "reference", "--model", workplace.model)
    manifest = entry["manifest"]
    assert (entry["version"], entry["score"], manifest["num_tokens"], manifest["num_frozen_tokens"]) == (1, None, 24, 1)
    assert manifest["tensors_sha256"] == cartridge.manifest.tensors_sha256
    assert manifest["origin"]["kind"] == "reference"

    report = answer("evaluate", "wards", "--questions", workplace.questions, "--registered", "1")
    assert report["cartridge"] == entry["digest"]
    assert {"registered_accuracy", "icl_accuracy"} <= report["figures"].keys()
    shown = answer("show", "wards", "1")
    assert shown["score"] == report["figures"]["registered_accuracy"]
    assert shown["version"] == 1
    two = ("--registered", "1", "--cartridge", trained["digest"])
    assert "Two Cartridges are named" in refusal("evaluate", "wards", *two)
    assert "no Cartridge '7'" in refusal("evaluate", "wards", "--registered", "7")
    (workplace.documents / "more.md").write_text("The pharmacy is in house 9.", encoding="utf-8")
    answer("corpus", "add", "wards", workplace.documents)
    assert "stands in for version" in refusal("evaluate", "wards", "--registered", "1")


def test_files_that_are_nothing_of_the_kind(workplace: Workplace, tmp_path: Path) -> None:
    answer("corpus", "add", "wards", workplace.documents)
    (tmp_path / "x.pt").write_bytes(b"rot")
    options = ("--format", "reference", "--model", workplace.model)
    assert "was not loaded" in refusal("import", "wards", tmp_path / "x.pt", *options)
    assert "is not a regular file" in refusal("import", "wards", tmp_path, "--format", "peft")
    assert "Leave `--model`" in refusal("import", "wards", tmp_path, "--model", workplace.model)
