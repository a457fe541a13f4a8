import random

import pytest

from cartridge_core.reference.phrasing import draw_turn
from cartridge_core.reference.world import KINDS, Scale, generate_corpus, is_held_out


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_fact_stands_in_the_text_and_names_keep_to_their_split(split):
    documents = generate_corpus(random.Random(5), Scale(30, 6, documents=3), split)
    assert sum(len(document.facts) for document in documents) == 180
    for document in documents:
        sentences = document.text.replace("\n", " ").split(". ")
        for fact in document.facts:
            assert is_held_out(fact.name) == (split == "held_out")
            assert any(
                fact.name in sentence and fact.attribute in sentence and fact.value in sentence.rstrip(".").split()
                for sentence in sentences
            ), fact


def test_the_same_seed_draws_the_same_corpus():
    first, second = (generate_corpus(random.Random("world"), Scale(9, 5, documents=3), "train") for _ in range(2))
    assert first == second
    assert first != generate_corpus(random.Random("other"), Scale(9, 5, documents=3), "train")


def test_kinds_take_turns_and_entities_are_shared_out():
    documents = generate_corpus(random.Random(1), Scale(7, 2, documents=3), "train")
    assert len({document.title for document in documents}) == len(KINDS) == 3
    assert sorted(len({fact.name for fact in document.facts}) for document in documents) == [2, 2, 3]


@pytest.mark.parametrize("family", ["question", "use_case", "creative", "summarization", "structuring"])
def test_a_turn_of_every_family_holds_its_values(family):
    rng = random.Random(2)
    facts = generate_corpus(rng, Scale(1, 4), "train")[0].facts
    for _ in range(20):
        turn = draw_turn(rng, family, facts[0], list(facts))
        assert facts[0].name in turn.question
        assert all(value in turn.answer for value in turn.values)
        assert set(turn.values) <= {fact.value for fact in facts}
