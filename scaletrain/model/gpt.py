"""GPT: a decoder-only transformer in two families, as a plain nn.Module.

gpt2: learned positions, LayerNorm, GELU (tanh), biases (Radford et al. 2019).
llama: rotary positions, RMSNorm, SwiGLU, grouped-query attention, no biases (Touvron et al. 2023); QK-norm as Qwen3.
Nothing here knows of DeepSpeed, initial values, activation checkpointing or devices: these are applied from outside.

B batch, T tokens, C hidden width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scaletrain.config.architecture import Architecture
from scaletrain.model.attention import Attention, Layout
from scaletrain.model.documents import document_starts, prepare_documents
from scaletrain.model.layers import (
    Embedding,
    GeluFeedForward,
    LayerNorm,
    RMSNorm,
    RotaryTable,
    SwiGLUFeedForward,
)
from scaletrain.model.loss import OutputHead


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); x_BTC -> x_BTC."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.attention_norm = make_norm(arch)
        self.attention = Attention(arch)
        self.feed_forward_norm = make_norm(arch)
        self.feed_forward = GeluFeedForward(arch) if arch.family == "gpt2" else SwiGLUFeedForward(arch)

    def forward(self, x_BTC: Tensor, layout: Layout) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), layout)
        x_BTC = x_BTC + self.feed_forward(self.feed_forward_norm(x_BTC))
        return x_BTC


RunBlock = Callable[[int, nn.Module, Tensor, Layout], Tensor]


def run_block(index: int, block: nn.Module, x_BTC: Tensor, layout: Layout) -> Tensor:
    y_BTC: Tensor = block(x_BTC, layout)
    return y_BTC


class GPT(nn.Module):
    """A GPT of the given architecture. Its memory is uninitialised: `init_parameters` or `load_weights` comes next."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.embedding = Embedding(arch.vocab_size, arch.hidden_size)
        self.positions = Embedding(arch.max_positions, arch.hidden_size) if arch.family == "gpt2" else None
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.num_layers))
        self.final_norm = make_norm(arch)
        tied = self.embedding.weight if arch.tie_embeddings else None
        self.head = OutputHead(arch.hidden_size, arch.vocab_size, tied)
        self.rotary = RotaryTable(arch.head_dim, arch.rope_theta) if arch.family == "llama" else None
        self.run_block: RunBlock = run_block  # how a block is called: checkpointing.py sets another
        self.row_place, self.row_parts = 0, 1  # the part of each row that is given: sequence.py sets another

    def forward(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        document_bounds: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V). With labels (labels[b, t] is the target at position t, -100: none), the sum of the token
        losses instead: a float32 scalar, and the logits of the whole batch never exist.

        documents_BT numbers the document of each token within its row, never falling (0, 1, 2, ...): attention does not
        leave a document and positions begin again at 0 in each. None: a row is one document. document_bounds, int32:
        the first token of each document among all, and how many tokens there are; not known, a GPU has to count them.
        """
        (B, T), device, longest = input_ids_BT.shape, input_ids_BT.device, self.arch.max_positions
        row, first = T * self.row_parts, T * self.row_place
        assert longest >= row, f"{row} tokens do not fit max_positions={longest}"
        x_BTC = self.embedding(input_ids_BT)
        positions, documents = torch.arange(first, first + T, device=device), None
        if documents_BT is not None:
            assert documents_BT.shape == (B, row), f"documents {documents_BT.shape} of {B} rows of {row}"
            starts = document_starts(documents_BT)
            positions = positions - starts[:, first : first + T]
            documents = prepare_documents(starts, self.arch, compute_dtype(x_BTC), document_bounds)
        if self.positions is not None:
            x_BTC = x_BTC + self.positions(positions)
        rotation = None
        if self.rotary is not None:
            is_whole = documents_BT is None and self.row_parts == 1
            rotation = self.rotary.rotation(row, device, None if is_whole else positions)
        layout = Layout(rotation, documents)
        for index, block in enumerate(self.blocks):
            x_BTC = self.run_block(index, block, x_BTC, layout)
        out: Tensor = self.head(self.final_norm(x_BTC), labels_BT)
        return out


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which a matrix multiplies x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def make_norm(arch: Architecture) -> nn.Module:
    if arch.family == "gpt2":
        return LayerNorm(arch.hidden_size, eps=arch.norm_eps)
    return RMSNorm(arch.hidden_size, arch.norm_eps)
