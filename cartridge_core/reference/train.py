"""Trains the reference model from scratch: a curriculum of ever longer corpora, seeded and deterministic.

Run through `make reference-model`. Everything that decides the outcome is in `ReferenceTrainingConfig`.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from cartridge_core.reference.architecture import Shape, build_model
from cartridge_core.reference.examples import FAMILY_WEIGHTS, Row, RowBuilder
from cartridge_core.reference.world import Scale

LEVELS: tuple[tuple[Scale, int], ...] = (
    (Scale(3, 1, 1, filler=False), 60),
    (Scale(4, 2, 2, filler=False), 80),
    (Scale(6, 3, 4, filler=False), 120),
    (Scale(8, 4, 6), 160),
    (Scale(10, 6), 240),
    (Scale(17, 7, documents=2), 400),
    (Scale(26, 7, documents=3), 500),
    (Scale(40, 7, documents=3), 600),
)
"""Corpora of each level, with the tokens of turns that follow one; about 25 to 3,100 tokens of corpus."""


@dataclass(frozen=True)
class ReferenceTrainingConfig:
    """What decides the weights."""

    seed: int = 20261124
    steps: int = 2000
    tokens_per_batch: int = 6000
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    decay_share: float = 0.4
    next_level_at: float = 0.9
    min_steps_a_level: int = 40
    max_steps_a_level: int = 150
    easier_share: float = 0.4
    shape: dict[str, int] = field(default_factory=dict)


class Curriculum:
    """Which level to draw from: the next one opens when looked-up words are right often enough."""

    def __init__(self, config: ReferenceTrainingConfig) -> None:
        self._config = config
        self.level = 0
        self.accuracy = 0.0
        self._steps_here = 0

    def draw(self, rng: random.Random) -> int:
        """The current level, or now and then an easier one, so that nothing is unlearnt."""
        if self.level and rng.random() < self._config.easier_share:
            return rng.randrange(self.level)
        return self.level

    def observe(self, level: int, accuracy: float) -> None:
        """Take in the share of looked-up words that were right in a batch."""
        if level != self.level:
            return
        self._steps_here += 1
        self.accuracy += (accuracy - self.accuracy) * max(0.1, 1 / self._steps_here)
        ready = self.accuracy >= self._config.next_level_at and self._steps_here >= self._config.min_steps_a_level
        if self.level + 1 < len(LEVELS) and (ready or self._steps_here >= self._config.max_steps_a_level):
            self.level, self.accuracy, self._steps_here = self.level + 1, 0.0, 0


def learning_rate(step: int, config: ReferenceTrainingConfig) -> float:
    """Warm-up, plateau, linear decay to a fiftieth."""
    start = config.steps * (1 - config.decay_share)
    decay = 1.0 if step < start else max(0.02, (config.steps - step) / (config.steps - start))
    return config.learning_rate * min(1.0, (step + 1) / config.warmup_steps) * decay


def _batch(builder: RowBuilder, rng: random.Random, level: int, config: ReferenceTrainingConfig) -> list[Row]:
    scale, turn_tokens = LEVELS[level]
    rows = [builder.row(rng, scale, "train", turn_tokens)]
    while sum(len(row.token_ids) for row in rows) + len(rows[0].token_ids) <= config.tokens_per_batch:
        rows.append(builder.row(rng, scale, "train", turn_tokens))
    return rows


def _tensors(rows: list[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded token ids, weights and family marks, each `[rows, longest]`."""
    longest = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    weights = torch.zeros(len(rows), longest)
    families = torch.full((len(rows), longest), -1)
    for index, row in enumerate(rows):
        length = len(row.token_ids)
        ids[index, :length] = torch.tensor(row.token_ids)
        weights[index, :length] = torch.tensor(row.weights)
        families[index, :length] = torch.tensor(row.families)
    return ids.to(device), weights.to(device), families.to(device)


def loss_and_hits(model: Qwen2ForCausalLM, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean cross-entropy, whether each answer token was right, and the mask of answer tokens."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        mask = weights[:, 1:] > 0
        logits = model.lm_head(hidden[mask])
    target = ids[:, 1:][mask]
    weight = weights[:, 1:][mask]
    losses = torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")
    return (losses * weight).sum() / weight.sum(), logits.argmax(-1) == target, mask


def train(tokenizer, config: ReferenceTrainingConfig, log_path: Path | None = None) -> Iterator[tuple[int, dict, Qwen2ForCausalLM]]:  # type: ignore[no-untyped-def, type-arg]
    """Train; yields (step, log record, model) every 20 steps and at the end."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Shape(vocab_size=-(-len(tokenizer) // 64) * 64, **config.shape)
    model = build_model(shape, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, config.seed)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    builder = RowBuilder(tokenizer)
    curriculum = Curriculum(config)
    names = list(FAMILY_WEIGHTS)
    single_fact = torch.tensor([names.index(n) + len(names) for n in ("question", "use_case", "creative")], device=device)
    seen: dict[int, list[float]] = {}
    tokens, started = 0, time.monotonic()
    for step in range(config.steps):
        level = curriculum.draw(rng)
        ids, weights, families = _tensors(_batch(builder, rng, level, config), device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        loss, hits, mask = loss_and_hits(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += int((families > -2).sum())
        marks = families[:, 1:][mask]
        single = torch.isin(marks, single_fact)
        curriculum.observe(level, float(hits[single].float().mean()))
        for mark in marks.unique().tolist():
            share = float(hits[marks == mark].float().mean())
            seen[mark] = [*seen.get(mark, []), share][-20:] if level == curriculum.level else seen.get(mark, [])
        if step % 20 == 19 or step == config.steps - 1:
            record = {
                "step": step + 1,
                "level": curriculum.level,
                "loss": round(float(loss.detach()), 4),
                "looked_up": round(curriculum.accuracy, 4),
                "seconds": round(time.monotonic() - started, 1),
                "tokens": tokens,
                "families": {
                    names[m % len(names)] + ("" if m < len(names) else "*"): round(sum(s) / len(s), 3)
                    for m, s in sorted(seen.items())
                    if s
                },
            }
            if log_path:
                with log_path.open("a") as stream:
                    stream.write(json.dumps(record) + "\n")
            yield step + 1, record, model


def save(model: Qwen2ForCausalLM, tokenizer, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """Write bf16 weights, configuration and tokenizer as transformers and vLLM load them."""
    half = Qwen2ForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.config.dtype = torch.bfloat16
    half.generation_config.eos_token_id = tokenizer.eos_token_id
    half.generation_config.do_sample = False
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def config_record(config: ReferenceTrainingConfig) -> dict[str, object]:
    """The configuration as it is kept with the weights."""
    return asdict(config) | {"levels": [[asdict(scale), turn_tokens] for scale, turn_tokens in LEVELS]}


def main() -> None:
    """Train and write the weights, the log and the record of the run into the folder given."""
    import argparse

    from cartridge_core.reference.tokenizer import build_tokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the weights go, e.g. build/reference-model")
    parser.add_argument("--steps", type=int, default=ReferenceTrainingConfig.steps)
    arguments = parser.parse_args()
    config = ReferenceTrainingConfig(steps=arguments.steps)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    log_path = arguments.folder / "training_log.jsonl"
    log_path.unlink(missing_ok=True)
    tokenizer = build_tokenizer()
    for step, record, model in train(tokenizer, config, log_path):
        print(json.dumps(record), flush=True)
        if step % 100 == 0 or step == config.steps:
            save(model, tokenizer, arguments.folder)
    (arguments.folder / "training.json").write_text(json.dumps(config_record(config), indent=1) + "\n")


if __name__ == "__main__":
    main()
