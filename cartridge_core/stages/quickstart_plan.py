"""What the quickstart does, in numbers: one plan for the shipped sample, one for a corpus twice the model's window."""

from dataclasses import dataclass

from cartridge_core.corpus.chunking import ChunkConfig
from cartridge_core.evaluation import EvaluationConfig
from cartridge_core.publishing import PromotionGate
from cartridge_core.reference.samples import LONG, SHORT, Sample
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.training.config import TrainingConfig

Asked = dict[str, dict[str, float]]
"""Name of a figure to `{"at_least": number}` or `{"at_most": number}`."""


@dataclass(frozen=True)
class QuickstartPlan:
    """One quickstart from documents to an answer."""

    target: str
    """Name of the run: of its corpus and of its report."""
    sample: Sample
    """Which documents and questions."""
    study: SelfStudyConfig
    """How the corpus is studied."""
    training: TrainingConfig
    """How the Cartridge is distilled."""
    next_token_learning_rates: tuple[float, ...]
    """Learning rates of the next-token baseline, of which the best counts; none leaves the baseline out."""
    evaluation: EvaluationConfig
    """How the questions are put."""
    gate: PromotionGate
    """What the Cartridge must show to be promoted."""
    asked: Asked
    """What the figures must show."""
    model: str = "reference"
    """Base model."""


def _study(num_conversations: int) -> SelfStudyConfig:
    # Short chunks, because the reference model answers best about those, and many conversations on each.
    chunk = ChunkConfig(min_tokens=256, max_tokens=512)
    return SelfStudyConfig(
        num_conversations=num_conversations, conversations_per_chunk=48, max_tokens_a=48, max_tokens_b=96, chunk=chunk
    )


SHORT_PLAN = QuickstartPlan(
    target="quickstart",
    sample=SHORT,
    study=_study(3072),
    # Two windows predict about as many tokens as 32 answers of the study do, some 500 a step.
    training=TrainingConfig(num_tokens=80, steps=450, eval_every=75, windows_per_batch=2),
    next_token_learning_rates=(0.3, 1.0, 3.0),
    evaluation=EvaluationConfig(max_new_tokens=32),
    gate=PromotionGate(min_share_of_icl=0.95),
    asked={
        "memory_ratio": {"at_least": 38.6},
        "self_study_over_icl": {"at_least": 0.95},
        "self_study_minus_next_token": {"at_least": 0.2},
        "self_study_minus_icl_truncated": {"at_least": 0.2},
        "n_questions": {"at_least": 200},
        "seconds": {"at_most": 480},
    },
)
"""About 3,000 tokens, two CPU cores, minutes."""

LONG_PLAN = QuickstartPlan(
    target="quickstart-long",
    sample=LONG,
    study=_study(12288),
    training=TrainingConfig(num_tokens=384, steps=4500, eval_every=250),
    next_token_learning_rates=(),
    evaluation=EvaluationConfig(max_new_tokens=32, allow_overflow=True),
    gate=PromotionGate(min_score_without_icl=0.85),
    asked={
        "corpus_over_window": {"at_least": 2.0},
        "cartridge_tokens": {"at_most": 400},
        "self_study_accuracy": {"at_least": 0.85},
        "n_questions": {"at_least": 200},
        "seconds": {"at_most": 1200},
    },
)
"""Twice the model's window: in-context learning cannot hold it."""
