"""A teacher in this process: the base model itself, with the text's keys and values computed once."""

from collections.abc import Sequence

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import InferenceError, TeacherError
from cartridge_core.inference.generate import Generation, GenerationConfig, generate
from cartridge_core.inference.prefix import prefill
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids
from cartridge_core.teacher.prompts import turn_token_ids
from cartridge_core.teacher.protocol import Message, TeacherKind


class LocalTeacher:
    """Answers with a model in memory.

    It keeps the keys and values of the last text it was asked about, which is all that self-study needs: all
    conversations about a chunk follow each other.

    Args:
        base: The model.
        batch_size: Most conversations answered together; a matter of memory and speed.
    """

    kind: TeacherKind = "local"

    def __init__(self, base: BaseModel, batch_size: int = 64) -> None:
        self._base = base
        self._batch_size = batch_size
        self._read_last: tuple[str, PrefixKV] | None = None

    @property
    def identity(self) -> BaseModelIdentity:
        """The model's identity."""
        return self._base.identity

    def ask(
        self,
        context_text: str,
        conversations: Sequence[Sequence[Message]],
        config: GenerationConfig,
        seeds: Sequence[int],
    ) -> list[Generation]:
        """The next assistant turn of each conversation; see `Teacher.ask`.

        Raises:
            TeacherError: The text and a conversation do not fit into the model.
        """
        if not conversations:
            return []
        try:
            prefix = self._read(context_text)
            prompts = turn_token_ids(self._base.tokenizer, conversations)
            return generate(self._base, prefix, prompts, config, seeds, batch_size=self._batch_size)
        except InferenceError as error:
            raise TeacherError(error.problem, "Study smaller chunks (chunk.max_tokens).") from error

    def _read(self, text: str) -> PrefixKV:
        if self._read_last is None or self._read_last[0] != text:
            self._read_last = None  # the last text's memory is free before the next one needs its own
            token_ids = prefix_token_ids(self._base.tokenizer, text)
            self._read_last = (text, prefill(self._base, token_ids))
        return self._read_last[1]
