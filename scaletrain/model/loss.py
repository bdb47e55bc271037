"""The output head and its loss: matrix product and cross-entropy in one, chunk by chunk.

B batch, T tokens, C hidden width, V vocabulary, N = B * T, n tokens of one chunk, of which m rows at a time, v words at
a time.

The logits of a whole batch never exist (16 x 2,048 tokens x 128k vocabulary in float32 are 17 GB): each chunk's logits
give its share of the loss and, when gradients are wanted, of both gradients, all in the forward pass, so nothing is
computed twice. The idea is Liger kernel's (Hsu et al. 2024) and Apple's cut-cross-entropy's (Wijmans et al. 2024).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scaletrain.model.chunks import rows_of_softmax, tokens_of_chunk, words_of_gradient
from scaletrain.model.native import call as native

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
    N, (V, _), device = len(hidden_NC), weight_VC.shape, hidden_NC.device.type
    chunk = chunk_tokens or tokens_of_chunk(N, V, weight_VC.itemsize, device)
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
        # Summed out of place: of `loss += ...` torch 2.11's compiler makes a graph whose gradients are all zero.
        loss = torch.zeros((), dtype=wide, device=hidden_NC.device)
        # Buffers for all chunks: on a CPU the page faults of fresh memory of this size cost more than the softmax.
        logits_nV = hidden_NC.new_empty(min(chunk_tokens, N), V)
        rows = min(rows_of_softmax(V, hidden_NC.device.type), len(logits_nV))
        is_wide = wide == logits_nV.dtype
        is_native = native.serves(logits_nV)
        in_place = is_native or (is_wide and logits_nV.device.type == "cpu")
        probs_mV = None if in_place else torch.empty_like(logits_nV[:rows], dtype=wide)
        words = words_of_gradient(V, hidden_NC.device.type)
        product_vC = None if is_wide or dweight_VC is None else torch.empty_like(weight_VC[:words])
        for hidden_nC, labels_n, place in _chunks(hidden_NC, labels_N, chunk_tokens):
            dlogits_nV = torch.mm(hidden_nC, weight_VC.t(), out=logits_nV[: len(labels_n)])
            if is_native:
                loss = loss + _to_gradient_natively(dlogits_nV, labels_n)
            else:
                for part_mV, labels_m in zip(torch.split(dlogits_nV, rows), torch.split(labels_n, rows), strict=True):
                    loss = loss + _to_gradient(part_mV, labels_m, probs_mV)
            # Ignored rows are masked on the narrow side (C), not over V.
            kept_n1 = (labels_n != IGNORE_INDEX).unsqueeze(1)
            if dhidden_NC is not None:
                torch.mm(dlogits_nV, weight_VC, out=dhidden_NC[place]).mul_(kept_n1)
            if dweight_VC is not None:
                _add_product(dweight_VC, dlogits_nV.t(), hidden_nC * kept_n1, product_vC)
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


def _chunks(hidden_NC: Tensor, labels_N: Tensor, tokens: int) -> Iterator[tuple[Tensor, Tensor, slice]]:
    for start in range(0, len(labels_N), tokens):
        place = slice(start, min(start + tokens, len(labels_N)))
        yield hidden_NC[place], labels_N[place], place


def _to_gradient(logits_mV: Tensor, labels_m: Tensor, probs_mV: Tensor | None) -> Tensor:
    """Summed loss of some tokens; their logits become d loss / d logits = probs - onehot(label), ignored rows too.

    probs_mV: a buffer in float32; None: in place."""
    probs_mV = logits_mV if probs_mV is None else probs_mV[: len(logits_mV)]
    wide_mV = probs_mV.copy_(logits_mV)  # softmax of bfloat16 into float32 would make a float32 copy of its own
    labels_m1 = labels_m.clamp_min(0).unsqueeze(1)
    label_m1 = wide_mV.gather(1, labels_m1).to(probs_mV.dtype)
    top_m1 = wide_mV.amax(1, keepdim=True).to(probs_mV.dtype)
    torch.softmax(wide_mV, 1, dtype=probs_mV.dtype, out=probs_mV)
    # log(sum(exp(l))) = max(l) - log(p of the maximum): exact, p >= 1 / V, and a third of the time of logsumexp.
    logsumexp_m1 = top_m1 - probs_mV.amax(1, keepdim=True).log()
    probs_mV.scatter_add_(1, labels_m1, torch.full_like(labels_m1, -1, dtype=probs_mV.dtype))
    logits_mV.copy_(probs_mV)
    return ((logsumexp_m1 - label_m1) * (labels_m != IGNORE_INDEX).unsqueeze(1)).sum()


def _to_gradient_natively(logits_nV: Tensor, labels_n: Tensor) -> Tensor:
    """As _to_gradient, on a CPU in bfloat16, each row while it is in the cache (native/loss.cpp)."""
    if len(labels_n) and int(labels_n.max()) >= logits_nV.shape[1]:
        raise IndexError(f"label {int(labels_n.max())} is not below the vocabulary's {logits_nV.shape[1]}")
    losses_n = torch.empty(len(labels_n), dtype=torch.float32)
    native.call("cross_entropy", logits_nV, labels_n.contiguous(), losses_n, *logits_nV.shape)
    return losses_n.sum()


def _add_product(total_VC: Tensor, a_Vn: Tensor, b_nC: Tensor, product_vC: Tensor | None) -> None:
    """product_vC: a buffer in the type of a and b, for some words at a time; None where the total is of it."""
    if product_vC is None:
        total_VC.addmm_(a_Vn, b_nC)
        return
    words = len(product_vC)
    for total_vC, a_vn in zip(torch.split(total_VC, words), torch.split(a_Vn, words), strict=True):
        total_vC.add_(torch.mm(a_vn, b_nC, out=product_vC[: len(total_vC)]))
