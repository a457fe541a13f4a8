"""How commands and flows say where a Cartridge starts: flat words that become fields of the training configuration."""

from pathlib import Path
from typing import Any

from cartridge_core.errors import SettingsError


def initialization_fields(
    name: str | None = None, previous: str | None = None, text_file: Path | None = None
) -> dict[str, Any]:
    """Fields of `TrainingConfig` for what was said; empty where nothing was, so that a file's own stay.

    Args:
        name: Of the initialiser; need not be said beside the others.
        previous: Digest, folder, alias or version of the Cartridge to start from.
        text_file: The text to start from, in UTF-8.

    Raises:
        SettingsError: They contradict each other, or the file cannot be read.
    """
    said = [("cartridge", previous), ("text", text_file)]
    given = [(kind, value) for kind, value in said if value]
    if len(given) > 1:
        raise SettingsError("A Cartridge starts from a previous one or from a text, not from both.", "Give one.")
    if not given:
        return {"initialization": name} if name else {}
    kind, value = given[0]
    if name not in (None, kind):
        raise SettingsError(
            f"Initialisation {name!r} does not start from a {kind}, but one was given.",
            f"Leave it out, or say {kind!r}.",
        )
    if text_file is not None:
        try:
            value = text_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{text_file} cannot be read as text: {error}.", "Give a UTF-8 text file.") from error
    return {"initialization": kind, "initialization_options": {kind: value}}
