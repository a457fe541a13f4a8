"""What makes a training run the run it is: its checkpoints are of use to no other."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import TrainingError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.training.config import TrainingConfig


class RunIdentity(BaseModel):
    """The inputs that decide a run's tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: str
    """Who the corpus belongs to."""
    corpus: str
    """The corpus's digest."""
    dataset: str | None
    """Digest of the study's manifest; None for next-token training."""
    base_model: BaseModelIdentity
    """The frozen model."""
    template: str
    """`rendering.template_digest` of its tokenizer."""
    config: dict[str, Any]
    """`TrainingConfig.recipe()`."""

    @classmethod
    def of(
        cls,
        tenant: str,
        corpus: Corpus,
        dataset: ConversationDataset | None,
        base_model: BaseModelIdentity,
        template: str,
        config: TrainingConfig,
    ) -> "RunIdentity":
        """The identity of a run with these inputs."""
        return cls(
            tenant=tenant,
            corpus=corpus.digest,
            dataset=dataset.manifest.digest if dataset is not None else None,
            base_model=base_model,
            template=template,
            config=config.recipe(),
        )

    def check(self, found: "RunIdentity", where: str) -> None:
        """Refuse what belongs to another run.

        Args:
            found: The identity that was found.
            where: In which folder, for the message.

        Raises:
            TrainingError: Names what differs, with both values.
        """
        ours, theirs = _flat(self.model_dump(mode="json")), _flat(found.model_dump(mode="json"))
        differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if differing:
            told = "; ".join(f"{name} was {theirs.get(name)!r}, is {ours.get(name)!r}" for name in differing)
            raise TrainingError(
                f"{where} belongs to another training run: {told}.",
                "Train in another folder, or remove this one to begin anew.",
            )


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat
