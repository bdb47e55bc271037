"""What is known of accelerators: hardware.toml, read once."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scaletrain.config.problems import closest
from scaletrain.config.schema import Precision
from scaletrain.errors import ConfigError

_FILE = Path(__file__).with_name("hardware.toml")
_OTHERS = "bf16_of"
CPU = "cpu"


@dataclass(frozen=True)
class Hardware:
    """One device. Rates: FLOP/s of matrix products by precision; `fp8_gain`: how much faster FP8 is than bf16, None
    where it is not there. Links: bytes a second, each way, of one device."""

    name: str
    memory: int
    rates: dict[Precision, float]
    bandwidth: float
    link: float
    network: float
    source: str
    fp8_gain: float | None = None

    @property
    def is_cpu(self) -> bool:
        """A rank's part of a machine's cores and memory, whose network adapter its ranks share."""
        return self.name == CPU


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def _devices() -> dict[str, dict[str, Any]]:
    """Rows of whole accelerators, by name."""
    return {name: row for name, row in _table().items() if name not in (_OTHERS, CPU)}


def hardware_names() -> list[str]:
    """What hardware() knows, and "cpu", which is this machine."""
    return [*_devices(), CPU]


def hardware(name: str) -> Hardware:
    """By its name in the file; ConfigError if it is not there."""
    if name not in _devices():
        close = closest(name, hardware_names())
        remedy = f"did you mean {close}?" if close else f"choose one of {', '.join(hardware_names())}"
        raise ConfigError(f"--gpu {name} is unknown: {remedy}")
    row = _table()[name]
    return Hardware(
        name=name,
        memory=int(row["memory_gb"] * 1e9),
        rates={"bf16": row["bf16"] * 1e12, "fp16": row["fp16"] * 1e12, "fp32": row["fp32"] * 1e12},
        fp8_gain=row["fp8"] / row["bf16"] if "fp8" in row else None,
        source=row["source"],
        **_ways_of(row),
    )


def cpu(rate: float, source: str) -> Hardware:
    """A rank's part of this machine. `rate`: FLOP/s of its matrix products in the precision that is planned."""
    return Hardware(CPU, 0, {"bf16": rate, "fp16": rate, "fp32": rate}, source=source, **_ways_of(_table()[CPU]))


def _ways_of(row: Mapping[str, Any]) -> dict[str, float]:
    gigabytes = {"bandwidth": row["bandwidth_gbs"], "link": row["link_gbs"], "network": row["network_gbps"] / 8}
    return {name: value * 1e9 for name, value in gigabytes.items()}


def hardware_of(device: str) -> Hardware | None:
    """By the driver's name for the device, of those in the file with all figures; None if it is not there."""
    found = (name for name, row in _devices().items() if _is_called(device, row["device"]))
    name = next(found, None)
    is_other = any(_is_called(device, other) for other in _table()[_OTHERS])  # "H100 PCIe" is no H100
    return None if name is None or is_other else hardware(name)


def dense_bf16_peak(device: str) -> float | None:
    """The data sheet's FLOP/s, by the driver's name for the device; None if it is unknown."""
    return next((rate for words, rate in dense_bf16_peaks().items() if _is_called(device, words)), None)


def _is_called(device: str, words: str) -> bool:
    """Whether the driver's name holds them whole: "A100" is part of "RTX A1000" and "L4" of "L40". A laptop's chip of
    the same name is a slower one."""
    return "Laptop" not in device and re.search(rf"\b{words}\b", device) is not None


@cache
def dense_bf16_peaks() -> dict[str, float]:
    """FLOP/s by words of the driver's name for the device; of two that fit the first counts."""
    peaks = {name: rate * 1e12 for name, rate in _table()[_OTHERS].items()}
    return peaks | {row["device"]: row["bf16"] * 1e12 for row in _devices().values()}
