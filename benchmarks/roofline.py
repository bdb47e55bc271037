"""The least time that a computation can take on a machine: by its matrix units or by its memory."""

import time
from dataclasses import dataclass

import torch

from scaletrain.track.peak import measure_matrix_rate, peak_of

COPIED = 256 << 20  # bytes: past any cache


@dataclass(frozen=True)
class Machine:
    """FLOP/s of a large matrix product, bytes/s (read and written) of a large copy."""

    matrix_rate: float
    copy_bandwidth: float


@dataclass(frozen=True)
class Bound:
    """Seconds that nothing on the machine can beat, and what they are spent on; `memory` unless all fits the cache."""

    seconds: float
    by: str


def bound(flops: float, moved: float, machine: Machine) -> Bound:
    """Williams et al. 2009: arithmetic and transfers overlap, so the longer of both counts."""
    arithmetic, transfer = flops / machine.matrix_rate, moved / machine.copy_bandwidth
    return Bound(arithmetic, "matrix") if arithmetic >= transfer else Bound(transfer, "memory")


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """A GPU's rate by its data sheet, where that is known: a product that takes microseconds is half waiting."""
    rate = peak_of(device, dtype).flops
    return Machine(rate or measure_matrix_rate(device, dtype), measure_copy_bandwidth(device))


def measure_copy_bandwidth(device: torch.device, rounds: int = 8) -> float:
    """The fastest of `rounds`, after one to warm up; each byte is read once and written once."""
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(rounds + 1):
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * COPIED / best
