"""What a run of many steps comes to: hours, money, how often to save, and how much of the time is work kept."""

import math
from dataclasses import dataclass

# Llama 3: 419 unexpected interruptions in 54 days of 16,384 GPUs in nodes of 8 (Dubey et al. 2024, section 3.3.4).
DEFAULT_NODE_MTBF_HOURS = 54 * 24 * 16_384 / 8 / 419
RESTART_SECONDS = 300.0  # from a death to the first new step: an assumption


@dataclass(frozen=True)
class Cost:
    """`goodput`: share of the time that goes into steps which are kept. `interval`: seconds between checkpoints."""

    seconds: float
    device_hours: float
    money: float | None
    run_mtbf: float
    interval: float
    goodput: float

    @property
    def hours(self) -> float:
        return self.seconds / 3600


def cost_of(
    work_seconds: float,
    *,
    devices: int,
    nodes: int,
    save_seconds: float,
    node_mtbf_hours: float = DEFAULT_NODE_MTBF_HOURS,
    price: float | None = None,
) -> Cost:
    """`work_seconds`: of all steps, without a fault. `save_seconds`: that training waits for a checkpoint. `price`: of
    a device's hour."""
    mtbf = node_mtbf_hours * 3600 / nodes
    interval = checkpoint_interval(save_seconds, mtbf)
    lost = save_seconds / interval + (interval / 2 + RESTART_SECONDS) / mtbf
    goodput = max(0.0, 1 - lost)
    seconds = work_seconds / goodput if goodput else math.inf
    hours = devices * seconds / 3600
    return Cost(seconds, hours, None if price is None else price * hours, mtbf, interval, goodput)


def checkpoint_interval(save_seconds: float, mtbf_seconds: float) -> float:
    """Young 1974, with Daly's higher terms (2006, equation 37): the interval that loses least to saves and repeats."""
    if save_seconds >= mtbf_seconds / 2:
        return mtbf_seconds
    ratio = save_seconds / (2 * mtbf_seconds)
    young = math.sqrt(2 * save_seconds * mtbf_seconds)
    return young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds
