"""Initialisation by attention matching (arXiv 2602.16284): closed-form keys and values that answer as the corpus does.

Reference queries are those of the study's conversations. Layer by layer, keys are chosen for each key/value head and
values fitted so that the queries' attention output is that of the whole corpus; the next layer's queries are the ones
that this leads to. The method's beta, a bias on each key's score, is 0, because no server can apply it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import UnsupportedModelError
from cartridge_core.inference.prefix import prefill
from cartridge_core.initialization.attention_output import Keys, attend, attend_and_score
from cartridge_core.initialization.first_tokens import check_length
from cartridge_core.initialization.key_optimization import optimize_keys
from cartridge_core.initialization.key_selection import SELECTIONS, ChosenKeys
from cartridge_core.initialization.options import AttentionMatchingOptions
from cartridge_core.initialization.pieces import cut_pieces, draw_conversations
from cartridge_core.initialization.reference_queries import HeadQueries, LayerQueries, walk_layers
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.initialization.value_fit import fit_values
from cartridge_core.models import BaseModel
from cartridge_core.positions import rerotate


def attention_matching(source: InitializationSource) -> PrefixKV:
    """Keys and values whose attention output is close to the whole corpus's, on queries of the study.

    Each head keeps its own keys, moved to positions 0, 1, 2, ... with the layer's own RoPE frequencies; the first token
    is the real one with its real value. A corpus longer than the window is read in pieces, each with its share of the
    tokens and the conversations about it; values are fitted over all pieces together.

    Raises:
        TrainingError: There are no conversations, or the corpus is shorter than the Cartridge.
        UnsupportedModelError: The model's RoPE frequencies change with the length of the text, or a layer of it
            attends to the keys of another.
    """
    options = source.options_for(AttentionMatchingOptions)
    base = source.base
    heads = base.model.config.get_text_config(decoder=True).num_attention_heads
    group = heads // next(spec.num_kv_heads for spec in base.layer_specs if spec.has_kv)
    conversations = draw_conversations(source, max(options.max_queries // group, 1))
    pieces = cut_pieces(source, conversations, options.max_piece_tokens)
    check_length(source.num_tokens, sum(len(piece.token_ids) for piece in pieces), "corpus")
    texts, owners = [], []
    for index, piece in enumerate(pieces):
        texts += [conversation.token_ids.tolist() for conversation in piece.conversations]
        owners += [index] * len(piece.conversations)
    matching = _Matching(
        base,
        [prefill(base, piece.token_ids) for piece in pieces],
        torch.tensor(owners, device=base.device),
        shares_of(source.num_tokens, [len(piece.token_ids) for piece in pieces]),
        options,
        source.seed,
    )
    walk_layers(base, texts, source.num_tokens, matching.fit_layer)
    return PrefixKV(matching.keys, matching.values, source.num_tokens)


def shares_of(total: int, lengths: Sequence[int]) -> list[int]:
    """`total` parted in proportion to lengths, none getting more than its length (largest remainder first)."""
    exact = [total * length / sum(lengths) for length in lengths]
    shares = [int(share) for share in exact]
    order = sorted(range(len(lengths)), key=lambda i: (shares[i] - exact[i], i))
    for index in order[: total - sum(shares)]:
        shares[index] += 1
    return shares


@dataclass(frozen=True, eq=False)
class _Chosen:
    """One head's keys out of all pieces, at the positions that they are served at."""

    keys: Tensor
    values: Tensor


class _Matching:
    """Fits one layer after the other."""

    def __init__(
        self,
        base: BaseModel,
        pieces: Sequence[PrefixKV],
        owners: Tensor,
        shares: Sequence[int],
        options: AttentionMatchingOptions,
        seed: int,
    ) -> None:
        self.base, self.pieces, self.owners, self.shares = base, pieces, owners, shares
        self.options, self.seed = options, seed
        self.num_tokens = sum(shares)
        self.keys: list[Tensor | None] = []
        self.values: list[Tensor | None] = []

    def fit_layer(self, layer: int, found: LayerQueries) -> Tensor:
        """Fit a layer's keys and values, and attend to them."""
        owner = self.owners[found.row]
        parts = [(owner == index).nonzero()[:, 0] for index in range(len(self.pieces))]
        outputs, keys, values = [], [], []
        for head in range(len(found.queries)):
            asked = found.of_head(head)
            wanted = torch.empty_like(asked.own_output)
            chosen = []
            for index, places in enumerate(parts):
                output, kept = self._choose(layer, head, index, asked.at(places))
                wanted[places] = output
                chosen.append(kept)
            start = torch.cat([kept.values for kept in chosen])
            fitted, value = self._fit(layer, head, asked, torch.cat([kept.keys for kept in chosen]), start, wanted)
            outputs.append(attend(asked, fitted, value))
            keys.append(fitted.keys)
            values.append(value)
        self._keep(keys, values)
        return torch.stack(outputs)

    def _keep(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys.append(torch.stack(keys).to(self.base.dtype))
        self.values.append(torch.stack(values).to(self.base.dtype))

    def _choose(self, layer: int, head: int, index: int, asked: HeadQueries) -> tuple[Tensor, _Chosen]:
        """The output that a piece's queries are to get, and the keys that stand in for the piece."""
        piece, count = self.pieces[index], self.shares[index]
        key, value = piece.keys[layer], piece.values[layer]
        if key is None or value is None:
            raise UnsupportedModelError(
                f"Layer {layer} of {self.base.identity.id} attends to keys of another layer.",
                "Choose another initialisation than attention matching.",
            )
        inv_freq = self.base.inv_freq(layer)
        length, before = piece.num_tokens, sum(self.shares[:index])
        place = torch.arange(length, device=key.device)
        # The conversations stand behind the Cartridge; keys as far from them as the piece would be have its scores.
        near = rerotate(key[head : head + 1].float(), place, place + (self.num_tokens - length), inv_freq)[0]
        keys = Keys(near, place - length, self.base.layer_specs[layer].window)
        exact = value[head].float()
        output, squares = attend_and_score(asked, keys, exact)
        sink = place[:1] if index == 0 else place[:0]
        # A piece that nobody asks about has nothing to choose by.
        choose = SELECTIONS[self.options.keys if len(asked) else "rms"]
        kept = choose(asked, keys, exact, squares, sink, count)
        served = torch.arange(before, before + count, device=key.device)
        return output, _Chosen(_moved(kept, served, self.num_tokens - length, inv_freq), kept.values)

    def _fit(
        self, layer: int, head: int, asked: HeadQueries, keys: Tensor, start: Tensor, wanted: Tensor
    ) -> tuple[Keys, Tensor]:
        options = self.options
        places = torch.arange(-self.num_tokens, 0, device=keys.device)
        fitted = Keys(keys, places, self.base.layer_specs[layer].window)
        # Where every key was kept, nothing is left to win.
        if options.keys == "optimized" and self.num_tokens < sum(piece.num_tokens for piece in self.pieces):
            fitted = optimize_keys(
                asked,
                fitted,
                start,
                wanted,
                ridge=options.ridge,
                steps=options.key_steps,
                step_size=options.key_step_size,
                seed=self.seed,
            )
        return fitted, fit_values(asked, fitted, start, wanted, options.ridge)


def _moved(kept: ChosenKeys, served: Tensor, offset: int, inv_freq: Tensor) -> Tensor:
    """Chosen keys at the positions that they are served at, from where they stand now: their own plus an offset."""
    return rerotate(kept.keys[None], kept.positions + offset, served, inv_freq)[0]
