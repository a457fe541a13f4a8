"""The corpora that compositions are measured on: the two documents of one draw of the reference world.

One draw, so that no name is told about twice with different facts, and both fit the reference model's window together.
"""

from dataclasses import dataclass, replace

from cartridge_core.benchmarks import Question
from cartridge_core.reference.samples import SHORT, draw_sample
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, ingest
from cartridge_core.stages.quickstart_plan import SHORT_PLAN
from cartridge_core.stages.study import StudiedDataset, study

STUDY = SHORT_PLAN.study.model_copy(update={"num_conversations": SHORT_PLAN.study.num_conversations // 2})
TRAINING = SHORT_PLAN.training.model_copy(update={"num_tokens": SHORT_PLAN.training.num_tokens // 2})
MODEL = SHORT_PLAN.model


@dataclass(frozen=True)
class HalfCorpus:
    """One of the two corpora, and what it is examined in."""

    corpus: IngestedCorpus
    questions: tuple[Question, ...]

    def studied(self, settings: Settings) -> StudiedDataset:
        """Its study, as the quickstart does it at half the size, or found."""
        return study(settings, self.corpus, STUDY, self.questions, MODEL)


def halves(settings: Settings, seed: str) -> tuple[HalfCorpus, HalfCorpus]:
    """Draw both corpora and add them to the store.

    Args:
        settings: Name the digest store.
        seed: Which draw.
    """
    documents, questions = draw_sample(replace(SHORT, seed=seed, scale=replace(SHORT.scale, documents=2)))
    first, second = (
        HalfCorpus(
            _ingested(settings, f"{seed}-{name}", f"# {document.title}\n\n{document.text}\n"),
            tuple(q for q in questions if q.metadata["name"] in {fact.name for fact in document.facts}),
        )
        for name, document in zip(("first", "second"), documents, strict=True)
    )
    return first, second


def _ingested(settings: Settings, name: str, text: str) -> IngestedCorpus:
    folder = settings.home / "samples" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "document.md").write_text(text, encoding="utf-8")
    return ingest(settings, name, [folder])
