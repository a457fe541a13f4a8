"""The flow `train-cartridge`: the stages in order, once, with what Prefect shows of them."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from cartridge_core.catalog import catalog_session, list_cartridges
from cartridge_core.errors import CorpusError
from cartridge_core.publishing import PromotionGate, promote
from cartridge_core.stages.build import build
from cartridge_core.stages.fit import _trained
from cartridge_core.training.config import TrainingConfig
from flows.fit_cartridge import fit_cartridge
from flows.refresh_stale_cartridges import refresh_stale_cartridges
from flows.reporting import terminal
from flows.train_cartridge import train_cartridge
from tests.talkative import STUDY, Workplace

SIZES: dict[str, Any] = {"num_tokens": 24, "steps": 30}


def test_the_chain_runs_once_and_is_the_same_without_prefect(prefect_server: str, workplace: Workplace) -> None:
    chain = SIZES | {"study_config": workplace.study_file}
    told: list[str] = []
    token = terminal.set(lambda done, total, what: told.append(what))
    try:
        first = train_cartridge("wards", [workplace.documents], questions=workplace.questions, **chain)
    finally:
        terminal.reset(token)
    assert told
    assert [first[stage]["cached"] for stage in ("corpus", "dataset", "cartridge", "report")] == [False] * 4
    assert first["version"]["version"] == 1
    # Six questions are fewer than the gate wants by itself; asked for fewer, it judges what was answered.
    assert "asks for 10." in " ".join(first["promotion"]["reasons"])
    with catalog_session(workplace.settings, read_only=True) as session:
        (entry,) = list_cartridges(session, "default", "wards")
    assert entry.digest == first["cartridge"]["digest"]

    second = train_cartridge("wards", [workplace.documents], questions=workplace.questions, min_questions=6, **chain)
    assert "asks for 10." not in " ".join(second["promotion"]["reasons"])
    assert [second[stage]["cached"] for stage in ("corpus", "dataset", "cartridge", "report")] == [True] * 4
    assert second["version"]["version"] == 1

    plain = build(
        workplace.settings,
        "wards",
        [workplace.documents],
        workplace.questions,
        STUDY,
        TrainingConfig(num_tokens=SIZES["num_tokens"], steps=SIZES["steps"]),
        PromotionGate(),
    )
    assert plain.cartridge.product.cached and plain.graded.product.cached
    assert plain.cartridge.digest == entry.digest

    warm = fit_cartridge("wards", init_from=entry.digest[:8], **SIZES)
    assert warm["digest"] != entry.digest and not warm["cached"]
    own = fit_cartridge("wards", on_policy_steps=2, **SIZES)
    assert own["digest"] != entry.digest and own["num_unfinished"] is not None
    drawn = train_cartridge("wards", [workplace.documents], initialization="random_vectors", **chain)
    assert drawn["cartridge"]["digest"] not in (warm["digest"], entry.digest)

    shown = httpx.post(f"{prefect_server}/artifacts/filter", json={}).json()
    artifacts = {artifact["key"] for artifact in shown}
    names = {run["id"]: run["name"] for run in httpx.post(f"{prefect_server}/flow_runs/filter", json={}).json()}
    runs = set(names.values())
    assert {"evaluation", "promotion", "fit-cartridge", "synthesize-conversations", "loss-curve"} <= artifacts
    assert {"train wards · talkative · p=24", "fit wards · talkative · p=24", "ingest wards"} <= runs
    # The chain's own page has the comparison and what the gate said.
    summaries = [artifact for artifact in shown if artifact["key"] == "cartridge"]
    assert {names[artifact["flow_run_id"]] for artifact in summaries} == {"train wards · talkative · p=24"}
    assert all("romoted:** " in one["data"] and "| ICL, whole corpus |" in one["data"] for one in summaries)


def test_a_changed_corpus_is_trained_again_from_its_champion(
    prefect_server: str, workplace: Workplace, tmp_path: Path
) -> None:
    sizes = SIZES | {"study_config": workplace.study_file}
    first = train_cartridge("wards", [workplace.documents], questions=workplace.questions, **sizes)
    config = tmp_path / "training.toml"
    config.write_text("warmup_steps = 3\n", encoding="utf-8")
    refresh = {
        "steps": SIZES["steps"],
        "study_config": workplace.study_file,
        "training_config": config,
        "questions": {"wards": workplace.questions},
    }
    assert refresh_stale_cartridges(**refresh)["without_champion"] == ["wards"]
    promote(workplace.settings, "wards", force=True, reason="so small a model does not pass the gate")
    assert refresh_stale_cartridges(**refresh)["fresh"] == ["wards"]
    with (workplace.documents / "ward.md").open("a", encoding="utf-8") as stream:
        stream.write("The ward of patient 12 is 84.\n")
    assert refresh_stale_cartridges(**refresh)["trained_again"] == ["wards"]
    with catalog_session(workplace.settings, read_only=True) as session:
        newest = max(list_cartridges(session, "default", "wards"), key=lambda entry: entry.cartridge_id)
    (warm,) = (c for c in _trained(workplace.settings) if c.digest == newest.digest)
    started = warm.product.inputs["config"]["initialization_options"]
    assert started["cartridge"] == first["cartridge"]["digest"]
    assert warm.product.inputs["config"]["warmup_steps"] == 3
    assert newest.num_tokens == SIZES["num_tokens"]
    assert (newest.benchmark, newest.num_questions) == ("closed_answer", 6)  # the user's exam
    # The gate refused the new one, and training again would end the same.
    assert refresh_stale_cartridges(**refresh)["waiting_for_promotion"] == ["wards"]


def test_without_questions_the_model_asks_them(prefect_server: str, workplace: Workplace) -> None:
    result = train_cartridge("wards", [workplace.documents], study_config=workplace.study_file, **SIZES)
    assert result["report"]["figures"]["n_questions"] > 0
    assert "self_study_f1" in result["report"]["figures"]


def test_a_users_mistake_stays_what_it_is(prefect_server: str, workplace: Workplace) -> None:
    (workplace.documents / "empty").mkdir()
    with pytest.raises(CorpusError):
        train_cartridge("wards", [workplace.documents / "empty"])
