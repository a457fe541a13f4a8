"""How often a study's conversations are drawn: what it says seldom, more often than chance would have it.

A study asks about some facts of a corpus twenty times and about others once. A Cartridge of few steps answers wrongly
what was seldom asked (docs/training.md), so a conversation is drawn the more seldom, the more others say the same.

How many do is a kernel density. Two conversations are compared by the corpus's words and pairs of neighbouring words
that both contain, rare ones counting more (tf-idf). Words of the asker alone, such as "as JSON" or "write a postcard",
count for nothing: they are about the wording, and would make all postcards alike.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cartridge_core.progress import Progress, no_progress

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

SHARPNESS = 4
"""Power of the cosine: two conversations that share a name alone are hardly alike, with the attribute they are."""
MOST = 4.0
"""Most often a conversation is drawn, over the middle one: what nothing else is like may be about nothing."""
BUCKETS = 2048
"""Width of a conversation's vector; words are hashed into it."""
REFERENCES = 4096
"""Most conversations that each one is compared with; of a larger study a sample."""
_BLOCK = 512


def balanced_weights(
    conversations: Sequence[npt.NDArray[np.int32]],
    corpus: Sequence[int],
    seed: int,
    progress: Progress = no_progress,
) -> Weights:
    """How often each conversation is to be drawn, relative to the mean.

    Args:
        conversations: Token ids of each, `[t]`; at least one.
        corpus: Token ids of the corpus.
        seed: Draws the sample of a large study.
        progress: Told how many conversations of a large study were compared.

    Returns:
        `[n]` fp64, above 0 and with mean 1. All are 1 if none has a word of the corpus, or the corpus has none.
    """
    known = _phrases(np.asarray(corpus, dtype=np.int64))
    found = [_places(_phrases(ids.astype(np.int64)), known) for ids in conversations]
    counts = np.bincount(np.concatenate(found), minlength=len(known))
    rarity = np.log(len(found) / np.maximum(counts, 1))
    sampled = np.random.default_rng((seed, len(found))).permutation(len(found))[:REFERENCES]
    references = _vectors([found[place] for place in sampled], rarity).T
    alike = np.empty(len(found))
    for start in range(0, len(found), _BLOCK):
        here = slice(start, start + _BLOCK)
        alike[here] = ((_vectors(found[here], rarity) @ references) ** SHARPNESS).sum(axis=1)
        if len(found) > _BLOCK:  # fewer are done at once: no bar is worth a moment
            progress(min(start + _BLOCK, len(found)), len(found), "comparing conversations")
    itself = np.isin(np.arange(len(found)), sampled)
    density = 1 + (alike - itself).clip(min=0) * (len(found) - 1) / np.maximum(len(sampled) - itself, 1)
    # What shares nothing with the corpus is like nothing at all: no reason to draw it more, or less, than the mean.
    about = np.array([bool(rarity[places].any()) for places in found])
    weights = np.ones(len(found))
    if about.any():
        weights[about] = 1 / density[about]
        weights[~about] = weights[about].mean()
    weights = np.minimum(weights, MOST * np.median(weights))
    return weights / weights.mean()


def _phrases(ids: Ids) -> Ids:
    """The different tokens of a text and pairs of neighbours, each as a number of its own, ascending."""
    return np.unique(np.concatenate((ids, ((ids[:-1] + 1) << 31) + ids[1:])))


def _places(phrases: Ids, known: Ids) -> Ids:
    """Where those of a text that are known stand among the known ones."""
    if not len(known):
        return known
    places = np.searchsorted(known, phrases).clip(max=len(known) - 1)
    return places[known[places] == phrases]


def _vectors(found: Sequence[Ids], rarity: Weights) -> npt.NDArray[np.float32]:
    """Unit vectors, `[n, BUCKETS]`; zeros where there is nothing rare."""
    vectors = np.zeros((len(found), BUCKETS), dtype=np.float32)
    for vector, places in zip(vectors, found, strict=True):
        np.add.at(vector, places % BUCKETS, rarity[places])
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
