"""The GPT-2 that a person writes with torch's own parts (after nanoGPT): what this project's GPT is measured against.

The same sizes, parameters and function as scaletrain.model.gpt.GPT in its gpt2 family, and none of its kernels:
F.scaled_dot_product_attention, F.gelu, nn.LayerNorm, and F.cross_entropy over the logits of the whole batch in float32.

B batch, T tokens, C hidden width, H heads, D head size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.config.architecture import Architecture
from scaletrain.data.rows import IGNORED
from scaletrain.model.gpt import GPT


class PlainBlock(nn.Module):
    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        C = arch.hidden_size
        self.num_heads = arch.num_heads
        self.attention_norm = nn.LayerNorm(C, eps=arch.norm_eps)
        self.qkv = nn.Linear(C, 3 * C)
        self.output = nn.Linear(C, C)
        self.feed_forward_norm = nn.LayerNorm(C, eps=arch.norm_eps)
        self.up = nn.Linear(C, arch.ffn_hidden_size)
        self.down = nn.Linear(arch.ffn_hidden_size, C)

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        qkv = self.qkv(self.attention_norm(x_BTC)).split(C, dim=2)
        q_BHTD, k_BHTD, v_BHTD = (part.view(B, T, self.num_heads, -1).transpose(1, 2) for part in qkv)
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
        x_BTC = x_BTC + self.output(y_BHTD.transpose(1, 2).reshape(B, T, C))
        return x_BTC + self.down(F.gelu(self.up(self.feed_forward_norm(x_BTC)), approximate="tanh"))


class PlainGPT(nn.Module):
    """input_ids_BT and labels_BT -> the sum of the token losses, as GPT's."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        assert arch.family == "gpt2" and arch.tie_embeddings, arch
        self.embedding = nn.Embedding(arch.vocab_size, arch.hidden_size)
        self.positions = nn.Embedding(arch.max_positions, arch.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(arch) for _ in range(arch.num_layers))
        self.final_norm = nn.LayerNorm(arch.hidden_size, eps=arch.norm_eps)

    def forward(self, input_ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        positions_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        x_BTC = self.embedding(input_ids_BT) + self.positions(positions_T)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        logits_BTV = F.linear(self.final_norm(x_BTC), self.embedding.weight)
        return F.cross_entropy(
            logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )


@torch.no_grad()
def copy_weights(source: GPT, plain: PlainGPT) -> None:
    """The plain model takes the weights of ours: both name their parameters in the same order."""
    for theirs, mine in zip(plain.parameters(), source.parameters(), strict=True):
        theirs.copy_(mine)
