"""A prefix out of another software's file, before it is known to fit a base model."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from cartridge_core.cartridge import Cartridge, PrefixKV
from cartridge_core.errors import BaseModelMismatchError
from cartridge_core.manifest import BaseModelIdentity, Origin
from cartridge_core.models import ModelLayout


@dataclass(frozen=True)
class ForeignPrefix:
    """Keys and values as a file holds them, and what the file says about them.

    Attributes:
        prefix: Every layer's keys and values; the user's first token follows at position `num_tokens`.
        num_frozen_tokens: Leading tokens that training did not touch.
        origin: The format and the sha256 of the file.
        base_name: What the file calls the base model; None where it says nothing.
        base_revision: Hub commit, branch or tag that the file names.
    """

    prefix: PrefixKV
    num_frozen_tokens: int
    origin: Origin
    base_name: str | None = None
    base_revision: str | None = None

    def cartridge(self, layout: ModelLayout, template_digest: str, **provenance: Any) -> Cartridge:
        """These keys and values as a Cartridge of a base model, in its own type.

        Args:
            layout: The base model.
            template_digest: `rendering.template_digest` of its tokenizer.
            **provenance: `tenant` and `corpus_digest` of the manifest.

        Raises:
            BaseModelMismatchError: The file names another base model, or has other layers than it.
            ArtifactError: A value is not finite in the model's type.
        """
        self._check_name(layout.identity)
        self._check_shapes(layout)
        return Cartridge.from_prefix(
            self.prefix,
            base_model=layout.identity,
            layers=layout.layer_specs,
            dtype=layout.kv_dtype,
            template_digest=template_digest,
            num_frozen_tokens=self.num_frozen_tokens,
            origin=self.origin,
            **provenance,
        )

    def _check_name(self, identity: BaseModelIdentity) -> None:
        # A path on somebody else's disk and a hub id have only their last part in common.
        if self.base_name is not None and PurePath(self.base_name).name != PurePath(identity.id).name:
            raise BaseModelMismatchError(
                f"The file belongs to base model {self.base_name!r}, not to {identity.id!r}.",
                f"Name its own model with `--model`; if {identity.id!r} is the same, correct the name in the file.",
            )
        commits = [r for r in (self.base_revision, identity.revision) if r and re.fullmatch("[0-9a-f]{40}", r)]
        if len(set(commits)) > 1:
            raise BaseModelMismatchError(
                f"The file belongs to {identity.id} at revision {self.base_revision}, not at {identity.revision}.",
                "Fetch that revision of the base model.",
            )

    def _check_shapes(self, layout: ModelLayout) -> None:
        # No format knows layers without a cache of their own, so every layer has keys here.
        seen = [(key.shape[0], key.shape[2]) for key in self.prefix.keys if key is not None]
        wanted = [(layer.num_kv_heads, layer.head_dim) for layer in layout.layer_specs if layer.has_kv]
        if seen != wanted:
            raise BaseModelMismatchError(
                f"The file has {_shapes(seen)}; {layout.identity.id} has {_shapes(wanted)}.",
                "Name the base model that it was trained with by `--model`.",
            )
        if self.prefix.next_position >= layout.max_positions:
            raise BaseModelMismatchError(
                f"The file's {self.prefix.num_tokens} tokens leave no room in the {layout.max_positions} positions of "
                f"{layout.identity.id}.",
                "Name the base model that it was trained with by `--model`.",
            )


def _shapes(layers: list[tuple[int, int]]) -> str:
    kinds = sorted(set(layers))
    heads = " and ".join(f"{heads} key/value heads of {width}" for heads, width in kinds)
    return f"{len(layers)} layers with {heads}"
