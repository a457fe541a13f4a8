"""What is sent to vLLM: token ids with placeholders where the Cartridge stands, the signed attachment, the salt."""

import secrets
import time
from typing import Any

from cartridge_core.serving.attachment import (
    IN_FRONT,
    LIFETIME_S,
    PARAMETER,
    AttachedCartridge,
    Attachment,
    Keeping,
    tenant_salt,
)
from cartridge_core.serving.composition import Wanted, parts_of
from cartridge_core.serving.engine import GenerationRequest
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.serving.sampling_params import SamplingParams

COMPLETIONS = "/v1/completions"
"""Where vLLM takes them."""

PLACEHOLDER = 0
"""Token that stands where a Cartridge's keys and values are; never computed, so any of the vocabulary would do."""

_SMALLEST_TOP_P = 1e-9
"""vLLM takes no 0, which means the likeliest token alone."""


class Bodies:
    """Makes requests for one base model.

    Args:
        model: Name under which vLLM serves it.
        key: Signs what is attached.
    """

    def __init__(self, model: str, key: bytes) -> None:
        self._model, self._key = model, key

    def completion(self, request: GenerationRequest, whole: bool) -> dict[str, Any]:
        """The body of POST /v1/completions.

        Args:
            request: What is asked.
            whole: Whether the answer is to come in one piece.
        """
        sampling = request.sampling
        body = self._common(request, whole) | {
            "prompt": [PLACEHOLDER] * request.cartridge_tokens + list(request.prompt_token_ids),
            "max_tokens": sampling.max_tokens,
        }
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
        if whole and request.n > 1:
            # `usage` has only the sum.
            body["return_token_ids"] = True
        return body

    def errand(self, wanted: Wanted, residency: Keeping) -> dict[str, Any]:
        """One token behind a Cartridge or a composition, which vLLM has in memory for that; alone to let it go."""
        parts = parts_of(wanted)
        front = parts if residency in IN_FRONT else ()
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        request = GenerationRequest("errand", wanted.tenant, (PLACEHOLDER,), sampling, front)
        return self.completion(request, whole=True) | self._in_front(parts, residency)

    def _common(self, request: GenerationRequest, whole: bool) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "n": request.n,
            "temperature": sampling.temperature,
            "top_p": max(sampling.top_p, _SMALLEST_TOP_P),
            # Said, because vLLM takes what nobody says from the model's own recommendations.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop": list(sampling.stop),
            # The part behind the dash keeps apart what a caller sends under one id.
            "request_id": f"{request.request_id}-{secrets.token_hex(4)}",
            **request.extra,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if not whole:
            body |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        if not request.cartridges:
            return body | {"cache_salt": tenant_salt(request.tenant, self._key)}
        return body | self._in_front(request.cartridges, "cached")

    def _in_front(self, cartridges: tuple[ResolvedCartridge, ...], residency: Keeping) -> dict[str, Any]:
        attachment = Attachment(
            tenant=cartridges[0].tenant,
            cartridges=tuple(AttachedCartridge(digest=one.digest, num_tokens=one.num_tokens) for one in cartridges),
            expires=time.time() + LIFETIME_S,
            residency=residency,
        )
        return {
            "cache_salt": attachment.salt(self._key),
            "kv_transfer_params": {PARAMETER: attachment.signed(self._key)},
        }
