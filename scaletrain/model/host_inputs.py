"""Inputs of blocks that wait for the backward pass in host memory, copied there and back beside the computation."""

import weakref
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class HostInputs:
    """What autograd saves inside `keeping(index)`, the input of block `index`, is kept on the host.

    On a GPU through pinned memory and on a stream of its own: a copy runs while the next block computes, and comes back
    while the block after it computes backward. The last block's input stays, as it is the first that is asked for. On a
    CPU the copy is one more in the same memory.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._stream: torch.cuda.Stream | None = None
        self._newest: weakref.ref[_Kept] | None = None  # weak: what the graph lets go goes

    def keeping(self, index: int) -> saved_tensors_hooks:
        if index == 0:
            self._newest = None

        def pack(x: Tensor) -> "Tensor | _Kept":
            if index == self._blocks - 1 or x.numel() == 0:  # torch's own checkpoint may save an empty one
                return x
            kept = _Kept(x, self._stream_of(x.device), self._newest)
            self._newest = weakref.ref(kept)
            return kept

        return saved_tensors_hooks(pack, _unpack)

    def _stream_of(self, device: torch.device) -> torch.cuda.Stream | None:
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._stream


def _unpack(kept: "Tensor | _Kept") -> Tensor:
    return kept.take() if isinstance(kept, _Kept) else kept


class _Kept:
    """One input, in host memory; `before`: that of the block before, which is asked for next."""

    def __init__(self, x: Tensor, stream: torch.cuda.Stream | None, before: "weakref.ref[_Kept] | None") -> None:
        self._device, self._stream, self._before = x.device, stream, before
        self._host = torch.empty_like(x, device="cpu", pin_memory=stream is not None)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(x.device))
        with self._beside():
            self._host.copy_(x, non_blocking=True)
        if stream is not None:
            x.record_stream(stream)  # its memory is given to others when the copy is done, not before
        self._back: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def take(self) -> Tensor:
        """On the device again; the one before begins its way."""
        self._begin()
        x, arrived = self._back, self._arrived
        assert x is not None
        self._back = self._arrived = None  # the block that takes it holds it alone
        if self._before is not None and (before := self._before()) is not None:
            before._begin()
        if arrived is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(arrived)
            x.record_stream(current)
        return x

    def _begin(self) -> None:
        if self._back is not None:
            return
        with self._beside():
            self._back = self._host.to(self._device, non_blocking=True)
        if self._stream is not None:
            self._arrived = self._stream.record_event()

    def _beside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
