"""The two endpoints that answer: chat and text, whole and streamed."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from cartridge_core.serving.answering import Answerer, Answering, Front, Prompt
from cartridge_core.serving.caller import Caller
from cartridge_core.serving.engine import Piece
from cartridge_core.serving.errors import ServingError
from cartridge_core.serving.metrics import Metrics
from cartridge_core.serving.openai_types import ChatRequest, CompletionRequest, GenerationFields
from cartridge_core.serving.prompt import PromptKind
from cartridge_core.serving.replies import ChatReply, Choice, Reply, TextReply, Usage, error_reply
from cartridge_core.serving.request_log import NOT_ANSWERED, RequestRecord
from cartridge_core.serving.sampling_params import SamplingParams
from cartridge_core.serving.tools import Calling, turns

T = TypeVar("T")

_DEFAULT_COMPLETION_TOKENS = 16
_LOOK_EVERY_S = 0.2
"""How often a waiting request looks whether its caller is still there."""


@dataclass(frozen=True)
class _Ready:
    """A request whose answers have begun."""

    answers: list[Answering]
    prompts: list[Prompt]
    reply: Reply
    usage: Usage
    record: RequestRecord

    @property
    def num_choices(self) -> int:
        return sum(prompt.n for prompt in self.prompts)


class Completions:
    """Answers chat and text requests.

    Args:
        answerer: Makes pieces.
        metrics: Where numbers go.
    """

    def __init__(self, answerer: Answerer, metrics: Metrics) -> None:
        self._answerer, self._metrics = answerer, metrics

    async def chat(self, request: Request, body: ChatRequest, caller: Caller) -> Response:
        """POST /v1/chat/completions.

        Raises:
            ServingError: Before the first token.
        """
        calling = Calling.of(body)
        front = await self._front(request, body, caller, "chat")
        ids = await self._answerer.renderer.chat(turns(body.messages, calling))
        wanted = body.max_completion_tokens or body.max_tokens or 0
        prompt = _prompt(body, ids, wanted, body.num_logprobs(), "chat")
        if calling is not None:
            held = calling.response_format()
            extra = prompt.extra if held is None else prompt.extra | {"response_format": held}
            prompt = replace(prompt, calling=calling, extra=extra)
        return await self._answer(request, body, caller, front, [prompt], ChatReply)

    async def text(self, request: Request, body: CompletionRequest, caller: Caller) -> Response:
        """POST /v1/completions.

        Raises:
            ServingError: Before the first token.
        """
        prompts = body.prompts()
        kind: PromptKind = "text" if isinstance(prompts[0], str) else "tokens"
        front = await self._front(request, body, caller, kind)
        wanted = body.max_tokens or _DEFAULT_COMPLETION_TOKENS
        rendered = [await self._answerer.renderer.text(prompt) for prompt in prompts]
        made = [_prompt(body, ids, wanted, body.logprobs, kind) for ids in rendered]
        return await self._answer(request, body, caller, front, made, TextReply)

    async def _front(self, request: Request, body: GenerationFields, caller: Caller, kind: PromptKind) -> Front:
        record: RequestRecord = request.state.record
        record.fields["model"] = body.model
        front = await self._answerer.front(caller, body, kind)
        record.corpus = front.corpus
        return front

    async def _answer(
        self,
        request: Request,
        body: GenerationFields,
        caller: Caller,
        front: Front,
        prompts: list[Prompt],
        form: type[Reply],
    ) -> Response:
        record: RequestRecord = request.state.record
        begun = await _while_there(request, self._begin_all(caller, body, front, prompts, record.request_id))
        if begun is None:
            return Response(status_code=NOT_ANSWERED)
        front = begun[0].front
        self._first_token(record, front)
        usage = Usage(
            sum(len(prompt.token_ids) for prompt in prompts),
            front.cartridge_tokens,
            len(front.token_ids) if front.served == "icl" else 0,
        )
        with_logprobs = prompts[0].sampling.logprobs is not None
        reply = form(record.request_id, body.model, front.describe(), with_logprobs)
        ready = _Ready(begun, prompts, reply, usage, record)
        headers = _headers(front)
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(
                self._events(ready, with_usage), headers=headers, media_type="text/event-stream; charset=utf-8"
            )
        whole = await _while_there(request, self._whole(ready))
        return Response(status_code=NOT_ANSWERED) if whole is None else JSONResponse(whole, headers=headers)

    async def _begin_all(
        self, caller: Caller, body: GenerationFields, front: Front, prompts: list[Prompt], request_id: str
    ) -> list[Answering]:
        answers = await self._begin_each(caller, body, front, prompts, request_id)
        instead = [answer.front for answer in answers if answer.front.served != front.served]
        if not instead or len(instead) == len(answers):
            return answers
        # A reply says once what stood in front: where something stood in for the Cartridge of some, it does for all.
        for answer in answers:
            await answer.close()
        return await self._begin_each(caller, body, instead[0], prompts, request_id)

    async def _begin_each(
        self, caller: Caller, body: GenerationFields, front: Front, prompts: list[Prompt], request_id: str
    ) -> list[Answering]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._begin(caller, body, front, prompt, request_id)) for prompt in prompts]
        answers = [task.result() for task in tasks]
        for answer in answers:
            if isinstance(answer, ServingError):
                for other in answers:
                    if isinstance(other, Answering):
                        await other.close()
                raise answer
        return [answer for answer in answers if isinstance(answer, Answering)]

    async def _begin(
        self, caller: Caller, body: GenerationFields, front: Front, prompt: Prompt, request_id: str
    ) -> Answering | ServingError:
        # As a value: a task group would wrap it, and the others' answers have to be closed.
        try:
            return await self._answerer.begin(caller, body, front, prompt, request_id)
        except ServingError as error:
            return error

    async def _whole(self, ready: _Ready) -> dict[str, Any]:
        choices = [Choice() for _ in range(ready.num_choices)]
        try:
            async with aclosing(_merged(ready)) as pieces:
                async for piece in pieces:
                    ready.usage.completion_tokens += piece.num_tokens
                    choices[piece.index].add(piece)
        finally:
            self._count(ready)
        return ready.reply.whole(choices, ready.usage)

    async def _events(self, ready: _Ready, with_usage: bool) -> AsyncIterator[str]:
        reply, offsets = ready.reply, defaultdict[int, int](int)
        nothing: dict[str, Any] = {"usage": None} if with_usage else {}
        try:
            for chunk in reply.opening(ready.num_choices):
                yield _event(chunk | nothing)
            async with aclosing(_merged(ready)) as pieces:
                async for piece in pieces:
                    ready.usage.completion_tokens += piece.num_tokens
                    if not (piece.text or piece.logprobs or piece.tool_call or piece.finish_reason):
                        continue
                    delta = reply.delta(piece, offsets[piece.index])
                    offsets[piece.index] += len(piece.text)
                    yield _event(reply.chunk([delta]) | nothing)
            if with_usage:
                yield _event(reply.chunk([], ready.usage.as_json()))
        except ServingError as error:
            # The status line is long gone; SDKs look for this.
            ready.record.fields["error"] = error.code
            yield _event(error_reply(error))
        else:
            # Said of whole answers alone: who looks for nothing else must not take a part for one.
            yield "data: [DONE]\n\n"
        finally:
            self._count(ready)

    def _first_token(self, record: RequestRecord, front: Front) -> None:
        seconds = time.perf_counter() - record.started
        self._metrics.first_token.labels(record.tenant, record.corpus).observe(seconds)
        record.fields |= {"ttft": round(seconds, 4), "served": front.served}
        if front.cartridges:
            record.fields |= {
                "version": "+".join(str(cartridge.version) for cartridge in front.cartridges),
                "digest": "+".join(cartridge.digest[:12] for cartridge in front.cartridges),
            }
        if front.served == "cartridge":
            saved = sum(cartridge.icl_tokens or 0 for cartridge in front.cartridges)
            self._metrics.saved.labels(record.tenant, record.corpus).inc(saved)
        elif front.reason is not None:
            record.fields["fallback_reason"] = front.reason.code
            self._metrics.fallbacks.labels(front.served, record.tenant, record.corpus).inc()

    def _count(self, ready: _Ready) -> None:
        record, usage = ready.record, ready.usage
        record.fields |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("completion", usage.completion_tokens),
            ("cartridge", usage.cartridge_tokens),
        ):
            self._metrics.tokens.labels(kind, record.tenant, record.corpus).inc(count)


def _prompt(body: GenerationFields, ids: Sequence[int], wanted: int, logprobs: int | None, kind: PromptKind) -> Prompt:
    sampling = SamplingParams(
        max_tokens=wanted,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=body.stops(),
        logprobs=logprobs,
    )
    return Prompt(tuple(ids), sampling, body.engine_fields(), body.n or 1, not body.stream, kind)


async def _merged(ready: _Ready) -> AsyncGenerator[Piece, None]:
    """Pieces of all prompts as they come, numbered through: `n` answers a prompt."""
    async with AsyncExitStack() as stack:
        for answer in ready.answers:
            stack.push_async_callback(answer.close)
        if len(ready.answers) == 1:
            yield ready.answers[0].first
            async for piece in ready.answers[0].pieces:
                yield piece
            return
        queue: asyncio.Queue[Piece | ServingError | None] = asyncio.Queue()

        async def feed(answer: Answering, offset: int) -> None:
            try:
                await queue.put(replace(answer.first, index=answer.first.index + offset))
                async for piece in answer.pieces:
                    await queue.put(replace(piece, index=piece.index + offset))
                await queue.put(None)
            except ServingError as error:
                await queue.put(error)

        offsets = [sum(prompt.n for prompt in ready.prompts[:place]) for place in range(len(ready.prompts))]
        tasks = [asyncio.create_task(feed(*pair)) for pair in zip(ready.answers, offsets, strict=True)]
        # Before the answers are closed: a generator cannot be closed while somebody waits in it.
        stack.push_async_callback(_cancelled, tasks)
        unfinished = len(tasks)
        while unfinished:
            came = await queue.get()
            if isinstance(came, ServingError):
                raise came
            if came is None:
                unfinished -= 1
            else:
                yield came


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _while_there(request: Request, work: Awaitable[T]) -> T | None:
    """The work's result; None, and the work cancelled, where the caller goes away before."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait((task,), timeout=_LOOK_EVERY_S)
            if not task.done() and await request.is_disconnected():
                return None
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _headers(front: Front) -> dict[str, str]:
    headers: dict[str, str] = {"x-cartridge-served": front.served}
    if front.cartridges:
        headers |= {
            "x-cartridge-digest": "+".join(cartridge.digest for cartridge in front.cartridges),
            "x-cartridge-version": "+".join(str(cartridge.version) for cartridge in front.cartridges),
        }
    return headers
