"""Speed and memory of a run, counted on the host."""

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

PARTS = ("forward_seconds", "backward_seconds", "optimizer_seconds")


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
    _parts: list[Callable[[], Mapping[str, float]]] = field(default_factory=list)

    def add(
        self,
        tokens: int,
        step_seconds: float,
        wait_seconds: float,
        part_seconds: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """Hears of a step and of the tokens that all ranks read in it; `part_seconds` (of PARTS, a part that is missing
        took none) is asked when it is read, for the device may still be at it."""
        self._tokens.append(tokens)
        self._seconds.append(step_seconds)
        self._waits.append(wait_seconds)
        self._parts.append(part_seconds)

    def read(self) -> dict[str, float | None]:
        """Means a step since the last reading, and the rates that follow from them."""
        step = sum(self._seconds) / len(self._seconds)
        wait = sum(self._waits) / len(self._waits)
        parts = [seconds() for seconds in self._parts]
        rate = sum(self._tokens) / sum(self._seconds)
        self._tokens, self._seconds, self._waits, self._parts = [], [], [], []
        return {
            "step_seconds": step,
            "data_wait_seconds": wait,
            **{part: sum(seconds.get(part, 0.0) for seconds in parts) / len(parts) for part in PARTS},
            "tokens_per_second": rate,
            "mfu": rate * self.flops_per_token / self.peak_flops if self.peak_flops else None,
        }


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was ever in use: GPU memory of torch's allocator, or this process's resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
