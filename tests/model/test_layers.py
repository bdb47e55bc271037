"""Norms and embeddings: torch's values and gradients, and sums in float32 where torch's CPU kernels sum in bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.model.cpu_kernels import ROWS
from scaletrain.model.layers import Embedding, LayerNorm, RMSNorm

TYPES = [torch.float64, torch.float32, torch.bfloat16]
WIDTH = 96


def _norm_gradients(norm: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    y = norm(x)
    return (y, *torch.autograd.grad((y * direction).sum(), (x, *norm.parameters())))


class _TorchRMSNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (WIDTH,), self.weight, self.eps)


class _TorchLayerNorm(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.weight, self.bias, self.eps)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("ours", "torchs"), [(RMSNorm, _TorchRMSNorm), (LayerNorm, _TorchLayerNorm)])
def test_norms_equal_torch_and_round_once(ours: type, torchs: type, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, direction = (torch.randn(3, ROWS, WIDTH, generator=generator).to(dtype) for _ in range(2))
    mine, theirs = ours(WIDTH, eps=1e-5), torchs(WIDTH, eps=1e-5)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.copy_(torch.randn(WIDTH, generator=generator))
    mine = mine.to(dtype)
    theirs.load_state_dict(mine.state_dict())
    truth = _norm_gradients(theirs.double(), x.double(), direction.double())
    for found, exact in zip(_norm_gradients(mine, x, direction), truth, strict=True):
        assert found.dtype == dtype
        error = float((found.detach() - exact.detach()).norm() / exact.detach().norm())
        assert error < {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 0.0025}[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_embedding_gradient_sums_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 7, (4, 500), generator=generator)  # each id some 285 times: bfloat16 sums would stall
    direction = (torch.rand(4, 500, 8, generator=generator)).to(dtype)
    embedding = Embedding(9, 8).to(dtype)
    y = embedding(ids)
    assert torch.equal(y, embedding.weight[ids])
    (found,) = torch.autograd.grad((y * direction).sum(), embedding.weight)
    exact = torch.zeros(9, 8, dtype=torch.float64).index_add_(0, ids.reshape(-1), direction.double().reshape(-1, 8))
    torch.testing.assert_close(found.double(), exact, rtol=0.004 if dtype == torch.bfloat16 else 1e-5, atol=0)
