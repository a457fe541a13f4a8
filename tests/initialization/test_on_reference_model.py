"""On the reference model, which has something to say: attention matching starts nearer to the teacher."""

import random

import pytest

from cartridge_core.corpus import ChunkConfig, Corpus, Document
from cartridge_core.dataset import ConversationDataset
from cartridge_core.initialization.initializers import INITIALIZERS
from cartridge_core.initialization.options import OPTIONS
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import load_base_model
from cartridge_core.reference.world import Scale, generate_corpus
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.synthesize import synthesize
from cartridge_core.teacher.local import LocalTeacher
from cartridge_core.training.loss import cross_entropy
from cartridge_core.training.packed_attention import packed_logits
from cartridge_core.training.packed_rows import pack_rows


def test_the_loss_before_any_step_is_lower_than_from_the_first_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = load_base_model("reference")
    world = generate_corpus(random.Random("initialisation"), Scale(12, 4, documents=1), "held_out", distinct=True)
    documents = tuple(Document(f"{i}.md", d.title, "text/markdown", d.text) for i, d in enumerate(world))
    corpus = Corpus("people", documents)
    config = SelfStudyConfig(
        num_conversations=96,
        conversations_per_chunk=48,
        max_tokens_a=48,
        max_tokens_b=48,
        chunk=ChunkConfig(min_tokens=256, max_tokens=512),
    )
    folder = tmp_path_factory.mktemp("study")
    synthesize(corpus, LocalTeacher(base), base.tokenizer, config, folder)
    heard, held_out = ConversationDataset.load(folder).split(0.25)
    rows = pack_rows(list(held_out), 8192)

    def loss(name: str, **options: object) -> float:
        stated = OPTIONS[name].model_validate(options)
        prefix = INITIALIZERS[name](InitializationSource(base, corpus, 48, 0, list(heard), stated))
        total = sum(float(cross_entropy(packed_logits(base, prefix, part), part.teacher).sum()) for part in rows)
        return total / sum(len(part.teacher) for part in rows)

    head = loss("first_tokens")
    assert loss("attention_matching", keys="rms") < head - 0.1
    assert loss("attention_matching", key_steps=60) < head - 0.1
