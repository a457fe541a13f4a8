from cartridge_core.benchmarks import load_questions
from cartridge_core.corpus import read_corpus
from cartridge_core.models import load_base_model
from cartridge_core.reference.examples import corpus_text
from cartridge_core.reference.phrasing import OTHER_QUESTIONS, QUESTIONS, USE_CASES
from cartridge_core.reference.samples import LONG, SAMPLE_PATH, SHORT, draw_sample, write_sample
from cartridge_core.rendering import prefix_token_ids


def test_the_shipped_sample_is_what_the_generator_writes(tmp_path):
    write_sample(SHORT, tmp_path)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shipped = {path.relative_to(SAMPLE_PATH): path.read_bytes() for path in SAMPLE_PATH.rglob("*") if path.is_file()}
    assert written == shipped


def test_the_sample_is_as_dense_as_asked():
    base = load_base_model("reference")
    corpus = read_corpus("sample", [SAMPLE_PATH / "documents"])
    tokens = len(prefix_token_ids(base.tokenizer, corpus.text()))
    documents, questions = draw_sample(SHORT)
    facts = {(fact.name, fact.attribute) for document in documents for fact in document.facts}
    assert tokens >= 3000 and tokens < base.max_positions
    assert len(facts) >= 200 and tokens / len(facts) <= 15
    assert load_questions(SAMPLE_PATH / "questions.jsonl") == questions
    assert len(questions) >= 200
    assert sorted(corpus_text(documents).split("\n\n")) == sorted(corpus.text().split("\n\n"))


def test_the_long_sample_is_twice_the_window_and_never_contradicts_itself():
    base = load_base_model("reference")
    documents, questions = draw_sample(LONG)
    facts = [(fact.name, fact.attribute) for document in documents for fact in document.facts]
    assert len(facts) == len(set(facts))
    assert len(prefix_token_ids(base.tokenizer, corpus_text(documents))) >= 2 * base.max_positions
    assert len({question.question for question in questions}) == len(questions) >= 200


def test_questions_are_worded_as_role_a_never_words_them():
    asked = {wording.split("{")[0] for wording in (*QUESTIONS, *USE_CASES)}
    assert not {wording.split("{")[0] for wording in OTHER_QUESTIONS} & asked
