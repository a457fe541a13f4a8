"""Configurations made of a file's fields and of what was said beside it."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cartridge_core.errors import SettingsError

Config = TypeVar("Config", bound=BaseModel)


def config_of(kind: type[Config], file: Path | None = None, /, **fields: Any) -> Config:
    """A configuration of a TOML file's fields, overridden by the fields that were given (those not None).

    Raises:
        SettingsError: The file cannot be read, or a field is unknown or cannot have its value; the message names it.
    """
    stated: dict[str, Any] = {}
    if file is not None:
        try:
            stated = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"{file} cannot be read as TOML: {error}.", "Correct the file.") from error
    stated |= {name: value for name, value in fields.items() if value is not None}
    try:
        return kind.model_validate(stated)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or kind.__name__
        given = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        remedy = f"Fields of {kind.__name__}: {', '.join(kind.model_fields)}."
        raise SettingsError(f"{name}: {first['msg']}{given}.", remedy) from error
