import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from cartridge_core.baselines import BASELINES, Arm, trained_arm
from cartridge_core.benchmarks import BENCHMARKS, Question
from cartridge_core.corpus import Corpus, Document
from cartridge_core.errors import EvaluationError
from cartridge_core.evaluation import EvaluationConfig, evaluate
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids, render_turns, turn_end_ids
from tests.samples import cartridge_of

TEXT = "The ward of Ada Lind is green. Her room is seven. Her nurse is Tom Berg. The blood group is not stated. "
ASKED = ("What is the room of Ada Lind?", "Which ward?", "Who is the nurse of the patient Ada Lind?", "Is it stated?")
CONFIG = EvaluationConfig(max_new_tokens=12, batch_size=3)


def corpus_of(text: str = TEXT) -> Corpus:
    return Corpus("clinic", (Document("memory:clinic", "Clinic", "text/plain", text, {}),))


def questions_of(answers: list[str]) -> list[Question]:
    return [Question(id=f"q{i}", question=q, answer=a) for i, (q, a) in enumerate(zip(ASKED, answers, strict=True))]


def greedy(base: BaseModel, token_ids: list[int], max_new_tokens: int) -> str:
    """What the model answers when it is run the plain way, token by token, over the whole text each time."""
    written: list[int] = []
    ends = base.eos_ids | turn_end_ids(base.tokenizer)
    while len(written) < max_new_tokens:
        with torch.inference_mode():
            logits = base.model(torch.tensor([token_ids + written]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token in ends:
            break
        written.append(token)
    return str(base.tokenizer.decode(written, skip_special_tokens=True))


def test_the_icl_arm_answers_as_the_model_does_with_the_corpus_in_its_prompt(each_base: BaseModel) -> None:
    corpus = corpus_of()
    result = evaluate(
        each_base, BASELINES["icl"](each_base, corpus, 1), questions_of(["x"] * 4), BENCHMARKS["free_answer"], CONFIG
    )
    prefix = prefix_token_ids(each_base.tokenizer, corpus.text())
    for row, asked in zip(result.rows, ASKED, strict=True):
        turns = render_turns(each_base.tokenizer, [{"role": "user", "content": asked}], add_generation_prompt=True)
        assert row.reply == greedy(each_base, prefix + turns.token_ids, 12)


def test_the_untrained_cartridge_of_the_whole_corpus_is_icl(each_base: BaseModel) -> None:
    corpus = corpus_of()
    benchmark = BENCHMARKS["free_answer"]
    cartridge = cartridge_of(each_base, prefix_token_ids(each_base.tokenizer, corpus.text()))
    icl = evaluate(each_base, BASELINES["icl"](each_base, corpus, 1), questions_of(["x"] * 4), benchmark, CONFIG)
    ours = evaluate(each_base, trained_arm(each_base, cartridge), questions_of(["x"] * 4), benchmark, CONFIG)
    assert [row.reply for row in ours.rows] == [row.reply for row in icl.rows]
    assert (ours.num_tokens, ours.kv_bytes) == (icl.num_tokens, icl.kv_bytes)


@pytest.fixture
def base(tiny_base: Callable[[str], BaseModel]) -> BaseModel:
    return tiny_base("llama")


@pytest.fixture
def icl_replies(base: BaseModel) -> list[str]:
    arm = BASELINES["icl"](base, corpus_of(), 1)
    rows = evaluate(base, arm, questions_of(["x"] * 4), BENCHMARKS["free_answer"], CONFIG).rows
    return [row.reply for row in rows]


def test_every_arm_answers_the_same_questions(base: BaseModel, icl_replies: list[str]) -> None:
    corpus = corpus_of()
    # What the model says with the corpus in front of it is gold here, so ICL is perfect and nothing else is.
    questions = questions_of(icl_replies)
    ids = prefix_token_ids(base.tokenizer, corpus.text())
    cartridges = {"next_token": cartridge_of(base, ids[:30]), "self_study": cartridge_of(base, ids)}
    seen: list[tuple[int, int]] = []
    arms = [build(base, corpus, 30) for build in BASELINES.values()]
    arms += [trained_arm(base, cartridge, name) for name, cartridge in cartridges.items()]
    results = [
        evaluate(
            base,
            arm,
            questions,
            BENCHMARKS["free_answer"],
            CONFIG,
            lambda done, total, what: seen.append((done, total)),
        )
        for arm in arms
    ]
    by_name = {result.name: result for result in results}
    assert list(by_name) == ["no_context", "icl", "icl_truncated", "next_token", "self_study"]
    assert by_name["icl"].score == by_name["self_study"].score == 1.0
    assert by_name["no_context"].score is not None and by_name["no_context"].score < 1.0
    assert by_name["next_token"].score is not None and by_name["next_token"].score < 1.0
    for result in results:
        assert result.n == len(result.rows) == 4
        assert [row.question_id for row in result.rows] == ["q0", "q1", "q2", "q3"]
        assert {row.arm for row in result.rows} == {result.name}
        assert result.score == pytest.approx(sum(row.score for row in result.rows) / 4)
        assert result.interval is not None and result.interval.low <= result.score <= result.interval.high
        assert result.errors == 0
    assert seen.count((4, 4)) == len(arms)


def test_unparsed_replies_are_counted_and_wrong(base: BaseModel, icl_replies: list[str]) -> None:
    arm = BASELINES["icl"](base, corpus_of(), 1)
    never = Question(id="never", question=ASKED[0], answer="surely not said", distractors=("nor this",))
    said = Question(id="said", question=ASKED[0], answer=icl_replies[0].strip() or "x")
    other = Question(id="other", question=ASKED[0], answer="surely not said", distractors=(said.answer,))
    result = evaluate(base, arm, [never, said, other], BENCHMARKS["closed_answer"], CONFIG)
    assert [row.parsed for row in result.rows] == [False, True, True]
    assert [row.score for row in result.rows] == [0.0, 1.0, 0.0]
    assert (result.n, result.unparsed, result.errors) == (3, 1, 0)
    assert result.score == pytest.approx(1 / 3)
    assert result.unfinished == sum(not row.finished for row in result.rows)


def test_a_question_longer_than_the_window_is_an_error_and_wrong(base: BaseModel) -> None:
    long = Question(id="long", question="Which ward? " * base.max_positions, answer="green")
    short = Question(id="short", question="Which ward?", answer="green")
    result = evaluate(
        base, BASELINES["no_context"](base, corpus_of(), 1), [long, short], BENCHMARKS["closed_answer"], CONFIG
    )
    assert (result.n, result.errors) == (2, 1)
    assert result.rows[0].error is not None and "positions" in result.rows[0].error
    assert result.rows[0].score == 0 and not result.rows[0].parsed
    assert result.rows[1].error is None
    assert result.unparsed == sum(not row.parsed for row in result.rows[1:])


def room_for_text(base: BaseModel) -> int:
    """Tokens of text that the window holds beside the longest question and a reply."""
    messages = [question.messages for question in questions_of(["x"] * 4)]
    longest = max(len(render_turns(base.tokenizer, turns, add_generation_prompt=True).token_ids) for turns in messages)
    return base.max_positions - CONFIG.max_new_tokens - longest


def arm_of(base: BaseModel, num_tokens: int) -> Arm:
    return Arm("icl", prefill(base, [5] * num_tokens), num_tokens, 1)


def test_a_text_may_fill_the_window_up_to_the_last_token_of_a_reply(base: BaseModel) -> None:
    arm = arm_of(base, room_for_text(base))
    assert evaluate(base, arm, questions_of(["green"] * 4), BENCHMARKS["closed_answer"], CONFIG).fits


@pytest.mark.parametrize("too_long", ["by one token", "by far"])
def test_a_text_that_leaves_no_room_is_refused_or_reported(base: BaseModel, too_long: str) -> None:
    if too_long == "by one token":
        arm = arm_of(base, room_for_text(base) + 1)
    else:
        arm = BASELINES["icl"](base, corpus_of(TEXT * 60), 1)
        assert not arm.fits
    questions = questions_of(["green"] * 4)
    with pytest.raises(EvaluationError, match=r"'icl' needs .* has 1024"):
        evaluate(base, arm, questions, BENCHMARKS["closed_answer"], CONFIG)
    allowed = CONFIG.model_copy(update={"allow_overflow": True})
    result = evaluate(base, arm, questions, BENCHMARKS["closed_answer"], allowed)
    assert not result.fits
    assert result.score is None and result.interval is None and result.rows == ()
    assert result.num_tokens == arm.num_tokens


def test_no_questions_is_an_error(base: BaseModel) -> None:
    with pytest.raises(EvaluationError, match="no questions"):
        evaluate(base, BASELINES["no_context"](base, corpus_of(), 1), [], BENCHMARKS["free_answer"])


def test_results_need_no_torch() -> None:
    code = (
        "import sys, cartridge_core.evaluation, cartridge_core.report, cartridge_core.proof; "
        "print(sorted({'torch', 'transformers', 'matplotlib', 'mlflow', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
