"""peft's side of a comparison: its CARTRIDGE adapter under transformers' `Trainer`, as its own example trains it.

The example is `examples/cartridge_self_study/train_distill.py` of huggingface/peft: the model in its stored type, a
padded batch (of one conversation where nobody says), `TrainingArguments` as they come. With every conversation it reads
the whole document again, to know the teacher's distributions; a loop with cached teacher is spared that.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from peft import CartridgeConfig, get_peft_model
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from cartridge_core.models import REFERENCE_PATH
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loss import TeacherTokens, cross_entropy
from cartridge_core.training.packed_rows import input_length
from cartridge_core.training.schedule import learning_rate

Features = list[tuple[Targets, int]]
"""Conversations, each with the number of predicted tokens of its whole step."""


def peft_model(initial: PrefixKV, num_frozen_tokens: int, dtype: torch.dtype | None = None) -> Any:
    """The reference model with a CARTRIDGE adapter that starts as ours does.

    Args:
        initial: Keys and values of the first step.
        num_frozen_tokens: Leading tokens that are not trained.
        dtype: Type of the model; None for the stored one, which is what the example takes.
    """
    base = AutoModelForCausalLM.from_pretrained(REFERENCE_PATH, dtype=dtype or "auto")
    config = CartridgeConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=initial.num_tokens, num_frozen_tokens=num_frozen_tokens
    )
    model = get_peft_model(base, config)
    cache = [(key[None], value[None]) for key, value in zip(initial.keys, initial.values, strict=True)]
    initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
    return model


def prefix_of(model: Any) -> PrefixKV:
    """Keys and values that an adapter has reached."""
    config = model.active_peft_config
    flat = model.get_prompt_embedding_to_save("default")
    parts = flat.view(len(flat), config.num_layers, 2, config.num_attention_heads, -1).permute(1, 2, 3, 0, 4)
    return PrefixKV([part[0] for part in parts], [part[1] for part in parts], len(flat))


def train_peft(
    loop: "type[PeftLoop]",
    model: Any,
    steps: Sequence[Sequence[Targets]],
    config: TrainingConfig,
    *,
    part_size: int,
    round_steps: int,
    meanwhile: Callable[[], object] = lambda: None,
    **more: Any,
) -> list[float]:
    """Train an adapter on the batches of some steps.

    Args:
        loop: `CachedTeacherLoop` or `RereadingLoop`.
        model: From `peft_model`.
        steps: The conversations of each step, all of one number.
        config: Learning rates and clipping: those of our side.
        part_size: Conversations that pass through the model at once; a step accumulates its parts.
        round_steps: Steps of a round.
        meanwhile: Called between two rounds, when no clock runs.
        more: What the loop needs besides.

    Returns:
        Seconds of each round, loading of batches included.
    """
    clock = _Clock(round_steps, meanwhile)
    rows = [(one, sum(int(other.assistant_mask.sum()) for other in step)) for step in steps for one in step]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=part_size,
            gradient_accumulation_steps=len(steps[0]) // part_size,
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
            max_steps=len(steps),
            # The example logs and saves; a comparison of loops does not charge it for that.
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        trainer = loop(config, model=model, args=arguments, train_dataset=rows, callbacks=[clock], **more)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds


class PeftLoop(Trainer):
    """The trainer as it is, but for the order of batches and the learning rate: those of our side."""

    def __init__(self, config: TrainingConfig, **more: Any) -> None:
        super().__init__(data_collator=self.collate, **more)
        self._config = config

    def collate(self, features: Features) -> dict[str, Any]:
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        def share(step: int) -> float:
            return learning_rate(self._config, min(step, self._config.steps - 1)) / self._config.learning_rate

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
        return self.lr_scheduler


class CachedTeacherLoop(PeftLoop):
    """The example's loop, given the teacher's top k instead of the document. Its loss is ours, by the same function."""

    def collate(self, features: Features) -> dict[str, Any]:
        examples = [example for example, _ in features]
        padded = _padded([example.token_ids[: input_length(example)] for example in examples])
        width = padded["input_ids"].shape[1]
        places = [row * width + np.flatnonzero(e.assistant_mask) - 1 for row, e in enumerate(examples)]
        teacher = TeacherTokens(
            torch.from_numpy(np.concatenate([e.topk_ids for e in examples]).astype(np.int64)),
            torch.from_numpy(np.concatenate([e.topk_logprobs for e in examples])),
            torch.from_numpy(np.concatenate([e.tail_logprob for e in examples])),
        )
        return padded | {
            "predicting": torch.from_numpy(np.concatenate(places)),
            "teacher": teacher,
            "tokens_of_step": features[0][1],
        }

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Tensor:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        predicted = logits.flatten(0, 1)[inputs["predicting"]]
        loss = cross_entropy(predicted, inputs["teacher"]).sum() / inputs["tokens_of_step"]
        # The trainer divides by the parts of a step; this is already a share of the step's own mean.
        return loss * self.args.gradient_accumulation_steps


class RereadingLoop(PeftLoop):
    """The example as it is shipped: the document passes through the model with every conversation."""

    top_k = 20

    def __init__(self, config: TrainingConfig, document: Sequence[int], **more: Any) -> None:
        super().__init__(config, **more)
        self._document = torch.tensor([document])

    def collate(self, features: Features) -> dict[str, Any]:
        return _padded([example.token_ids for example, _ in features])

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        document = self._document.expand(len(ids), -1)
        with torch.no_grad(), model.disable_adapter():
            read = model(
                input_ids=torch.cat((document, ids), dim=1),
                attention_mask=torch.cat((torch.ones_like(document), mask), dim=1),
                use_cache=False,
            )
        known = read.logits[:, document.shape[1] : -1]
        said = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        top = known.topk(self.top_k, dim=-1).indices
        teacher, student = (some.log_softmax(dim=-1).gather(-1, top) for some in (known, said))
        seen = mask[:, 1:].bool()
        losses = -(teacher.exp() * student).sum(dim=-1).masked_fill(~seen, 0.0)
        return (losses.sum(dim=1) / seen.sum(dim=1)).mean()


def _padded(texts: Sequence[Any]) -> dict[str, Any]:
    ids = [torch.from_numpy(text.astype(np.int64)) for text in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(text) for text in ids], batch_first=True),
    }


class _Clock(TrainerCallback):
    """Measures the loop alone, and lets the other side run between two rounds."""

    def __init__(self, round_steps: int, meanwhile: Callable[[], object]) -> None:
        self.seconds: list[float] = []
        self._steps, self._meanwhile, self._started = round_steps, meanwhile, 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._steps == 0:
            self.seconds.append(time.perf_counter() - self._started)
            self._meanwhile()
            self._started = time.perf_counter()
