import pytest

from cartridge_core.serving.errors import UnknownModelError
from cartridge_core.serving.model_name import CorpusReference, parse_cartridge_names, parse_model_name

BASE = "org/Model-1.5B"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("clinic", CorpusReference("clinic")),
        ("clinic@champion", CorpusReference("clinic")),
        ("clinic@canary", CorpusReference("clinic", "canary")),
        ("clinic:12", CorpusReference("clinic", None, 12)),
        ("7", CorpusReference("7")),
    ],
)
def test_one_corpus(text: str, reference: CorpusReference) -> None:
    assert parse_model_name(text, BASE) == parse_model_name(str(reference), BASE) == (reference,)


def test_the_base_model_wins_over_a_corpus_of_its_name() -> None:
    assert parse_model_name(BASE, BASE) == parse_model_name("reference", "reference") == ()
    assert parse_model_name("reference@champion", "reference") == (CorpusReference("reference"),)


def test_a_composition() -> None:
    parts = parse_model_name("clinic@canary+law:3", BASE)
    assert parts == (CorpusReference("clinic", "canary"), CorpusReference("law", None, 3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Clinic",
        "a/b",
        "clinic@",
        "clinic:",
        "clinic:0",
        "clinic:01",
        "clinic:x",
        "clinic:१",
        "clinic@a:1",
        "clinic:1@a",
        "a+",
        "..",
        "a b",
        "clinic@B",
        "x@a@b",
        "клиника",
    ],
)
def test_what_is_no_name_does_not_exist(text: str) -> None:
    with pytest.raises(UnknownModelError, match="does not exist"):
        parse_model_name(text, BASE)
    with pytest.raises(UnknownModelError, match="does not exist"):
        parse_cartridge_names(text)


def test_among_cartridges_there_is_no_base_model() -> None:
    assert parse_cartridge_names("reference") == (CorpusReference("reference"),)
    assert parse_cartridge_names("a+b:2") == (CorpusReference("a"), CorpusReference("b", None, 2))
