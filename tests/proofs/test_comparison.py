"""What `make bench-train` compares computes the same thing, and its measures measure what they say."""

import numpy as np
import pytest
import torch

from cartridge_core.inference.prefix import prefill
from cartridge_core.models import load_base_model
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.optimizer import set_learning_rate
from cartridge_core.training.ranks import ALONE
from cartridge_core.training.schedule import learning_rate
from cartridge_core.training.state import TrainingState
from cartridge_core.training.step import batch_gradient
from tests.proofs.side_by_side import SideBySide
from tests.proofs.step_profile import PARTS, profiled

CONFIG = TrainingConfig(num_tokens=12, optimizer="adamw", precision="float32", steps=9, warmup_steps=2)


def conversation(seed: int) -> Targets:
    rng = np.random.default_rng(seed)
    prompt, answer, k = int(rng.integers(4, 20)), int(rng.integers(2, 9)), 5
    logits = torch.from_numpy(rng.normal(size=(answer, 1152))).mul(4).log_softmax(-1)
    top = logits.topk(k)
    return Targets(
        token_ids=rng.integers(6, 1152, prompt + answer).astype(np.int32),
        assistant_mask=np.arange(prompt + answer) >= prompt,
        topk_ids=top.indices.numpy().astype(np.int32),
        topk_logprobs=top.values.numpy().astype(np.float32),
        tail_logprob=(-top.values.exp().sum(-1)).log1p().numpy().astype(np.float32),
    )


@pytest.mark.parametrize("part_size", [4, 1])
def test_pefts_loop_takes_our_steps(part_size: int) -> None:
    peft_loop = pytest.importorskip("tests.proofs.peft_loop", reason="needs peft")
    base = load_base_model("reference", device="cpu")
    initial = prefill(base, list(range(1, 13)))
    steps = [[conversation(4 * step + place) for place in range(4)] for step in range(3)]
    state = TrainingState(initial, CONFIG, base.device)
    for step in steps:
        set_learning_rate(state.optimizer, learning_rate(CONFIG, state.step))
        batch_gradient(base, state, step, CONFIG, ALONE)
        state.update()
    model = peft_loop.peft_model(initial, CONFIG.num_frozen_tokens, torch.float32)
    rounds: list[int] = []
    seconds = peft_loop.train_peft(
        peft_loop.CachedTeacherLoop,
        model,
        steps,
        CONFIG,
        part_size=part_size,
        round_steps=1,
        meanwhile=lambda: rounds.append(len(rounds)),
    )
    assert len(seconds) == len(rounds) == 3
    reached, wanted, start = peft_loop.prefix_of(model), state.served(), initial
    for side in ("keys", "values"):
        for one, other, before in zip(*(getattr(some, side) for some in (reached, wanted, start)), strict=True):
            assert (other - before).abs().max() > 0.01
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
            assert torch.equal(one[:, 0], before[:, 0].float())


def test_the_shipped_loop_reads_the_document() -> None:
    peft_loop = pytest.importorskip("tests.proofs.peft_loop", reason="needs peft")
    base = load_base_model("reference", device="cpu")
    model = peft_loop.peft_model(prefill(base, list(range(1, 13))), 1)
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda m, args, out: read.append(out.shape[1]))
    document, one = list(range(1, 101)), conversation(0)
    peft_loop.train_peft(peft_loop.RereadingLoop, model, [[one]], CONFIG, part_size=1, round_steps=1, document=document)
    hook.remove()
    assert read == [100 + len(one.token_ids), len(one.token_ids)]


def test_a_speedup_is_of_tokens_a_second_without_the_warm_up() -> None:
    sides = SideBySide([9.0, 1.0, 2.0, 1.0], [1.0, 2.0, 8.0, 6.0], [10, 10, 20, 10], [10, 10, 20, 20], warm_up=1)
    assert sides.speedups() == pytest.approx([2, 4, 3])
    assert sides.figures("x")["x"] == pytest.approx(3)


def test_a_profile_knows_the_parts_of_a_step() -> None:
    base = load_base_model("reference", device="cpu")
    state = TrainingState(prefill(base, list(range(1, 13))), CONFIG, base.device)
    examples = [conversation(seed) for seed in range(8)]

    def work() -> None:
        batch_gradient(base, state, examples, CONFIG, ALONE)
        state.update()

    shares = profiled(work)
    assert sum(shares.values()) == pytest.approx(1)
    # How large they are depends on what else the machine does.
    assert all(shares[part] > 0 for part in PARTS if part != "casts"), shares
