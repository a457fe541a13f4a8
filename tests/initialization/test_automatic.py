"""The default start: what ships for the base model, or the first tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cartridge_core.baselines import trained_arm
from cartridge_core.benchmarks import BENCHMARKS
from cartridge_core.cartridge import Cartridge
from cartridge_core.corpus import Corpus, Document
from cartridge_core.evaluation import EvaluationConfig, evaluate
from cartridge_core.initialization.automatic import automatic
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.shipped_starts import SHIPPED_STARTS, shipped_start
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.reference.samples import SHORT, draw_sample
from cartridge_core.rendering import template_digest
from cartridge_core.training.config import TrainingConfig
from tests.initialization.conftest import Sourced
from tests.initialization.test_initializers import tensors


@pytest.fixture(scope="module")
def source() -> InitializationSource:
    documents, _ = draw_sample(SHORT)
    corpus = Corpus("sample", tuple(Document(d.title, d.title, "text/plain", d.text) for d in documents))
    return InitializationSource(load_base_model("reference"), corpus, 80, conversations=())


def shipped(source: InitializationSource) -> Path | None:
    return shipped_start(source.base.identity, template_digest(source.base.tokenizer), source.num_tokens)


def same(one: PrefixKV, other: PrefixKV) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def test_the_reference_model_has_one_and_it_is_the_default(source: InitializationSource) -> None:
    start = Cartridge.load(SHIPPED_STARTS[0])
    assert TrainingConfig(num_tokens=80).initialization == "auto"
    assert shipped(source) == SHIPPED_STARTS[0]
    assert same(automatic(source), start.prefix().to(source.base.device, source.base.dtype))
    longer = automatic(replace(source, num_tokens=100))
    assert longer.num_tokens == longer.next_position == 100
    for whole, part in zip(tensors(longer), tensors(start.prefix()), strict=True):
        torch.testing.assert_close(whole[:, :80], part.float())


def test_no_sample_corpus_is_in_it(source: InitializationSource) -> None:
    # It must know nothing of what the quickstart asks: facts of the sample are no likelier behind it than without.
    _, questions = draw_sample(SHORT)
    arm = trained_arm(source.base, Cartridge.load(SHIPPED_STARTS[0]))
    graded = evaluate(
        source.base, arm, questions[:60], BENCHMARKS["closed_answer"], EvaluationConfig(max_new_tokens=32)
    )
    assert sum(row.score for row in graded.rows) <= 6


def test_shorter_cartridges_text_and_other_models_start_from_the_first_tokens(
    source: InitializationSource, sourced: Sourced, tiny_base: Callable[[str], BaseModel]
) -> None:
    shorter = replace(source, num_tokens=79)
    assert shipped(shorter) is None
    assert same(automatic(shorter), first_tokens(shorter))
    baseline = replace(source, conversations=None)
    assert same(automatic(baseline), first_tokens(baseline))
    other = sourced(tiny_base("qwen2"), "auto", num_tokens=30)
    assert shipped(other) is None
    assert same(automatic(other), first_tokens(other))
