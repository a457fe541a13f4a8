import random
from collections.abc import Callable, Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from cartridge_core.serving.text_stream import TextStream

TEXTS = [
    "The ward of Ada Lind is green.",
    "  leading, and\n\nlines\t ",
    "Grüße, 你好, 🏥🩺 and e\u0301",
    "?",
]


def streamed(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    parts = []
    for token in ids:
        parts.append(stream.push(token))
        if stream.stopped:
            return parts
    return [*parts, stream.finish()]


@pytest.mark.parametrize("chat_format", ["ours", "mistral"])
def test_parts_make_the_text_and_no_part_breaks_a_character(
    chat_tokenizer: Callable[[str], PreTrainedTokenizerFast], chat_format: str
) -> None:
    tokenizer = chat_tokenizer(chat_format)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        parts = streamed(tokenizer, ids)
        assert "".join(parts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert not any("\ufffd" in part for part in parts)


def test_bytes_that_are_no_character_come_out_in_the_end(
    chat_tokenizer: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer = chat_tokenizer("ours")
    broken = tokenizer("🏥", add_special_tokens=False)["input_ids"][:1] * 40
    parts = streamed(tokenizer, broken)
    assert "".join(parts) == tokenizer.decode(broken)
    # Not all held to the end.
    assert any(parts[:20])


def test_a_stop_text_is_found_however_it_is_cut(chat_tokenizer: Callable[[str], PreTrainedTokenizerFast]) -> None:
    tokenizer = chat_tokenizer("ours")
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice("abc") for _ in range(30))
        stops = ["".join(rng.choice("abc") for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
        parts = streamed(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"], stops)
        ends = [place for place in map(text.find, stops) if place >= 0]
        said = "".join(parts)
        assert not any(stop in said for stop in stops)
        if not ends:
            assert said == text
        else:
            # What was cut begins with a stop text; tokens decide which one is seen first.
            assert text.startswith(said)
            assert any(text[len(said) :].startswith(stop) for stop in stops)


def test_text_is_held_only_while_it_may_be_a_stop(chat_tokenizer: Callable[[str], PreTrainedTokenizerFast]) -> None:
    tokenizer = chat_tokenizer("ours")
    stream = TextStream(tokenizer, ["\n\nQ"])
    said = [
        stream.push(token) for letter in "a\n\nb" for token in tokenizer(letter, add_special_tokens=False)["input_ids"]
    ]
    assert said == ["a", "", "", "\n\nb"]
