"""One error root. Every message names the thing, the value seen and the remedy.

Add an error by subclassing `CartridgeError`; catch the root at a boundary (CLI, flow, API), never inside the core.
"""


class CartridgeError(Exception):
    """Something a user can act on.

    Args:
        problem: What is wrong, with the name of the thing and the value seen.
        remedy: What to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


class SettingsError(CartridgeError, ValueError):
    """A setting, a name or a configuration field has a value that cannot be used."""


class StorageError(CartridgeError):
    """An object store refused a key, lost an object or could not be reached."""


class CorpusError(CartridgeError):
    """A corpus holds nothing readable, or a document lies outside its root."""


class ArtifactError(CartridgeError):
    """A stored product is missing, incomplete or does not match its digest."""


class BaseModelMismatchError(ArtifactError):
    """A Cartridge or a dataset belongs to another base model, revision or tokenizer."""


class UnsupportedModelError(CartridgeError):
    """The model keeps no plain key/value cache, so it cannot hold a Cartridge."""


class TeacherError(CartridgeError):
    """The teacher could not answer."""


class DatasetError(CartridgeError):
    """A conversation dataset is missing, incomplete or unusable."""


class TrainingError(CartridgeError):
    """Training cannot start or cannot go on."""


class EvaluationError(CartridgeError):
    """Questions or reports are missing or unusable."""


class RegistryError(CartridgeError):
    """MLflow refused or lost a model version."""


class CatalogError(CartridgeError):
    """The catalog database is unreachable, outdated or refused a change."""


class NotFoundError(CatalogError, LookupError):
    """A name, a version or an alias is not in the catalog."""


class RenderingError(CartridgeError, ValueError):
    """Messages cannot be written in the model's chat format."""


class InferenceError(CartridgeError, ValueError):
    """Tokens do not fit the model, or what is asked of it makes no sense."""


class PublishingError(CartridgeError):
    """A Cartridge cannot be registered, promoted, erased or exchanged as asked."""
