"""`cartridge synthesize`, `train` and `evaluate`: from a corpus to a graded Cartridge."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cartridge_core.baselines import LORA, NEXT_TOKEN, SELF_STUDY
from cartridge_core.benchmarks import load_questions
from cartridge_core.cli.console import JsonOption, facts, progress_bars, show
from cartridge_core.cli.options import ConfigFile, CorpusName, Model, Teachers, Version
from cartridge_core.errors import EvaluationError
from cartridge_core.evaluation import EvaluationConfig
from cartridge_core.initialization.options import OPTIONS
from cartridge_core.progress import Progress
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.settings import Settings
from cartridge_core.stages.adapter import FittedAdapter, fit_adapter
from cartridge_core.stages.build import EVALUATION
from cartridge_core.stages.config import config_of
from cartridge_core.stages.fit import FittedCartridge, find_cartridge, fit
from cartridge_core.stages.grade import ALL_BASELINES, check_grading, grade
from cartridge_core.stages.ingest import IngestedCorpus, find_corpus
from cartridge_core.stages.initialization_fields import initialization_fields
from cartridge_core.stages.quantization_cost import held_out_kl
from cartridge_core.stages.questions import exam
from cartridge_core.stages.registered import RegisteredCartridge, find_registered
from cartridge_core.stages.size import default_num_tokens
from cartridge_core.stages.study import StudiedDataset, find_dataset, study
from cartridge_core.stages.teacher import settings_with
from cartridge_core.training.adapter_config import AdapterConfig
from cartridge_core.training.config import TrainingConfig

Questions = Annotated[Path | None, typer.Option(help="JSONL file of evaluation questions.")]


def synthesize(
    corpus: CorpusName,
    num_conversations: Annotated[int | None, typer.Option(help="Conversations to make.")] = None,
    questions: Questions = None,
    version: Version = "",
    model: Model = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.")] = None,
    teacher: Teachers = None,
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Let the model study a corpus: conversations with top-k targets. Evaluation questions are kept out of it.

    Example: `cartridge synthesize handbook --num-conversations 2048 --questions exam.jsonl`

    Example: `cartridge synthesize handbook --teacher http://gpu1:8001 --teacher http://gpu2:8001`
    """
    settings = settings_with(teacher)
    study_config = config_of(SelfStudyConfig, config, num_conversations=num_conversations, seed=seed)
    held_out = load_questions(questions) if questions else ()
    with progress_bars() as progress:
        dataset = study(settings, find_corpus(settings, corpus, version), study_config, held_out, model, progress)
    told = dataset.product.facts
    rows = {
        "digest": dataset.digest,
        "conversations": told["num_conversations"],
        "answer tokens": told["num_target_tokens"],
        "outcomes": ", ".join(f"{name} {count}" for name, count in told["counts"].items()),
        "folder": dataset.product.directory,
        "seconds": dataset.product.seconds,
    }
    value = told | {"directory": dataset.product.directory, "cached": dataset.product.cached}
    show(value, as_json, facts(f"Dataset about {corpus}", rows))


def _print_schema(wanted: bool) -> None:
    if wanted:
        typer.echo(json.dumps(TrainingConfig.model_json_schema(), indent=2))
        raise typer.Exit


def train(
    corpus: CorpusName,
    num_tokens: Annotated[
        int | None,
        typer.Option("--tokens", "-p", help="Virtual tokens of the Cartridge. Default: a 20th of the corpus."),
    ] = None,
    objective: Annotated[
        Literal["distillation", "next_token"] | None, typer.Option(help="What is learned. Default: distillation.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    on_policy_steps: Annotated[
        int | None, typer.Option(help="The last of these learn from the Cartridge's own answers. Default: 0.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    init: Annotated[
        str | None, typer.Option(help=f"Where keys and values start: {', '.join(OPTIONS)}. Default: auto.")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="Start from this Cartridge: the beginning of its digest, its folder, an alias or a version."),
    ] = None,
    init_text: Annotated[Path | None, typer.Option(help="Start from the text in this file.")] = None,
    dataset: Annotated[str, typer.Option(help="Dataset: the beginning of its digest. Default: the newest.")] = "",
    version: Version = "",
    model: Model = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and order.")] = None,
    optimizer: Annotated[Literal["adamw", "muon"] | None, typer.Option(help="Default: muon.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. Default: 100.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that train together, with a GPU each where there are GPUs.")
    ] = 1,
    config: ConfigFile = None,
    print_config_schema: Annotated[
        bool,
        typer.Option(
            "--print-config-schema",
            callback=_print_schema,
            is_eager=True,
            help="Print the JSON schema of the configuration's fields.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a Cartridge on the corpus's newest study, or with `--objective next_token` on its text.

    The same command after a kill goes on from the newest checkpoint.

    Example: `cartridge train handbook --tokens 512 --steps 800`

    Example: `cartridge train handbook --tokens 512 --init-from champion`

    Options of an initialisation are the table `initialization_options` of the configuration file.
    """
    settings = Settings()
    source = find_corpus(settings, corpus, version)
    training = config_of(
        TrainingConfig,
        config,
        num_tokens=num_tokens or _length(settings, source, config, model),
        objective=objective,
        steps=steps,
        on_policy_steps=on_policy_steps,
        learning_rate=learning_rate,
        seed=seed,
        **initialization_fields(init, init_from, init_text),
        optimizer=optimizer,
        checkpoint_every=checkpoint_every,
    )
    studied = find_dataset(settings, source, dataset) if training.objective == "distillation" else None
    with progress_bars() as progress:
        cartridge = fit(settings, source, studied, training, model, progress, processes)
    told = cartridge.product.facts
    rows = {
        "digest": cartridge.digest,
        "tokens": cartridge.num_tokens,
        "KV bytes": f"{told['kv_bytes']:,}",
        "best step": told["best_step"],
        "left out, too long": told.get("num_unfit", 0),
        "own answers unfinished": told.get("num_unfinished"),
        "went on from step": told.get("resumed_from"),
        "loss curve": cartridge.curve,
        "folder": cartridge.folder,
        "seconds": cartridge.product.seconds,
    }
    value = told | {"directory": cartridge.folder, "curve": cartridge.curve, "cached": cartridge.product.cached}
    show(value, as_json, facts(f"Cartridge of {corpus}", rows))


def _length(settings: Settings, corpus: IngestedCorpus, config: Path | None, model: str | None) -> int | None:
    """A twentieth of the corpus where there is no configuration file to say another length."""
    return None if config else default_num_tokens(settings, corpus, model)


def evaluate(
    corpus: CorpusName,
    questions: Questions = None,
    cartridge: Annotated[str, typer.Option(help="Cartridge: the beginning of its digest. Default: the newest.")] = "",
    next_token: Annotated[str, typer.Option(help="A next-token Cartridge to compare with: its digest.")] = "",
    benchmark: Annotated[str | None, typer.Option(help="closed_answer or free_answer.")] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Baselines to grade too; may be repeated. Default: {', '.join(ALL_BASELINES)}. `{LORA}` trains a "
            "LoRA adapter on what the Cartridge was distilled from (needs the extra peft)."
        ),
    ] = None,
    lora_config: Annotated[
        Path | None, typer.Option(help=f"TOML file of the adapter's fields: {', '.join(AdapterConfig.model_fields)}.")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Rank of the adapter. Default: the one that takes the Cartridge's memory.")
    ] = None,
    registered: Annotated[
        str, typer.Option(help="A registered one instead, such as an import: alias, version or digest. Records it.")
    ] = "",
    quantized: Annotated[
        list[str] | None, typer.Option(help="Grade it quantised too: int8 or fp8; may be repeated.")
    ] = None,
    version: Version = "",
    model: Model = None,
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Grade a Cartridge against its baselines on the same questions.

    Without `--questions` the model asks them itself, about things that no conversation of the study asked. The report
    on a registered Cartridge is added to its registration; of one that was trained here, `cartridge register` does it.

    Example: `cartridge evaluate handbook --questions exam.jsonl`

    Example: `cartridge evaluate handbook --questions exam.jsonl --baseline lora`
    """
    settings = Settings()
    with_lora = LORA in (baseline or ())
    others = [name for name in baseline or ALL_BASELINES if name != LORA]
    if not with_lora and (lora_config or lora_rank is not None):
        raise EvaluationError("There is no adapter to configure.", f"Add `--baseline {LORA}`.")
    lora = config_of(AdapterConfig, lora_config, rank=lora_rank)
    evaluation = config_of(EvaluationConfig, config) if config else EVALUATION
    source = find_corpus(settings, corpus, version)
    if registered and cartridge:
        raise EvaluationError("Two Cartridges are named.", "Leave `--cartridge` or `--registered` out.")
    known = find_registered(settings, source, registered) if registered else None
    trained = None if known else find_cartridge(settings, source, cartridge)
    arms: dict[str, FittedCartridge | RegisteredCartridge] = {}
    if known:
        arms["registered"] = known
    if trained:
        arms[SELF_STUDY] = trained
    if next_token:
        arms[NEXT_TOKEN] = find_cartridge(settings, source, next_token)
    with progress_bars() as progress:
        of = trained.dataset_digest if trained else None
        studied = find_dataset(settings, source, of) if of else None
        asked = exam(settings, source, studied, questions, benchmark, model, progress)
        check_grading(arms, asked.questions, asked.benchmark, others, quantized or ())
        adapter = _adapter(settings, source, studied, trained, lora, model, progress) if with_lora else None
        graded = grade(
            settings,
            source,
            arms,
            asked.questions,
            asked.benchmark,
            evaluation,
            others,
            model,
            progress,
            quantized or (),
            adapter,
        )
        kl = held_out_kl(settings, source, studied, trained, quantized, model) if quantized and trained else {}
    if known:
        known.record(graded)
    report = graded.load()
    value = {
        "digest": graded.digest,
        "cartridge": report.cartridge_digest,
        "figures": report.figures(),
        "report": graded.product.directory,
        "plot": graded.plot,
        "cached": graded.product.cached,
    } | ({"held_out_kl": kl} if kl else {})
    told = adapter.product.facts if adapter else {}
    if adapter:
        value["lora"] = told | {"directory": adapter.folder, "cached": adapter.product.cached}
    rows = {
        "LoRA": f"rank {told['rank']}, held out {told['held_out_kl']:.4f} nats at step {told['best_step']}"
        if told
        else None,
        "LoRA folder": adapter.folder if adapter else None,
        "held-out KL": ", ".join(f"{name} {nats:.5f}" for name, nats in kl.items()) or None,
        "report": graded.product.directory,
        "plot": graded.plot,
        "digest": graded.digest,
    }
    show(value, as_json, report.table(), facts("", rows))


def _adapter(
    settings: Settings,
    corpus: IngestedCorpus,
    dataset: StudiedDataset | None,
    cartridge: FittedCartridge | None,
    config: AdapterConfig,
    model: str | None,
    progress: Progress,
) -> FittedAdapter:
    if cartridge is None:
        raise EvaluationError(
            "A registered Cartridge does not say how it was trained, so no adapter can be trained beside it.",
            "Grade a Cartridge that was trained here, with `--cartridge`.",
        )
    return fit_adapter(settings, corpus, dataset, cartridge, config, model, progress)
