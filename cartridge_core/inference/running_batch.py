"""A batch behind one prefix that rows join and leave while it runs: what a server does, a token at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cartridge_core.attention import behind
from cartridge_core.inference.decoding import RoomyLayer
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV


class RowsLayer(DynamicLayer):
    """A cache layer whose rows have lengths of their own: each writes behind its own last token."""

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def __init__(self) -> None:
        super().__init__()
        self.lengths = torch.empty(0, dtype=torch.long)
        """`[rows]`, slots that are taken; the batch sets it before each step."""
        self.width = 0
        """Slots that attention gets to see."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write `[rows, num_kv_heads, 1, head_dim]`; returns views of the first `width` slots."""
        rows = len(self.lengths)
        self._reserve(rows, self.width, key_states)
        row = torch.arange(rows, device=key_states.device)
        self.key_room[row, :, self.lengths] = key_states[:, :, 0]
        self.value_room[row, :, self.lengths] = value_states[:, :, 0]
        self.keys, self.values = self.key_room[:rows, :, : self.width], self.value_room[:rows, :, : self.width]
        return self.keys, self.values

    def place(self, row: int, key: Tensor, value: Tensor) -> None:
        """Let a row begin with `[num_kv_heads, n, head_dim]`."""
        self._reserve(row + 1, key.shape[1], key[None])
        self.key_room[row, :, : key.shape[1]] = key
        self.value_room[row, :, : value.shape[1]] = value

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.is_initialized:
            for room in (self.key_room, self.value_room):
                room[: len(rows)] = room[rows]

    def _reserve(self, rows: int, slots: int, like: Tensor) -> None:
        """Room for that many, doubled where there is too little, so that growing costs little in all."""
        if not self.is_initialized:
            shape = (0, like.shape[1], 0, like.shape[3])
            self.key_room, self.value_room = like.new_zeros(shape), like.new_zeros(shape)
            self.is_initialized = True
        have_rows, heads, have_slots, dim = self.key_room.shape
        if rows <= have_rows and slots <= have_slots:
            return
        rows = have_rows if rows <= have_rows else max(rows, 2 * have_rows)
        slots = have_slots if slots <= have_slots else max(slots + 16, 2 * have_slots)
        for name in ("key_room", "value_room"):
            # Zeros and not whatever is there: hidden slots weigh nothing, but nothing times NaN would be NaN.
            room = like.new_zeros(rows, heads, slots, dim)
            room[:have_rows, :, :have_slots] = getattr(self, name)
            setattr(self, name, room)


class Arrival:
    """A prompt that is being read before it joins a batch; in parts, so that others go on meanwhile.

    Args:
        base: The model.
        prefix: The batch's, on the model's device and in its type.
        prompt: Token ids, at least one.
    """

    def __init__(self, base: BaseModel, prefix: PrefixKV, prompt: Sequence[int]) -> None:
        self._base, self._prefix = base, prefix
        self.last = prompt[-1]
        # All but the last token: that one is the first step's input.
        self._ids = torch.tensor([list(prompt[:-1])], dtype=torch.long, device=base.device)
        self.length = self._ids.shape[1]
        self.cache = DynamicCache()
        self.cache.layers = [RoomyLayer(self.length) for _ in base.layer_specs]
        self._read = 0

    @property
    def done(self) -> bool:
        """Whether all of it was read."""
        return self._read == self.length

    def read(self, num_tokens: int) -> int:
        """Read on, at most so many tokens; returns how many."""
        end = min(self.length, self._read + num_tokens)
        count = end - self._read
        if count:
            index = torch.arange(self._read, end, device=self._base.device)[None]
            slots = torch.arange(end, device=self._base.device)[None]
            with behind(self._prefix, self._base.layer_specs, index, slots) as placed:
                self._base.model(
                    input_ids=self._ids[:, self._read : end],
                    past_key_values=self.cache,
                    use_cache=True,
                    logits_to_keep=1,
                    **placed,
                )
        self._read = end
        return count


class RunningBatch:
    """Rows that write behind one prefix, each at its own place.

    Args:
        base: The model.
        prefix: On the model's device and in its type.
    """

    def __init__(self, base: BaseModel, prefix: PrefixKV) -> None:
        self._base, self.prefix = base, prefix
        self._cache = DynamicCache()
        self._layers = [RowsLayer() for _ in base.layer_specs]
        self._cache.layers = list(self._layers)
        self._lengths = torch.empty(0, dtype=torch.long, device=base.device)
        self._tokens = torch.empty(0, dtype=torch.long, device=base.device)

    def __len__(self) -> int:
        return len(self._lengths)

    def arrival(self, prompt: Sequence[int]) -> Arrival:
        """A prompt that wants to join."""
        return Arrival(self._base, self.prefix, prompt)

    def join(self, arrival: Arrival) -> None:
        """Add a prompt that was read, as the last row."""
        row = len(self)
        for layer, read in zip(self._layers, arrival.cache.layers, strict=True):
            # A layer that reads another one's cache keeps nothing, and a prompt of one token has nothing yet.
            if read.is_initialized:
                layer.place(row, read.keys[0], read.values[0])
        self._lengths = torch.cat((self._lengths, self._lengths.new_tensor([arrival.length])))
        self._tokens = torch.cat((self._tokens, self._tokens.new_tensor([arrival.last])))

    def step(self) -> Tensor:
        """Logits of each row's next token, `[rows, vocabulary]`, fp32."""
        width = int(self._lengths.max()) + 1
        for layer in self._layers:
            layer.lengths, layer.width = self._lengths, width
        index = self._lengths[:, None]
        # What lies beyond a row's own length counts as its future, which nobody sees.
        slots = torch.arange(width, device=self._base.device).expand(len(self), -1)
        with behind(self.prefix, self._base.layer_specs, index, slots) as placed:
            out = self._base.model(
                input_ids=self._tokens[:, None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                **placed,
            )
        self._lengths = self._lengths + 1
        return out.logits[:, -1].float()

    def go_on(self, tokens: Tensor, rows: Tensor) -> None:
        """Keep these rows and let each go on with its token; the others leave.

        Args:
            tokens: `[kept rows]`.
            rows: `[kept rows]`, ascending.
        """
        if len(rows) < len(self):
            for layer in self._layers:
                layer.keep(rows)
            self._lengths = self._lengths[rows]
        self._tokens = tokens
