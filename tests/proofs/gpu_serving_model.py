"""What a Cartridge gives at 100,000 tokens on an 80 GB GPU, on paper: from bytes and bandwidth, nothing is run.

A decoding step reads the weights once and every user's keys and values; memory says how many users fit. ICL with a
prefix cache holds one copy of the corpus for all who ask about it, but each of them still reads it at every step.
"""

from dataclasses import dataclass

from tests.proofs.llama_shapes import LLAMA_3B, LLAMA_8B, LlamaShape

CORPUS_TOKENS, RATIO, OWN_TOKENS = 100_000, 38.6, 512
"""The paper's memory ratio (arXiv 2506.06266), and what a user asks and gets."""


@dataclass(frozen=True)
class Gpu:
    """H100 SXM: vendor's figures, and the shares of them that are reached in practice."""

    memory: float = 0.9 * 80e9
    bandwidth: float = 0.8 * 3.35e12
    flops: float = 0.6 * 989e12


@dataclass(frozen=True)
class Served:
    """One way to have the corpus in front."""

    users: int
    tokens_per_s: float


def parameters(shape: LlamaShape) -> int:
    """Of the whole model."""
    heads = shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    layer = shape.hidden_size * heads + 3 * shape.hidden_size * shape.intermediate_size
    return shape.num_layers * layer + shape.vocab_size * shape.hidden_size * (1 if shape.tied else 2)


def served(shape: LlamaShape, front: float, shared: bool, gpu: Gpu, most_users: int = 1024) -> Served:
    """Users at once and tokens a second.

    Args:
        shape: The model, in half precision.
        front: Tokens in front of each user's own.
        shared: Whether all users' memory holds them once.
        gpu: The machine.
        most_users: vLLM's bound on running requests.
    """
    weights, token = 2.0 * parameters(shape), 4.0 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    free = gpu.memory - weights - (front * token if shared else 0)
    users = min(most_users, int(free / ((OWN_TOKENS if shared else front + OWN_TOKENS) * token)))
    reading = (weights + users * (front + OWN_TOKENS) * token) / gpu.bandwidth
    computing = users * 2 * parameters(shape) / gpu.flops
    return Served(users, users / (reading + computing))


def main() -> None:
    """Print the table of docs/vllm.md."""
    print("| model | way | users at once | tokens a second | Cartridge is |\n|---|---|---|---|---|")
    for shape in (LLAMA_3B, LLAMA_8B):
        ways = {
            "ICL, a corpus each": served(shape, CORPUS_TOKENS, False, Gpu()),
            "ICL, one corpus for all (prefix cache)": served(shape, CORPUS_TOKENS, True, Gpu()),
            "Cartridge, a corpus each": served(shape, CORPUS_TOKENS / RATIO, False, Gpu()),
        }
        ours = ways["Cartridge, a corpus each"].tokens_per_s
        for name, one in ways.items():
            print(f"| {shape.name} | {name} | {one.users} | {one.tokens_per_s:,.0f} | {ours / one.tokens_per_s:.1f}x |")


if __name__ == "__main__":
    main()
