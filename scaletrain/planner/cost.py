"""What a run of many steps comes to: hours, money, how often to save, and how much of the time is work kept."""

import math
from dataclasses import dataclass

# Llama 3: 419 unexpected interruptions in 54 days of 16,384 GPUs in nodes of 8 (Dubey et al. 2024, section 3.3.4).
DEFAULT_NODE_MTBF_HOURS = 54 * 24 * 16_384 / 8 / 419
RESTART_SECONDS = 300.0  # from a death to the first new step: an assumption
_ENDLESS = 12.0  # times between faults that an interval takes: one of 10,000 ends


@dataclass(frozen=True)
class Cost:
    """`goodput`: share of the time that goes into steps which are kept, with a checkpoint each `interval` seconds;
    `best_interval`: what loses least."""

    seconds: float
    device_hours: float
    money: float | None
    run_mtbf: float
    interval: float
    goodput: float
    best_interval: float
    best_goodput: float

    @property
    def hours(self) -> float:
        return self.seconds / 3600


def cost_of(
    work_seconds: float,
    *,
    devices: int,
    nodes: int,
    save_seconds: float,
    interval: float,
    node_mtbf_hours: float = DEFAULT_NODE_MTBF_HOURS,
    price: float | None = None,
) -> Cost:
    """`work_seconds`: of all steps, without a fault. `save_seconds`: that training waits for a checkpoint. `interval`:
    between them. `price`: of a device's hour."""
    mtbf = node_mtbf_hours * 3600 / nodes
    best = checkpoint_interval(save_seconds, mtbf)
    goodput = goodput_of(interval, save_seconds, mtbf)
    seconds = work_seconds / goodput if goodput else math.inf
    hours = devices * seconds / 3600
    money = None if price is None else price * hours
    return Cost(seconds, hours, money, mtbf, interval, goodput, best, goodput_of(best, save_seconds, mtbf))


def goodput_of(interval: float, save_seconds: float, mtbf: float) -> float:
    """By the expected time of a run with faults at random moments (Daly 2006), which holds for intervals of any length
    beside the time between faults. 0: it comes to no end."""
    exponent = (interval + save_seconds + RESTART_SECONDS) / mtbf
    if exponent > _ENDLESS:
        return 0.0
    return interval / (mtbf * math.exp(RESTART_SECONDS / mtbf) * math.expm1((interval + save_seconds) / mtbf))


def checkpoint_interval(save_seconds: float, mtbf_seconds: float) -> float:
    """Young 1974, with Daly's higher terms (2006, equation 37): the interval that loses least to saves and repeats."""
    if save_seconds >= mtbf_seconds / 2:
        return mtbf_seconds
    ratio = save_seconds / (2 * mtbf_seconds)
    young = math.sqrt(2 * save_seconds * mtbf_seconds)
    return young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds
