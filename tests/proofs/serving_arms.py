"""The three ways to have a corpus in front of a question, as requests to vLLM's own API with token ids."""

import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cartridge_core.architectures import layer_specs
from cartridge_core.cartridge import Cartridge
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.publishing.artifact import CARTRIDGE_FILES, cartridge_key
from cartridge_core.serving.attachment import PARAMETER, AttachedCartridge, Attachment, attachment_key
from cartridge_core.settings import Settings
from cartridge_core.storage import open_store, put_folder
from tests.proofs.http_load import Outcome, Target
from tests.proofs.llama_shapes import LlamaShape, random_model

OUTPUT_TOKENS = 32
QUESTION_TOKENS = 20
VOCABULARY = (16, 1152)
"""Token ids of documents and questions: the shipped tokenizer's, without its special ones."""
BLOCK = 32


@dataclass(frozen=True)
class Corpora:
    """Documents as token ids, and a Cartridge for each, in a store that the engine reads."""

    settings: Settings
    model: str
    """What the engine calls its model."""
    documents: tuple[tuple[int, ...], ...]
    cartridges: tuple[Cartridge, ...]

    @property
    def kv_bytes_ratio(self) -> float:
        """Memory of a document's keys and values over its Cartridge's, in the same type."""
        return len(self.documents[0]) / self.cartridges[0].num_tokens


def make_model(shape: LlamaShape, tokenizer: Any, folder: Path) -> Path:
    """A stock model of random weights on disk, with a tokenizer beside it."""
    if not (folder / "config.json").exists():
        base = random_model(shape, torch.device("cpu"), torch.bfloat16)
        # Nothing that it writes is to end an answer early.
        base.model.generation_config.eos_token_id = base.model.config.eos_token_id = None
        base.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def make_corpora(settings: Settings, shape: LlamaShape, model: str, count: int, length: int, tokens: int) -> Corpora:
    """Documents of random tokens and Cartridges of random keys and values: what they say changes no speed.

    Args:
        settings: Name the artifact store.
        shape: Of the model.
        model: What the engine calls it.
        count: Of documents.
        length: Tokens of each.
        tokens: Of each Cartridge.
    """
    draw = random.Random(0)
    documents = tuple(tuple(draw.randrange(*VOCABULARY) for _ in range(length)) for _ in range(count))
    cartridges = tuple(random_cartridge(shape, model, tokens, seed) for seed in range(count))
    store = open_store(settings.artifact_root)
    for cartridge in cartridges:
        folder = cartridge.save(settings.home / "made" / cartridge.digest)
        put_folder(store, folder, cartridge_key("default", cartridge.digest), CARTRIDGE_FILES)
    return Corpora(settings, model, documents, cartridges)


def random_cartridge(shape: LlamaShape, model: str, num_tokens: int, seed: int = 0) -> Cartridge:
    """A Cartridge of normal keys and values in half precision."""
    generator, specs = torch.Generator().manual_seed(seed), layer_specs(shape.config())
    keys, values = (
        [torch.randn(spec.num_kv_heads, num_tokens, spec.head_dim, generator=generator) for spec in specs]
        for _ in range(2)
    )
    nothing = "0" * 64
    return Cartridge.from_prefix(
        PrefixKV(keys, values, num_tokens),
        base_model=BaseModelIdentity(id=model, revision="random", config_digest=nothing, tokenizer_digest=nothing),
        layers=specs,
        dtype=torch.bfloat16,
        template_digest=nothing,
    )


def target(url: str, bodies: Sequence[dict[str, Any]]) -> Target:
    """These requests to vLLM."""
    return Target(f"{url}/v1/completions", tuple(bodies))


def icl(corpora: Corpora, which: Sequence[int], salt: str = "") -> list[dict[str, Any]]:
    """The whole document in the prompt.

    Args:
        corpora: Documents.
        which: The document of each request.
        salt: Requests of one salt share what is computed; where there is none, each has its own and finds nothing.
    """
    return [
        _body(corpora, [*corpora.documents[one], *_question(number)]) | {"cache_salt": salt or secrets.token_hex(8)}
        for number, one in enumerate(which)
    ]


def behind(corpora: Corpora, which: Sequence[int]) -> list[dict[str, Any]]:
    """The document's Cartridge in front."""
    key = attachment_key(corpora.settings)
    bodies = []
    for number, one in enumerate(which):
        cartridge = corpora.cartridges[one]
        attached = AttachedCartridge(digest=cartridge.digest, num_tokens=cartridge.num_tokens)
        attachment = Attachment(tenant="default", cartridges=(attached,), expires=time.time() + 3600)
        body = _body(corpora, [0] * cartridge.num_tokens + _question(number))
        bodies.append(
            body | {"cache_salt": attachment.salt(key), "kv_transfer_params": {PARAMETER: attachment.signed(key)}}
        )
    return bodies


def wrong(outcomes: Sequence[Outcome], cached: tuple[int, int]) -> int:
    """Answers that are missing, of another length, or that found more or less in the cache than they should have.

    Args:
        outcomes: Answers.
        cached: Least and most tokens that were not to be computed.
    """
    least, most = cached
    return sum(bool(one.problem) or one.tokens != OUTPUT_TOKENS or not least <= one.cached <= most for one in outcomes)


def _question(number: int) -> list[int]:
    draw = random.Random(f"question {number}")
    return [draw.randrange(*VOCABULARY) for _ in range(QUESTION_TOKENS)]


def _body(corpora: Corpora, prompt: list[int]) -> dict[str, Any]:
    return {
        "model": corpora.model,
        "prompt": prompt,
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
