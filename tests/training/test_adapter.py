"""LoRA adapters: PEFT's files, the base model given back, and training on what a Cartridge is trained on."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import ArtifactError, DatasetError, TrainingError
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.prefix import empty_prefix
from cartridge_core.models import BaseModel
from cartridge_core.rendering import bare_prefix_token_ids
from cartridge_core.training import adapter_loop
from cartridge_core.training.adapter import Adapter
from cartridge_core.training.adapter_config import AdapterConfig
from cartridge_core.training.adapter_layers import adapted_layers, adapter_bytes, equal_memory_rank, injected
from cartridge_core.training.adapter_loop import ADAPTER, AdapterResult, train_adapter
from cartridge_core.training.base_weights import hold_in_float8
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.objective import distillation
from cartridge_core.training.packed_rows import pack_rows
from cartridge_core.training.step import BatchLoss

Study = Callable[..., ConversationDataset]
IDS = torch.arange(20, 52)[None]
SEVEN = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=IDS, use_cache=False).logits
    return out


def own_state(base: BaseModel) -> tuple[object, ...]:
    """What of a model may not change while it is borrowed."""
    model = base.model
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    weights = [(name, id(p), p.requires_grad, p.data_ptr(), p.grad) for name, p in model.named_parameters()]
    return modules, weights, sorted(vars(model)), model.config._attn_implementation


@pytest.fixture(params=["llama", "qwen3", "gemma3"])
def family(request: pytest.FixtureRequest, tiny_base: Callable[[str], BaseModel]) -> BaseModel:
    return tiny_base(request.param)


def short(config: TrainingConfig, **fields: object) -> TrainingConfig:
    return config.model_copy(update={"steps": 8, "eval_every": 4, "warmup_steps": 2} | fields)


def test_gradients_reach_the_adapter_alone_and_are_those_of_the_plain_model(
    tiny_base: Callable[[str], BaseModel], make_study: Study, corpus: Corpus
) -> None:
    for kind in ("llama", "qwen3"):
        base = tiny_base(kind)
        examples = list(make_study(base, corpus, 6))
        torch.manual_seed(0)
        with injected(base, 2, 4.0, "all-linear") as matrices:
            for matrix in matrices.values():
                # The second matrix starts at zero, which would hide the first one's gradient.
                torch.nn.init.normal_(matrix, std=0.1)
            sums = [packed_loss(base, empty_prefix(base), rows) for rows in pack_rows(examples, 4096)]
            torch.stack([s.loss for s in sums]).sum().backward()
            packed = {name: matrix.grad.clone() for name, matrix in matrices.items() if matrix.grad is not None}
            assert packed.keys() == matrices.keys()
            frozen = [p for name, p in base.model.named_parameters() if "lora_" not in name]
            assert all(p.grad is None and not p.requires_grad for p in frozen)
            assert len(frozen) > 10

            for matrix in matrices.values():
                matrix.grad = None
            for example in examples:
                ids = torch.from_numpy(example.token_ids.astype(np.int64))[None]
                out = base.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
                at = out[np.flatnonzero(example.assistant_mask) - 1]
                top = torch.from_numpy(example.topk_ids.astype(np.int64))
                said = at.gather(1, top)
                tail = torch.log1p(-said.exp().sum(1))
                teacher = torch.from_numpy(example.topk_logprobs).exp()
                rest = torch.from_numpy(example.tail_logprob).exp()
                (-(teacher * said).sum() - (rest * tail).sum()).backward()
            for name, matrix in matrices.items():
                assert matrix.grad is not None and packed[name].abs().max() > 0
                assert torch.allclose(packed[name], matrix.grad, rtol=1e-3, atol=2e-4 * float(matrix.grad.abs().max()))


def test_the_base_model_is_given_back_untouched(
    family: BaseModel, make_study: Study, corpus: Corpus, config: TrainingConfig, tmp_path: Path
) -> None:
    before, state = logits(family.model), own_state(family)
    random = torch.random.get_rng_state()
    result = train_adapter(family, corpus, make_study(family, corpus), short(config), AdapterConfig(rank=2), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert own_state(family) == state
    assert torch.equal(logits(family.model), before)
    with result.adapter.applied(family):
        assert (logits(family.model) - before).abs().max() > 1e-3
    assert own_state(family) == state
    assert torch.equal(logits(family.model), before)
    with pytest.raises(ZeroDivisionError), result.adapter.applied(family):
        raise ZeroDivisionError
    assert own_state(family) == state


def test_pefts_own_loader_gives_equal_logits(
    family: BaseModel, make_study: Study, corpus: Corpus, config: TrainingConfig, tmp_path: Path
) -> None:
    study = make_study(family, corpus)
    adapter = train_adapter(family, corpus, study, short(config), AdapterConfig(rank=3, alpha=7.0), tmp_path).adapter
    assert sorted(path.name for path in tmp_path.iterdir()) == [ADAPTER, "curve.jsonl", "curve.png"]
    assert {path.name for path in (tmp_path / ADAPTER).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    # Sorted, because the order of a set differs from process to process.
    assert adapter.config["target_modules"] == SEVEN
    again = Adapter.load(tmp_path / ADAPTER)
    assert again.digest == adapter.digest
    with again.applied(family):
        ours = logits(family.model)
    loaded = PeftModel.from_pretrained(family.model, str(tmp_path / ADAPTER))
    try:
        assert (loaded.active_peft_config.r, loaded.active_peft_config.lora_alpha) == (3, 7.0)
        assert torch.equal(logits(loaded), ours)
    finally:
        loaded.unload()
    assert (logits(family.model) - ours).abs().max() > 1e-3


@pytest.fixture(scope="module")
def trained(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AdapterResult, list[tuple[int, int]]]:
    config = TrainingConfig(
        num_tokens=8, steps=60, warmup_steps=3, batch_size=12, eval_every=10, held_out_fraction=0.2, precision="float32"
    )
    told: list[tuple[int, int]] = []
    adapter, folder = AdapterConfig(rank=4, learning_rate=0.01), tmp_path_factory.mktemp("adapter")
    return train_adapter(
        base, corpus, study, config, adapter, folder, lambda done, total, what: told.append((done, total))
    ), told


def test_held_out_divergence_falls(trained: tuple[AdapterResult, list[tuple[int, int]]]) -> None:
    result, told = trained
    assert result.best.kl < 0.7 * result.initial.kl
    assert result.curve.train[-1].kl < result.curve.train[0].kl
    assert told == [(step, 60) for step in range(1, 61)]
    assert [look.step for look in result.curve.held_out] == [0, 10, 20, 30, 40, 50, 60]
    assert min(look.loss for look in result.curve.held_out) == result.best.loss
    assert {look.step: look.loss for look in result.curve.held_out}[result.best_step] == result.best.loss


def test_the_first_look_is_the_bare_model_behind_what_precedes_bare_turns(
    base: BaseModel, study: ConversationDataset, trained: tuple[AdapterResult, list[tuple[int, int]]]
) -> None:
    head = bare_prefix_token_ids(base.tokenizer)
    assert head
    config = TrainingConfig(num_tokens=8, held_out_fraction=0.2)
    held_out = distillation(base, Corpus("x", ()), study, config).held_out
    total, tokens = 0.0, 0
    for example in held_out:
        ids = torch.tensor([[*head, *example.token_ids.tolist()]])
        with torch.no_grad():
            out = base.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        at = out[np.flatnonzero(example.assistant_mask) - 1 + len(head)]
        said = at.gather(1, torch.from_numpy(example.topk_ids.astype(np.int64)))
        tail = torch.log1p(-said.exp().sum(1))
        total -= float((torch.from_numpy(example.topk_logprobs).exp() * said).sum())
        total -= float((torch.from_numpy(example.tail_logprob).exp() * tail).sum())
        tokens += len(at)
    assert trained[0].initial.loss == pytest.approx(total / tokens, rel=1e-4)


def test_equal_inputs_give_equal_bytes_and_other_seeds_others(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    def files(name: str, **fields: int) -> list[bytes]:
        train_adapter(base, corpus, study, short(config), AdapterConfig(rank=2, **fields), tmp_path / name)
        return [path.read_bytes() for path in sorted((tmp_path / name / ADAPTER).iterdir())]

    torch.manual_seed(1)
    first = files("a")
    torch.manual_seed(2)  # the process's own random state plays no part
    assert files("b") == first
    assert files("c", seed=9) != first


def test_batches_and_held_out_examples_are_the_cartridges(
    base: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[int]] = []
    real = adapter_loop.batch_gradient

    def spy(base: BaseModel, state: object, examples: object, *rest: object) -> BatchLoss:
        head = len(bare_prefix_token_ids(base.tokenizer))
        seen.append([hash(e.token_ids[head:].tobytes()) for e in examples])  # type: ignore[attr-defined]
        assert not any(e.assistant_mask[:head].any() for e in examples)  # type: ignore[attr-defined]
        return real(base, state, examples, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(adapter_loop, "batch_gradient", spy)
    train_adapter(base, corpus, study, short(config), AdapterConfig(rank=1), tmp_path)
    stream = distillation(base, corpus, study, config).stream
    assert seen == [[hash(e.token_ids.tobytes()) for e in stream.batch(step)] for step in range(8)]


def test_half_precision_is_rounded_when_stored_and_scored_so(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    stored = replace(base, kv_dtype=torch.bfloat16)
    result = train_adapter(stored, corpus, study, short(config), AdapterConfig(rank=2, learning_rate=0.01), tmp_path)
    assert {tensor.dtype for tensor in result.adapter.tensors.values()} == {torch.bfloat16}
    assert result.adapter.num_bytes == adapter_bytes(stored, 2) == adapter_bytes(base, 2) // 2
    with result.adapter.applied(stored):
        matrices = [p for name, p in base.model.named_parameters() if "lora_" in name]
        assert all(torch.equal(p, p.bfloat16().float()) for p in matrices)
        assert len(matrices) == len(result.adapter.tensors)


def test_a_look_rounds_nothing_that_is_trained(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    stored = replace(base, kv_dtype=torch.bfloat16)

    def losses(eval_every: int) -> list[float]:
        adapter = AdapterConfig(rank=2, eval_every=eval_every)
        curve = train_adapter(stored, corpus, study, short(config), adapter, tmp_path).curve
        return [point.loss for point in curve.train]

    assert losses(1) == losses(8)


def test_equal_memory_is_the_nearest_rank(tiny_base: Callable[[str], BaseModel]) -> None:
    base = tiny_base("llama")
    # Two layers; keys and values of two heads of 16.
    layers = adapted_layers(base, "all-linear")
    assert sorted({name.rpartition(".")[2] for name in layers}) == SEVEN
    # Hidden size 48, queries 64, keys and values 32, MLP 96: inputs and outputs of the seven matrices.
    per_rank = 2 * ((48 + 64) + 2 * (48 + 32) + (64 + 48) + 3 * (48 + 96))
    assert adapter_bytes(base, 1) == 4 * per_rank
    for num_tokens in (1, 40, 100, 400):
        memory = 2 * num_tokens * 2 * 2 * 16 * 4
        rank = equal_memory_rank(base, num_tokens)
        assert rank == max(1, round(memory / (4 * per_rank)))
    assert adapter_bytes(base, 3, ("q_proj", "v_proj")) == 4 * 3 * 2 * ((48 + 64) + (48 + 32))


def test_the_default_rank_takes_the_cartridges_memory(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    config = short(config, num_tokens=200)
    adapter = train_adapter(base, corpus, study, config, AdapterConfig(), tmp_path).adapter
    assert adapter.rank == equal_memory_rank(base, 200) > 1
    assert adapter.config["lora_alpha"] == 2 * adapter.rank
    named = AdapterConfig(target_modules=("v_proj", "q_proj"), rank=1)
    adapter = train_adapter(base, corpus, study, config, named, tmp_path).adapter
    assert adapter.config["target_modules"] == ["q_proj", "v_proj"]
    assert {name.split(".")[-3] for name in adapter.tensors} == {"q_proj", "v_proj"}


def test_training_stops_when_it_is_no_longer_finite_and_keeps_the_best(
    base: BaseModel,
    corpus: Corpus,
    study: ConversationDataset,
    config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, state = adapter_loop.batch_gradient, own_state(base)

    def spoilt(*arguments: object) -> BatchLoss:
        batch = real(*arguments)  # type: ignore[arg-type]
        steps.append(batch)
        return replace(batch, loss=float("nan")) if len(steps) == 6 else batch

    steps: list[BatchLoss] = []
    monkeypatch.setattr(adapter_loop, "batch_gradient", spoilt)
    with pytest.raises(
        TrainingError, match=r"no longer finite at step 6 with learning rate 0\.00\d+: loss nan"
    ) as told:
        train_adapter(base, corpus, study, short(config), AdapterConfig(rank=2), tmp_path)
    assert str(tmp_path / ADAPTER) in str(told.value)
    assert Adapter.load(tmp_path / ADAPTER).rank == 2
    assert own_state(base) == state


def test_patience_ends_a_run(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    # So small a rate changes no stored digit: no look after the first is better.
    config = short(config, patience=2, steps=40)
    still = AdapterConfig(rank=1, learning_rate=1e-30)
    result = train_adapter(base, corpus, study, config, still, tmp_path)
    assert (result.steps, result.best_step, result.stopped_early) == (8, 0, True)


def test_what_cannot_be_trained_is_refused(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    state = own_state(base)

    def refused(kind: type[Exception], message: str, adapter: AdapterConfig, about: Corpus = corpus) -> None:
        with pytest.raises(kind, match=message):
            train_adapter(base, about, study, config, adapter, tmp_path)

    refused(
        TrainingError,
        "no linear layer named 'qq_proj' to adapt. Choose from down_proj,",
        AdapterConfig(target_modules=("q_proj", "qq_proj")),
    )
    # The head's gradient is not computed, so it would silently stay as it is.
    refused(TrainingError, "no linear layer named 'lm_head'", AdapterConfig(target_modules=("lm_head",)))
    refused(TrainingError, "warmup_steps=3 must be fewer than steps=2", AdapterConfig(steps=2))
    refused(DatasetError, "not about 'other'", AdapterConfig(), Corpus("other", corpus.documents[:0]))
    assert own_state(base) == state
    assert not list(tmp_path.iterdir())
    for wrong in ({"rank": 0}, {"target_modules": "everything"}, {"target_modules": ()}, {"dropout": 0.1}):
        with pytest.raises(ValueError):
            AdapterConfig.model_validate(wrong)


def test_what_only_concerns_keys_and_values_is_no_part_of_an_adapter(config: TrainingConfig) -> None:
    adapter = AdapterConfig()
    others = {"optimizer": "muon", "num_frozen_tokens": 3, "initialization": "random_vectors", "ema_decay": 0.9}
    config = config.model_validate(config.model_dump(mode="json") | {"learning_rate": 0.7})
    other = config.model_validate(config.model_dump(mode="json") | others)
    assert adapter.recipe(other) == adapter.recipe(config)
    assert adapter.recipe(config.model_copy(update={"steps": 99})) != adapter.recipe(config)
    assert adapter.beside(config).learning_rate == adapter.learning_rate
    assert AdapterConfig(steps=99, seed=5).beside(config).model_dump(include={"steps", "seed"}) == {
        "steps": 99,
        "seed": 5,
    }


def test_a_damaged_adapter_is_named(trained: tuple[AdapterResult, list[tuple[int, int]]], tmp_path: Path) -> None:
    folder = trained[0].adapter.save(tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="holds no readable adapter"):
        Adapter.load(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ArtifactError, match="holds no readable adapter"):
        Adapter.load(folder)


def test_answers_come_from_the_adapter_in_batches_too(
    base: BaseModel, trained: tuple[AdapterResult, list[tuple[int, int]]]
) -> None:
    prompts = [list(range(30, 30 + n)) for n in (5, 9, 13)]
    asked = GenerationConfig(max_new_tokens=6)
    bare = [reply.token_ids for reply in generate(base, None, prompts, asked)]
    with trained[0].adapter.applied(base):
        together = [reply.token_ids for reply in generate(base, None, prompts, asked)]
        alone = [generate(base, None, [prompt], asked)[0].token_ids for prompt in prompts]
    assert together == alone != bare
    assert json.loads(json.dumps(dict(trained[0].adapter.config)))["peft_type"] == "LORA"


def test_a_base_without_plain_layers_is_refused(tiny_base: Callable[[str], BaseModel]) -> None:
    base = tiny_base("llama")
    held = replace(base, model=copy.deepcopy(base.model))
    hold_in_float8(held.model)
    with pytest.raises(TrainingError, match=r"no linear layer to adapt.* Hold its weights in another type than float8"):
        adapted_layers(held, "all-linear")
