"""Asking a corpus through its Cartridge."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartridge_core.catalog import CHAMPION, CatalogEntry, catalog_session, find_cartridge, resolve
from cartridge_core.errors import NotFoundError
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import store_of
from cartridge_core.stages.local_copies import HeldCopy, LocalCopies
from cartridge_core.stages.model import borrowed_model

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge


@dataclass(frozen=True)
class Answer:
    """A reply through a Cartridge."""

    question: str
    """What was asked."""
    text: str
    """What the model said."""
    finished: bool
    """Whether it ended by itself; otherwise it was cut."""
    corpus: str
    """The corpus asked."""
    cartridge: str
    """Digest of the Cartridge that stood in for it."""
    version: int | None
    """Its version in the registry."""
    num_tokens: int
    """Its length in virtual tokens."""
    seconds: float
    """Wall time of the generation, without loading."""

    def as_json(self) -> dict[str, Any]:
        """The answer as JSON values."""
        return asdict(self)


def ask(
    settings: Settings,
    corpus: str,
    question: str,
    reference: str = CHAMPION,
    model: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
) -> Answer:
    """Put a question behind a corpus's Cartridge.

    Args:
        settings: Catalog, artifact store, device.
        corpus: Name of the corpus.
        question: The user's turn.
        reference: Alias, version or beginning of a digest; the champion where nobody says.
        model: Where the base model lies; None takes the one that the Cartridge names.
        max_new_tokens: Longest reply.
        temperature: 0 is greedy.

    Raises:
        NotFoundError: No such corpus, alias or version.
        BaseModelMismatchError: The base model is not the Cartridge's.
    """
    with catalog_session(settings, read_only=True) as session:
        # Of the two, `resolve` knows what to say where nothing was promoted yet.
        find = resolve if reference == CHAMPION else find_cartridge
        entry = find(session, settings.tenant, corpus, reference)
    cartridge = fetch(settings, entry)
    with borrowed_model(settings, model or _where(settings, entry)) as base:
        from cartridge_core.inference.generate import GenerationConfig, generate
        from cartridge_core.rendering import render_turns

        cartridge.check_base_model(base.identity)
        turns = [{"role": "user", "content": question}]
        prompt = render_turns(base.tokenizer, turns, add_generation_prompt=True).token_ids
        config = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature)
        started = time.perf_counter()
        reply = generate(base, cartridge.prefix(), [prompt], config)[0]
    return Answer(
        question=question,
        text=reply.text.strip(),
        finished=reply.finished,
        corpus=corpus,
        cartridge=entry.digest,
        version=entry.version,
        num_tokens=entry.num_tokens,
        seconds=round(time.perf_counter() - started, 3),
    )


def fetch(settings: Settings, entry: CatalogEntry) -> Cartridge:
    """The verified Cartridge of a catalog entry, from this machine's copy or else from the artifact store."""
    from cartridge_core.cartridge import Cartridge

    return LocalCopies(settings).read(entry.digest, stored_at(entry), Cartridge.load)


def held_copy(settings: Settings, entry: CatalogEntry) -> HeldCopy:
    """The verified files of a catalog entry on this machine, which stay until they are released."""
    fetch(settings, entry)
    return LocalCopies(settings).fetch(entry.digest, stored_at(entry))


def stored_at(entry: CatalogEntry) -> str:
    """The folder of a Cartridge's files in the artifact store.

    Raises:
        NotFoundError: It was deleted.
    """
    if entry.artifact_key is None:
        problem = f"Cartridge {entry.digest[:12]} of corpus '{entry.corpus}' was deleted."
        raise NotFoundError(problem, f"Ask another one: cartridge list {entry.corpus}")
    return entry.artifact_key


def _where(settings: Settings, entry: CatalogEntry) -> str:
    """Where to load the base model of an entry from: where it was trained on this machine, else by its name.

    A local model is named by its folder's name alone, so its path is known only to the digest store.
    """
    trained = [p for p in store_of(settings).finished("fit") if p.facts["digest"] == entry.digest]
    if trained:
        return str(trained[-1].facts["model"])
    own = settings.base_model
    return own if Path(own).name == entry.base_model.id else entry.base_model.id
