"""`cartridge compose`: graded together, judged corpus by corpus, written down for the gateway."""

import json
from pathlib import Path
from typing import Any

import pytest

from cartridge_core.cartridge import Cartridge
from cartridge_core.catalog import (
    Whereabouts,
    catalog_session,
    find_composition,
    record_base_model,
    record_cartridge,
    record_corpus,
    record_registration,
    set_alias,
)
from cartridge_core.compose import compose
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.models import load_base_model
from cartridge_core.publishing import CompositionGrades, PromotionGate, judge_composition, record_judged
from cartridge_core.publishing.artifact import CARTRIDGE_FILES, cartridge_key
from cartridge_core.rendering import prefix_token_ids, render_turns
from cartridge_core.report import EvaluationReport
from cartridge_core.stages.erase import erase
from cartridge_core.stages.ingest import find_corpus, store_of
from cartridge_core.storage import open_store, put_folder
from tests.cli.test_commands import answer, refusal, run
from tests.samples import cartridge_of, grade
from tests.talkative import Workplace


def shelved(workplace: Workplace, corpus: str, tokens: list[int], folder: Path) -> Cartridge:
    """A corpus and a registered champion for it, without MLflow."""
    answer("corpus", "add", corpus, workplace.documents)
    settings, base = workplace.settings, load_base_model(workplace.model, device="cpu")
    digest = find_corpus(settings, corpus).digest
    cartridge = cartridge_of(base, tokens, corpus_digest=digest)
    key = cartridge_key("default", cartridge.digest)
    put_folder(open_store(settings.artifact_root), cartridge.save(folder / cartridge.digest), key, CARTRIDGE_FILES)
    with catalog_session(settings) as session:
        source, model = record_corpus(session, "default", corpus, digest), base.identity
        row = record_cartridge(session, source, record_base_model(session, "default", model), None, cartridge.manifest)
        record_registration(session, row, Whereabouts(corpus, 1, "m", "r", f"/{key}", key, 3000))
        set_alias(session, "default", corpus, "champion", row.id)
    return cartridge


@pytest.fixture
def pair(workplace: Workplace, tmp_path: Path) -> list[Cartridge]:
    return [
        shelved(workplace, corpus, list(range(start, start + 9)), tmp_path / "made")
        for corpus, start in (("wards", 30), ("rooms", 60))
    ]


def test_graded_together_refused_and_written_down(workplace: Workplace, pair: list[Cartridge]) -> None:
    settings = workplace.settings
    command = ["compose", "wards+rooms:1", *["--questions", workplace.questions] * 2, "--min-questions", "6"]
    result = run(*command, "--json")
    assert result.exit_code == 1, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    digests = tuple(cartridge.digest for cartridge in pair)
    assert (told["passed"], tuple(told["cartridges"]), told["num_questions"]) == (False, digests, 12)
    assert "wards: " in told["reason"]
    assert "no better than no context" in told["reason"]
    assert set(told["figures"]["rooms"]) == {"composition", "no_context", "icl", "alone"}
    with catalog_session(settings, read_only=True) as session:
        entry = find_composition(session, "default", digests)
        assert entry is not None
        assert (entry.passed, entry.digest, entry.gate["min_questions"]) == (False, told["digest"], 6)
        assert find_composition(session, "default", digests[::-1]) is None
        assert find_composition(session, "other", digests) is None

    report = EvaluationReport.load(Path(told["report"]) / "rooms")
    base = load_base_model(workplace.model, device="cpu")
    prompt = render_turns(base.tokenizer, [{"role": "user", "content": "Which ward has patient 0?"}], True).token_ids
    said = generate(base, compose(pair), [prompt], GenerationConfig(max_new_tokens=64))[0]
    assert report.arm("composition").rows[0].reply == said.text
    assert report.arm("composition").num_tokens == 18
    both = f"{find_corpus(settings, 'wards').load().text()}\n\n{find_corpus(settings, 'rooms').load().text()}"
    assert report.arm("icl").num_tokens == len(prefix_token_ids(base.tokenizer, both))

    again = json.loads(run(*command, "--json").stdout)
    assert (again["cached"], again["digest"]) == (True, told["digest"])
    erase(settings, "rooms", "1", force=True)
    # Its questions and replies go with the Cartridge.
    assert store_of(settings).finished("composition") == []
    assert "of 'rooms' is deleted" in refusal(*command)


def test_what_is_no_composition(workplace: Workplace, pair: list[Cartridge]) -> None:
    assert "Name two or more" in refusal("compose", "wards", "--questions", workplace.questions)
    assert "Name two or more" in refusal("compose", "wards+wards", *["--questions", workplace.questions] * 2)
    assert "1 files of questions for 2 corpora" in refusal("compose", "wards+rooms", "--questions", workplace.questions)
    for field in ("min-share-of-icl", "min-score-without-icl", "min-questions", "max-error-share"):
        told = refusal("compose", "wards+rooms", f"--{field}", "-1")
        assert f"{field.replace('-', '_')}: Input should be" in told
    assert "no corpus 'nope'" in refusal("compose", "wards+nope", *["--questions", workplace.questions] * 2)


def test_every_corpus_has_to_pass(workplace: Workplace) -> None:
    good, bad = grade("a" * 64, 19, icl=20), grade("a" * 64, 15, icl=20)
    assert judge_composition({"wards": good, "rooms": good}).passed
    decision = judge_composition({"wards": good, "rooms": bad})
    assert not decision.passed
    assert decision.reasons[0].startswith("rooms: accuracy 0.750 against 1.000")
    assert judge_composition({"wards": good, "rooms": bad}, PromotionGate(min_share_of_icl=0.7)).passed
    grades = CompositionGrades(("b" * 64, "c" * 64), {"wards": good, "rooms": bad}, "d" * 64)
    entry = record_judged(workplace.settings, grades, PromotionGate(min_share_of_icl=0.7))
    assert (entry.passed, entry.num_questions, entry.score, entry.icl_score) == (True, 40, 0.85, 1.0)
