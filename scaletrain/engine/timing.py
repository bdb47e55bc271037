"""Seconds that the device spends in a part of a step, without waiting for it while it works."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class DeviceTime:
    """Adds up what `part()` encloses: wall-clock time on a CPU, the GPU's own time between two events there."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def part(self) -> Iterator[None]:
        if not self._on_gpu:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        yield
        last.record()
        self._events.append((first, last))

    def seconds(self) -> float:
        """Waits until the device has done the last part."""
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1000
        self._events = []
        return self._seconds
