"""Learned starts (`training.learned_start`) that are part of the library.

Loads no torch: stages ask which one counts.
"""

from pathlib import Path

from cartridge_core.manifest import BaseModelIdentity, read_manifest
from cartridge_core.model_files import REFERENCE_PATH

SHIPPED_STARTS = (REFERENCE_PATH.parent / "start",)
"""Folders of their artifacts; none was learnt from a sample corpus."""


def shipped_start(identity: BaseModelIdentity, rendering: str, num_tokens: int) -> Path | None:
    """Folder of the start that Cartridges of a base model begin with where nobody says otherwise, or None.

    Args:
        identity: The base model.
        rendering: `rendering.template_digest` of its tokenizer.
        num_tokens: Length of the Cartridge; a start may be shorter.
    """
    for folder in SHIPPED_STARTS:
        manifest = read_manifest(folder)
        if (
            manifest.base_model == identity
            and manifest.template_digest == rendering
            and manifest.num_tokens <= num_tokens
        ):
            return folder
    return None
