"""Context distillation: the student learns the teacher's distributions, known by their top k and the rest's mass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class TeacherTokens:
    """The teacher's distributions at m tokens.

    A token that is simply known (next-token prediction) is the special case k = 1, log-probability 0, empty tail.

    Attributes:
        topk_ids: `[m, k]` int64, distinct within a row.
        topk_logprobs: `[m, k]` float32.
        tail_logprob: `[m]` float32, logarithm of the probability of all other tokens together; -inf for none.
    """

    topk_ids: Tensor
    topk_logprobs: Tensor
    tail_logprob: Tensor

    def __len__(self) -> int:
        """Tokens."""
        return len(self.tail_logprob)

    def __getitem__(self, rows: slice) -> "TeacherTokens":
        """Some of the tokens."""
        return TeacherTokens(self.topk_ids[rows], self.topk_logprobs[rows], self.tail_logprob[rows])

    def outcomes(self, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of the k + 1 outcomes, the tail last, at a temperature (`[m, k + 1]`)."""
        logprobs = torch.cat((self.topk_logprobs, self.tail_logprob[:, None]), dim=1)
        return logprobs if temperature == 1 else (logprobs / temperature).log_softmax(dim=1)

    def entropy(self, temperature: float = 1.0) -> Tensor:
        """Entropy of each distribution, its tail counted as one outcome: the least `cross_entropy` (`[m]`, nats).

        At a temperature it is weighed as the cross-entropy is.
        """
        return torch.special.entr(self.outcomes(temperature).exp()).sum(dim=1) * temperature**2


def cross_entropy(logits: Tensor, teacher: TeacherTokens, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student against the teacher over k + 1 outcomes: the top k, and any other token.

    With p the teacher and q the student, `-sum_i p_i log q_i - p_tail log(1 - sum_i q_i)`. Without the last term (the
    paper's loss, arXiv 2506.06266, section 3.2) tokens about which the teacher is unsure weigh less, and the student
    may take any mass from the tail. The tail's mass is summed from its own logits: `1 - sum_i q_i` has no digits left
    where the top k are nearly certain. Less the teacher's entropy this is the Kullback-Leibler divergence.

    A temperature T flattens both sides' *k + 1 outcomes*: `p_i^(1/T) / sum_j p_j^(1/T)`, the tail being one of them,
    and likewise q. It is not the temperature of the whole vocabulary (arXiv 1503.02531), which a tail's mass alone does
    not determine: at T > 1 a thousand unlikely tokens gain more than one token of their mass. What is kept is that the
    divergence is zero where the student's outcomes are the teacher's, and nowhere else, at every T. As usual it is
    multiplied by T^2, so that gradients keep their size.

    Args:
        logits: `[m, vocabulary]`, of any floating type.
        teacher: What they are compared with.
        temperature: T.

    Returns:
        `[m]` fp32, nats times T^2.
    """
    masses: Tensor = _Masses.apply(logits, teacher.topk_ids)
    student = masses.log_softmax(dim=1)
    if temperature != 1:
        student = (student / temperature).log_softmax(dim=1)
    # An empty tail weighs nothing, whatever the student gives it.
    return -(teacher.outcomes(temperature).exp() * student).sum(dim=1) * temperature**2


class _Masses(torch.autograd.Function):
    """Logits of k + 1 outcomes: those of k tokens as they are, and the logsumexp of all others (`[m, k + 1]`, fp32).

    Written out because the vocabulary is wide: it is passed over once for the sum, and once for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        top = logits.gather(1, ids).float()
        # A finite number, not -inf: an empty tail (k = vocabulary) must not make NaN where it has no weight.
        rest = logits.to(torch.float32, copy=True).scatter_(1, ids, torch.finfo(torch.float32).min)
        highest = rest.amax(dim=1, keepdim=True)
        shares = rest.sub_(highest).exp_()
        total = shares.sum(dim=1, keepdim=True)
        ctx.save_for_backward(shares, total, ids)
        ctx.dtype = logits.dtype
        return torch.cat((top, total.log() + highest), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        shares, total, ids = ctx.saved_tensors
        spread = shares * (gradient[:, -1:] / total)
        return spread.scatter_(1, ids, gradient[:, :-1]).to(ctx.dtype), None
