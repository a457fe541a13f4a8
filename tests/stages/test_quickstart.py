"""The quickstart's order and figures, on a tiny random model and a tiny sample."""

import json
import time
from pathlib import Path

import pytest

from cartridge_core.cli.quickstart import report_quickstart
from cartridge_core.reference.samples import LONG, SHORT
from cartridge_core.stages.quickstart import quickstart, sample_folder
from cartridge_core.stages.quickstart_plan import LONG_PLAN, SHORT_PLAN, QuickstartPlan
from tests.talkative import Workplace, tiny_plan

STEPS = ["ingest", "study", "train self-study", "train next-token", "evaluate", "register", "promote", "ask"]


@pytest.fixture
def plan(workplace: Workplace) -> QuickstartPlan:
    return tiny_plan(workplace.model)


def test_plans_ask_what_the_paper_and_the_issue_ask() -> None:
    assert SHORT_PLAN.sample == SHORT and LONG_PLAN.sample == LONG
    assert SHORT_PLAN.asked["memory_ratio"] == {"at_least": 38.6}
    assert SHORT_PLAN.asked["self_study_over_icl"] == {"at_least": 0.95}
    assert SHORT_PLAN.asked["seconds"] == {"at_most": 480}
    assert len(SHORT_PLAN.next_token_learning_rates) == 3
    assert LONG_PLAN.training.num_tokens <= 400


def test_the_short_sample_is_the_shipped_one(workplace: Workplace) -> None:
    folder = sample_folder(workplace.settings, SHORT_PLAN)
    assert (folder / "questions.jsonl").is_file()
    assert list((folder / "documents").glob("*.md"))


def test_every_step_runs_by_name_and_a_second_run_finds_them(
    workplace: Workplace, plan: QuickstartPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def step(name, work):  # type: ignore[no-untyped-def]
        seen.append(name)
        return work()

    first = quickstart(workplace.settings, plan, step)
    assert seen == STEPS == list(first.seconds_by_stage)
    assert first.cached == ()
    names = [arm.name for arm in first.graded.load().arms]
    assert names == ["no_context", "icl", "icl_truncated", "next_token", "self_study"]
    asked = {"corpus_tokens", "cartridge_tokens", "memory_ratio", "n_questions", "corpus_over_window"}
    assert asked | {f"{name}_accuracy" for name in names} <= first.figures.keys()
    assert first.answer.cartridge == first.cartridge.digest

    again = quickstart(workplace.settings, plan)
    assert set(again.cached) == {"ingest", "study", "train self-study", "evaluate"}
    assert again.graded.digest == first.graded.digest
    assert again.registered.version == first.registered.version == 1

    report_quickstart(again, time.time(), as_json=True)
    told = json.loads(capsys.readouterr().out)
    proof = json.loads(Path("build/reports/tiny.json").read_text(encoding="utf-8"))
    assert proof["ok"] and told["ok"]
    assert proof["asked"] == plan.asked
    assert proof["extra"]["artifact_digest"] == first.cartridge.digest
    report_quickstart(again, time.time(), as_json=False)
    text = capsys.readouterr().out
    assert "mlflow ui" in text and "Cartridge, self-study" in text and "Where to look next" in text
