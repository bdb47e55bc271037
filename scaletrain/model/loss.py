"""The output head and its loss: matrix product and cross-entropy in one, chunk by chunk.

B batch, T tokens, C hidden width, V vocabulary, N = B * T, n tokens of one chunk.

The logits of a whole batch never exist (16 x 2,048 tokens x 128k vocabulary in float32 are 17 GB): each chunk's logits
give its share of the loss and, when gradients are wanted, of both gradients, all in the forward pass, so nothing is
computed twice. The idea is Liger kernel's (Hsu et al. 2024) and Apple's cut-cross-entropy's (Wijmans et al. 2024).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scaletrain.model.chunks import tokens_of_chunk

IGNORE_INDEX = -100  # label of a position without loss, as in torch and Hugging Face


class OutputHead(nn.Module):
    """Hidden states to logits or to the summed loss; holds the (tied) weight itself, so that ZeRO-3 gathers it."""

    def __init__(self, hidden_size: int, vocab_size: int, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size)) if weight is None else weight

    def forward(self, hidden_BTC: Tensor, labels_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); with labels, the sum of the token losses (float32 scalar), `IGNORE_INDEX` left out."""
        if labels_BT is None:
            return F.linear(hidden_BTC, self.weight)
        device = hidden_BTC.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        hidden_NC = hidden_BTC.reshape(-1, hidden_BTC.shape[-1]).to(dtype)
        return linear_cross_entropy(hidden_NC, self.weight.to(dtype), labels_BT.reshape(-1))


def linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, chunk_tokens: int | None = None
) -> Tensor:
    """Sum of the cross-entropies of softmax(hidden weight^T) against labels; float32 scalar (float64 for float64)."""
    chunk = chunk_tokens or tokens_of_chunk(weight_VC.shape[0], hidden_NC.device.type)
    loss: Tensor = _LinearCrossEntropy.apply(hidden_NC, weight_VC, labels_N, chunk, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, chunk_tokens: int, grad_enabled: bool
    ) -> Tensor:
        wide = torch.promote_types(weight_VC.dtype, torch.float32)
        N, V = hidden_NC.shape[0], weight_VC.shape[0]
        dhidden_NC = torch.empty_like(hidden_NC) if grad_enabled and ctx.needs_input_grad[0] else None
        dweight_VC = torch.zeros_like(weight_VC, dtype=wide) if grad_enabled and ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=wide, device=hidden_NC.device)
        # Buffers for all chunks: on a CPU the page faults of fresh memory of this size cost more than the softmax.
        logits_nV = hidden_NC.new_empty(min(chunk_tokens, N), V)
        shared = wide == logits_nV.dtype and logits_nV.device.type == "cpu"
        probs_nV = logits_nV if shared else torch.empty_like(logits_nV, dtype=wide)
        for start in range(0, N, chunk_tokens):
            rows = slice(start, min(start + chunk_tokens, N))
            n = rows.stop - start
            loss += _chunk_loss(hidden_NC[rows], weight_VC, labels_N[rows], logits_nV[:n], probs_nV[:n])
            if dhidden_NC is not None or dweight_VC is not None:
                _chunk_gradients(
                    hidden_NC[rows],
                    weight_VC,
                    labels_N[rows],
                    logits_nV[:n],
                    probs_nV[:n],
                    None if dhidden_NC is None else dhidden_NC[rows],
                    dweight_VC,
                )
        ctx.save_for_backward(dhidden_NC, dweight_VC)
        ctx.weight_dtype = weight_VC.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        dhidden_NC, dweight_VC = ctx.saved_tensors
        if dhidden_NC is not None:
            dhidden_NC = dhidden_NC * dloss.to(dhidden_NC.dtype)
        if dweight_VC is not None:
            scaled_VC = torch.empty_like(dweight_VC, dtype=ctx.weight_dtype)
            dweight_VC = torch.mul(dweight_VC, dloss, out=scaled_VC)  # scaled before it is rounded
        return dhidden_NC, dweight_VC, None, None, None


def _chunk_loss(hidden_nC: Tensor, weight_VC: Tensor, labels_n: Tensor, logits_nV: Tensor, probs_nV: Tensor) -> Tensor:
    """Summed loss of one chunk; leaves the probabilities in probs_nV."""
    torch.mm(hidden_nC, weight_VC.t(), out=logits_nV)
    wide_nV = logits_nV  # CUDA's softmax reads bfloat16 and writes float32
    if logits_nV.device.type == "cpu":  # there it would make a float32 copy of its own: in place, in our buffer
        wide_nV = probs_nV.copy_(logits_nV)
    kept_n1 = (labels_n != IGNORE_INDEX).unsqueeze(1)
    label_n1 = wide_nV.gather(1, labels_n.clamp_min(0).unsqueeze(1))
    top_n1 = wide_nV.amax(1, keepdim=True)
    torch.softmax(wide_nV, 1, dtype=probs_nV.dtype, out=probs_nV)
    # log(sum(exp(l))) = max(l) - log(p of the maximum): exact, p >= 1 / V, and a third of the time of logsumexp.
    logsumexp_n1 = top_n1 - probs_nV.amax(1, keepdim=True).log()
    return ((logsumexp_n1 - label_n1) * kept_n1).sum()


def _chunk_gradients(
    hidden_nC: Tensor,
    weight_VC: Tensor,
    labels_n: Tensor,
    logits_nV: Tensor,
    probs_nV: Tensor,
    dhidden_nC: Tensor | None,
    dweight_VC: Tensor | None,
) -> None:
    """Writes one chunk's hidden gradient and adds its weight gradient; d loss / d logits = probs - onehot(label)."""
    kept_n1 = (labels_n != IGNORE_INDEX).unsqueeze(1)
    one_n1 = torch.full_like(kept_n1, -1, dtype=probs_nV.dtype)
    probs_nV.scatter_add_(1, labels_n.clamp_min(0).unsqueeze(1), one_n1)
    dlogits_nV = logits_nV.copy_(probs_nV)
    # Ignored rows are masked on the narrow side (C), not over V.
    if dhidden_nC is not None:
        torch.mm(dlogits_nV, weight_VC, out=dhidden_nC).mul_(kept_n1)
    if dweight_VC is not None:
        masked_nC = hidden_nC * kept_n1
        if dweight_VC.dtype == dlogits_nV.dtype:
            dweight_VC.addmm_(dlogits_nV.t(), masked_nC)
        else:
            dweight_VC += dlogits_nV.t() @ masked_nC
