from collections.abc import Callable

import numpy as np
import pytest

from cartridge_core.errors import TeacherError
from cartridge_core.inference import generate as generation
from cartridge_core.inference.generate import GenerationConfig
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids, render_turns
from cartridge_core.teacher import local
from cartridge_core.teacher.local import LocalTeacher
from cartridge_core.teacher.protocol import Message, Teacher

TEXT = "From: Wards\nThe ward of Ada Lind is green."
CONFIG = GenerationConfig(max_new_tokens=5, temperature=1.0, top_k_logprobs=4)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def test_a_teacher_answers_with_the_text_in_its_system_message(each_base: BaseModel) -> None:
    teacher: Teacher = LocalTeacher(each_base)
    assert teacher.identity == each_base.identity
    conversations = [user("What is the ward?"), user("Who?"), user("What is the ward?")]
    answers = teacher.ask(TEXT, conversations, CONFIG, [1, 2, 3])
    prefix = prefill(each_base, prefix_token_ids(each_base.tokenizer, TEXT))
    prompts = [
        render_turns(each_base.tokenizer, turns, add_generation_prompt=True).token_ids for turns in conversations
    ]
    wanted = generation.generate(each_base, prefix, prompts, CONFIG, [1, 2, 3])
    for answer, other in zip(answers, wanted, strict=True):
        assert (answer.token_ids, answer.text, answer.finished) == (other.token_ids, other.text, other.finished)
        np.testing.assert_array_equal(answer.topk_ids, other.topk_ids)
        assert answer.topk_logprobs.shape == (len(answer.token_ids), 4)
    assert answers[0].token_ids != answers[2].token_ids  # the seed is the only difference


def test_a_text_is_read_once_for_all_conversations_about_it(
    tiny_base: Callable[[str], BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(local, "prefill", lambda base, ids: read.append(len(ids)) or prefill(base, ids))
    teacher = LocalTeacher(tiny_base("qwen2"))
    for text in (TEXT, TEXT, "another", TEXT):
        teacher.ask(text, [user("a"), user("b")], CONFIG, [1, 2])
    assert len(read) == 3


def test_the_size_of_a_batch_changes_no_answer(tiny_base: Callable[[str], BaseModel]) -> None:
    conversations = [user("Who?" * (i + 1)) for i in range(5)]
    one, many = (
        LocalTeacher(tiny_base("qwen2"), batch_size=size).ask(TEXT, conversations, CONFIG, range(5)) for size in (2, 64)
    )
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in many]


def test_nothing_asked_costs_nothing(tiny_base: Callable[[str], BaseModel]) -> None:
    assert LocalTeacher(tiny_base("qwen2")).ask(TEXT, [], CONFIG, []) == []


def test_a_text_that_does_not_fit_is_the_teachers_error(tiny_base: Callable[[str], BaseModel]) -> None:
    teacher = LocalTeacher(tiny_base("qwen2"))
    for text in ("ward " * 2000, "x" * 970):  # the text alone, and the text with a conversation
        with pytest.raises(TeacherError, match=r"1024 positions.*chunk\.max_tokens"):
            teacher.ask(text, [user("Who? " * 40)], CONFIG, [1])
