"""What stands behind a Cartridge, in tokens: rendered in the gateway's own process, without the model's weights."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from cartridge_core.chat_format import encode
from cartridge_core.corpus import Corpus
from cartridge_core.errors import CartridgeError, RenderingError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.model_description import describe_model
from cartridge_core.rendering import bare_prefix_token_ids, prefix_token_ids, render_turns
from cartridge_core.serving.errors import BadRequestError, NotLoadedError
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import find_corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

PromptKind = Literal["chat", "text", "tokens"]
"""What a prompt was before it was tokens."""

_CORPORA_KEPT = 8


@dataclass(frozen=True)
class ServedModel:
    """The gateway's base model, without its weights."""

    identity: BaseModelIdentity
    tokenizer: "PreTrainedTokenizerBase"
    """Used by the renderer's thread alone."""
    max_positions: int
    vocab_size: int
    """Token ids are below it."""


def read_served_model(id_or_path: str, window: int | None = None) -> ServedModel:
    """The base model that a gateway is for; its weights are not loaded, nor is torch.

    Args:
        id_or_path: Hub id or folder.
        window: Longest sequence in tokens, where that is less than the model's own.

    Raises:
        CartridgeError: It cannot be found, reached or read.
    """
    found = describe_model(id_or_path)
    longest = found.max_positions if window is None else min(window, found.max_positions)
    return ServedModel(found.identity, found.tokenizer, longest, len(found.tokenizer))


class PromptRenderer:
    """Turns messages and texts into tokens.

    Args:
        model: The gateway's base model.
        settings: Name the digest store, where corpora for in-context answers are.
    """

    def __init__(self, model: ServedModel, settings: Settings) -> None:
        self._model, self._settings = model, settings
        # One thread: a tokenizer is no good in two, and long prompts must not hold up the event loop.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")
        self._corpora: OrderedDict[tuple[str, tuple[tuple[str, str], ...]], list[int]] = OrderedDict()

    async def chat(self, turns: list[dict[str, str]]) -> list[int]:
        """The turns of a conversation, as `render_turns` takes them.

        Raises:
            BadRequestError: Its roles are not in turn.
        """
        return await self._threaded(lambda: self._turns(turns))

    async def text(self, prompt: str | list[int]) -> list[int]:
        """A text as it stands.

        Raises:
            BadRequestError: It is empty, or a token is not in the vocabulary.
        """
        if isinstance(prompt, str):
            ids = await self._threaded(lambda: encode(self._model.tokenizer, prompt)[0])
        elif any(token >= self._model.vocab_size for token in prompt):
            raise BadRequestError(
                f"A token of the prompt is not below {self._model.vocab_size}, the vocabulary's size.", param="prompt"
            )
        else:
            ids = prompt
        if not ids:
            raise BadRequestError("The prompt is empty.", "Send at least one token.", param="prompt")
        return ids

    async def nothing(self, kind: PromptKind) -> list[int]:
        """What stands in front of a prompt where there is no corpus: BOS where the model has one.

        A chat's template may want the user turn's opening too; tokens of the caller's own are left as they are.
        """
        tokenizer = self._model.tokenizer
        if kind == "chat":
            return await self._threaded(lambda: bare_prefix_token_ids(tokenizer))
        return [] if kind == "tokens" or tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]

    async def corpora(self, tenant: str, named: Sequence[tuple[str, str]]) -> list[int]:
        """The system message that wraps whole corpora, one behind the other.

        Args:
            tenant: Whose corpora.
            named: Name and version of each; the newest version where it is empty.

        Raises:
            NotLoadedError: Documents are not on this machine.
        """
        return await self._threaded(lambda: self._wrapped(tenant, tuple(named)))

    def close(self) -> None:
        """Stop rendering."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _threaded(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _turns(self, turns: list[dict[str, str]]) -> list[int]:
        try:
            return render_turns(self._model.tokenizer, turns, add_generation_prompt=True).token_ids
        except RenderingError as error:
            raise BadRequestError(error.problem, error.remedy, param="messages") from error

    def _wrapped(self, tenant: str, named: tuple[tuple[str, str], ...]) -> list[int]:
        key = (tenant, named)
        if not all(digest for _, digest in named) or key not in self._corpora:
            settings = self._settings.model_copy(update={"tenant": tenant})
            try:
                found = [find_corpus(settings, *corpus) for corpus in named]
                key = (tenant, tuple((corpus.name, corpus.digest) for corpus in found))
                if key not in self._corpora:
                    text = Corpus.joined([corpus.load() for corpus in found]).text()
                    self._corpora[key] = prefix_token_ids(self._model.tokenizer, text)
            except CartridgeError as error:
                names = "+".join(name for name, _ in named)
                raise NotLoadedError(
                    f"The documents of corpus {names!r} are not on this machine, so they cannot stand in the prompt.",
                    "Leave cartridge_fallback out, or add the corpus here.",
                ) from error
        self._corpora.move_to_end(key)
        while len(self._corpora) > _CORPORA_KEPT:
            self._corpora.popitem(last=False)
        return self._corpora[key]
