"""What a model's configuration says about its key/value cache, and which models cannot hold a Cartridge."""

from typing import Any

from cartridge_core.errors import UnsupportedModelError
from cartridge_core.manifest import LayerSpec

_REMEDY = "Use a decoder of the Llama, Qwen, Gemma or Mistral kind."

_RECURRENT = ("mamba", "rwkv", "recurrent_gemma", "jamba", "zamba", "bamba", "lfm2", "falcon_h1", "nemotron_h", "xlstm")

_OTHER_ATTENTION = {
    "blt": "reads bytes through several models",
    "diffllama": "subtracts one attention from another",
    "doge": "masks keys by what they say",
    "gemma4": "has key heads of several widths",
    "gpt_oss": "has learned attention sinks",
    "granite_swa": "has learned attention sinks",
    "granitemoe_swa": "has learned attention sinks",
    "hrm_text": "runs its layers several times over",
    "jetmoe": "chooses among its attention heads",
    "mimo_v2_flash": "has keys and values of different widths",
    "minimax_m3_vl_text": "attends to the keys that an index picks",
    "mllama": "attends to images",
    "moshi": "reads sound",
}
"""What these decoders do that a plain cache behind a plain attention does not, by the beginning of the model type."""


def check_architecture(config: Any) -> None:
    """Refuse a model whose state is not one plain key and value vector a token and layer.

    Args:
        config: A `PreTrainedConfig`.

    Raises:
        UnsupportedModelError: Names the model type and the reason.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.model_type
    for name, reason in _OTHER_ATTENTION.items():
        if kind == name or kind.startswith(f"{name}_"):
            raise UnsupportedModelError(f"Model type {kind!r} {reason}.", _REMEDY)
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"Model type {kind!r} is an encoder-decoder.", _REMEDY)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or _is_encoder(kind):
        raise UnsupportedModelError(f"Model type {kind!r} is not a decoder that writes text.", _REMEDY)
    if any(name in kind for name in _RECURRENT):
        raise UnsupportedModelError(f"Model type {kind!r} keeps a recurrent state instead of keys and values.", _REMEDY)
    if getattr(text, "kv_lora_rank", None):
        raise UnsupportedModelError(
            f"Model type {kind!r} uses multi-head latent attention, whose cache is compressed.", _REMEDY
        )
    if not getattr(text, "rope_parameters", None):
        raise UnsupportedModelError(f"Model type {kind!r} does not encode positions by RoPE.", _REMEDY)
    if getattr(text, "num_kv_shared_layers", None) and kind != "gemma3n_text":
        raise UnsupportedModelError(f"Model type {kind!r} shares one cache among several layers.", _REMEDY)
    strange = set(_layer_types(text)) - {"full_attention", "sliding_attention"}
    if strange:
        raise UnsupportedModelError(f"Model type {kind!r} has layers of kind {', '.join(sorted(strange))}.", _REMEDY)


def layer_specs(config: Any) -> tuple[LayerSpec, ...]:
    """One specification a decoder layer.

    Args:
        config: A `PreTrainedConfig` that `check_architecture` let pass.
    """
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    specs = []
    cached = len(_layer_types(text))
    # The last layers may read the cache of an earlier one (Gemma 3n); the library leaves them out.
    kinds = _layer_types(text) + (list(text.layer_types[cached:]) if cached < text.num_hidden_layers else [])
    for layer, kind in enumerate(kinds):
        rope = text.rope_parameters
        specs.append(
            LayerSpec(
                has_kv=layer < cached,
                num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
                head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
                # Models that mix windows and full attention may rotate each kind of layer differently.
                rope=dict(rope.get(kind, rope)),
                window=text.sliding_window if kind == "sliding_attention" else None,
            )
        )
    return tuple(specs)


def _layer_types(text: Any) -> list[str]:
    from transformers.cache_utils import get_layer_types_and_kwargs

    # The library's own reading, because configurations say it in several ways.
    return list(get_layer_types_and_kwargs(text)[0])


def _is_encoder(kind: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    # BERT and its kin are also listed as causal models, though nobody writes text with them.
    return kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
