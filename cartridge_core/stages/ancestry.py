"""What a Cartridge began with, and the corpora that this was made of: forgetting and withdrawing reach through it."""

from __future__ import annotations

from collections.abc import Sequence

from cartridge_core.errors import TrainingError
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import corpora
from cartridge_core.stages.store import Facts, Finished


def ancestry(digest: str, made: Sequence[Finished]) -> list[str]:
    """Digests of the Cartridges or starts that one goes back to, itself among them, and of the corpora behind these.

    All of them, because a link between may be deleted one day and what was handed down is still there.

    Args:
        digest: Of the Cartridge or start that something begins with.
        made: Trained Cartridges and learned starts in the digest store.
    """
    found = {digest}
    for product in made:
        if product.facts["digest"] == digest:
            found |= {*_corpora(product.inputs), *product.facts.get("ancestry", ())}
    return sorted(found)


def _corpora(inputs: Facts) -> list[str]:
    """Digests of the corpora that a training or a learned start names."""
    return list(inputs["corpora"]) if "corpora" in inputs else [inputs["corpus"]]


def check_standing(settings: Settings, ancestors: Sequence[str]) -> None:
    """Refuse to begin with what was made of a corpus that was withdrawn.

    Args:
        settings: Store and tenant.
        ancestors: As `ancestry` gives them.

    Raises:
        TrainingError: Names the corpus and the reason.
    """
    # Most trainings begin with nothing, and need no corpus to be read for that.
    versions = [version for version in corpora(settings) if version.digest in ancestors] if ancestors else []
    standing = {version.digest for version in versions if not version.reading.withdrawn}
    for version in versions:
        if version.digest not in standing:
            raise TrainingError(
                f"What this training would begin with was made of corpus {version.name!r} ({version.digest[:12]}), "
                f"which was withdrawn: {version.reading.withdrawn}",
                "Begin with something else, or add that corpus again.",
            )
