import random
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cartridge_core.corpus import Chunk, ChunkConfig, Corpus, Document, TokenizedCorpus, sample_chunk
from cartridge_core.errors import CorpusError, UnsupportedModelError


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token a word; words and characters are easy to count."""
    backend = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def corpus_of(*texts: str) -> Corpus:
    return Corpus("c", tuple(Document(f"{i}.txt", f"T{i}", "text/plain", text) for i, text in enumerate(texts)))


def lines(count: int, words_per_line: int = 5, mark: str = "l") -> str:
    return "\n".join(" ".join(f"{mark}{i}w{j}" for j in range(words_per_line)) for i in range(count))


def draw(tokenized: TokenizedCorpus, config: ChunkConfig, count: int, seed: int = 0) -> list[Chunk]:
    rng = random.Random(seed)
    return [sample_chunk(tokenized, rng, config) for _ in range(count)]


def test_a_chunk_is_whole_lines_of_one_document(words: PreTrainedTokenizerFast) -> None:
    corpus = corpus_of(lines(200, mark="a"), lines(100, mark="b"))
    for chunk in draw(TokenizedCorpus.build(corpus, words), ChunkConfig(min_tokens=40, max_tokens=100), 300):
        text = corpus.documents[chunk.document_index].text
        assert text[chunk.start : chunk.end] == chunk.text
        assert set(chunk.text.split("\n")) <= set(text.split("\n"))
        assert len(chunk.text.split()) == chunk.num_tokens
        assert 35 <= chunk.num_tokens <= 100
        assert chunk.header == f"From: T{chunk.document_index}"
        assert chunk.prompt_text == f"{chunk.header}\n{chunk.text}"
        assert chunk.id == f"{corpus.digest[:12]}:{chunk.document_index}:{chunk.start}-{chunk.end}"


def test_draws_repeat_with_the_seed(words: PreTrainedTokenizerFast) -> None:
    tokenized = TokenizedCorpus.build(corpus_of(lines(300)), words)
    config = ChunkConfig(min_tokens=20, max_tokens=60)
    assert draw(tokenized, config, 20, seed=3) == draw(tokenized, config, 20, seed=3)
    assert draw(tokenized, config, 20, seed=3) != draw(tokenized, config, 20, seed=4)
    assert [c.id for c in draw(tokenized, config, 3, seed=3)] == [
        f"{tokenized.corpus.digest[:12]}:0:{span}" for span in ("5050-5259", "5645-5924", "370-669")
    ]


def test_documents_are_drawn_in_proportion_to_their_tokens(words: PreTrainedTokenizerFast) -> None:
    tokenized = TokenizedCorpus.build(corpus_of(lines(300), lines(100), lines(4)), words)
    counts = Counter(c.document_index for c in draw(tokenized, ChunkConfig(min_tokens=20, max_tokens=60), 4000))
    assert [counts[i] / 4000 for i in range(3)] == pytest.approx([300 / 404, 100 / 404, 4 / 404], abs=0.03)


def test_the_ends_of_a_document_are_asked_about_like_its_middle(words: PreTrainedTokenizerFast) -> None:
    """A window that has to lie inside the document would hardly ever hold the first fact."""
    tokenized = TokenizedCorpus.build(corpus_of(lines(200)), words)
    share: Counter[str] = Counter()
    for chunk in draw(tokenized, ChunkConfig(min_tokens=64, max_tokens=256), 6000):
        rows = chunk.text.split("\n")
        for row in rows:  # each conversation about a chunk is about one of its lines
            share[row.split("w")[0]] += 1 / len(rows)
    rates = np.array([share[f"l{i}"] for i in range(200)]) / (6000 / 200)
    assert rates.min() > 0.6
    assert rates.max() < 1.6


def test_spread_positions_cover_a_corpus_with_few_chunks(words: PreTrainedTokenizerFast) -> None:
    tokenized = TokenizedCorpus.build(corpus_of(lines(100), lines(100), lines(50)), words)
    config = ChunkConfig(min_tokens=50, max_tokens=100)
    rng = random.Random(0)
    seen = {
        (chunk.document_index, row)
        for position in (np.arange(40) * 0.6180339887498949) % 1
        for chunk in [sample_chunk(tokenized, rng, config, float(position))]
        for row in chunk.text.split("\n")
    }
    assert len(seen) >= 0.97 * 250


def test_a_document_shorter_than_a_chunk_is_taken_whole(words: PreTrainedTokenizerFast) -> None:
    tokenized = TokenizedCorpus.build(corpus_of("\n\n one two\n\nthree  \n"), words)
    (chunk,) = draw(tokenized, ChunkConfig(min_tokens=3, max_tokens=8), 1)
    assert (chunk.text, chunk.num_tokens) == (" one two\n\nthree  ", 3)


def test_a_line_is_cut_only_if_it_alone_is_too_long(words: PreTrainedTokenizerFast) -> None:
    long = " ".join(f"x{i}" for i in range(500))
    tokenized = TokenizedCorpus.build(corpus_of(f"{lines(10)}\n{long}\n{lines(10, mark='z')}"), words)
    chunks = draw(tokenized, ChunkConfig(min_tokens=20, max_tokens=60), 500)
    assert all(17 <= chunk.num_tokens <= 60 for chunk in chunks)  # snapping gives way by half a line at most
    cut = {word for chunk in chunks for word in chunk.text.split() if word[0] == "x"}
    assert cut == set(long.split())  # cut between words, and every part of the long line is visited
    short = set(lines(10).split("\n") + lines(10, mark="z").split("\n"))
    assert all(row in short for chunk in chunks for row in chunk.text.split("\n") if row[0] != "x")


def test_blank_lines_and_wide_characters_do_not_shift_the_cut(words: PreTrainedTokenizerFast) -> None:
    text = "\n\n\n".join(f"𝔘{i} naïve 日本{i} e\u0301" for i in range(60))
    corpus = corpus_of(text)
    for chunk in draw(TokenizedCorpus.build(corpus, words), ChunkConfig(min_tokens=12, max_tokens=40), 200):
        rows = chunk.text.split("\n\n\n")
        assert all(row in text.split("\n\n\n") for row in rows)
        assert chunk.num_tokens == 4 * len(rows)


def test_what_cannot_be_cut_is_refused(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CorpusError, match="'c' has no token"):
        TokenizedCorpus.build(corpus_of(" "), words)
    with pytest.raises(UnsupportedModelError, match="fast tokenizer"):
        TokenizedCorpus.build(corpus_of("a"), object())
    with pytest.raises(ValidationError, match="min_tokens=9 exceeds max_tokens=8"):
        ChunkConfig(min_tokens=9, max_tokens=8)
