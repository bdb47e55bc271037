"""Compiled blocks compute what the plain ones do."""

import pytest
import torch
from torch import Tensor

from scaletrain.model.checkpointing import apply_activation_checkpointing
from scaletrain.model.compiling import compile_blocks
from tests.model.tiny import KINDS, make_batch, make_model

pytestmark = pytest.mark.slow  # a minute each where the compiler is busy


def trained(kind: str, dtype: torch.dtype, mode: str, *, compiled: bool) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a batch."""
    model = make_model(KINDS[kind]).to(dtype)
    apply_activation_checkpointing(model, mode)
    if compiled:
        compile_blocks(model)
    loss = model(*make_batch(KINDS[kind]))
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("kind", "dtype", "mode"),
    [
        ("llama", torch.float32, "none"),
        ("gpt2", torch.float32, "full"),
        ("gpt2", torch.bfloat16, "none"),
        ("llama", torch.bfloat16, "every_2"),
        ("llama", torch.bfloat16, "offload"),
    ],
)
def test_loss_and_gradients_stay_within_rounding(kind: str, dtype: torch.dtype, mode: str) -> None:
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    plain_loss, plain = trained(kind, dtype, mode, compiled=False)
    loss, gradients = trained(kind, dtype, mode, compiled=True)
    assert loss == pytest.approx(float(plain_loss), rel=limit)
    assert len(gradients) == len(plain)
    for gradient, wanted in zip(gradients, plain, strict=True):
        assert (gradient - wanted).float().norm() <= limit * (wanted.float().norm() + 1e-6)
