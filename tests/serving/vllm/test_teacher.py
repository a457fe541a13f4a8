"""A study by real vLLM servers, against the same study by the model in this process."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from cartridge_core.corpus import ChunkConfig, Corpus, Document
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import TeacherError
from cartridge_core.inference.generate import GenerationConfig
from cartridge_core.model_description import describe_model
from cartridge_core.reference.samples import SHORT, draw_sample
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.synthesize import synthesize
from cartridge_core.teacher.local import LocalTeacher
from cartridge_core.teacher.openai import OpenAITeacher
from tests.serving.vllm.conftest import Shelf
from tests.serving.vllm.relay import relay
from tests.serving.vllm.shapes import SHAPE
from tests.vllm_server import VllmServer

pytestmark = pytest.mark.skipif(SHAPE != "reference", reason="random models end no turn")

# Greedy, because vLLM draws from other random numbers.
STUDY = SelfStudyConfig(
    num_conversations=24,
    conversations_per_chunk=4,
    temperature_a=0.0,
    max_tokens_a=48,
    max_tokens_b=64,
    chunk=ChunkConfig(min_tokens=128, max_tokens=256),
    chunks_per_shard=1,
)


def test_two_servers_make_the_in_process_teacher_s_dataset(shelf: Shelf, vllm: VllmServer, tmp_path: Path) -> None:
    documents, _ = draw_sample(SHORT)
    corpus = Corpus("c", (Document("a.md", documents[0].title, "text/markdown", documents[0].text),))
    model = describe_model("reference")
    with relay(vllm.url) as one, relay(vllm.url) as other:
        with OpenAITeacher(model, [one.url, other.url]) as teacher:
            teacher.check(GenerationConfig(max_new_tokens=64, top_k_logprobs=STUDY.top_k), STUDY.chunk.max_tokens)
            checks = one.posts, other.posts
            made = synthesize(corpus, teacher, model.tokenizer, STUDY, tmp_path / "vllm")
        assert one.posts > checks[0] and other.posts > checks[1]
    local = synthesize(corpus, LocalTeacher(shelf.base), model.tokenizer, STUDY, tmp_path / "local")
    assert (made.plan.teacher, local.plan.teacher) == ("openai", "local")
    assert made.counts == local.counts and made.num_conversations >= 12
    theirs, ours = (list(ConversationDataset.load(tmp_path / name)) for name in ("vllm", "local"))
    for there, here in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(there.token_ids, here.token_ids)
        np.testing.assert_array_equal(there.assistant_mask, here.assistant_mask)
        assert there.messages == here.messages
        # Where two tokens are equally likely, the order is the engine's.
        np.testing.assert_allclose(there.topk_logprobs, here.topk_logprobs, atol=1e-3)
        likely = here.topk_logprobs > np.log(1e-3)
        assert [set(ids[row]) for ids, row in zip(there.topk_ids, likely, strict=True)] == [
            set(ids[row]) for ids, row in zip(here.topk_ids, likely, strict=True)
        ]
        np.testing.assert_allclose(np.exp(there.tail_logprob), np.exp(here.tail_logprob), atol=1e-5)
        seen = here.tail_logprob > np.log(1e-3)
        np.testing.assert_allclose(there.tail_logprob[seen], here.tail_logprob[seen], atol=1e-3)


def test_more_log_probs_than_vllm_gives_are_refused(vllm: VllmServer) -> None:
    with (
        OpenAITeacher(describe_model("reference"), [vllm.url]) as teacher,
        pytest.raises(TeacherError, match=r"logprobs of 50, which is greater than max allowed: 20.*--max-logprobs"),
    ):
        teacher.check(GenerationConfig(max_new_tokens=8, top_k_logprobs=50), 100)


def test_the_recorded_reply_still_has_vllm_s_form(vllm: VllmServer) -> None:
    recorded = json.loads((Path(__file__).parents[2] / "teacher" / "vllm_reply.json").read_text())
    body = {"model": "reference", "prompt": [5, 7], "max_tokens": 3, "temperature": 0.0, "logprobs": 3}
    body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    reply = httpx.post(f"{vllm.url}/v1/completions", json=body, timeout=60).json()
    assert set(reply) == set(recorded)
    assert set(reply["choices"][0]) == set(recorded["choices"][0])
    assert set(reply["choices"][0]["logprobs"]) == set(recorded["choices"][0]["logprobs"])
