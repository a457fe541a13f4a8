"""What a request's `model` says: a corpus, one of its aliases or versions, or the plain base model."""

import re
from dataclasses import dataclass

from cartridge_core.catalog import CHAMPION
from cartridge_core.errors import SettingsError
from cartridge_core.serving.errors import UnknownModelError
from cartridge_core.settings import valid_name

_PART = re.compile(r"(?P<corpus>[^@:]+)(?:@(?P<alias>.+)|:(?P<version>[1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class CorpusReference:
    """A Cartridge of a corpus, as a caller names it."""

    corpus: str
    """Name of the corpus."""
    alias: str | None = CHAMPION
    """`corpus@alias`; the champion where nobody says; None where a version is named."""
    version: int | None = None
    """`corpus:version`: the MLflow version for the gateway's base model."""

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.corpus}:{self.version}"
        return self.corpus if self.alias == CHAMPION else f"{self.corpus}@{self.alias}"


def parse_model_name(text: str, base_model: str) -> tuple[CorpusReference, ...]:
    """The Cartridges that a model's name means, in order.

    The base model's own id wins over a corpus of the same name, which is still to be had as `corpus@champion`.

    Args:
        text: `corpus`, `corpus@alias`, `corpus:version`, `a+b` of such, or the base model's id.
        base_model: Id of the gateway's base model.

    Returns:
        Nothing for the plain base model, else one reference a part.

    Raises:
        UnknownModelError: It is none of these.
    """
    return () if text == base_model else parse_cartridge_names(text)


def parse_cartridge_names(text: str) -> tuple[CorpusReference, ...]:
    """The Cartridges that a text names, in order, at least one: here the base model's id is a corpus's name as well.

    Raises:
        UnknownModelError: It is no name, or several with a plus between them.
    """
    return tuple(_reference(part, text) for part in text.split("+"))


def unknown_model(text: str) -> UnknownModelError:
    """The refusal of a name that means nothing here."""
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return UnknownModelError(
        f"The model {shown!r} does not exist or is not yours to use.",
        "GET /v1/models lists what there is; write corpus, corpus@alias or corpus:version.",
        param="model",
    )


def _reference(part: str, text: str) -> CorpusReference:
    match = _PART.fullmatch(part)
    if match is None:
        raise unknown_model(text)
    version = match["version"]
    alias = None if version else match["alias"] or CHAMPION
    try:
        valid_name(match["corpus"], "corpus name")
        if alias is not None:
            valid_name(alias, "alias")
    except SettingsError:
        raise unknown_model(text) from None
    return CorpusReference(match["corpus"], alias, int(version) if version else None)
