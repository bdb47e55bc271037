"""The core's way on a GPU, on tensors without contents: on machines without one.

It shows that all of a step's tensors are of one device and fit together, and that the host reads none of their values,
which would hold up a GPU. Not what a kernel computes. Torch's CPU builds know no CUDA device, not even a fake one: they
take the meta device, which the core tells from a CPU as it tells a GPU, but for the sizes of chunks.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from scaletrain.model import documents, layers, loss
from scaletrain.model.gpt import GPT
from tests.model.tiny import KINDS


def forward_then_backward(function: type[torch.autograd.Function], ran: set[str]) -> Callable[..., Any]:
    """`function.apply` without autograd, whose engine asks for the device itself: both halves, called one by one."""

    def apply(*given: Any) -> Any:
        arguments = [True if argument is False else argument for argument in given]  # False: gradients are not enabled
        ctx = SimpleNamespace(needs_input_grad=[isinstance(a, Tensor) and a.is_floating_point() for a in arguments])
        ctx.save_for_backward = lambda *tensors: setattr(ctx, "saved_tensors", tensors)
        result = function.forward(ctx, *arguments)
        found = function.backward(ctx, torch.empty_like(result))
        for argument, gradient in zip(arguments, found if isinstance(found, tuple) else (found,), strict=True):
            if gradient is not None:
                wanted = (argument.shape, argument.dtype, argument.device)
                assert (gradient.shape, gradient.dtype, gradient.device) == wanted
        ran.add(function.__name__)
        return result

    return apply


@pytest.fixture(params=["meta", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda" and torch.version.cuda is None:
        pytest.skip("torch is built without CUDA")
    with torch.no_grad(), FakeTensorMode() if request.param == "cuda" else nullcontext():
        yield request.param


def make_on(device: str, kind: str, dtype: torch.dtype) -> GPT:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return GPT(KINDS[kind])
    finally:
        torch.set_default_dtype(usual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["rows", "mask", "varlen"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_of_one_device_and_read_by_no_host(
    kind: str, way: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: set[str] = set()
    for function in (layers._Rotate, layers._GatedSiLU, loss._LinearCrossEntropy):
        monkeypatch.setattr(function, "apply", forward_then_backward(function, ran))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it is; to ask for "meta" is an error
    monkeypatch.setattr(documents, "takes_varlen", lambda *_: way == "varlen")
    model = make_on(device, kind, dtype)
    ids_BT = torch.zeros(3, 40, dtype=torch.long, device=device)
    of_documents = () if way == "rows" else (ids_BT.clone(), torch.zeros(4, dtype=torch.int32, device=device))
    found = model(ids_BT, ids_BT.clone(), *of_documents)
    assert (found.device.type, found.dtype, found.shape) == (device, torch.float32, ())
    assert model(ids_BT).device.type == device
    gated = {"_Rotate", "_GatedSiLU"} if KINDS[kind].family != "gpt2" else set()
    assert ran == {"_LinearCrossEntropy"} | gated


def test_a_value_that_the_host_reads_is_seen(device: str) -> None:
    with pytest.raises(Exception, match="_local_scalar_dense|cannot be called on meta tensors"):
        torch.zeros((), device=device).item()
