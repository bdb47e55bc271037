"""Bytes of activations that a forward and backward pass of a GPT holds, by formula: nothing is built.

Follows scaletrain/model as it is written, operator by operator. Weights, their gradients, optimizer states and the
batch itself are left out; rows are whole documents. The idea is Korthikanti et al. 2022, section 4; the numbers are
ours.

B samples, T tokens of each, N = B * T, C hidden width, F feed-forward width, H query heads, G key/value heads,
X = H + 2 G, D head size, V vocabulary.
"""

import re
from dataclasses import dataclass
from typing import Literal

from scaletrain.config.architecture import Architecture
from scaletrain.errors import ConfigError
from scaletrain.model.chunks import QUERY_BLOCK, rows_of_softmax, tokens_of_chunk, words_of_gradient
from scaletrain.model.native.build import is_supported, serves_heads

WIDE = 4  # float32: statistics of norms and softmax, sums of gradients


@dataclass(frozen=True)
class Activations:
    """Bytes on one rank. kept: when the forward pass has ended. head: at most while the loss is computed. backward: at
    most in the backward pass of each block, in the order of the model: what is computed again and the gradients on
    their way included. host: pinned in host memory meanwhile."""

    kept: int
    head: int
    blocks: tuple[int, ...]
    host: int = 0

    @property
    def backward(self) -> int:
        return max(self.blocks)

    @property
    def peak(self) -> int:
        return max(self.head, self.backward)


@dataclass(frozen=True)
class _Block:
    """Bytes of one block's tensors, all tokens together."""

    input: int
    attention: int  # what the attention half saves beside its input
    feed_forward: int  # and the feed-forward half, its input among it
    products: int  # results that selective mode keeps
    stream: int  # one tensor of the hidden width, as the gradient of the residual stream is
    attention_gradients: int
    feed_forward_gradients: int

    @property
    def whole(self) -> int:
        return self.input + self.attention + self.feed_forward


def activations(
    arch: Architecture, mode: str, *, samples: int, tokens: int, itemsize: int, device: Literal["cpu", "cuda"] = "cpu"
) -> Activations:
    """Of one micro-batch of `samples` x `tokens`, in weights of `itemsize` bytes (2: bfloat16, 4: float32), under a
    mode of activation checkpointing. Held against the allocator on a CPU; a GPU's kernels by their sources only."""
    N, C = samples * tokens, arch.hidden_size
    block = _block(arch, samples, tokens, itemsize, device)
    kept_of = [_kept(block, mode, index) for index in range(arch.num_layers)]
    host = 0
    if mode == "offload" and device == "cuda":  # on a CPU the copies are of the same memory
        host = sum(kept_of[:-1])
        kept_of[:-1] = [0] * (arch.num_layers - 1)
    final_norm = N * (C * itemsize + _statistics(arch))
    weight = arch.vocab_size * C
    # The head has both gradients by the end of the forward pass (loss.py), and neither logits nor hidden states.
    head_gradients = N * C * itemsize + WIDE * weight
    blocks = sum(kept_of)
    kept = blocks + final_norm + head_gradients
    return Activations(
        kept=kept,
        head=kept + _head_buffers(arch, N, itemsize, device),
        blocks=_backward(arch, mode, block, itemsize, is_offloaded=host > 0),
        host=host,
    )


def _kept(block: _Block, mode: str, index: int) -> int:
    """What a block keeps for the backward pass (checkpointing.py)."""
    if mode == "none":
        return block.whole
    if mode == "selective":
        return block.input + block.products
    if match := re.fullmatch(r"full|offload|every_([1-9][0-9]*)", mode):
        return block.whole if index % int(match[1] or 1) else block.input
    raise ConfigError(f"activation checkpointing {mode!r} is unknown: choose none, selective, full, offload or every_N")


def _block(arch: Architecture, samples: int, tokens: int, itemsize: int, device: str) -> _Block:
    N, C, F = samples * tokens, arch.hidden_size, arch.ffn_hidden_size
    H, G, D = arch.num_heads, arch.num_kv_heads, arch.head_dim
    packed = (H + 2 * G) * D  # qkv of a token
    statistics = _statistics(arch)
    is_native = device == "cpu" and itemsize == 2 and serves_heads(D)
    # blocked_attention.py makes its probabilities again from q and k, and from nothing else.
    is_blocked = device == "cpu" and itemsize == 2 and not is_native
    logsumexp = 0 if is_blocked else WIDE * H
    attention = itemsize * (C + packed + C) + statistics + logsumexp  # inputs of qkv, of attention, of the output
    if arch.qk_norm:
        attention += itemsize * packed + WIDE * (H + G)  # their input beside their rotated result, and statistics
    if device == "cuda" and itemsize == 4 and G < H:
        attention += itemsize * 2 * C  # keys and values repeated for each query head (attention.py)
    wide = 2 if arch.family == "gpt2" else 3  # gelu's input and result; gate, up and their product
    feed_forward = itemsize * (C + C + wide * F) + statistics  # inputs of the norm, of up (and gate), and wide ones
    # qkv, attention, its output, up (and gate), down.
    products = itemsize * (packed + C + C + (wide - 1) * F + C) + logsumexp
    attention_gradients = itemsize * packed
    if is_blocked:
        rows = min(QUERY_BLOCK, tokens)  # of one block of queries: p, dp and ds over all keys; q, dy and dq
        attention_gradients += itemsize * (3 * H * rows + 3 * C * rows // tokens)
        attention_gradients += itemsize * 2 * G * D * (tokens - rows) // tokens  # copies of a block's keys and values
        attention_gradients += 2 * G * D * (itemsize + WIDE) + G * D * itemsize  # k, v by heads; sums of dk, dv; a part
    elif not is_native:
        attention_gradients += itemsize * packed  # dq, dk and dv before they are one
    return _Block(
        input=N * C * itemsize,
        attention=N * attention,
        feed_forward=N * feed_forward,
        products=N * products,
        stream=N * C * itemsize,
        # dqkv beside what makes it; the gradient of attention's result takes the place of the result.
        attention_gradients=N * attention_gradients,
        # gelu: one, when its result has gone. silu(gate) * up: three, when the product has gone.
        feed_forward_gradients=N * itemsize * (wide - 1) * F,
    )


def _statistics(arch: Architecture) -> int:
    """Of one norm and token: mean and 1 / deviation for LayerNorm, 1 / root mean square for RMSNorm."""
    return 2 * WIDE if arch.family == "gpt2" else WIDE


def _head_buffers(arch: Architecture, tokens: int, itemsize: int, device: str) -> int:
    """What one chunk of the loss needs (loss.py): flat in tokens beyond a chunk, and in the vocabulary where a chunk
    has more than its least number of tokens."""
    V, C = arch.vocab_size, arch.hidden_size
    n = tokens_of_chunk(tokens, V, itemsize, device)
    logits = n * V * itemsize
    if device != "cpu" or (itemsize < WIDE and not is_supported()):  # else they turn into probabilities in place
        logits += min(rows_of_softmax(V, device), n) * V * WIDE
    # Of the weight's gradient, before it is added in float32.
    part = 0 if itemsize == WIDE else itemsize * words_of_gradient(V, device) * C
    hidden = (tokens + n) * C * itemsize  # the head's input, and a chunk of it without ignored rows
    return hidden + logits + part


def _backward(arch: Architecture, mode: str, block: _Block, itemsize: int, *, is_offloaded: bool) -> tuple[int, ...]:
    """At most in each block's part. Blocks are done from the last to the first; what those before keep is still
    there, or the next one's input is under way."""
    # A tied matrix's gradient waits for the embedding's part of it.
    waiting = itemsize * arch.vocab_size * arch.hidden_size if arch.tie_embeddings else 0
    before, most = 0, []
    for index in range(arch.num_layers):
        # Computed again, a block holds what it would have kept. Selective mode's results stand for those, or go; that
        # of `down` alone is asked for by nothing and stays to the end.
        spare = block.stream if mode == "selective" else 0
        held = before + block.whole + spare + block.stream + waiting
        in_attention = held - block.feed_forward + block.attention_gradients
        most.append(max(held + block.feed_forward_gradients, in_attention))
        before = block.input if is_offloaded else before + _kept(block, mode, index)
    return tuple(most)
