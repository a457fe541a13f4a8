"""A small study with a real teacher: the tiny model, with the whole corpus in context."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cartridge_core.corpus import Corpus, Document
from cartridge_core.dataset import ConversationDataset
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.rendering import prefix_token_ids, render_turns, template_digest
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Sample, Targets
from cartridge_core.selfstudy.manifest import DatasetManifest
from cartridge_core.selfstudy.plan import StudyPlan
from cartridge_core.selfstudy.shard import shard_file, write_shard
from cartridge_core.selfstudy.synthesize import synthesize
from cartridge_core.teacher.local import LocalTeacher
from cartridge_core.training.config import TrainingConfig
from tests.talkative import STUDY, ChunkedStudy, talkative

__all__ = ["talkative"]

Study = Callable[..., ConversationDataset]
StudyFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def base(tiny_base: Callable[[str], BaseModel]) -> BaseModel:
    return tiny_base("qwen2")


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    text = "\n".join(f"The ward of patient {i} is {i * 7}." for i in range(12))
    return Corpus("wards", (Document("a.txt", "Wards", "text/plain", text),))


def targets(base: BaseModel, question: str, generation: object) -> Targets:
    prompt = render_turns(base.tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True).token_ids
    answer = list(generation.token_ids)  # type: ignore[attr-defined]
    return Targets(
        token_ids=np.array([*prompt, *answer], dtype=np.int32),
        assistant_mask=np.arange(len(prompt) + len(answer)) >= len(prompt),
        topk_ids=generation.topk_ids,  # type: ignore[attr-defined]
        topk_logprobs=generation.topk_logprobs,  # type: ignore[attr-defined]
        tail_logprob=generation.tail_logprob,  # type: ignore[attr-defined]
    )


@pytest.fixture(scope="session")
def make_study_folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """`make_study_folder(base, corpus, count)`: a dataset on disk."""

    def make(base: BaseModel, corpus: Corpus, count: int = 40, top_k: int = 8) -> Path:
        folder: Path = tmp_path_factory.mktemp("study")
        questions = [f"What is the ward of patient {i}?" + " Say it again." * (i % 4) for i in range(count)]
        prompts = [
            render_turns(base.tokenizer, [{"role": "user", "content": q}], add_generation_prompt=True).token_ids
            for q in questions
        ]
        prefix = prefill(base, prefix_token_ids(base.tokenizer, corpus.text()))
        config = GenerationConfig(max_new_tokens=6, temperature=1.0, top_k_logprobs=top_k)
        answers = generate(base, prefix, prompts, config)
        study = SelfStudyConfig(num_conversations=max(count, 1), conversations_per_chunk=max(count, 1), top_k=top_k)
        plan = StudyPlan.build(corpus.digest, base.identity, template_digest(base.tokenizer), study)
        samples = [
            Sample(i, study.families[0], "chunk", i, "Ask.", "kept", asked, said.text, targets(base, asked, said))
            for i, (asked, said) in enumerate(zip(questions, answers, strict=True))
        ]
        write_shard(folder / shard_file(0), samples, plan.digest)
        DatasetManifest.of_folder(folder, plan).save(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def make_study(make_study_folder: StudyFolder) -> Study:
    """`make_study(base, corpus, count)`: a dataset on disk, loaded back."""
    return lambda *args, **kwargs: ConversationDataset.load(make_study_folder(*args, **kwargs))


@pytest.fixture(scope="session")
def study(make_study: Study, base: BaseModel, corpus: Corpus) -> ConversationDataset:
    return make_study(base, corpus)


@pytest.fixture(scope="session")
def chunked_folder(talkative: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = load_base_model(talkative, device="cpu")
    folder: Path = tmp_path_factory.mktemp("chunked")
    synthesize(corpus, LocalTeacher(base), base.tokenizer, STUDY, folder)
    return folder


@pytest.fixture(scope="session")
def chunked(talkative: Path, corpus: Corpus, chunked_folder: Path) -> ChunkedStudy:
    return ChunkedStudy(load_base_model(talkative, device="cpu"), corpus, ConversationDataset.load(chunked_folder))


@pytest.fixture(scope="session")
def model(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk, for processes that load it."""
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def study_folder(model: Path, corpus: Corpus, make_study_folder: StudyFolder) -> Path:
    """A study of the model on disk, as processes that load it know it."""
    return make_study_folder(load_base_model(model, device="cpu"), corpus)


@pytest.fixture(scope="session")
def config() -> TrainingConfig:
    return TrainingConfig(
        optimizer="adamw",
        num_tokens=8,
        steps=30,
        warmup_steps=3,
        batch_size=12,
        eval_every=10,
        held_out_fraction=0.2,
        precision="float32",
        seed=3,
    )
