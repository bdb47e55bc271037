"""Memory of this process from here on: resident on a CPU (Linux), torch's allocator on a GPU."""

import ctypes
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin(device: torch.device) -> int:
    """Bytes that are held now; `peak` counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before is taken again, and is not counted
    _CLEAR.write_text("5")  # proc(5): resets the high-water mark VmHWM
    return _read("VmRSS")


def peak(device: torch.device) -> int:
    """The most bytes held at a time since `begin`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _read("VmHWM")


def _read(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
