import math

import numpy as np
import pytest
import torch

from cartridge_core.training.loss import TeacherTokens, cross_entropy

VOCAB, K, M = 40, 5, 7


def full_teacher(seed: int = 0, temperature: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(M, VOCAB, generator=generator) * temperature, dim=1)


def known(full: torch.Tensor, k: int = K) -> TeacherTokens:
    top, ids = full.topk(k, dim=1)
    tail = torch.log1p(-top.exp().sum(dim=1).clamp(max=1.0))
    return TeacherTokens(ids, top, tail)


def naive(logits: torch.Tensor, teacher: TeacherTokens) -> list[float]:
    """The formula, one token after the other, in double precision."""
    result = []
    for row in range(len(logits)):
        student = np.exp(logits[row].double().numpy())
        student /= student.sum()
        ids = teacher.topk_ids[row].tolist()
        wanted = zip(ids, teacher.topk_logprobs[row].tolist(), strict=True)
        top = sum(math.exp(logprob) * math.log(student[i]) for i, logprob in wanted)
        rest = sum(student[i] for i in range(VOCAB) if i not in ids)
        tail = math.exp(teacher.tail_logprob[row].item())
        result.append(-top - (tail * math.log(rest) if tail else 0.0))
    return result


def test_equals_the_formula() -> None:
    logits, teacher = torch.randn(M, VOCAB, generator=torch.Generator().manual_seed(1)), known(full_teacher())
    torch.testing.assert_close(cross_entropy(logits, teacher), torch.tensor(naive(logits, teacher)))


def test_divergence_is_zero_for_the_teacher_itself_and_positive_for_others() -> None:
    full = full_teacher()
    teacher = known(full)
    own = cross_entropy(full, teacher) - teacher.entropy()
    torch.testing.assert_close(own, torch.zeros(M), atol=1e-6, rtol=0)
    other = cross_entropy(full_teacher(seed=2), teacher) - teacher.entropy()
    assert (other > 0.01).all()


def test_entropy_counts_the_tail_as_one_outcome() -> None:
    teacher = TeacherTokens(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]).log(), torch.tensor([0.25]).log())
    assert teacher.entropy().item() == pytest.approx(1.5 * math.log(2))


def test_the_tail_has_a_gradient() -> None:
    """The teacher leaves half its mass to the tail; a student that leaves none is drawn towards the teacher."""
    teacher = TeacherTokens(torch.tensor([[0]]), torch.tensor([[0.5]]).log(), torch.tensor([0.5]).log())
    logits = torch.zeros(1, VOCAB)
    logits[0, 0] = 8.0
    logits.requires_grad_()
    cross_entropy(logits, teacher).sum().backward()
    student = logits.detach().softmax(dim=1)
    assert logits.grad is not None
    # d/dz of the formula: the student's mass less the teacher's; the tail's share is spread as the student spreads it.
    expected = student.clone()
    expected[0, 0] -= 0.5
    expected[0, 1:] -= 0.5 * student[0, 1:] / student[0, 1:].sum()
    torch.testing.assert_close(logits.grad, expected)
    assert logits.grad[0, 0] > 0.4


def test_a_student_that_is_sure_keeps_digits_in_its_tail() -> None:
    """1 - sum of the top k is exactly 0 in fp32 here; the tail's logarithm is not."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 0] = 40.0
    teacher = TeacherTokens(torch.tensor([[0]]), torch.tensor([[0.9]]).log(), torch.tensor([0.1]).log())
    expected = 0.1 * (40.0 - math.log(VOCAB - 1))
    assert cross_entropy(logits, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("k", [VOCAB, 1])
def test_empty_tail_is_plain_cross_entropy(k: int) -> None:
    logits = torch.randn(M, VOCAB, generator=torch.Generator().manual_seed(1)).requires_grad_()
    if k == VOCAB:
        full = full_teacher()
        teacher, wanted = known(full, k), -(full.exp() * logits.log_softmax(dim=1)).sum(dim=1)
        teacher = TeacherTokens(teacher.topk_ids, teacher.topk_logprobs, torch.full((M,), -torch.inf))
    else:
        labels = torch.arange(M)
        teacher = TeacherTokens(labels[:, None], torch.zeros(M, 1), torch.full((M,), -torch.inf))
        wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert (teacher.entropy() == 0).all()
    loss = cross_entropy(logits, teacher)
    torch.testing.assert_close(loss, wanted)
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), logits)[0])


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits, teacher = full_teacher(seed=4).to(torch.bfloat16), known(full_teacher())
    loss = cross_entropy(logits, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), teacher))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_flattens_the_outcomes_of_both_sides(temperature: float) -> None:
    logits, teacher = torch.randn(M, VOCAB, generator=torch.Generator().manual_seed(1)), known(full_teacher())
    total = 0.0
    for row in range(M):
        student = logits[row].double().softmax(dim=0)
        top = student[teacher.topk_ids[row]]
        coarse = torch.cat((top, 1 - top.sum()[None])) ** (1 / temperature)
        wanted = teacher.outcomes()[row].double().exp() ** (1 / temperature)
        total += float(-(wanted / wanted.sum() * (coarse / coarse.sum()).log()).sum()) * temperature**2
    assert cross_entropy(logits, teacher, temperature).sum().item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_at_every_temperature_the_teacher_itself_is_best(temperature: float) -> None:
    full = full_teacher()
    teacher = known(full)
    logits = full.clone().requires_grad_()
    divergence = cross_entropy(logits, teacher, temperature) - teacher.entropy(temperature)
    torch.testing.assert_close(divergence, torch.zeros(M), atol=1e-5, rtol=0)
    divergence.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(M, VOCAB), atol=1e-5, rtol=0)
    other = cross_entropy(full_teacher(seed=2), teacher, temperature) - teacher.entropy(temperature)
    assert (other > 0.01).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_is_that_of_the_formula(temperature: float) -> None:
    """Against plain operations under autograd, in fp32 as the loss is."""
    teacher = known(full_teacher())
    logits = torch.randn(M, VOCAB, generator=torch.Generator().manual_seed(1)).requires_grad_()
    top = logits.gather(1, teacher.topk_ids)
    rest = logits.scatter(1, teacher.topk_ids, -torch.inf).logsumexp(dim=1, keepdim=True)
    student = (torch.cat((top, rest), dim=1).log_softmax(dim=1) / temperature).log_softmax(dim=1)
    wanted = -(teacher.outcomes(temperature).exp() * student).sum() * temperature**2
    seen = cross_entropy(logits, teacher, temperature).sum()
    torch.testing.assert_close(torch.autograd.grad(seen, logits), torch.autograd.grad(wanted, logits))
