from collections import Counter

import pytest
from pydantic import ValidationError

from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.quiz import QuizConfig
from cartridge_core.selfstudy.seeding import derive_seed, spread_position
from cartridge_core.selfstudy.seeds import SEED_FAMILIES


@pytest.mark.parametrize(
    ("conversations", "per_chunk", "per_shard"), [(92, 8, 2), (1, 32, 4), (64, 32, 1), (65, 32, 2)]
)
def test_samples_are_parted_into_chunks_and_shards_without_gap(
    conversations: int, per_chunk: int, per_shard: int
) -> None:
    config = SelfStudyConfig(
        num_conversations=conversations, conversations_per_chunk=per_chunk, chunks_per_shard=per_shard
    )
    samples = [
        sample
        for shard in range(config.num_shards)
        for chunk in config.chunks_of_shard(shard)
        for sample in config.samples_of_chunk(chunk)
    ]
    assert samples == list(range(conversations))


@pytest.mark.parametrize("kind", [SelfStudyConfig, QuizConfig])
def test_unknown_families_and_fields_are_refused(kind: type[SelfStudyConfig] | type[QuizConfig]) -> None:
    with pytest.raises(ValidationError, match=r"unknown seed families \['riddle'\]; there are .*'question'"):
        kind(families=("question", "riddle"))
    for families in ((), ("question", "question")):
        with pytest.raises(ValidationError, match="named once each"):
            kind(families=families)
    with pytest.raises(ValidationError):
        kind(temperature_c=1.0)


def test_all_five_families_are_studied() -> None:
    assert set(SelfStudyConfig().families) == {"structuring", "summarization", "question", "use_case", "creative"}
    assert all(wordings for wordings in SEED_FAMILIES.values())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is Ada's ward?", " what is ada s WARD ", True),
        ("What is the ward of Ada?", "What is the ward of Ada.", True),
        ("ﬁve ①", "five 1", True),
        ("Welche Straße?", "WELCHE STRASSE", True),
        ("snake_case", "snake case", True),
        ("What is the ward of Ada?", "What is the room of Ada?", False),
        ("?", "!", False),
        ("病棟は?", "病室は?", False),
    ],
)
def test_when_two_questions_are_the_same(one: str, other: str, same: bool) -> None:
    assert (question_key(one) == question_key(other)) is same


def test_seeds_are_distinct_and_stay_what_they_are() -> None:
    seeds = [derive_seed(seed, role, index) for seed in (0, 1) for role in "ab" for index in range(500)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "12") != derive_seed(11, "2")
    assert derive_seed(0, "sample", 7) == 2330497054939418834


def test_spread_positions_are_even() -> None:
    for count in (5, 50, 500):
        tenths = Counter(int(spread_position(0.3, index) * 5) for index in range(count))
        assert all(abs(tenths[tenth] - count / 5) <= 2 for tenth in range(5))
