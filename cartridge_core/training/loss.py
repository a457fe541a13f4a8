"""Context distillation: the student learns the teacher's distributions, known by their top k and the rest's mass."""

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def entropy(self) -> Tensor:
        """Entropy of each distribution, its tail counted as one outcome: the least cross-entropy (`[m]`, nats)."""
        logprobs = torch.cat((self.topk_logprobs, self.tail_logprob[:, None]), dim=1)
        return torch.special.entr(logprobs.exp()).sum(dim=1)


def cross_entropy(logits: Tensor, teacher: TeacherTokens) -> Tensor:
    """Cross-entropy of the student against the teacher over k + 1 outcomes: the top k, and any other token.

    With p the teacher and q the student, `-sum_i p_i log q_i - p_tail log(1 - sum_i q_i)`. Without the last term (the
    paper's loss, arXiv 2506.06266, section 3.2) tokens about which the teacher is unsure weigh less, and the student
    may take any mass from the tail. The tail's mass is summed from its own logits: `1 - sum_i q_i` has no digits left
    where the top k are nearly certain. Less the teacher's entropy this is the Kullback-Leibler divergence.

    Args:
        logits: `[m, vocabulary]`, of any floating type.
        teacher: What they are compared with.

    Returns:
        `[m]` fp32, nats.
    """
    exact = logits.float()
    top = exact.gather(1, teacher.topk_ids)
    # A finite number, not -inf: an empty tail (k = vocabulary) must not make NaN where it has no weight.
    rest = exact.scatter(1, teacher.topk_ids, torch.finfo(exact.dtype).min)
    rest_mass = rest.logsumexp(dim=1)
    total = torch.logaddexp(top.logsumexp(dim=1), rest_mass)
    expected = (teacher.topk_logprobs.exp() * (top - total[:, None])).sum(dim=1)
    return -expected - teacher.tail_logprob.exp() * (rest_mass - total)
