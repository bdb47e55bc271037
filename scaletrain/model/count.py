"""Parameters and training FLOPs of an architecture, by formula: nothing is built."""

from dataclasses import dataclass
from typing import Literal

from scaletrain.config.architecture import Architecture
from scaletrain.config.schema import OptimizerName


@dataclass(frozen=True)
class ParameterCount:
    """total: as the module holds them, a tied matrix once. non_embedding: without token and position embeddings and an
    untied output matrix (the N of Kaplan et al. 2020, section 2.1)."""

    total: int
    non_embedding: int


def count_parameters(arch: Architecture) -> ParameterCount:
    C = arch.hidden_size
    norm = 2 * C if arch.family == "gpt2" else C
    biases = 0
    if arch.family == "gpt2":
        biases = 3 * C + C + arch.ffn_hidden_size + C  # qkv, attention output, up, down
    qk_norm = 2 * arch.head_dim if arch.qk_norm else 0
    block = block_matmul_parameters(arch) + biases + 2 * norm + qk_norm
    non_embedding = arch.num_layers * block + norm
    embeddings = arch.vocab_size * C * (1 if arch.tie_embeddings else 2)
    if arch.family == "gpt2":
        embeddings += arch.max_positions * C
    return ParameterCount(total=non_embedding + embeddings, non_embedding=non_embedding)


def checkpoint_bytes(arch: Architecture, optimizer: OptimizerName) -> int:
    """Of all ranks' files: each weight and its two moments in float32, whatever the training computes in. Muon keeps
    one moment of the layers' matrices."""
    matrices = arch.num_layers * block_matmul_parameters(arch) if optimizer == "muon" else 0
    return 12 * count_parameters(arch).total - 4 * matrices


def block_matmul_parameters(arch: Architecture) -> int:
    """Weights of one block's matrix products: qkv and output, up and down (and gate for llama)."""
    attention = arch.hidden_size * arch.head_dim * 2 * (arch.num_heads + arch.num_kv_heads)
    feed_forward = (2 if arch.family == "gpt2" else 3) * arch.hidden_size * arch.ffn_hidden_size
    return attention + feed_forward


def flops_per_token(arch: Architecture, context_length: int, attention: Literal["causal", "full"] = "causal") -> int:
    """Floating point operations to train on one token: forward and backward, nothing recomputed.

    6 N + 12 L T (H D): 2 operations a weight and token forward, 4 backward, N the weights of all matrix products, the
    output head among them, embedding look-ups not (Kaplan et al. 2020, table 1); queries on keys and probabilities on
    values cost 2 * 2 T (H D) a layer forward and twice that backward (PaLM, Chowdhery et al. 2022, appendix B).
    `causal` counts the half below the diagonal, which a causal kernel computes: 6 L T (H D). `full` is PaLM's number.
    """
    matmul = arch.num_layers * block_matmul_parameters(arch) + arch.vocab_size * arch.hidden_size
    per_layer = (6 if attention == "causal" else 12) * context_length * arch.num_heads * arch.head_dim
    return 6 * matmul + arch.num_layers * per_layer


def recomputed_flops_per_token(
    arch: Architecture, context_length: int, mode: str, attention: Literal["causal", "full"] = "causal"
) -> int:
    """What activation checkpointing adds to flops_per_token: operations of the forward pass that are done twice.

    full, offload and every_N run each checkpointed block again, up to its last product (down), whose result nobody
    needs. selective keeps the results of all products and of attention: what it does again counts nothing. The output
    head keeps its gradients instead of the logits, so it recomputes nothing in any mode.
    """
    scores = (2 if attention == "causal" else 4) * context_length * arch.num_heads * arch.head_dim
    return recomputed_products(arch, mode) + _recomputed_blocks(arch, mode) * scores


def recomputed_products(arch: Architecture, mode: str) -> int:
    """Of recomputed_flops_per_token, what is products with weights."""
    each = 2 * (block_matmul_parameters(arch) - arch.hidden_size * arch.ffn_hidden_size)
    return _recomputed_blocks(arch, mode) * each


def _recomputed_blocks(arch: Architecture, mode: str) -> int:
    if mode in ("none", "selective"):
        return 0
    every = 1 if mode in ("full", "offload") else int(mode.removeprefix("every_"))
    return -(-arch.num_layers // every)  # block 0, N, 2N, ...


def short_count(count: int) -> str:
    """1234567 as 1.2 M."""
    scale, unit = next((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if count >= s or s == 1)
    return f"{count / scale:.1f} {unit}".rstrip()
