"""Rows that join and leave a running batch write what they would write alone."""

from collections.abc import Callable

import torch

from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.prefix import empty_prefix, prefill
from cartridge_core.inference.running_batch import RunningBatch
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV

PROMPTS = [[7], [9, 8, 7, 6, 5], list(range(20, 60)), [300, 4], [11] * 13, [8, 9], [33, 44, 55]]


def alone(base: BaseModel, prefix: PrefixKV, prompt: list[int], count: int) -> list[int]:
    answer = generate(base, prefix, [prompt], GenerationConfig(max_new_tokens=count))[0]
    return list(answer.token_ids)


@torch.inference_mode()
def in_a_crowd(base: BaseModel, prefix: PrefixKV, prompts: list[list[int]], count: int, chunk: int) -> list[list[int]]:
    """Greedy tokens; a new prompt joins at every second step, a row leaves when it has written `count`."""
    batch = RunningBatch(base, prefix)
    written: list[list[int]] = [[] for _ in prompts]
    present: list[int] = []
    upcoming = list(range(len(prompts)))
    step = 0
    while upcoming or present:
        if upcoming and step % 2 == 0:
            number = upcoming.pop(0)
            arrival = batch.arrival(prompts[number])
            while not arrival.done:
                arrival.read(chunk)
            batch.join(arrival)
            present.append(number)
        step += 1
        tokens = batch.step().argmax(dim=-1)
        for number, token in zip(present, tokens.tolist(), strict=True):
            written[number].append(token)
        kept = [row for row, number in enumerate(present) if len(written[number]) < count]
        batch.go_on(tokens[kept], torch.tensor(kept, dtype=torch.long))
        present = [present[row] for row in kept]
    return written


def agree(base: BaseModel, prefix: PrefixKV, chunk: int) -> None:
    for prompt, written in zip(PROMPTS, in_a_crowd(base, prefix, PROMPTS, 7, chunk), strict=True):
        expected = alone(base, prefix, prompt, 7)
        assert written[: len(expected)] == expected


def test_every_family_behind_a_prefix(each_base: BaseModel) -> None:
    agree(each_base, prefill(each_base, list(range(40, 71))), chunk=6)


def test_without_a_prefix(tiny_base: Callable[[str], BaseModel]) -> None:
    agree(tiny_base("llama"), empty_prefix(tiny_base("llama")), chunk=100)
