"""One arm of an evaluation as a product of its own: a second Cartridge does not pay again for the baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartridge_core.atomic_file import atomic_file
from cartridge_core.baselines import BASELINES, ICL_TRUNCATED, NO_CONTEXT, lora_arm, trained_arm
from cartridge_core.benchmarks import BENCHMARKS, Question, questions_digest
from cartridge_core.digest import canonical_json
from cartridge_core.evaluation import ArmResult, EvaluationConfig, evaluate
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.adapter import FittedAdapter
from cartridge_core.stages.fit import FittedCartridge
from cartridge_core.stages.ingest import IngestedCorpus, store_of
from cartridge_core.stages.model import borrowed_model, model_key
from cartridge_core.stages.registered import RegisteredCartridge
from cartridge_core.stages.store import Facts, Finished

if TYPE_CHECKING:
    from cartridge_core.baselines import Arm
    from cartridge_core.models import BaseModel

RESULT = "result.json"


def grade_arm(
    settings: Settings,
    corpus: IngestedCorpus,
    name: str,
    questions: Sequence[Question],
    benchmark: str,
    config: EvaluationConfig,
    cartridge: FittedCartridge | RegisteredCartridge | None = None,
    num_tokens: int = 0,
    model: str | None = None,
    progress: Progress = no_progress,
    quantize: str | None = None,
    adapter: FittedAdapter | None = None,
) -> ArmResult:
    """Put the questions to one arm, or find that this was done.

    Args:
        settings: Store, device, default model.
        corpus: What the questions are about.
        name: A key of `BASELINES`, or any other name for a Cartridge.
        questions: What is asked.
        benchmark: A key of `BENCHMARKS`.
        config: How it is asked.
        cartridge: The Cartridge of a trained arm.
        num_tokens: Memory of the truncated baseline, in tokens.
        model: Hub id or folder; None for the settings' own.
        progress: Told about questions.
        quantize: Storage to quantise the Cartridge to first: a key of `manifest.STORAGE`.
        adapter: The adapter of a LoRA arm.
    """
    inputs: dict[str, Any] = {
        "arm": name,
        "base_model": model_key(settings, model),
        "corpus": None if name == NO_CONTEXT else corpus.digest,
        "cartridge": cartridge.digest if cartridge else None,
        "num_tokens": num_tokens if name == ICL_TRUNCATED else None,
        "questions": questions_digest(questions),
        "benchmark": benchmark,
        "config": config.model_dump(mode="json"),
    }
    if quantize is not None:
        inputs["quantize"] = quantize
    if adapter is not None:
        inputs["adapter"] = adapter.digest

    def arm_on(base: BaseModel) -> Arm:
        if adapter is not None:
            return lora_arm(base, adapter.load())
        if cartridge is not None:
            exact = cartridge.load()
            return trained_arm(base, exact if quantize is None else exact.quantized(quantize), name)
        return BASELINES[name](base, corpus.load(), num_tokens)

    def work(directory: Path) -> Facts:
        with borrowed_model(settings, model) as base:
            result = evaluate(base, arm_on(base), questions, BENCHMARKS[benchmark], config, progress)
        record = result.model_dump(mode="json") | {"rows": [row.model_dump(mode="json") for row in result.rows]}
        with atomic_file(directory / RESULT) as stream:
            stream.write(canonical_json(record).encode())
        return {"arm": name, "score": result.score, "n": result.n}

    return _read(store_of(settings).run("arm", inputs, work))


def _read(product: Finished) -> ArmResult:
    return ArmResult.model_validate(json.loads((product.directory / RESULT).read_text(encoding="utf-8")))
