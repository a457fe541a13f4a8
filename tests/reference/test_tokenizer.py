import random

import pytest

from cartridge_core.prompts import SYSTEM_TEMPLATE
from cartridge_core.reference.examples import RowBuilder, corpus_text
from cartridge_core.reference.phrasing import draw_turn
from cartridge_core.reference.tokenizer import build_tokenizer
from cartridge_core.reference.world import Scale, generate_corpus
from cartridge_core.rendering import prefix_token_ids, render_turns
from cartridge_core.selfstudy.seeds import SEED_FAMILIES


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize(
    "text",
    [
        "The ward of Mara Voss is north.",
        'A line\nthen {"name": "Mara Voss", "dosage": "14"} (and more); done!',
        "Zürich — 日本 don't 3.14 \t tab\r\n\n\n end  ",
        " leading space",
        "",
    ],
)
def test_round_trip_is_lossless(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_words_of_the_world_are_one_token_wherever_they_stand(tokenizer):
    documents = generate_corpus(random.Random(3), Scale(12, 6, documents=3), "held_out")
    texts = [SYSTEM_TEMPLATE.format(text=corpus_text(documents))]
    texts += [wording for wordings in SEED_FAMILIES.values() for wording in wordings]
    for family in ("structuring", "creative", "summarization"):
        turn = draw_turn(random.Random(4), family, documents[0].facts[0], list(documents[0].facts[:3]))
        texts += [turn.question, turn.answer]
    for text in texts:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
        assert not [piece for piece in pieces if piece.startswith("<0x") or piece == "<unk>"]
    name = documents[0].facts[0].name.split()[0]
    inside = [
        tokenizer.encode(text.format(name), add_special_tokens=False) for text in ("{}", "of {}", '{{"{}"', "\n{}")
    ]
    assert (
        len({ids[-1] if not tokenizer.convert_ids_to_tokens(ids[-1]).startswith('"') else ids[-2] for ids in inside})
        == 1
    )


def test_training_rows_are_what_rendering_makes(tokenizer):
    """The model is trained on exactly the token ids that study, evaluation and gateway send it."""
    rng = random.Random(6)
    documents = generate_corpus(rng, Scale(3, 3), "train")
    builder = RowBuilder(tokenizer)
    assert builder.context(documents) == list(prefix_token_ids(tokenizer, corpus_text(documents)))
    turn = draw_turn(rng, "question", documents[0].facts[0], list(documents[0].facts))
    messages = [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    rendered = render_turns(tokenizer, messages, add_generation_prompt=False)
    row = builder.turn(turn)
    assert row.token_ids == list(rendered.token_ids)
    assert [weight > 0 for weight in row.weights] == list(rendered.assistant_mask)
