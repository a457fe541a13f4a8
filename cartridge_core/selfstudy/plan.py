"""The plan of a study: everything its conversations depend on, written before the first of them is made."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from cartridge_core.atomic_file import atomic_file
from cartridge_core.digest import digest_of
from cartridge_core.errors import DatasetError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.prompts import SYSTEM_TEMPLATE
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.focus import FOCUS_RULE, FOCUS_TEMPLATE
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.seeds import SEED_FAMILIES
from cartridge_core.teacher.protocol import TeacherKind

PLAN_FILE = "plan.json"


def prompts_digest(families: Iterable[str]) -> str:
    """sha256 over the system message around a chunk, the seed prompts of these families and what they point at."""
    seed_prompts = {family: SEED_FAMILIES[family] for family in families}
    return digest_of({"system": SYSTEM_TEMPLATE, "focus": [FOCUS_TEMPLATE, FOCUS_RULE], "seeds": seed_prompts})


class StudyPlan(BaseModel):
    """Everything that the conversations depend on: equal plans give equal conversations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    """Layout of the shards and of this record."""
    corpus_digest: str
    """The corpus that is studied."""
    base_model: BaseModelIdentity
    """The teacher's model, whose tokens and probabilities are kept."""
    template_digest: str
    """The rendering that puts messages behind a Cartridge."""
    prompts_digest: str
    """The system message around a chunk and the seed prompts in use."""
    held_out_digest: str | None
    """The questions that are reserved for evaluation; None where there are none."""
    config: SelfStudyConfig
    """How the corpus is studied."""
    teacher: TeacherKind = "local"
    """What runs the teacher's model. How many servers it is, and where, changes nothing."""

    @model_serializer(mode="wrap")
    def _without_the_ordinary(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out rather than said: plans written before there were others keep their digests.
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if (name, value) != ("teacher", "local")}

    @property
    def digest(self) -> str:
        """sha256 of the canonical plan; every shard carries it."""
        return digest_of(self.model_dump(mode="json"))

    @classmethod
    def build(
        cls,
        corpus_digest: str,
        base_model: BaseModelIdentity,
        template_digest: str,
        config: SelfStudyConfig,
        held_out_questions: Iterable[str] = (),
        teacher: TeacherKind = "local",
    ) -> Self:
        """The plan for these inputs."""
        held_out = sorted({question_key(question) for question in held_out_questions})
        return cls(
            corpus_digest=corpus_digest,
            base_model=base_model,
            template_digest=template_digest,
            prompts_digest=prompts_digest(config.families),
            held_out_digest=digest_of(held_out) if held_out else None,
            config=config,
            teacher=teacher,
        )

    def claim(self, folder: Path) -> None:
        """Make a folder this study's own, or find that it already is.

        Raises:
            DatasetError: The folder holds another study.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PLAN_FILE
        if not path.exists():
            with atomic_file(path) as stream:
                stream.write(self.model_dump_json(indent=2).encode() + b"\n")
            return
        try:
            found = StudyPlan.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DatasetError(f"{path} is no plan of a study.", "Give an empty folder.") from error
        if found != self:
            differing = [name for name in type(self).model_fields if getattr(found, name) != getattr(self, name)]
            raise DatasetError(
                f"{folder} holds another study: it differs in {', '.join(differing)}.",
                "Give another folder, or the inputs that the study was begun with.",
            )
