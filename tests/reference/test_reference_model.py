import json

import pytest
import torch

from cartridge_core.models import REFERENCE_PATH, load_base_model
from cartridge_core.reference.architecture import Shape, as_llama, build_model
from cartridge_core.reference.evaluate import evaluate_reference
from cartridge_core.reference.train import ReferenceTrainingConfig, config_record, learning_rate


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
    model = build_model(shape, 1, 2, 0, seed=3).eval()
    ids = torch.randint(0, 192, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, as_llama(model, torch.float32)(ids).logits, atol=1e-5)


def test_the_seeded_circuit_follows_a_repeated_context_before_any_training():
    """Layer 1 of a fresh model attends to what followed the same words earlier; an unseeded one does not."""
    shape = Shape(vocab_size=512)
    model = build_model(shape, 1, 2, 0, seed=0).eval()
    model.set_attn_implementation("eager")
    words = torch.randperm(500, generator=torch.Generator().manual_seed(5))[:120] + 8
    context = words[:100]
    start = 40
    ids = torch.cat((context, words[100:110], context[start : start + 5]))[None]
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions[1][0, :, -1]
    assert int(weights.mean(0).argmax()) == start + 5


def test_phases_warm_up_and_decay_as_stated():
    for phase in ReferenceTrainingConfig().phases:
        assert learning_rate(0, phase) == pytest.approx(phase.peak / phase.warmup_steps)
        assert max(learning_rate(step, phase) for step in range(phase.steps)) <= phase.peak
        if phase.decay_share:
            assert learning_rate(phase.steps - 1, phase) < phase.peak / 10
