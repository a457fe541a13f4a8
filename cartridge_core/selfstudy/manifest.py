"""The manifest of a conversation dataset: written last, and the only thing a reader trusts."""

from collections import Counter
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cartridge_core.atomic_file import atomic_file
from cartridge_core.digest import digest_of, sha256_file
from cartridge_core.errors import DatasetError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import OUTCOMES
from cartridge_core.selfstudy.plan import StudyPlan
from cartridge_core.selfstudy.shard import read_summary, shard_file

MANIFEST_FILE = "manifest.json"


class ShardEntry(BaseModel):
    """One file of the dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Name in the dataset's folder."""
    sha256: str
    """Digest of the file."""
    num_samples: int
    """Samples in it, dropped ones included."""


class DatasetManifest(BaseModel):
    """What a dataset of conversations was made from, what is in it and what was dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    """Layout of the dataset."""
    plan: StudyPlan
    """Everything the conversations depend on."""
    counts_by_family: dict[str, dict[str, int]]
    """Samples by seed family and outcome: kept, or why not."""
    num_tokens: int
    """Tokens of the kept conversations."""
    num_target_tokens: int
    """Tokens of their answers: what is trained on."""
    mean_tail_mass: float
    """Mean over answer tokens of the teacher's probability outside the top k."""
    shards: tuple[ShardEntry, ...]
    """The files, in the order of their samples."""

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest, which holds the files' own: the dataset's identity."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def counts(self) -> dict[str, int]:
        """Samples by outcome, in the order in which a sample meets them."""
        total: Counter[str] = Counter()
        for of_family in self.counts_by_family.values():
            total.update(of_family)
        return {outcome: total[outcome] for outcome in OUTCOMES if total[outcome]}

    @property
    def num_conversations(self) -> int:
        """Kept conversations."""
        return self.counts.get("kept", 0)

    @property
    def unfinished(self) -> dict[str, int]:
        """Samples by seed family whose question or answer did not end within its limit."""
        return {
            family: outcomes.get("question_unfinished", 0) + outcomes.get("answer_unfinished", 0)
            for family, outcomes in self.counts_by_family.items()
        }

    @property
    def corpus_digest(self) -> str:
        """The corpus that was studied."""
        return self.plan.corpus_digest

    @property
    def base_model(self) -> BaseModelIdentity:
        """The teacher's model."""
        return self.plan.base_model

    @property
    def template_digest(self) -> str:
        """The rendering of the conversations."""
        return self.plan.template_digest

    @property
    def config(self) -> SelfStudyConfig:
        """How the corpus was studied."""
        return self.plan.config

    @classmethod
    def of_folder(cls, folder: Path, plan: StudyPlan) -> Self:
        """The manifest for the shards in a folder.

        Raises:
            DatasetError: A shard is missing or damaged.
        """
        names = [shard_file(index) for index in range(plan.config.num_shards)]
        summaries = [read_summary(folder / name) for name in names]
        counts: dict[str, Counter[str]] = {family: Counter() for family in plan.config.families}
        for summary in summaries:
            for family, of_family in summary.counts.items():
                counts[family].update(of_family)
        targets = sum(summary.num_target_tokens for summary in summaries)
        return cls(
            plan=plan,
            counts_by_family={family: dict(outcomes) for family, outcomes in counts.items()},
            num_tokens=sum(summary.num_tokens for summary in summaries),
            num_target_tokens=targets,
            mean_tail_mass=sum(summary.tail_mass for summary in summaries) / max(targets, 1),
            shards=tuple(
                ShardEntry(file=name, sha256=sha256_file(folder / name), num_samples=summary.num_samples)
                for name, summary in zip(names, summaries, strict=True)
            ),
        )

    def save(self, folder: Path) -> None:
        """Write the manifest; from then on the dataset is complete."""
        with atomic_file(folder / MANIFEST_FILE) as stream:
            stream.write(self.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of a complete dataset. The files themselves are not looked at; see `damaged_files`.

        Raises:
            DatasetError: There is none, or it is of another format.
        """
        path = folder / MANIFEST_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DatasetError(
                f"{folder} holds no complete dataset: {MANIFEST_FILE} is missing.", "Run the study again; it resumes."
            ) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DatasetError(f"{path} cannot be used: {where}: {first['msg']}.", "Make the dataset again.") from error

    def damaged_files(self, folder: Path) -> list[str]:
        """Names of the files that are missing or do not match their digest."""
        paths = {entry.file: folder / entry.file for entry in self.shards}
        return [
            entry.file
            for entry in self.shards
            if not paths[entry.file].is_file() or sha256_file(paths[entry.file]) != entry.sha256
        ]
