"""Speed and memory of a run, counted on the host."""

import resource
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Meter:
    """Collects steps and tells the rates since it was last read. Times are of this rank.

    `flops_per_token` counts training FLOPs (model/count.py); `peak_flops` is the matrix peak of all ranks together.
    """

    flops_per_token: float
    peak_flops: float | None
    _seconds: list[float] = field(default_factory=list)
    _waits: list[float] = field(default_factory=list)
    _tokens: list[int] = field(default_factory=list)
    _forwards: list[Callable[[], float]] = field(default_factory=list)

    def add(
        self, tokens: int, step_seconds: float, wait_seconds: float, forward_seconds: Callable[[], float] = float
    ) -> None:
        """Hears of a step and of the tokens that all ranks read in it; `forward_seconds` is asked when it is read, for
        the device may still be at it."""
        self._tokens.append(tokens)
        self._seconds.append(step_seconds)
        self._waits.append(wait_seconds)
        self._forwards.append(forward_seconds)

    def read(self) -> dict[str, float | None]:
        """Means a step since the last reading, and the rates that follow from them."""
        step = sum(self._seconds) / len(self._seconds)
        wait = sum(self._waits) / len(self._waits)
        forward = sum(seconds() for seconds in self._forwards) / len(self._forwards)
        rate = sum(self._tokens) / sum(self._seconds)
        self._tokens, self._seconds, self._waits, self._forwards = [], [], [], []
        return {
            "step_seconds": step,
            "data_wait_seconds": wait,
            "forward_seconds": forward,
            "tokens_per_second": rate,
            "mfu": rate * self.flops_per_token / self.peak_flops if self.peak_flops else None,
        }


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was ever in use: GPU memory of torch's allocator, or this process's resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
