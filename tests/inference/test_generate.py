"""Generation: equal to the plain way, independent of the batch, and honest about its log-probs."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import InferenceError
from cartridge_core.inference.decoding import top_and_tail
from cartridge_core.inference.generate import Generation, GenerationConfig, answer, generate
from cartridge_core.inference.prefix import prefill
from cartridge_core.inference.score import logits_behind, token_logprobs
from cartridge_core.models import BaseModel

Tiny = Callable[[str], BaseModel]
GREEDY = GenerationConfig(max_new_tokens=12, top_k_logprobs=5)
SAMPLED = GenerationConfig(max_new_tokens=12, temperature=0.9, top_k_logprobs=5)


def prompts_for(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [draw.choices(range(10, 400), k=length) for length in lengths]


def prefix_for(base: BaseModel, tokens: int = 30) -> PrefixKV:
    return prefill(base, random.Random(9).choices(range(10, 400), k=tokens))


def endless(base: BaseModel) -> BaseModel:
    """The model with an end token that no logits belong to."""
    return replace(base, eos_ids=frozenset({10_000}))


def ending(base: BaseModel, share: int = 6) -> BaseModel:
    """The model with so many end tokens that random answers end early and at different lengths."""
    return replace(base, eos_ids=base.eos_ids | frozenset(range(0, 512, share)))


def assert_same(ours: Generation, theirs: Generation) -> None:
    assert ours.token_ids == theirs.token_ids
    assert (ours.text, ours.finished) == (theirs.text, theirs.finished)
    np.testing.assert_allclose(ours.topk_logprobs, theirs.topk_logprobs, atol=1e-4)
    np.testing.assert_allclose(ours.tail_logprob, theirs.tail_logprob, atol=1e-4)


def test_greedy_equals_step_by_step_argmax(each_base: BaseModel) -> None:
    base, prefix = endless(each_base), prefix_for(each_base)
    for prompt, generation in zip(
        prompts_for((1, 9)), generate(base, prefix, prompts_for((1, 9)), GREEDY), strict=True
    ):
        told = list(prompt)
        for token in generation.token_ids:
            assert token == int(logits_behind(base, prefix, [told])[0][-1].argmax())
            told.append(token)
        assert len(generation.token_ids) == 12 and not generation.finished


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batch_mates_do_not_matter(each_base: BaseModel, config: GenerationConfig) -> None:
    # Rows of different lengths that end at different steps; the tiny Gemma and Mistral have windows of 8 behind 30.
    base, prefix = ending(each_base), prefix_for(each_base)
    prompts = prompts_for((1, 14, 3, 9, 9, 2, 25, 6))
    seeds = [100 + row for row in range(len(prompts))]
    together = generate(base, prefix, prompts, config, seeds)
    assert len({len(generation.token_ids) for generation in together}) > 2
    for row, generation in enumerate(together):
        assert_same(generation, generate(base, prefix, [prompts[row]], config, [seeds[row]])[0])
    order = list(reversed(range(len(prompts))))
    mixed = generate(base, prefix, [prompts[i] for i in order], config, [seeds[i] for i in order], batch_size=3)
    for row, generation in zip(order, mixed, strict=True):
        assert_same(generation, together[row])


def test_seeds_decide_samples(tiny_base: Tiny) -> None:
    base, prompt = endless(tiny_base("qwen2")), prompts_for((5,))
    draws = generate(base, None, prompt * 8, SAMPLED, seeds=range(8))
    assert len({generation.token_ids for generation in draws}) == 8
    again = generate(base, None, prompt * 2, SAMPLED, seeds=[3, 3])
    assert again[0].token_ids == again[1].token_ids == draws[3].token_ids


def test_samples_follow_the_distribution(tiny_base: Tiny) -> None:
    base, prompt = tiny_base("llama"), prompts_for((5,))[0]
    config = GenerationConfig(max_new_tokens=1, temperature=0.7)
    wanted = (logits_behind(base, None, [prompt])[0][-1] / 0.7).softmax(-1)
    drawn = generate(base, None, [prompt] * 2000, config, seeds=range(2000), batch_size=500)
    seen = torch.zeros(512).index_add(0, torch.tensor([g.token_ids[0] for g in drawn]), torch.full((2000,), 1 / 2000))
    # Half the sum of differences; 2,000 draws from this distribution stay below 0.12.
    assert (seen - wanted).abs().sum() / 2 < 0.15
    assert (seen - (logits_behind(base, None, [prompt])[0][-1]).softmax(-1)).abs().sum() / 2 > 0.15


def test_logprobs_are_the_models_at_temperature_one(each_base: BaseModel) -> None:
    base, prefix = ending(each_base), prefix_for(each_base)
    prompts = prompts_for((4, 11))
    for prompt, generation in zip(prompts, generate(base, prefix, prompts, SAMPLED, [1, 2]), strict=True):
        count = len(generation.token_ids)
        assert generation.topk_ids.shape == generation.topk_logprobs.shape == (count, 5)
        assert generation.topk_ids.dtype == np.int32 and generation.topk_logprobs.dtype == np.float32
        assert generation.tail_logprob.shape == (count,) and generation.tail_logprob.dtype == np.float32
        logits = logits_behind(base, prefix, [[*prompt, *generation.token_ids[:-1]]])[0][-count:]
        wanted = logits.log_softmax(-1).sort(descending=True)
        np.testing.assert_allclose(generation.topk_logprobs, wanted.values[:, :5].numpy(), atol=1e-4)
        np.testing.assert_array_equal(generation.topk_ids, wanted.indices[:, :5].numpy())
        total = np.exp(generation.topk_logprobs).sum(1) + np.exp(generation.tail_logprob)
        np.testing.assert_allclose(total, 1, atol=1e-5)


def test_the_tail_survives_a_sure_top() -> None:
    # 1 - sum(p) is 0 here in fp32, and its log -inf.
    logits = torch.full((1, 100), -40.0)
    logits[0, 7] = 0.0
    ids, logprobs, tail = top_and_tail(logits, 3)
    assert ids[0, 0] == 7 and logprobs[0, 0].abs() < 1e-6
    assert tail.item() == pytest.approx(np.log(97) - 40, abs=1e-4)
    assert top_and_tail(logits, 100)[2].item() == -np.inf


def test_the_end_token_is_kept_and_has_its_logprobs(tiny_base: Tiny) -> None:
    base, prompt = tiny_base("qwen2"), prompts_for((6,))
    said = generate(endless(base), None, prompt, GREEDY)[0]
    place = next(i for i, token in enumerate(said.token_ids) if token not in said.token_ids[:i] and i > 1)
    stopped = generate(replace(base, eos_ids=frozenset({said.token_ids[place]})), None, prompt, GREEDY)[0]
    assert stopped.finished and stopped.token_ids == said.token_ids[: place + 1]
    assert len(stopped.topk_ids) == place + 1
    assert stopped.text == base.tokenizer.decode(said.token_ids[:place])


def test_the_templates_end_of_turn_ends_an_answer(tiny_base: Tiny) -> None:
    # Gemma's configuration knows <eos> only; answers end with <end_of_turn>.
    base = tiny_base("gemma3")
    turn_end = base.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert turn_end not in base.eos_ids
    bias = torch.zeros(512)
    bias[turn_end] = 1e4
    hook = base.model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    try:
        generation = generate(base, None, prompts_for((4,)), GREEDY)[0]
    finally:
        hook.remove()
    assert generation.finished and generation.token_ids == (turn_end,) and generation.text == ""


def test_answers_stop_where_positions_end(tiny_base: Tiny) -> None:
    base = replace(endless(tiny_base("qwen2")), max_positions=40)
    prefix, prompts = prefix_for(base), prompts_for((4, 7))
    generations = generate(base, prefix, prompts, GREEDY)
    assert [len(generation.token_ids) for generation in generations] == [6, 3]
    assert not any(generation.finished for generation in generations)


def test_progress_reaches_the_end(tiny_base: Tiny) -> None:
    told: list[tuple[int, int, str]] = []
    config = GenerationConfig(max_new_tokens=1)
    generations = generate(
        tiny_base("qwen2"), None, prompts_for((2,) * 5), config, progress=lambda *a: told.append(a), batch_size=2
    )
    assert [done for done, _, _ in told] == [2, 4, 5] and {total for _, total, _ in told} == {5}
    assert generations[0].topk_ids.shape == (1, 0)
    assert generate(tiny_base("qwen2"), None, [], config) == []


def test_requests_that_make_no_sense_are_refused(tiny_base: Tiny) -> None:
    base, config = tiny_base("qwen2"), GenerationConfig(max_new_tokens=4)
    with pytest.raises(InferenceError, match="Prompt 1 has no tokens"):
        generate(base, None, [[5], []], config)
    with pytest.raises(InferenceError, match="1 seeds for 2 prompts"):
        generate(base, None, [[5], [6]], config, seeds=[1])
    with pytest.raises(InferenceError, match="top_k_logprobs=600 exceeds the vocabulary of 512"):
        generate(base, None, [[5]], GenerationConfig(max_new_tokens=4, top_k_logprobs=600))
    with pytest.raises(InferenceError, match=r"Prompt 0 has 1000 tokens; .* 30 of them before .* let a Cartridge"):
        generate(base, prefix_for(base), [[5] * 1000], config)
    for wrong in ({"max_new_tokens": 0}, {"max_new_tokens": 1, "temperature": -1}, {"max_new_tokens": 1, "topk": 1}):
        with pytest.raises(ValueError, match="validation error"):
            GenerationConfig(**wrong)


def test_answer_takes_messages(tiny_base: Tiny) -> None:
    base = tiny_base("qwen3")
    said = answer(base, prefix_for(base), [{"role": "user", "content": "Which ward?"}], max_new_tokens=5)
    assert isinstance(said, str)
    again = answer(base, prefix_for(base), [{"role": "user", "content": "Which ward?"}], max_new_tokens=5)
    assert said == again


def test_token_logprobs_score_what_the_mask_marks(each_base: BaseModel) -> None:
    prefix, texts = prefix_for(each_base), prompts_for((8, 3, 12))
    masks = [[False, *(i % 2 == 0 for i in range(1, len(text)))] for text in texts]
    scores = token_logprobs(each_base, prefix, texts, masks, batch_size=2)
    for text, mask, score in zip(texts, masks, scores, strict=True):
        logprobs = logits_behind(each_base, prefix, [text])[0].log_softmax(-1)
        wanted = [logprobs[i - 1, text[i]].item() for i in range(len(text)) if mask[i]]
        assert score.tolist() == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(InferenceError, match="mask of text 0 has 2 entries for 3 tokens"):
        token_logprobs(each_base, None, [[5, 6, 7]], [[False, True]])
    with pytest.raises(InferenceError, match="marks the first token"):
        token_logprobs(each_base, None, [[5, 6]], [[True, True]])
