"""Teachers behind HTTP: one or several vLLM servers with the base model (OpenAI's completions, in token ids)."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import httpx
from pydantic import SecretStr

from cartridge_core.digest import sha256_text
from cartridge_core.errors import TeacherError
from cartridge_core.inference.generate import Generation, GenerationConfig
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.model_description import ModelDescription
from cartridge_core.rendering import prefix_token_ids, turn_end_ids
from cartridge_core.teacher.completion import Completion
from cartridge_core.teacher.event_loop import LoopThread
from cartridge_core.teacher.prompts import turn_token_ids
from cartridge_core.teacher.protocol import Message, TeacherKind
from cartridge_core.teacher.server import ServerFailed, TeacherServer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenAIConfig:
    """Bounds of what is asked."""

    max_outstanding: int = 128
    """Most turns asked of one server at once; the others wait here."""
    timeout_s: float = 600.0
    """Seconds after which a turn that is not written is asked of another server."""
    connect_timeout_s: float = 5.0
    """Seconds after which a server that cannot be connected to is down."""
    attempts: int = 10
    """How often a turn is asked for. Where there is no other server, pauses between them add up to two minutes."""


class OpenAITeacher:
    """Answers with vLLM servers. A context manager, which any number of threads may ask.

    Whole prompts are sent as token ids, rendered as for the in-process teacher. All conversations about a text go to
    one server, whose prefix cache then has the text; if it fails, the next one takes over. Texts are spread over
    servers by their digest, so that nobody has to keep count.

    Args:
        model: The base model, described without its weights.
        urls: Root addresses of servers that serve it, at least one.
        key: Their API key.
        config: Bounds.
    """

    kind: TeacherKind = "openai"

    def __init__(
        self,
        model: ModelDescription,
        urls: Sequence[str],
        key: SecretStr | None = None,
        config: OpenAIConfig | None = None,
    ) -> None:
        self._model, self._urls, self._key = model, tuple(urls), key
        self._config = config or OpenAIConfig()
        self._ends = sorted(model.eos_ids | turn_end_ids(model.tokenizer))

    @property
    def identity(self) -> BaseModelIdentity:
        """The model's identity, which the servers cannot prove: they say its name only."""
        return self._model.identity

    def __enter__(self) -> Self:
        self._loop = LoopThread()
        self._loop.call(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.close(self._client.aclose())

    async def _open(self) -> None:
        config = self._config
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {},
            timeout=httpx.Timeout(config.timeout_s, connect=config.connect_timeout_s, pool=None),
            # Less than vLLM's five seconds: a connection must not be closed there while it is being used here.
            limits=httpx.Limits(keepalive_expiry=3.0),
        )
        self._servers = [TeacherServer(url, self._model, self._client, config.max_outstanding) for url in self._urls]

    def check(self, config: GenerationConfig, context_tokens: int) -> None:
        """Find out before a study whether the servers can do what it will ask; those that are down are only told of.

        Args:
            config: How answers will be generated.
            context_tokens: Length of the longest text.

        Raises:
            TeacherError: A server serves another model or cannot do what is asked, or none answers.
        """
        greeting = self._completion(prefix_token_ids(self._model.tokenizer, "x"), config, 0)
        filled = min(context_tokens + config.max_new_tokens, self._model.max_positions)
        self._loop.call(self._check(replace(greeting, max_tokens=1), filled))

    def ask(
        self,
        context_text: str,
        conversations: Sequence[Sequence[Message]],
        config: GenerationConfig,
        seeds: Sequence[int],
    ) -> list[Generation]:
        """The next assistant turn of each conversation; see `Teacher.ask`.

        Raises:
            TeacherError: The text and a conversation do not fit into the model, a server refuses them or serves another
                model, or no server answers.
        """
        head = prefix_token_ids(self._model.tokenizer, context_text)
        turns = turn_token_ids(self._model.tokenizer, conversations)
        asked = [self._completion([*head, *turn], config, seed) for turn, seed in zip(turns, seeds, strict=True)]
        home = int(sha256_text(context_text)[:8], 16) % len(self._servers)
        return self._loop.call(self._answers(asked, home))

    def _completion(self, prompt: Sequence[int], config: GenerationConfig, seed: int) -> Completion:
        room = self._model.max_positions - len(prompt)
        if room <= 0:
            positions = self._model.max_positions
            raise TeacherError(
                f"A conversation has {len(prompt)} tokens; {self.identity.id} has {positions} positions.",
                "Study smaller chunks (chunk.max_tokens).",
            )
        return Completion(
            prompt_token_ids=prompt,
            ends=self._ends,
            max_tokens=min(config.max_new_tokens, room),
            temperature=config.temperature,
            top_k=config.top_k_logprobs,
            seed=seed,
        )

    async def _check(self, greeting: Completion, num_tokens: int) -> None:
        checks = [server.check(greeting, num_tokens) for server in self._servers]
        found = await asyncio.gather(*checks, return_exceptions=True)
        failed = []
        for url, error in zip(self._urls, found, strict=True):
            if isinstance(error, ServerFailed):
                failed.append(f"{url} {error}")
            elif error is not None:
                raise error
        if len(failed) == len(self._urls):
            raise TeacherError(f"No teacher can be asked: {'; '.join(failed)}.", "Start vLLM, or name other servers.")
        for problem in failed:
            log.warning("Teacher %s; the others are asked.", problem)

    async def _answers(self, asked: Sequence[Completion], home: int) -> list[Generation]:
        try:
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(self._answer(one, home)) for one in asked]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [answer.result() for answer in answers]

    async def _answer(self, asked: Completion, home: int) -> Generation:
        in_order = [*self._servers[home:], *self._servers[:home]]
        problem = ""
        for _ in range(self._config.attempts):
            now = time.monotonic()
            server = min(in_order, key=lambda server: max(server.rests_until, now))
            await asyncio.sleep(max(0.0, server.rests_until - now))
            try:
                return await server.answer(asked)
            except ServerFailed as error:
                problem = f"{server.url} {error}"
        raise TeacherError(
            f"No teacher answered in {self._config.attempts} attempts; the last: {problem}.",
            "Look at the servers. What is finished stays; the same command goes on from there.",
        )
