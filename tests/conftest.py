"""Tiny base models with real maths, and a small tokenizer in each chat format, so that no test needs a hub."""

import functools
from collections.abc import Callable

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cartridge_core.models import BaseModel, from_parts
from tests.workers import pytest_collection_modifyitems, pytest_xdist_make_scheduler

__all__ = ["pytest_collection_modifyitems", "pytest_xdist_make_scheduler"]

OURS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# As Qwen2.5 has it: a default system text where the conversation has none.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3 has it: an empty thought before the last answer, none before earlier ones.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# As Llama 3 has it: a date, and system lines of its own.
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content']|trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system_message }}"
    "{{ '<|eot_id|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content']|trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# As Gemma 3 has it: the system text opens the first user turn.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content']|trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# As Gemma 2 has it: no system role at all.
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content']|trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
)
# As Mistral 7B v0.3 has it: the system text wanders to the last user message.
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}{{ bos_token }}"
    "{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    "{% if loop.last and system_message is defined %}"
    "{{ '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# As Mistral Small has it: a system block of its own in front of the first instruction.
MISTRAL_SMALL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)

# Format name to template, BOS, EOS and the special tokens it uses.
CHAT_FORMATS: dict[str, tuple[str, str | None, str, tuple[str, ...]]] = {
    "ours": (OURS, "<s>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")),
    "chatml": (CHATML, None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "qwen3": (QWEN3, None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "gemma": (GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "no_system": (NO_SYSTEM, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "mistral": (MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]")),
    "mistral_small": (MISTRAL_SMALL, "<s>", "</s>", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")),
}

_WORDS = (
    "You know the following text by heart. Answer from it alone and never mention it. The ward of Ada Lind is green. "
    "Her room is seven and her nurse is Tom Berg. What is the room of the patient? The blood group is not stated. "
    "Write one question that tests whether somebody knows a fact of the text. Reply with the question only. "
) * 4


@functools.cache
def build_tokenizer(chat_format: str = "ours") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of some 400 tokens with the chat template of a model family."""
    template, bos, eos, others = CHAT_FORMATS[chat_format]
    backend = Tokenizer(models.BPE())
    # "mistral" gets the dummy space that SentencePiece puts before a text: the hard case for cutting a conversation.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=chat_format == "mistral")
    backend.decoder = decoders.ByteLevel()
    specials = [token for token in ("<pad>", bos, eos, *others) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_WORDS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(t, normalized=False) for t in others]})
    tokenizer.chat_template = template
    return tokenizer


SIZES = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}


def _llama() -> PreTrainedModel:
    # Llama 3's scaled RoPE: a re-rotation that took plain frequencies would be seen.
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    return LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=16, rope_parameters=rope))


def _qwen2() -> PreTrainedModel:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            # Biases start at zero, where nobody would miss them.
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))


def _gemma3() -> PreTrainedModel:
    # A window shorter than any prefix in the tests, on every other layer.
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8, layer_types=kinds))


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, head_dim=16, sliding_window=8))


_KINDS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "llama": (_llama, "llama3"),
    "qwen2": (_qwen2, "ours"),
    "qwen3": (_qwen3, "qwen3"),
    "gemma3": (_gemma3, "gemma"),
    "mistral": (_mistral, "mistral"),
}
KINDS = tuple(_KINDS)


@functools.cache
def build_tiny_base(kind: str = "qwen2") -> BaseModel:
    """A random two-layer fp32 model of a family, with a tokenizer in the family's chat format."""
    make, chat_format = _KINDS[kind]
    state = torch.random.get_rng_state()
    torch.manual_seed(sum(map(ord, kind)))
    model = make()
    torch.random.set_rng_state(state)
    tokenizer = build_tokenizer(chat_format)
    # Only the tokenizer knows what ends a text: the configurations' defaults are other tokens here.
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, tokenizer.eos_token_id, None
    return from_parts(model, tokenizer, f"tiny-{kind}")


@pytest.fixture(scope="session")
def tiny_base() -> Callable[[str], BaseModel]:
    """`tiny_base(kind)` for kind in llama, qwen2, qwen3, gemma3, mistral; the same object each time."""
    return build_tiny_base


@pytest.fixture(params=KINDS)
def each_base(request: pytest.FixtureRequest) -> BaseModel:
    """Each tiny model in turn."""
    return build_tiny_base(request.param)


@pytest.fixture(scope="session")
def chat_tokenizer() -> Callable[[str], PreTrainedTokenizerFast]:
    """`chat_tokenizer(chat_format)`; the same object each time."""
    return build_tokenizer


@pytest.fixture(params=tuple(CHAT_FORMATS))
def each_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer in each chat format in turn."""
    return build_tokenizer(request.param)
