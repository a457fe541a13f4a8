"""`cartridge register`, `promote`, `rollback`, `delete`, `export`, `import`: what happens to a finished Cartridge."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cartridge_core.catalog import CHAMPION
from cartridge_core.cli.actor import actor
from cartridge_core.cli.console import JsonOption, facts, show
from cartridge_core.cli.options import (
    CorpusName,
    MaxErrorShare,
    MinQuestions,
    MinScoreWithoutIcl,
    Model,
    Reason,
    Reference,
    Version,
)
from cartridge_core.cli.shelf import entry_value, show_cartridge
from cartridge_core.errors import NotFoundError, PublishingError
from cartridge_core.publishing import (
    Promotion,
    PromotionGate,
    import_cartridge,
)
from cartridge_core.publishing import promote as promote_cartridge
from cartridge_core.publishing import rollback as roll_back
from cartridge_core.settings import Settings
from cartridge_core.stages.config import config_of
from cartridge_core.stages.erase import erase
from cartridge_core.stages.exchange import Format, import_foreign
from cartridge_core.stages.exchange import export as export_stage
from cartridge_core.stages.fit import FittedCartridge, find_cartridge
from cartridge_core.stages.grade import GradedCartridge, find_report
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.register import register as register_stage
from cartridge_core.stages.retire import retire as retire_cartridge

Alias = Annotated[str, typer.Option(help="The alias to move.")]
Restore = Annotated[bool, typer.Option("--restore", help="Take it although it was deleted once.")]


def register(
    corpus: CorpusName,
    cartridge: Annotated[str, typer.Option(help="Cartridge: the beginning of its digest. Default: the newest.")] = "",
    version: Version = "",
    restore: Restore = False,
    as_json: JsonOption = False,
) -> None:
    """Register a trained Cartridge with its newest report: files, MLflow version, catalog rows. No alias moves.

    Example: `cartridge register handbook`
    """
    settings = Settings()
    source = find_corpus(settings, corpus, version)
    fitted = find_cartridge(settings, source, cartridge)
    graded = _newest_report(settings, fitted)
    entry = register_stage(settings, source, fitted, graded, restore=restore, actor=actor())
    show_cartridge(settings, f"Registered {corpus}", entry, as_json)


def promote(
    corpus: CorpusName,
    reference: Annotated[
        str | None, typer.Argument(help="Version, alias or start of a digest. Default: newest.")
    ] = None,
    alias: Alias = CHAMPION,
    min_share_of_icl: Annotated[
        float | None, typer.Option(help="The gate: share of in-context learning's score.")
    ] = None,
    min_score_without_icl: MinScoreWithoutIcl = None,
    min_questions: MinQuestions = None,
    max_error_share: MaxErrorShare = None,
    force: Annotated[bool, typer.Option("--force", help="Whatever the gate says; that is written down.")] = False,
    reason: Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Move an alias to a registered Cartridge, if the gate lets it pass. Exit code 1 if it does not.

    Example: `cartridge promote handbook 3`
    """
    gate = config_of(
        PromotionGate,
        min_share_of_icl=min_share_of_icl,
        min_score_without_icl=min_score_without_icl,
        min_questions=min_questions,
        max_error_share=max_error_share,
    )
    promotion = promote_cartridge(
        Settings(), corpus, reference, alias=alias, gate=gate, force=force, reason=reason, actor=actor()
    )
    _show_promotion(promotion, as_json)
    if promotion.refused:
        raise typer.Exit(1)


def rollback(
    corpus: CorpusName,
    alias: Alias = CHAMPION,
    reason: Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Move an alias back to where it pointed before.

    Example: `cartridge rollback handbook --reason "wrong answers about leave"`
    """
    _show_promotion(roll_back(Settings(), corpus, alias=alias, reason=reason, actor=actor()), as_json)


def retire(
    corpus: CorpusName,
    reference: Reference,
    reason: Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Retire a Cartridge: its files stay, nobody can promote it again, `cartridge gc` removes it one day.

    Example: `cartridge retire handbook 2 --reason "superseded"`
    """
    settings = Settings()
    entry = retire_cartridge(settings, corpus, reference, reason=reason, actor=actor())
    show_cartridge(settings, f"Retired a Cartridge of {corpus}", entry, as_json)


def delete(
    corpus: CorpusName,
    reference: Reference,
    force: Annotated[bool, typer.Option("--force", help="Although an alias points at it.")] = False,
    reason: Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Delete a Cartridge: its files go, a tombstone in the catalog stays.

    Example: `cartridge delete handbook 2 --reason "superseded"`
    """
    erasure = erase(Settings(), corpus, reference, force, reason, actor())
    value = {
        "corpus": corpus,
        "digest": erasure.entry.digest,
        "version": erasure.entry.version,
        "cleared_aliases": list(erasure.cleared_aliases),
        "removed": list(erasure.removed),
    }
    rows = {
        "digest": erasure.entry.digest,
        "version": erasure.entry.version,
        "aliases gone": ", ".join(erasure.cleared_aliases) or None,
        "removed": "\n".join(erasure.removed),
    }
    show(value, as_json, facts(f"Deleted a Cartridge of {corpus}", rows))


def export(
    corpus: CorpusName,
    target: Annotated[Path, typer.Argument(help="A new folder, or a file that ends in .tar.")],
    reference: Annotated[
        str, typer.Option("--reference", "-r", help="Alias, version or start of a digest.")
    ] = CHAMPION,
    format: Annotated[
        Literal["cartridge", "peft"], typer.Option(help="Its own files, or an adapter folder that PEFT loads.")
    ] = "cartridge",
    quantize: Annotated[str | None, typer.Option(help="Store it in eight bits: int8 or fp8.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a Cartridge and its newest report to a folder or a `.tar` file.

    A quantised one is another Cartridge: it brings the report if `cartridge evaluate --quantized` graded it.

    Example: `cartridge export handbook handbook.tar`
    """
    written = export_stage(Settings(), corpus, target, reference, format, quantize)
    show({"corpus": corpus, "path": written}, as_json, facts("Exported", {"path": written}))


def import_(
    corpus: CorpusName,
    source: Annotated[Path, typer.Argument(help="Folder or .tar file of an export; a PEFT adapter; a .pt file.")],
    format: Annotated[
        Format, typer.Option(help="An export, a PEFT adapter, or a checkpoint of the reference implementation.")
    ] = "cartridge",
    model: Model = None,
    version: Version = "",
    restore: Restore = False,
    as_json: JsonOption = False,
) -> None:
    """Register a Cartridge from an export, a PEFT adapter or a reference checkpoint. No alias moves.

    The latter two do not say what they stand in for: add the corpus's documents first and name the base model.

    Example: `cartridge import handbook handbook.tar`
    """
    settings = Settings()
    if format != "cartridge":
        entry = import_foreign(settings, source, corpus, format, model, version, restore, actor())
    elif model or version:
        raise PublishingError("An export says itself what it belongs to.", "Leave `--model` and `--version` out.")
    else:
        entry = import_cartridge(settings, source, corpus, restore=restore, actor=actor())
    show_cartridge(settings, f"Imported {corpus}", entry, as_json)


def _newest_report(settings: Settings, cartridge: FittedCartridge) -> GradedCartridge | None:
    try:
        return find_report(settings, cartridge)
    except NotFoundError:
        return None


def _show_promotion(promotion: Promotion, as_json: bool) -> None:
    decision = promotion.decision
    value = {
        "corpus": promotion.entry.corpus,
        "alias": promotion.alias,
        "moved": promotion.moved,
        "passed": decision.passed if decision else None,
        "reasons": list(decision.reasons) if decision else [],
        "projection_error": promotion.projection_error,
        "cartridge": entry_value(promotion.entry),
    }
    state = "moved" if promotion.moved else "left where it is" if promotion.refused else "was there already"
    rows = {
        "Cartridge": f"{promotion.entry.digest[:12]}, version {promotion.entry.version}",
        "gate": decision.sentence if decision else None,
        "MLflow": promotion.projection_error,
    }
    show(value, as_json, facts(f"{promotion.entry.corpus}: {promotion.alias} {state}", rows))
