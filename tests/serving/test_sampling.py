import pytest
import torch

from cartridge_core.serving.sampling import Luck, choose
from cartridge_core.serving.sampling_params import SamplingParams

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.5, 0.0])


def drawn(temperature: float, top_p: float = 1.0, count: int = 4000) -> torch.Tensor:
    """Share of each token."""
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p)
    luck = [(number + 0.5) / count for number in range(count)]
    tokens = choose(LOGITS.expand(count, -1), [params] * count, luck)
    return torch.bincount(tokens, minlength=len(LOGITS)) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_are_likely(temperature: float) -> None:
    torch.testing.assert_close(drawn(temperature), (LOGITS / temperature).softmax(0), atol=1e-3, rtol=0)


def test_a_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    probabilities = LOGITS.softmax(0)
    # 0.48, 0.29, 0.11, 0.07, 0.02
    for top_p, kept in [(0.0, [1]), (0.4, [1]), (0.6, [1, 3]), (0.8, [0, 1, 3]), (0.999, [0, 1, 2, 3, 4])]:
        expected = torch.zeros(5)
        expected[kept] = probabilities[kept] / probabilities[kept].sum()
        torch.testing.assert_close(drawn(1.0, top_p), expected, atol=1e-3, rtol=0)


def test_rows_have_settings_of_their_own() -> None:
    params = [
        SamplingParams(1, temperature=0),
        SamplingParams(1, temperature=1.0),
        SamplingParams(1, temperature=1.0, top_p=0.5),
    ]
    tokens = choose(LOGITS.expand(3, -1), params, [0.99, 0.99, 0.99])
    assert tokens.tolist() == [1, 4, 3]
    assert choose(LOGITS[None], params[1:2], [0.99]).tolist() == [4]


def test_luck_belongs_to_seed_and_answer() -> None:
    def draws(seed: int | None, index: int) -> list[float]:
        luck = Luck(seed, index)
        return [luck.draw() for _ in range(5)]

    assert draws(3, 0) == draws(3, 0)
    assert len({tuple(draws(seed, index)) for seed in (3, 4) for index in (0, 1)}) == 4
    assert draws(None, 0) != draws(None, 0)
