"""Ranks that share each row of tokens, and the exchange between them: Ulysses (Jacobs et al. 2023, arXiv:2309.14509).

Ranks 0 .. size - 1 share their rows, the next `size` ranks theirs, and so on; of a row of T tokens each holds T / size,
in order. B batch, T tokens of the row, S = T / size, X heads, D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class SequenceGroup:
    """This rank's `place` among the `size` that share a row; `group`: their torch group."""

    size: int
    place: int
    group: Any

    def to_heads(self, x_BSXD: Tensor) -> Tensor:
        """This rank's tokens of all heads -> all tokens of a part of the heads, (B, T, X / size, D): heads
        place * X / size and so on. A collective, forward and backward."""
        y: Tensor = _ToHeads.apply(x_BSXD, self)  # type: ignore[no-untyped-call]
        return y

    def to_tokens(self, x_BTXD: Tensor) -> Tensor:
        """The way back: (B, T, X / size, D) -> (B, S, X, D)."""
        y: Tensor = _ToTokens.apply(x_BTXD, self)  # type: ignore[no-untyped-call]
        return y


def join_sequence(size: int) -> SequenceGroup:
    """All ranks call it, once they have met; `size` divides their number."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, ranks, size)]
    return SequenceGroup(size, rank % size, groups[rank // size])


def _heads(x_BSXD: Tensor, to: SequenceGroup) -> Tensor:
    B, S, X, D = x_BSXD.shape
    sent = x_BSXD.view(B, S, to.size, X // to.size, D).permute(2, 0, 1, 3, 4)  # by receiver
    received = _exchange(sent, to)  # by sender, whose tokens they are
    return received.transpose(0, 1).reshape(B, to.size * S, X // to.size, D)


def _tokens(x_BTXD: Tensor, to: SequenceGroup) -> Tensor:
    B, T, X, D = x_BTXD.shape
    sent = x_BTXD.view(B, to.size, T // to.size, X, D).transpose(0, 1)
    received = _exchange(sent, to)  # by sender, whose heads they are
    return received.permute(1, 2, 0, 3, 4).reshape(B, T // to.size, to.size * X, D)


def _exchange(sent: Tensor, to: SequenceGroup) -> Tensor:
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=to.group)
    return received


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BSXD: Tensor, to: SequenceGroup) -> Tensor:
        ctx.to = to
        return _heads(x_BSXD, to)

    @staticmethod
    def backward(ctx: Any, dy_BTXD: Tensor) -> tuple[Tensor, None]:
        return _tokens(dy_BTXD.contiguous(), ctx.to), None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTXD: Tensor, to: SequenceGroup) -> Tensor:
        ctx.to = to
        return _tokens(x_BTXD.contiguous(), to)

    @staticmethod
    def backward(ctx: Any, dy_BSXD: Tensor) -> tuple[Tensor, None]:
        return _heads(dy_BSXD.contiguous(), ctx.to), None
