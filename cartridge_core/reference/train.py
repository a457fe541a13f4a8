"""Trains the reference model from scratch, seeded and deterministic; run through `make reference-model`.

A curriculum of ever longer corpora, then all lengths at once. A phase starts from the weights that the one before
saved, so that a run can be taken up between them.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from cartridge_core.models import REFERENCE_PATH
from cartridge_core.reference.architecture import as_llama, build_config, build_model
from cartridge_core.reference.examples import FAMILIES, FAMILY_SHARES, Row, RowBuilder
from cartridge_core.reference.shape import Shape
from cartridge_core.reference.tokenizer import build_tokenizer
from cartridge_core.reference.word_classes import word_classes
from cartridge_core.reference.world import WORLD_VERSION, Scale

LEVELS: tuple[tuple[Scale, int], ...] = (
    (Scale(6, 3, 4, filler=False), 168),
    (Scale(8, 4, 6), 224),
    (Scale(10, 6), 336),
    (Scale(17, 7, documents=2), 560),
    (Scale(26, 7, documents=3), 700),
    (Scale(40, 7, documents=3), 840),
)
"""Corpora of each level, with the tokens of turns that follow one; about 200 to 3,100 tokens of corpus."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an optimizer and a schedule of its own."""

    steps: int
    first_level: int
    easier_share: float
    """Share of batches from levels below the current one."""
    peak: float
    """Learning rate after the warm-up."""
    decay_share: float
    """Share of steps over which it falls at the end."""
    warmup_steps: int = 40


PHASES = (
    # Slowly: until the words around an answer are learnt, large steps would undo the seeded circuit.
    Phase(steps=300, first_level=1, easier_share=0.5, peak=5e-4, decay_share=0.0),
    Phase(steps=1500, first_level=len(LEVELS) - 1, easier_share=0.6, peak=8e-4, decay_share=0.7),
)


@dataclass(frozen=True)
class ReferenceTrainingConfig:
    """What decides the weights."""

    seed: int = 20261124
    tokens_per_batch: int = 6000
    namesakes: float = 0.4
    """Share of corpora in which two to four entities of a document share one half of their names."""
    next_level_at: float = 0.9
    min_steps_a_level: int = 40
    max_steps_a_level: int = 80
    phases: tuple[Phase, ...] = PHASES


class Curriculum:
    """Which level to draw from: the next one opens when looked-up words are right often enough."""

    def __init__(self, config: ReferenceTrainingConfig, phase: Phase) -> None:
        self._config = config
        self._easier_share = phase.easier_share
        self.level = phase.first_level
        self.accuracy = 0.0
        self._steps_here = 0

    def draw(self, rng: random.Random) -> int:
        """The current level, or now and then an easier one, so that nothing is unlearnt."""
        if self.level and rng.random() < self._easier_share:
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


def learning_rate(step: int, phase: Phase) -> float:
    """Warm-up, plateau, linear decay to a fiftieth."""
    start = phase.steps * (1 - phase.decay_share)
    decay = 1.0 if step < start else max(0.02, (phase.steps - step) / (phase.steps - start))
    return phase.peak * min(1.0, (step + 1) / phase.warmup_steps) * decay


def _with_namesakes(rng: random.Random, scale: Scale) -> Scale:
    """The scale with few last names, or now and then few first ones, for as many entities."""
    each = scale.entities // scale.documents
    few = max(2, each // rng.randint(2, 4))
    return replace(scale, first_names=few) if rng.random() < 0.25 else replace(scale, second_names=few)


def _batch(builder: RowBuilder, rng: random.Random, level: int, config: ReferenceTrainingConfig) -> list[Row]:
    def draw() -> Row:
        scale, turn_tokens = LEVELS[level]
        if rng.random() < config.namesakes:
            scale = _with_namesakes(rng, scale)
        return builder.row(rng, scale, "train", turn_tokens)

    rows = [draw()]
    while sum(len(row.token_ids) for row in rows) + len(rows[0].token_ids) <= config.tokens_per_batch:
        rows.append(draw())
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


def train_phase(  # type: ignore[no-untyped-def]
    model: Qwen2ForCausalLM, tokenizer, config: ReferenceTrainingConfig, index: int
) -> Iterator[tuple[int, dict[str, object]]]:
    """Train through one phase; yields (step, log record) every 20 steps and at its end."""
    phase = config.phases[index]
    rng = random.Random(config.seed + index)
    device = next(model.parameters()).device
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.peak, betas=(0.9, 0.98), weight_decay=0.01)
    builder = RowBuilder(tokenizer)
    curriculum = Curriculum(config, phase)
    single_fact = torch.tensor(
        [FAMILIES.index(name) + len(FAMILIES) for name in ("question", "use_case", "creative")], device=device
    )
    seen: dict[int, list[float]] = {}
    tokens, started = 0, time.monotonic()
    for step in range(phase.steps):
        level = curriculum.draw(rng)
        ids, weights, families = _tensors(_batch(builder, rng, level, config), device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase)
        loss, hits, mask = loss_and_hits(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        marks = families[:, 1:][mask]
        single = torch.isin(marks, single_fact)
        if bool(single.any()):
            curriculum.observe(level, float(hits[single].float().mean()))
        if level == curriculum.level:
            for mark in marks.unique().tolist():
                seen[mark] = [*seen.get(mark, []), float(hits[marks == mark].float().mean())][-20:]
        if step % 20 == 19 or step == phase.steps - 1:
            yield (
                step + 1,
                {
                    "phase": index,
                    "step": step + 1,
                    "level": curriculum.level,
                    "loss": round(float(loss.detach()), 4),
                    "looked_up": round(curriculum.accuracy, 4),
                    "seconds": round(time.monotonic() - started, 1),
                    "tokens": tokens,
                    "families": {_label(mark): round(sum(s) / len(s), 3) for mark, s in sorted(seen.items())},
                },
            )


def _label(mark: int) -> str:
    """A family's name, starred where only its looked-up words are meant."""
    return FAMILIES[mark % len(FAMILIES)] + ("" if mark < len(FAMILIES) else "*")


def save(model: Qwen2ForCausalLM, tokenizer, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """Write bf16 weights, configuration and tokenizer as transformers and vLLM load them."""
    half = as_llama(model, torch.bfloat16)
    half.generation_config.eos_token_id = tokenizer.eos_token_id
    half.generation_config.do_sample = False
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path, config: Qwen2Config) -> Qwen2ForCausalLM:
    """The weights that `save` wrote, as the model that is trained."""
    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = Qwen2ForCausalLM(config).float()
    wanted = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in llama.state_dict().items() if name in wanted})
    return model


def config_record(config: ReferenceTrainingConfig) -> dict[str, object]:
    """The configuration as it is kept with the weights."""
    levels = [[asdict(scale), turn_tokens] for scale, turn_tokens in LEVELS]
    return {"world_version": WORLD_VERSION, "levels": levels, "families": FAMILY_SHARES, **asdict(config)}


def train(folder: Path, config: ReferenceTrainingConfig, first_phase: int = 0) -> None:
    """Train through all phases from `first_phase` on; weights, tokenizer, log and configuration go into `folder`."""
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer()
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    shape, words = Shape(vocab_size=-(-len(tokenizer) // 64) * 64), word_classes(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "training_log.jsonl"
    if first_phase == 0:
        log.unlink(missing_ok=True)
        save(build_model(shape, *ends, words, config.seed), tokenizer, folder)
    for index in range(first_phase, len(config.phases)):
        if index == 0:
            model = build_model(shape, *ends, words, config.seed)
        else:
            model = load(folder, build_config(shape, *ends))
        model.to(device)
        for step, record in train_phase(model, tokenizer, config, index):
            line = json.dumps(record)
            print(line, flush=True)
            with log.open("a") as stream:
                stream.write(line + "\n")
            if step % 100 == 0 or step == config.phases[index].steps:
                save(model, tokenizer, folder)
    (folder / "training.json").write_text(json.dumps(config_record(config), indent=1) + "\n")


def main() -> None:
    """Command line of `make reference-model`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=REFERENCE_PATH, help="where the weights go")
    parser.add_argument(
        "--first-phase", type=int, default=0, help="take up a run at this phase, from the folder's weights"
    )
    arguments = parser.parse_args()
    train(arguments.folder, ReferenceTrainingConfig(), arguments.first_phase)


if __name__ == "__main__":
    main()
