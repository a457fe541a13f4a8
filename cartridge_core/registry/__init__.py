"""MLflow: a registered model for each corpus and base model, a version for each Cartridge.

Nothing here loads mlflow before a function needs it.
"""

from cartridge_core.registry.aliases import alias_targets, clear_alias, set_alias, tag_version
from cartridge_core.registry.erasure import erase_version
from cartridge_core.registry.names import model_name
from cartridge_core.registry.version import RegisteredVersion, VersionContent, register_version

__all__ = [
    "RegisteredVersion",
    "VersionContent",
    "alias_targets",
    "clear_alias",
    "erase_version",
    "model_name",
    "register_version",
    "set_alias",
    "tag_version",
]
