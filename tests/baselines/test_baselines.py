from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cartridge_core.baselines import BASELINES, trained_arm
from cartridge_core.baselines.icl_truncated import truncated_token_ids
from cartridge_core.corpus import Corpus, Document
from cartridge_core.errors import BaseModelMismatchError, EvaluationError
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import BaseModel
from cartridge_core.rendering import bare_prefix_token_ids, prefix_token_ids
from tests.samples import cartridge_of

SENTENCE = "The ward of Ada Lind is green. Her room is seven and her nurse is Tom Berg. "


def corpus_of(text: str) -> Corpus:
    return Corpus("clinic", (Document("memory:clinic", "Clinic", "text/plain", text, {}),))


def test_no_context_is_what_stands_in_front_of_bare_turns(each_base: BaseModel) -> None:
    arm = BASELINES["no_context"](each_base, corpus_of(SENTENCE), 40)
    bare = bare_prefix_token_ids(each_base.tokenizer)
    assert arm.num_tokens == len(bare)
    assert (arm.prefix is None) == (not bare)
    assert arm.fits


def test_icl_holds_the_whole_corpus(each_base: BaseModel) -> None:
    corpus = corpus_of(SENTENCE)
    arm = BASELINES["icl"](each_base, corpus, 40)
    ids = prefix_token_ids(each_base.tokenizer, corpus.text())
    assert arm.prefix is not None
    assert arm.num_tokens == arm.prefix.num_tokens == len(ids)
    assert arm.kv_bytes == arm.prefix.kv_bytes(each_base.kv_dtype)
    # Two layers, keys and values, two heads of 12 or 16 floats of four bytes.
    head_dim = each_base.layer_specs[0].head_dim
    assert arm.kv_bytes == len(ids) * 2 * 2 * 2 * head_dim * 4
    for ours, theirs in zip(arm.prefix.keys, prefill(each_base, ids).keys, strict=True):
        assert ours is not None and theirs is not None
        assert torch.equal(ours, theirs)


def test_a_corpus_longer_than_the_window_does_not_fit_and_is_not_computed(
    tiny_base: Callable[[str], BaseModel],
) -> None:
    base = tiny_base("llama")
    arm = BASELINES["icl"](base, corpus_of(SENTENCE * 100), 40)
    assert not arm.fits
    assert arm.prefix is None
    assert arm.num_tokens > base.max_positions
    assert arm.kv_bytes == arm.num_tokens * 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("num_tokens", [1, 60, 61, 62, 63, 64, 90, 150])
def test_a_truncated_message_is_whole_and_within_its_memory(
    each_tokenizer: PreTrainedTokenizerFast, num_tokens: int
) -> None:
    text = SENTENCE * 8
    ids = truncated_token_ids(each_tokenizer, text, num_tokens)
    empty = prefix_token_ids(each_tokenizer, "")
    assert len(ids) <= num_tokens
    if len(empty) > num_tokens:
        assert ids == empty[:num_tokens]
        return
    cuts = [i for i in range(len(text) + 1) if i == len(text) or text[i].isspace() or i == 0]
    ends = [i for i in cuts if prefix_token_ids(each_tokenizer, text[:i]) == ids]
    # A complete message around whole words, and the next word would not have fitted.
    assert ends
    following = next(i for i in cuts if text[:i].rstrip() != text[: ends[-1]].rstrip() and i > ends[-1])
    assert len(prefix_token_ids(each_tokenizer, text[:following])) > num_tokens


def test_a_text_that_fits_is_not_cut(chat_tokenizer: Callable[[str], PreTrainedTokenizerFast]) -> None:
    tokenizer = chat_tokenizer("llama3")
    whole = prefix_token_ids(tokenizer, SENTENCE)
    assert truncated_token_ids(tokenizer, SENTENCE, len(whole)) == whole
    assert truncated_token_ids(tokenizer, SENTENCE, 10 * len(whole)) == whole
    assert len(truncated_token_ids(tokenizer, SENTENCE, len(whole) - 1)) < len(whole)


def test_a_text_without_spaces_is_cut_inside_its_only_word(
    chat_tokenizer: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer = chat_tokenizer("ours")
    empty = len(prefix_token_ids(tokenizer, ""))
    assert len(truncated_token_ids(tokenizer, "病" * 500, empty + 31)) > empty + 25


def test_a_message_of_no_tokens_is_refused(chat_tokenizer: Callable[[str], PreTrainedTokenizerFast]) -> None:
    with pytest.raises(EvaluationError, match="0 tokens"):
        truncated_token_ids(chat_tokenizer("ours"), SENTENCE, 0)


def test_the_truncated_arm_takes_no_more_memory_than_the_cartridge(each_base: BaseModel) -> None:
    corpus = corpus_of(SENTENCE * 5)
    cartridge = cartridge_of(each_base, prefix_token_ids(each_base.tokenizer, corpus.text())[:80])
    arm = BASELINES["icl_truncated"](each_base, corpus, cartridge.num_tokens)
    ours = trained_arm(each_base, cartridge)
    assert arm.kv_bytes <= ours.kv_bytes
    assert ours.num_tokens == 80
    assert arm.num_tokens > 70
    assert ours.cartridge_digest == cartridge.digest and arm.cartridge_digest is None


def test_a_cartridge_of_another_model_is_refused(tiny_base: Callable[[str], BaseModel]) -> None:
    llama, qwen = tiny_base("llama"), tiny_base("qwen3")
    cartridge = cartridge_of(llama, prefix_token_ids(llama.tokenizer, SENTENCE))
    with pytest.raises(BaseModelMismatchError, match="tiny-qwen3"):
        trained_arm(qwen, cartridge)
