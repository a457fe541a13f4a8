"""The chunk that the teacher had read, read again."""

import pytest
import torch

from cartridge_core.corpus import Corpus, Document
from cartridge_core.errors import DatasetError
from cartridge_core.inference.score import logits_behind
from cartridge_core.training.packed_rows import input_length
from cartridge_core.training.teacher_context import TeacherContext
from tests.talkative import ChunkedStudy


def test_the_teacher_says_again_what_the_study_keeps(chunked: ChunkedStudy) -> None:
    context = TeacherContext(chunked.base, chunked.corpus, chunked.dataset.manifest.plan.config)
    count = len(chunked.dataset)
    assert len(set(chunked.dataset.chunk_ids())) > 2
    for conversation in (chunked.dataset[0], chunked.dataset[count // 2], chunked.dataset[count - 1]):
        length = input_length(conversation)
        (logits,) = logits_behind(
            chunked.base, context.prefix(conversation), [conversation.token_ids[:length].tolist()]
        )
        said = logits.log_softmax(dim=-1)[torch.from_numpy(conversation.assistant_mask[1:][:length])]
        found = said.gather(1, torch.from_numpy(conversation.topk_ids).long())
        torch.testing.assert_close(found, torch.from_numpy(conversation.topk_logprobs), atol=1e-4, rtol=0)


def test_a_chunk_is_read_once_while_it_is_kept(chunked: ChunkedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest makes room; where there is memory, none has to."""
    monkeypatch.setattr("cartridge_core.training.teacher_context.MAX_KEPT", 2)
    roomy = TeacherContext(chunked.base, chunked.corpus, chunked.dataset.manifest.plan.config)
    kept = [roomy.prefix(conversation) for conversation in chunked.dataset]
    assert all(roomy.prefix(c) is prefix for c, prefix in zip(chunked.dataset, kept, strict=True))
    monkeypatch.setattr("cartridge_core.training.teacher_context.MAX_KEPT_BYTES", 1)
    context = TeacherContext(chunked.base, chunked.corpus, chunked.dataset.manifest.plan.config)
    chunks = chunked.dataset.chunk_ids()
    shared = next(chunk for chunk in chunks if chunks.count(chunk) > 1)
    first, again = [c for c in chunked.dataset if c.chunk_id == shared][:2]
    others = [chunked.dataset[chunks.index(chunk)] for chunk in dict.fromkeys(chunks) if chunk != shared]
    read = context.prefix(first)
    context.prefix(others[0])
    assert context.prefix(again) is read
    context.prefix(others[1])  # the oldest, others[0], makes room
    assert context.prefix(again) is read
    context.prefix(others[0])
    context.prefix(others[1])
    assert context.prefix(again) is not read


def test_another_corpus_is_refused(chunked: ChunkedStudy) -> None:
    other = Corpus("other", (Document("a.txt", "Wards", "text/plain", "Nothing of the kind.\n" * 40),))
    context = TeacherContext(chunked.base, other, chunked.dataset.manifest.plan.config)
    with pytest.raises(DatasetError, match=chunked.dataset[0].chunk_id):
        context.prefix(chunked.dataset[0])
