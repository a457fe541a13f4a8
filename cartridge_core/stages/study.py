"""Stage 2: a model studies the corpus; its conversations become a distillation dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.benchmarks import Question, questions_digest
from cartridge_core.errors import NotFoundError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.plan import prompts_digest
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, find_corpus, store_of
from cartridge_core.stages.model import model_key
from cartridge_core.stages.steps import Spread
from cartridge_core.stages.store import Facts, Finished
from cartridge_core.stages.teacher import teacher_key

if TYPE_CHECKING:
    from cartridge_core.dataset import ConversationDataset


@dataclass(frozen=True)
class StudiedDataset:
    """A conversation dataset in the digest store."""

    product: Finished
    """Where it lies and how it was made."""

    @property
    def digest(self) -> str:
        """Digest of the dataset's manifest."""
        return str(self.product.facts["digest"])

    def load(self) -> ConversationDataset:
        """The conversations."""
        from cartridge_core.dataset import ConversationDataset

        return ConversationDataset.load(self.product.directory)


def study(
    settings: Settings,
    corpus: IngestedCorpus,
    config: SelfStudyConfig,
    held_out: Sequence[Question] = (),
    model: str | None = None,
    progress: Progress = no_progress,
    spread: Spread | None = None,
) -> StudiedDataset:
    """Let the model ask and answer about random chunks of the corpus; a killed run goes on where it stopped.

    Args:
        settings: Store, device, default model, teachers.
        corpus: What is studied.
        config: How many conversations, of which kinds.
        held_out: Evaluation questions; a conversation that asks one of them is left out.
        model: Hub id or folder; None for the settings' own.
        progress: Told about conversations.
        spread: Does the shards somewhere; None makes them here: one after the other, or several at once where servers
            teach. The dataset is the same.

    Raises:
        TeacherError: The model gave nothing usable, or the servers cannot be used.
    """
    inputs = {
        "corpus": corpus.digest,
        "base_model": model_key(settings, model),
        "config": config.model_dump(mode="json"),
        "prompts": prompts_digest(config.families),
        "held_out": questions_digest(held_out) if held_out else None,
    } | teacher_key(settings)

    def work(directory: Path) -> Facts:
        from cartridge_core.stages.study_shard import study_shards

        manifest = study_shards(settings, corpus, config, held_out, model, directory, progress, spread)
        return {
            "digest": manifest.digest,
            "num_conversations": manifest.num_conversations,
            "num_target_tokens": manifest.num_target_tokens,
            "counts": dict(manifest.counts),
        }

    return StudiedDataset(store_of(settings).run("study", inputs, work, resumable=True))


def datasets(settings: Settings, corpus: IngestedCorpus) -> list[StudiedDataset]:
    """All datasets about a corpus version, the oldest first."""
    products = store_of(settings).finished("study")
    return [StudiedDataset(product) for product in products if product.inputs["corpus"] == corpus.digest]


def find_dataset(settings: Settings, corpus: IngestedCorpus, digest: str = "") -> StudiedDataset:
    """The newest dataset about a corpus version, or the one whose digest begins with `digest`.

    Raises:
        NotFoundError: There is none.
    """
    matching = [dataset for dataset in datasets(settings, corpus) if dataset.digest.startswith(digest)]
    if not matching:
        which = f"no dataset {digest}" if digest else "not been studied"
        problem = f"Corpus '{corpus.name}' ({corpus.digest[:12]}) has {which}."
        raise NotFoundError(problem, f"Study it with: cartridge synthesize {corpus.name}")
    return matching[-1]


def newest_studies(
    settings: Settings, names: Sequence[str], model: str | None = None
) -> list[tuple[IngestedCorpus, StudiedDataset]]:
    """Corpora as they were last read, each with the newest study that this base model made of it.

    Where only other models studied one, that study is taken: who trains on it refuses it by name.

    Raises:
        NotFoundError: There is no such corpus, it was withdrawn, or nobody studied it.
    """
    key, found = model_key(settings, model), []
    for corpus in (find_corpus(settings, name) for name in names):
        own = [one for one in datasets(settings, corpus) if one.product.inputs["base_model"] == key]
        found.append((corpus, own[-1] if own else find_dataset(settings, corpus)))
    return found
