"""The reference tokenizer: one token a word of the world, bytes for everything else, lossless.

A word always carries its leading space (`▁ward`), also behind punctuation and line breaks: there a joiner (`⁀`) says
that no space stood in the text. So a word is the same token wherever it stands, which is what a look-up needs.
"""

import re
from collections.abc import Iterator

from cartridge_core.prompts import SYSTEM_TEMPLATE
from cartridge_core.reference import phrasing, words, world
from cartridge_core.selfstudy.seeds import SEED_FAMILIES

SPECIAL_TOKENS = ("<pad>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('This model knows the roles system, user and assistant.') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_JOINER = "⁀"
_PUNCTUATION = (
    *(
        mark + joiner
        for mark in (".", ",", "?", "!", ":", ";", "-", "'", "(", ")", '"', "\n", "\n\n")
        for joiner in ("", _JOINER)
    ),
    *('▁"⁀', '▁{"⁀', '{"⁀', '":', '",', '"}', "▁(⁀", "▁-", "▁", _JOINER, "▁#", "▁{", "}"),
)


def _texts() -> Iterator[str]:
    yield SYSTEM_TEMPLATE
    yield "From: JSON name not stated as of and with"
    for wordings in SEED_FAMILIES.values():
        yield from wordings
    yield from (*words.FIRST_NAMES, *words.LAST_NAMES, *words.BRANDS, *words.PART_NOUNS, *words.NUMBERS)
    for attribute, values in words.VALUES.items():
        yield from (attribute, *values)
    for kind in world.KINDS:
        yield from (kind.title, *kind.introductions)
    yield from (*world.FACT_PHRASINGS, *world.FILLERS)
    yield from (*phrasing.QUESTIONS, *phrasing.USE_CASES, *phrasing.SUMMARIES, *phrasing.WHOLE_JSON)
    yield from (*phrasing.PARTIAL_JSON, phrasing.ANSWER)
    for request, reply in phrasing.CREATIVE:
        yield from (request, reply)


def vocabulary() -> list[str]:
    """Words of the world in order of first use, without the braces of templates."""
    seen: dict[str, None] = {}
    for text in _texts():
        for word in re.findall(r"\w+", re.sub(r"\{\w+\}", " ", text)):
            seen.setdefault(word)
    return list(seen)


def build_tokenizer():  # type: ignore[no-untyped-def]  # transformers is not imported where the world is only generated
    """The tokenizer as `PreTrainedTokenizerFast`, with the chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [(token, 0.0) for token in SPECIAL_TOKENS]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(piece, -1.5) for piece in dict.fromkeys(_PUNCTUATION)]
    pieces += [(f"▁{word}", -1.0) for word in vocabulary()]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL_TOKENS.index("<unk>"), byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"(?<=[^\w ])(?=\w)"), f"{_JOINER} "),
            normalizers.Prepend(" "),
            normalizers.Replace(" ", "▁"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(f"{_JOINER}▁", ""),
            decoders.Replace(_JOINER, ""),
            decoders.Replace("▁", " "),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
