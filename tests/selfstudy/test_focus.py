import pytest

from cartridge_core.selfstudy.focus import FOCUS_TEMPLATE, draw_seed_prompt, focused_prompt, sentences
from cartridge_core.selfstudy.seeding import spread_position
from cartridge_core.selfstudy.seeds import SEED_FAMILIES

TEXT = "Doses rose to 3.5 mg. Was it safe? Yes!\n\n---\nA line without a stop\nThe end."


def test_sentences_end_at_stops_and_lines_but_not_inside_numbers():
    assert sentences(TEXT) == ["Doses rose to 3.5 mg.", "Was it safe?", "Yes!", "A line without a stop", "The end."]


def test_every_sentence_gets_its_turn():
    count = len(sentences(TEXT))
    pointed = {focused_prompt("Ask.", TEXT, spread_position(0.3, index), 24) for index in range(2 * count)}
    assert pointed == {FOCUS_TEMPLATE.format(seed_prompt="Ask.", sentence=s) for s in sentences(TEXT)}


def test_what_a_text_repeats_is_pointed_at_once():
    boilerplate = "Report any mistake at once."
    text = f"First fact. {boilerplate} Second fact.\n{boilerplate}\n{boilerplate}"
    pointed = [focused_prompt("Ask.", text, spread_position(0.1, index), 24) for index in range(300)]
    counts = {s: pointed.count(FOCUS_TEMPLATE.format(seed_prompt="Ask.", sentence=s)) for s in sentences(text)}
    assert sum(counts.values()) == 300
    assert max(counts.values()) - min(counts.values()) <= 3


def test_long_sentences_are_cut_and_texts_without_any_leave_the_prompt_alone():
    assert focused_prompt("Ask.", "one two three four.", 0.0, 2).endswith('"one two"')
    assert focused_prompt("Ask.", "--- 12 %\n", 0.5, 24) == "Ask."


@pytest.mark.parametrize("family", SEED_FAMILIES)
def test_a_seed_prompt_is_a_wording_of_its_family(family):
    plain = {draw_seed_prompt(family, seed, TEXT, 0.0, None) for seed in range(40)}
    assert plain == set(SEED_FAMILIES[family])
    assert draw_seed_prompt(family, 7, TEXT, 0.99, 24).endswith('"The end."')
