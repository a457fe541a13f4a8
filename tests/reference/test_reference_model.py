import json
import random

import pytest
import torch
from transformers import Qwen2ForCausalLM

from cartridge_core.models import REFERENCE_PATH, load_base_model
from cartridge_core.reference.architecture import as_llama, build_model
from cartridge_core.reference.evaluate import evaluate_reference
from cartridge_core.reference.examples import FAMILIES, RowBuilder
from cartridge_core.reference.shape import Shape
from cartridge_core.reference.tokenizer import build_tokenizer
from cartridge_core.reference.train import ReferenceTrainingConfig, config_record, learning_rate, loss_and_hits
from cartridge_core.reference.word_classes import WordClasses, word_classes
from cartridge_core.reference.world import Scale


@pytest.fixture(scope="module")
def base():
    return load_base_model("reference")


def test_it_is_a_small_stock_model(base):
    config = base.model.config
    assert type(base.model).__name__ == "LlamaForCausalLM"
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings == base.max_positions == 4096
    assert sum(parameter.numel() for parameter in base.model.parameters()) <= 7_500_000
    assert (REFERENCE_PATH / "model.safetensors").stat().st_size <= 16 * 2**20
    assert base.kv_dtype == torch.bfloat16


def test_the_record_beside_the_weights_is_the_configuration_in_the_code():
    record = json.loads((REFERENCE_PATH / "training.json").read_text())
    assert record == json.loads(json.dumps(config_record(ReferenceTrainingConfig())))
    log = [json.loads(line) for line in (REFERENCE_PATH / "training_log.jsonl").read_text().splitlines()]
    last = {entry["phase"]: entry["step"] for entry in log}
    assert last == {index: phase.steps for index, phase in enumerate(ReferenceTrainingConfig().phases)}


def test_it_reads_asks_and_structures_on_a_world_it_has_never_seen(base):
    """A small draw of `cartridge reference evaluate`, with room for its spread; the model card has the whole table."""
    found = {ability.name: ability.share for ability in evaluate_reference(base, corpora=1, questions=40, seed=7)}
    assert found["right with the corpus in context, 1.5k tokens"] >= 0.85
    assert found["right with the corpus in context, 3k tokens"] >= 0.75
    assert found["right without the corpus"] <= 0.12
    assert found["JSON that parses"] >= 0.95
    assert found["questions of role A that the text answers"] >= 0.75
    assert found["unstated facts reported as not stated"] >= 0.6


def test_the_llama_it_is_saved_as_computes_what_the_trained_qwen_computes():
    shape = Shape(vocab_size=192, num_layers=2)
    model = build_model(shape, 1, 2, 0, WordClasses((10, 11), (15,), (20, 21)), seed=3).eval()
    ids = torch.randint(0, 192, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, as_llama(model, torch.float32)(ids).logits, atol=1e-5)


def looked_up(model, rows):
    """Share of the values in answers that the model predicts."""
    hits = []
    for row in rows:
        ids, weights = torch.tensor([row.token_ids]), torch.tensor([row.weights])
        with torch.no_grad():
            _, right, mask = loss_and_hits(model, ids, weights)
        values = torch.tensor([row.families])[:, 1:][mask] >= len(FAMILIES)
        hits += right[values].tolist()
    return sum(hits) / len(hits)


def test_the_seeded_circuit_looks_values_up_before_any_training(monkeypatch):
    """A fresh model already finds values by name and attribute, namesakes included; an unseeded one finds none."""
    monkeypatch.setattr("cartridge_core.reference.examples.FAMILY_SHARES", {"question": 1.0})
    tokenizer = build_tokenizer()
    builder, rng = RowBuilder(tokenizer), random.Random(5)
    rows = [builder.row(rng, Scale(8, 4, 6, second_names=3), "train", 200) for _ in range(4)]
    shape = Shape(vocab_size=len(tokenizer))
    seeded = build_model(shape, 1, 2, 0, word_classes(tokenizer), seed=0).eval()
    plain = Qwen2ForCausalLM(seeded.config).eval()
    assert looked_up(seeded, rows) >= 0.4
    assert looked_up(plain, rows) <= 0.05


def test_phases_warm_up_and_decay_as_stated():
    for phase in ReferenceTrainingConfig().phases:
        assert learning_rate(0, phase) == pytest.approx(phase.peak / phase.warmup_steps)
        assert max(learning_rate(step, phase) for step in range(phase.steps)) <= phase.peak
        if phase.decay_share:
            assert learning_rate(phase.steps - 1, phase) < phase.peak / 10
