"""What comes back from vLLM: server-sent events or one object, turned into pieces."""

import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

from cartridge_core.serving.engine import FinishReason, Piece, TokenLogprob
from cartridge_core.serving.errors import EngineError, ServingError
from cartridge_core.serving.vllm_refusal import refusal_in

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class CartridgeMissedError(EngineError):
    """vLLM read placeholders as text: what it writes is not an answer."""


class AnswerReader:
    """Reads one request's answers.

    Args:
        cartridge_tokens: Tokens in front that vLLM must not have computed.
        top: Likeliest tokens asked for at each place.
    """

    def __init__(self, cartridge_tokens: int, top: int | None) -> None:
        self._cartridge_tokens, self._top = cartridge_tokens, top or 0

    def whole(self, body: bytes) -> list[Piece]:
        """The answers of a reply that came at once.

        Raises:
            EngineError: It is not one, or did not come through the Cartridge.
        """
        reply = _parsed(body)
        self._check(reply["usage"])
        choices = reply["choices"]
        return [
            self._piece(
                choice, len(choice["token_ids"]) if len(choices) > 1 else int(reply["usage"]["completion_tokens"])
            )
            for choice in choices
        ]

    async def stream(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[Piece]:
        """The answers of a stream, piece by piece.

        An answer's last piece waits for the final count, which says whether the Cartridge was in front.

        Raises:
            ServingError: vLLM says so, perhaps in the middle.
            EngineError: The stream ends early, or did not come through the Cartridge.
        """
        ends: list[Piece] = []
        counts: dict[int, int] = {}
        counted = False
        async for payload in _payloads(chunks):
            event = _parsed(payload)
            if not event["choices"]:
                self._check(event["usage"])
                counted = True
                continue
            choice = event["choices"][0]
            total = int(event["usage"]["completion_tokens"])
            piece = self._piece(choice, total - counts.get(choice["index"], 0))
            counts[choice["index"]] = total
            if piece.finish_reason is None:
                yield piece
            else:
                ends.append(piece)
        if not counted:
            raise EngineError("The engine's answer broke off.", "Ask again.", retry_after=1.0)
        for piece in ends:
            yield piece

    def _piece(self, choice: Mapping[str, Any], num_tokens: int) -> Piece:
        reason = choice["finish_reason"]
        if reason is not None and reason not in _REASONS:
            raise EngineError(f"The engine ended an answer with {reason!r}.", "Ask again.", retry_after=1.0)
        said = choice.get("logprobs")
        return Piece(
            text=choice["text"],
            index=choice["index"],
            num_tokens=num_tokens,
            logprobs=_logprobs(said, self._top) if said else (),
            finish_reason=_REASONS.get(reason),
        )

    def _check(self, usage: Mapping[str, Any]) -> None:
        if not self._cartridge_tokens:
            return
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if cached < self._cartridge_tokens:
            raise CartridgeMissedError(
                f"The engine had {cached} of the Cartridge's {self._cartridge_tokens} tokens: it wrote no answer.",
                "The operator has to start it with `cartridge engine`.",
                retry_after=5.0,
            )


async def _payloads(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The `data` of server-sent events until `[DONE]`."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event == b"data: [DONE]":
                return
            # Others are comments that keep the connection open.
            if event.startswith(b"data: "):
                yield event[6:]


def _parsed(payload: bytes) -> Any:
    try:
        found = json.loads(payload)
    except ValueError as error:
        raise EngineError("The engine's answer is not JSON.", "Ask again.", retry_after=1.0) from error
    refusal: ServingError | None = refusal_in(found)
    if refusal is not None:
        raise refusal
    return found


def _logprobs(said: Mapping[str, Sequence[Any]], top: int) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(token, logprob, _likeliest(others, top))
        for token, logprob, others in zip(said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True)
    )


def _likeliest(others: Mapping[str, float], top: int) -> tuple[tuple[str, float], ...]:
    # vLLM adds the token taken where it is not among them.
    return tuple(sorted(others.items(), key=lambda pair: -pair[1])[:top])
