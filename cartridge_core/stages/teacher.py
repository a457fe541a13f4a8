"""The teacher that the settings name: the base model in this process, or vLLM servers, which need no weights here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cartridge_core.settings import Settings
from cartridge_core.stages.model import borrowed_model, description_of

if TYPE_CHECKING:
    from cartridge_core.teacher.openai import OpenAITeacher
    from cartridge_core.teacher.protocol import Teacher, TeacherKind


def settings_with(teachers: Sequence[str] | None) -> Settings:
    """The settings, with these servers instead of their own where some are named.

    Raises:
        SettingsError: One is no address.
    """
    return Settings(teachers=tuple(teachers)) if teachers else Settings()


def teacher_kind(settings: Settings) -> TeacherKind:
    """What runs the teacher's model."""
    return "openai" if settings.teachers else "local"


def teacher_key(settings: Settings) -> dict[str, Any]:
    """What a product depends on beside the model: the kind of teacher where it is not the ordinary one.

    Neither how many servers there are nor where: the plan fixes every conversation.
    """
    kind = teacher_kind(settings)
    return {} if kind == "local" else {"teacher": kind}


@contextmanager
def borrowed_teacher(settings: Settings, model: str | None) -> Iterator[tuple[Teacher, Any]]:
    """A teacher and its tokenizer.

    Args:
        settings: Name servers, or the device of the model in this process.
        model: Hub id or folder; None for the settings' own.
    """
    if settings.teachers:
        with remote_teacher(settings, model) as teacher:
            yield teacher, description_of(settings, model).tokenizer
        return
    from cartridge_core.teacher.local import LocalTeacher

    with borrowed_model(settings, model) as base:
        yield LocalTeacher(base), base.tokenizer


def remote_teacher(settings: Settings, model: str | None) -> OpenAITeacher:
    """The servers that the settings name, at least one."""
    from cartridge_core.teacher.openai import OpenAITeacher

    return OpenAITeacher(description_of(settings, model), settings.teachers, settings.teacher_key)
