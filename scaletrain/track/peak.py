"""The rate that a device's matrix units can reach: what MFU divides by."""

import time
from dataclasses import dataclass

import torch

from scaletrain.config.hardware import dense_bf16_peak

_SIZE = 2048


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one rank's device, and where the figure is from. None: unknown device, MFU is not told."""

    flops: float | None
    source: str


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The data sheet's dense rate of a GPU; on a CPU the rate that a large matrix product reaches on this rank now."""
    if device.type == "cpu":
        rate = measure_matrix_rate(device, dtype)
        return Peak(rate, f"measured {_SIZE} x {_SIZE} {str(dtype).removeprefix('torch.')} product")
    name = torch.cuda.get_device_name(device)
    found = dense_bf16_peak(name)
    if found is None or dtype == torch.float32:
        rate = measure_matrix_rate(device, dtype)
        return Peak(rate, f"measured {_SIZE} x {_SIZE} {str(dtype).removeprefix('torch.')} product on {name}")
    return Peak(found, f"data sheet, {name}, dense bf16")


def measure_matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of the fastest of the square matrix products that `seconds` hold, three at least, after one to warm up.

    A launch's other processes start at the same moment: in a third of a second they may slow all of them.
    """
    a = torch.randn(_SIZE, _SIZE, device=device).to(dtype)
    b = torch.randn(_SIZE, _SIZE, device=device).to(dtype)
    best, products, end = float("inf"), 0, time.perf_counter() + seconds
    while products < 4 or time.perf_counter() < end:
        began = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
        products += 1
        del c
    return float(2 * _SIZE**3 / best)
