"""A training step by torch alone: what this project's engine, which trains through DeepSpeed, is measured against."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from scaletrain.config.schema import Optim
from scaletrain.data.rows import Batch
from scaletrain.optim.groups import parameter_groups
from scaletrain.runtime import dist

Precision = Literal["fp32", "autocast", "bf16-master", "bf16"]


class BareLoop:
    """The engine's step without the engine: the same parameter groups, fused AdamW, clipping and micro-batches.

    fp32: all in float32. autocast: float32 weights, products in bfloat16. bf16-master, the work that DeepSpeed does in
    bf16: the model is in bfloat16 and the optimizer holds a float32 copy of each weight; after the backward passes the
    bfloat16 gradients are widened into gradients of the copies, those are clipped, AdamW steps the copies, and the
    result is rounded into the model. bf16: bfloat16 weights and moments, stepped as they are; less work and memory than
    any of ours, and small updates are lost.

    Micro-batches' gradients add up in the type of the model's weights. Several ranks: DistributedDataParallel, which
    sends gradients while the backward pass runs, in the last micro-batch.
    """

    def __init__(
        self, model: nn.Module, optim: Optim, precision: Precision, device: torch.device, *, compiled: bool = False
    ) -> None:
        self._device, self._clip = device, optim.grad_clip
        self._autocast = precision == "autocast"
        model = model.to(device, torch.bfloat16 if precision in ("bf16", "bf16-master") else torch.float32)
        groups = parameter_groups(model, optim.weight_decay)
        self._weights = [parameter for group in groups for parameter in group["params"]]
        self._stepped = self._weights
        if precision == "bf16-master":
            self._stepped = [nn.Parameter(weight.detach().float()) for weight in self._weights]
            for parameter in self._stepped:  # once: on a CPU the page faults of fresh memory at each step cost more
                parameter.grad = torch.empty_like(parameter)
            copies = iter(self._stepped)
            for group in groups:
                group["params"] = [next(copies) for _ in group["params"]]
        for group in groups:
            del group["param_names"]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)
        self._module = torch.compile(model) if compiled else model
        if dist.size() > 1:
            self._module = nn.parallel.DistributedDataParallel(self._module, gradient_as_bucket_view=True)

    def train_step(self, batches: Sequence[Batch], lr: float, weight: int) -> Tensor:
        """As Engine.train_step: one update over this rank's micro-batches, `weight` tokens of all ranks. Returns the
        summed loss of this rank, on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        scale = dist.size() / weight  # undoes DistributedDataParallel's average
        loss_sum = torch.zeros((), device=self._device)
        for batch in batches:
            held = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
            alone = isinstance(self._module, nn.parallel.DistributedDataParallel) and batch is not batches[-1]
            with self._module.no_sync() if alone else nullcontext():
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                    loss = self._module(held["input_ids"], held["labels"])
                (loss * scale).backward()
            loss_sum += loss.detach()
        self._widen_gradients()
        if self._clip:
            nn.utils.clip_grad_norm_(self._stepped, self._clip)
        self._optimizer.step()
        self._round_weights()
        for parameter in self._weights:
            parameter.grad = None
        return loss_sum

    def _widen_gradients(self) -> None:
        if self._stepped is not self._weights:
            for wide, narrow in zip(self._stepped, self._weights, strict=True):
                assert wide.grad is not None and narrow.grad is not None
                wide.grad.copy_(narrow.grad)

    @torch.no_grad()
    def _round_weights(self) -> None:
        if self._stepped is not self._weights:
            for wide, narrow in zip(self._stepped, self._weights, strict=True):
                narrow.copy_(wide)
