"""The stages one after another, up to an answer and down to an erasure; and once more, found finished."""

from dataclasses import replace

import pytest

from cartridge_core.benchmarks import load_questions
from cartridge_core.cartridge import Cartridge
from cartridge_core.catalog import catalog_session, list_cartridges
from cartridge_core.errors import EvaluationError, NotFoundError, TrainingError
from cartridge_core.evaluation import EvaluationConfig
from cartridge_core.publishing import PromotionGate, promote
from cartridge_core.stages.ask import ask
from cartridge_core.stages.erase import erase
from cartridge_core.stages.fit import FittedCartridge, find_cartridge, fit
from cartridge_core.stages.grade import GradedCartridge, find_report, grade
from cartridge_core.stages.ingest import IngestedCorpus, ingest
from cartridge_core.stages.local_copies import cache_folder
from cartridge_core.stages.register import register
from cartridge_core.stages.study import StudiedDataset, study
from cartridge_core.training.config import TrainingConfig
from tests.talkative import STUDY, Workplace

TRAINING = TrainingConfig(num_tokens=24, steps=4, warmup_steps=1, batch_size=4, eval_every=2)
EVALUATION = EvaluationConfig(max_new_tokens=8, bootstrap_samples=1000)
# A random model knows nothing: the gate is opened wide, since the chain is tested here and not the model.
OPEN = PromotionGate(min_share_of_icl=0.0, min_questions=1, max_error_share=1.0)


def graded_chain(
    workplace: Workplace,
) -> tuple[IngestedCorpus, StudiedDataset, FittedCartridge, GradedCartridge]:
    settings = workplace.settings
    corpus = ingest(settings, "wards", [workplace.documents])
    dataset = study(settings, corpus, STUDY)
    cartridge = fit(settings, corpus, dataset, TRAINING)
    questions = load_questions(workplace.questions)
    return corpus, dataset, cartridge, grade(settings, corpus, {"self_study": cartridge}, questions, config=EVALUATION)


def test_from_documents_to_an_answer_and_back(workplace: Workplace) -> None:
    settings = workplace.settings
    corpus, dataset, cartridge, graded = graded_chain(workplace)
    manifest = Cartridge.load(cartridge.folder).manifest
    assert manifest.digest == cartridge.digest
    assert (manifest.corpus_digest, manifest.dataset_digest) == (corpus.digest, dataset.digest)
    assert cartridge.curve.read_bytes().startswith(b"\x89PNG")
    report = graded.load()
    assert [arm.name for arm in report.arms] == ["no_context", "icl", "icl_truncated", "self_study"]
    assert report.cartridge_digest == cartridge.digest
    assert graded.plot.read_bytes().startswith(b"\x89PNG")

    entry = register(settings, corpus, cartridge, graded, {"who": "test"})
    assert entry.version == 1
    assert register(settings, corpus, cartridge, graded).version == 1
    promotion = promote(settings, "wards", cartridge.digest, gate=OPEN, force=True)
    assert promotion.moved
    answer = ask(settings, "wards", "Which ward has patient 3?", max_new_tokens=8)
    assert (answer.cartridge, answer.num_tokens, answer.version) == (cartridge.digest, 24, 1)
    assert cache_folder(settings, cartridge.digest).is_dir()

    again = graded_chain(workplace)
    assert all(product.product.cached for product in again)
    assert [p.product.directory for p in again] == [p.product.directory for p in (corpus, dataset, cartridge, graded)]

    erase(settings, "wards", "1", force=True, reason="test")
    assert not cartridge.folder.exists()
    assert not graded.product.directory.exists()
    assert not cache_folder(settings, cartridge.digest).exists()
    with catalog_session(settings, read_only=True) as session:
        assert list_cartridges(session, settings.tenant, "wards") == []
    with pytest.raises(NotFoundError):
        ask(settings, "wards", "Which ward has patient 3?")
    assert dataset.product.directory.is_dir()


def test_a_second_cartridge_does_not_pay_for_the_baselines(workplace: Workplace) -> None:
    settings = workplace.settings
    corpus, dataset, _, _ = graded_chain(workplace)
    other = fit(settings, corpus, dataset, TRAINING.model_copy(update={"seed": 1}))
    text = fit(settings, corpus, None, TRAINING.model_copy(update={"objective": "next_token"}))
    seen: list[str] = []
    questions = load_questions(workplace.questions)
    arms = {"next_token": text, "self_study": other}
    graded = grade(
        settings, corpus, arms, questions, config=EVALUATION, progress=lambda done, total, what: seen.append(what)
    )
    assert {what.split(":")[0] for what in seen} == {"next_token", "self_study"}
    assert graded.load().cartridge_digest == other.digest
    assert find_report(settings, other).digest == graded.digest
    # The next-token Cartridge is a baseline: it is never taken for the corpus's own.
    assert find_cartridge(settings, corpus).digest == other.digest
    assert find_cartridge(settings, corpus, text.digest[:8]).objective == "next_token"


def test_objective_and_dataset_go_together(workplace: Workplace) -> None:
    settings = workplace.settings
    corpus = ingest(settings, "wards", [workplace.documents])
    with pytest.raises(TrainingError, match="'distillation' needs a dataset"):
        fit(settings, corpus, None, TRAINING)


def test_wrong_grading_is_refused_before_any_work(workplace: Workplace) -> None:
    settings = workplace.settings
    corpus, _, cartridge, _ = graded_chain(workplace)
    questions = load_questions(workplace.questions)
    arms = {"self_study": cartridge}
    with pytest.raises(EvaluationError, match="no Cartridge"):
        grade(settings, corpus, {}, questions)
    with pytest.raises(EvaluationError, match="no questions"):
        grade(settings, corpus, arms, ())
    with pytest.raises(EvaluationError, match="closed_answer, free_answer"):
        grade(settings, corpus, arms, questions, benchmark="guess")
    with pytest.raises(EvaluationError, match="'rag'"):
        grade(settings, corpus, arms, questions, baselines=("rag",))
    unknown = replace(cartridge.product, facts=cartridge.product.facts | {"digest": "f" * 64})
    with pytest.raises(NotFoundError, match="not been graded"):
        find_report(settings, FittedCartridge(unknown))
    with pytest.raises(NotFoundError, match="no report ffff"):
        find_report(settings, cartridge, "ffff")
