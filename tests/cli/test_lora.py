"""`cartridge evaluate --baseline lora`: an adapter trained on the Cartridge's study, in the same table."""

import json
import sys
from pathlib import Path

import pytest
from peft import PeftModel

from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import load_base_model
from cartridge_core.rendering import bare_prefix_token_ids, render_turns
from cartridge_core.report import EvaluationReport
from tests.cli.test_commands import refusal, run
from tests.talkative import Workplace

TRAINING = "num_tokens = 24\nwarmup_steps = 1\nbatch_size = 4\neval_every = 2\nsteps = 4\n"


@pytest.fixture
def evaluate(workplace: Workplace, tmp_path: Path) -> list[str | Path]:
    """The command, with a Cartridge trained for it."""
    training = tmp_path / "train.toml"
    training.write_text(TRAINING, encoding="utf-8")
    for command in (
        ("corpus", "add", "wards", workplace.documents),
        ("synthesize", "wards", "--config", workplace.study_file),
        ("train", "wards", "--config", training),
    ):
        assert run(*command).exit_code == 0
    return ["evaluate", "wards", "--questions", workplace.questions]


def test_an_adapter_is_graded_beside_the_cartridge(
    workplace: Workplace, evaluate: list[str | Path], tmp_path: Path
) -> None:
    config = tmp_path / "lora.toml"
    config.write_text("rank = 2\nlearning_rate = 0.05\nsteps = 12\n", encoding="utf-8")
    options = ["--baseline", "icl", "--baseline", "lora", "--lora-config", config]
    result = run(*evaluate, *options, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    lora = told["lora"]
    assert (lora["rank"], lora["steps"], lora["cached"]) == (2, 12, False)
    report = EvaluationReport.load(told["report"])
    assert [arm.name for arm in report.arms] == ["icl", "lora", "self_study"]
    assert report.cartridge_arm == "self_study"
    assert report.arm("lora").adapter_bytes == lora["num_bytes"]
    assert {"lora_accuracy", "self_study_minus_lora"} <= told["figures"].keys()

    # What the arm said is what PEFT's own loader makes the model say.
    base = load_base_model(workplace.model, device="cpu")
    rows = report.arm("lora").rows
    loaded = PeftModel.from_pretrained(base.model, lora["directory"])
    head = prefill(base, bare_prefix_token_ids(base.tokenizer))
    prompts = [
        render_turns(base.tokenizer, [{"role": "user", "content": row.question}], add_generation_prompt=True).token_ids
        for row in rows
    ]
    replies = [reply.text for reply in generate(base, head, prompts, GenerationConfig(max_new_tokens=64))]
    assert [row.reply for row in rows] == replies
    loaded.unload()
    head = prefill(base, bare_prefix_token_ids(base.tokenizer))
    bare = [reply.text for reply in generate(base, head, prompts, GenerationConfig(max_new_tokens=64))]
    assert bare != replies

    again = json.loads(run(*evaluate, *options, "--json").stdout)
    assert (again["lora"]["cached"], again["cached"], again["digest"]) == (True, True, told["digest"])
    other = json.loads(run(*evaluate, *options, "--lora-rank", "1", "--json").stdout)
    assert (other["lora"]["rank"], other["lora"]["cached"], other["cached"]) == (1, False, False)
    shown = run(*evaluate, *options)
    assert "LoRA adapter" in shown.stdout and "rank 2, held out" in shown.stdout


def test_no_adapter_is_trained_unasked(workplace: Workplace, evaluate: list[str | Path]) -> None:
    told = json.loads(run(*evaluate, "--json").stdout)
    assert "lora" not in told
    assert [arm.name for arm in EvaluationReport.load(told["report"]).arms] == [
        "no_context",
        "icl",
        "icl_truncated",
        "self_study",
    ]
    assert not list((workplace.settings.home / "stages").glob("adapter"))


def test_without_peft_the_remedy_is_named(evaluate: list[str | Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'cartridge-foundry[peft]'" in refusal(*evaluate, "--baseline", "lora")


def test_wrong_inputs_are_refused_before_an_adapter_is_trained(
    workplace: Workplace, evaluate: list[str | Path], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("ranks = 3\n", encoding="utf-8")
    assert "ranks: Extra inputs" in refusal(*evaluate, "--baseline", "lora", "--lora-config", wrong)
    assert "rank: Input should be greater than 0" in refusal(*evaluate, "--baseline", "lora", "--lora-rank", "0")
    assert "Add `--baseline lora`" in refusal(*evaluate, "--lora-rank", "2")
    unknown = refusal(*evaluate, "--baseline", "lora", "--baseline", "guess")
    assert "no baseline 'guess'. Choose from no_context, icl, icl_truncated, lora" in unknown
    wrong.write_text("steps = 1\n", encoding="utf-8")
    few = refusal(*evaluate, "--baseline", "lora", "--lora-config", wrong)
    assert "warmup_steps=1 must be fewer than steps=1" in few
    assert not list((workplace.settings.home / "stages" / "adapter").glob("*/stage.json"))
    bare = tmp_path / "bare.toml"
    bare.write_text(TRAINING + 'objective = "next_token"\n', encoding="utf-8")
    trained = json.loads(run("train", "wards", "--config", bare, "--json").stdout)
    told = refusal(*evaluate, "--baseline", "lora", "--cartridge", trained["digest"])
    assert "was not distilled" in told
    run("register", "wards")
    assert "does not say how it was trained" in refusal(*evaluate, "--registered", "1", "--baseline", "lora")
