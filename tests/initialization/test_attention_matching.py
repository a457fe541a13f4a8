"""Attention matching: exact where it can be, better than the corpus's head where it cannot."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cartridge_core.cartridge import PrefixKV
from cartridge_core.corpus import Corpus
from cartridge_core.errors import TrainingError, UnsupportedModelError
from cartridge_core.inference.prefix import prefill
from cartridge_core.inference.score import logits_behind
from cartridge_core.initialization.attention_matching import attention_matching, shares_of
from cartridge_core.initialization.attention_output import Keys, attend
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.pieces import cut_pieces
from cartridge_core.initialization.reference_queries import HeadQueries, LayerQueries, walk_layers
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.initialization.value_fit import fit_values
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids
from tests.initialization.conftest import Sourced, conversations
from tests.training.test_packed_attention import build

Tiny = Callable[[str], BaseModel]
KEYS = ("rms", "omp", "merged", "optimized")


def outputs_behind(base: BaseModel, prefix: PrefixKV, texts: list[list[int]]) -> list[torch.Tensor]:
    """Attention output of every layer behind a prefix, at the queries that this prefix leads to."""
    found = []

    def fit(layer: int, queries: LayerQueries) -> torch.Tensor:
        key, value = prefix.keys[layer], prefix.values[layer]
        assert key is not None and value is not None
        places = torch.arange(-prefix.num_tokens, 0)
        keys = [Keys(one, places, base.layer_specs[layer].window) for one in key]
        out = torch.stack([attend(queries.of_head(head), keys[head], value[head]) for head in range(len(keys))])
        found.append(out)
        return out

    walk_layers(base, texts, prefix.next_position, fit)
    return found


def error(base: BaseModel, corpus: Corpus, prefix: PrefixKV) -> float:
    """Relative squared error of the attention output, on conversations that nothing was fitted to."""
    texts = [conversation.token_ids.tolist() for conversation in conversations(base, 8, first=100)]
    exact = outputs_behind(base, prefill(base, prefix_token_ids(base.tokenizer, corpus.text())), texts)
    ours = outputs_behind(base, prefix, texts)
    return sum(float((a - b).square().sum() / b.square().sum()) for a, b in zip(ours, exact, strict=True))


def test_reading_layer_by_layer_is_the_models_own_forward_pass(each_base: BaseModel, corpus: Corpus) -> None:
    prefix = prefill(each_base, prefix_token_ids(each_base.tokenizer, corpus.text()))
    texts = [conversation.token_ids.tolist() for conversation in conversations(each_base, 5)]
    before = logits_behind(each_base, prefix, texts)
    seen = []
    hook = each_base.model.model.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        outputs_behind(each_base, prefix, texts)
    finally:
        hook.remove()
    ours = each_base.model.lm_head(seen[0])
    for row, logits in enumerate(before):
        torch.testing.assert_close(ours[row, : len(logits)], logits, atol=2e-4, rtol=1e-3)
    for one, other in zip(before, logits_behind(each_base, prefix, texts), strict=True):
        assert torch.equal(one, other)  # the model attends as it did


@pytest.mark.parametrize("keys", KEYS)
def test_as_many_tokens_as_the_corpus_has_reproduce_it(
    each_base: BaseModel, sourced: Sourced, corpus: Corpus, keys: str
) -> None:
    ids = prefix_token_ids(each_base.tokenizer, corpus.text())
    whole = prefill(each_base, ids)
    made = attention_matching(sourced(each_base, "attention_matching", len(ids), keys=keys))
    texts = [conversation.token_ids.tolist() for conversation in conversations(each_base, 6, first=50)]
    for ours, theirs in zip(
        outputs_behind(each_base, made, texts), outputs_behind(each_base, whole, texts), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_the_output_is_closer_than_behind_the_first_tokens(
    tiny_base: Tiny, sourced: Sourced, corpus: Corpus, kind: str, keys: str
) -> None:
    base = tiny_base(kind)
    made = attention_matching(sourced(base, "attention_matching", 24, keys=keys, key_steps=60))
    head = first_tokens(sourced(base, num_tokens=24))
    assert error(base, corpus, made) < 0.7 * error(base, corpus, head)


def test_optimized_keys_fit_better_than_kept_ones(tiny_base: Tiny, sourced: Sourced, corpus: Corpus) -> None:
    base = tiny_base("llama")
    kept, moved = (
        attention_matching(sourced(base, "attention_matching", 16, keys=keys)) for keys in ("rms", "optimized")
    )
    assert error(base, corpus, moved) < error(base, corpus, kept)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_a_corpus_in_pieces_is_matched_as_a_whole(tiny_base: Tiny, sourced: Sourced, corpus: Corpus, kind: str) -> None:
    base = tiny_base(kind)
    source = sourced(base, "attention_matching", 40, max_piece_tokens=90, keys="merged")
    heard = source.conversations
    assert heard is not None
    pieces = cut_pieces(source, heard, 90)
    assert len(pieces) > 1
    assert sum(len(piece.conversations) for piece in pieces) == len(heard)
    texts = [base.tokenizer.decode(piece.token_ids) for piece in pieces]
    assert "ward of Ada" in texts[0] and "desk" in texts[-1] and "ward of Ada" not in texts[-1]
    assert {c.chunk_id.split(":")[1] for c in pieces[0].conversations} == {"0"}
    assert {c.chunk_id.split(":")[1] for c in pieces[-1].conversations} <= {"1"}
    made = attention_matching(source)
    assert made.num_tokens == 40
    assert all(key is not None and key.isfinite().all() for key in made.keys)

    # Each conversation is to be answered as behind its own piece.
    def distance(prefix: PrefixKV) -> float:
        total = 0.0
        for piece in pieces:
            asked = [c.token_ids.tolist() for c in piece.conversations]
            if asked:
                exact = outputs_behind(base, prefill(base, piece.token_ids), asked)
                ours = outputs_behind(base, prefix, asked)
                total += sum(float((a - b).square().sum()) for a, b in zip(ours, exact, strict=True))
        return total

    assert distance(made) < distance(first_tokens(sourced(base, num_tokens=40)))


def test_a_corpus_longer_than_the_window_is_cut(tiny_base: Tiny, sourced: Sourced) -> None:
    source = sourced(tiny_base("qwen3"), "attention_matching", 40)
    small = replace(source.base, max_positions=130)
    heard = source.conversations
    assert heard is not None
    pieces = cut_pieces(replace(source, base=small), heard, None)
    longest = max(len(conversation.token_ids) for conversation in heard)
    assert len(pieces) > 1
    assert all(len(piece.token_ids) + longest <= 130 for piece in pieces)
    assert attention_matching(replace(source, base=small)).num_tokens == 40
    with pytest.raises(TrainingError, match="leave no room for the corpus in the 50 positions"):
        attention_matching(replace(source, base=replace(source.base, max_positions=50)))


def test_a_conversation_about_nothing_in_the_corpus_is_refused(tiny_base: Tiny, sourced: Sourced) -> None:
    base = tiny_base("qwen3")
    for chunk in ("chunk", "0123456789ab:7:0-9", "0123456789ab:0:a-b"):
        lost = [replace(conversation, chunk_id=chunk) for conversation in conversations(base, 3)]
        with pytest.raises(TrainingError, match=f"about chunk '{chunk}'"):
            attention_matching(sourced(base, "attention_matching", asked=lost, max_piece_tokens=90))
        attention_matching(sourced(base, "attention_matching", asked=lost, keys="rms"))  # in one piece it matters not


def test_conversations_are_needed(tiny_base: Tiny, corpus: Corpus, sourced: Sourced) -> None:
    with pytest.raises(TrainingError, match="takes its queries from a study's conversations"):
        attention_matching(InitializationSource(tiny_base("qwen2"), corpus, 20))
    with pytest.raises(TrainingError, match="takes its queries from a study's conversations"):
        attention_matching(sourced(tiny_base("qwen2"), "attention_matching", asked=[]))


def test_queries_are_capped_and_seeds_decide_which(tiny_base: Tiny, sourced: Sourced) -> None:
    base = tiny_base("qwen2")
    made = [
        attention_matching(sourced(base, "attention_matching", 20, seed, keys="rms", max_queries=100)).values[1]
        for seed in (0, 0, 1)
    ]
    assert all(value is not None for value in made)
    assert torch.equal(made[0], made[1])  # type: ignore[arg-type]
    assert not torch.equal(made[0], made[2])  # type: ignore[arg-type]


def test_values_of_least_squares_solve_the_normal_equations() -> None:
    torch.manual_seed(0)
    asked = HeadQueries(torch.randn(200, 8), torch.randn(200), torch.randn(200, 8), torch.zeros(200, dtype=torch.int64))
    keys = Keys(torch.randn(5, 8), torch.arange(-5, 0), None)
    truth = torch.randn(5, 8)
    start = torch.cat((truth[:1], torch.zeros(4, 8)))
    fitted = fit_values(asked, keys, start, attend(asked, keys, truth), ridge=1e-7)
    torch.testing.assert_close(fitted, truth, atol=1e-3, rtol=1e-3)
    held = fit_values(asked, keys, start, attend(asked, keys, truth), ridge=1e9)
    torch.testing.assert_close(held, start, atol=1e-5, rtol=0)


def test_shares_are_proportional_and_whole() -> None:
    assert shares_of(10, [30, 30, 30]) == [4, 3, 3]
    assert shares_of(80, [1000, 3000]) == [20, 60]
    assert shares_of(7, [3, 4]) == [3, 4]


def test_capped_scores_are_refused_rather_than_fitted_wrongly(sourced: Sourced) -> None:
    base = build("gemma2")
    with pytest.raises(UnsupportedModelError, match="gemma2 caps its attention scores"):
        attention_matching(sourced(base, "attention_matching", 24))
    # The model's own attention is back.
    assert base.model.config._attn_implementation != "cartridge_reference_queries"
