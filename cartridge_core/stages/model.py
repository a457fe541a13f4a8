"""The base model, borrowed: loaded when a stage first needs it, kept for the next one, given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from cartridge_core.settings import Settings

if TYPE_CHECKING:
    from cartridge_core.manifest import BaseModelIdentity
    from cartridge_core.model_description import ModelDescription
    from cartridge_core.models import BaseModel

_LENT = RLock()
"""Held by the thread that has the model: training changes it, and generation hooks into it."""


def model_name(settings: Settings, model: str | None) -> str:
    """The model asked for, or the settings' own."""
    return model or settings.base_model


def source_of(settings: Settings, model: str | None) -> str:
    """Where the model is loaded from, in words that mean the same in another working directory."""
    name = model_name(settings, model)
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def identity_of(settings: Settings, model: str | None) -> BaseModelIdentity:
    """Which base model that is, without loading its weights."""
    return _identity(model_name(settings, model))


def description_of(settings: Settings, model: str | None) -> ModelDescription:
    """What one needs to know who only talks to the model: its tokenizer above all, and no weights."""
    return _description(model_name(settings, model))


def model_key(settings: Settings, model: str | None) -> dict[str, Any]:
    """All that makes the model's words what they are: its identity and how messages are put to it."""
    return identity_of(settings, model).model_dump(mode="json") | {"template": rendering_of(settings, model)}


def rendering_of(settings: Settings, model: str | None) -> str:
    """Digest of how messages are put to the model, without loading its weights."""
    return _rendering(model_name(settings, model))


def window_of(settings: Settings, model: str | None) -> int:
    """The model's longest sequence in tokens, without loading its weights."""
    from cartridge_core.models import read_layout

    return read_layout(model_name(settings, model)).max_positions


@contextmanager
def borrowed_model(settings: Settings, model: str | None, weights: str = "auto") -> Iterator[BaseModel]:
    """The base model, loaded at most once in a row; afterwards it is frozen and in evaluation mode, as it was before.

    One thread has it at a time; others wait.

    Args:
        settings: Device and threads.
        model: Hub id or folder; None for the settings' own.
        weights: The type that its weights are held in: `TrainingConfig.base_dtype`.
    """
    import torch

    with _LENT:
        threads = torch.get_num_threads()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        try:
            base = _loaded(model_name(settings, model), settings.device, weights)
            try:
                yield base
            finally:
                base.model.eval().requires_grad_(False)
        finally:
            torch.set_num_threads(threads)


# A chain of stages asks for it at every step, and finding it reads the weights' bytes.
@lru_cache(maxsize=8)
def _identity(model: str) -> BaseModelIdentity:
    from cartridge_core.models import identify

    return identify(model)


@lru_cache(maxsize=8)
def _rendering(model: str) -> str:
    from cartridge_core.models import load_tokenizer
    from cartridge_core.rendering import template_digest

    return template_digest(load_tokenizer(model))


@lru_cache(maxsize=2)
def _description(model: str) -> ModelDescription:
    from cartridge_core.model_description import describe_model

    return describe_model(model)


# One model at a time: two of the size that a user brings do not fit on one GPU.
@lru_cache(maxsize=1)
def _loaded(model: str, device: str, weights: str) -> BaseModel:
    from transformers.utils import logging

    from cartridge_core.models import REFERENCE_PATH
    from cartridge_core.training.base_weights import load_frozen_model

    if Path(model).is_dir() or model == REFERENCE_PATH.parent.name:
        # A bar for a local file's tensors is noise; that of a download is wanted.
        logging.disable_progress_bar()
    return load_frozen_model(model, device, weights)
