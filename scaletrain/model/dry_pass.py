"""What a transformers model keeps for its gradients, found by a pass that computes nothing and takes no memory."""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from scaletrain.errors import NotPlannableError
from scaletrain.model.network import Network


class Kept(NamedTuple):
    """`trained` of all `parameters`, numbers; `activations`: bytes that wait for the backward pass when the loss is
    known, weights not counted; `logits`: numbers, of which the loss is taken in float32."""

    parameters: int
    trained: int
    activations: int
    logits: int


def dry_pass(build: Callable[[], Network], dtype: torch.dtype, rows: int, tokens: int) -> Kept:
    """Of `rows` x `tokens`. `build` makes the network with unset weights, in training mode or not. NotPlannableError
    where the model looks at values on its way, which there are none of, or does not take such tensors at all."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode: Any = FakeTensorMode()
    mode.__deepcopy__ = lambda memo: mode  # PEFT copies a head, and each tensor of it names its mode
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)  # of an adapter's weights, which are cast to the model's
        # Nothing is moved or cast: torch would swap the tensors, which it cannot with these.
        with mode, patch.object(nn.Module, "_apply", lambda module, *_, **__: module):
            return kept_by_pass(build().train(), rows, tokens)
    except Exception as error:  # another library's model, in a mode that it was not written for
        raise NotPlannableError(f"its model does not run without values ({_short(error)})") from error
    finally:
        torch.set_default_dtype(default)


def _short(error: Exception) -> str:
    """Name and first line, cut: what torch says of its own is a page."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:120]}" if line else type(error).__name__


def kept_by_pass(network: Network, rows: int, tokens: int) -> Kept:
    """Of the very tensors."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other takes its name
        return tensor

    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    model: Any = network.model
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        told = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        logits = [value for value in told.values() if isinstance(value, Tensor) and value.requires_grad]
        for value in logits:
            value.float().log_softmax(-1)
    counts = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return Kept(
        parameters=sum(count for count, _ in counts),
        trained=sum(count for count, is_trained in counts if is_trained),
        activations=sum(storage.nbytes() for storage in kept.values()),
        logits=sum(value.numel() for value in logits),
    )
