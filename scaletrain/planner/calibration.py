"""What a run on the same devices reached, in place of what a plan assumes of them."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scaletrain.config.hardware import CPU, Hardware, hardware_of
from scaletrain.errors import ConfigError
from scaletrain.planner.effort import Effort
from scaletrain.planner.plan import Plan
from scaletrain.planner.time import LINK_SHARE
from scaletrain.runtime.run_files import METRICS, PLAN
from scaletrain.track.sinks import read_lines

WARM_UP = 2  # logged lines: compiling, caches, the allocator's first requests
_LEAST = 3  # lines after them
_PARTS = ("forward_seconds", "backward_seconds", "optimizer_seconds")


@dataclass(frozen=True)
class Speed:
    """Of one rank, of `ranks` on its node. `rate`: FLOP/s of the passes, as Effort.passes counts them, recomputation
    too. `bandwidth`: bytes/s of the update; None where it was not in the device's memory. `rest`: seconds of a step
    that are neither."""

    rate: float
    bandwidth: float | None
    rest: float
    ranks: int


def read_speed(run: Path, link: float, device: Hardware) -> Speed:
    """As speed_of, of a pretraining run's folder. ConfigError where it does not tell, or ran on other devices."""
    effort, ranks = _read_plan(run, device)
    lines = _lines(run)
    if len(lines) < WARM_UP + _LEAST:
        raise ConfigError(
            f"--calibrate {run}: {len(lines)} logged steps, {WARM_UP + _LEAST} are needed (the first {WARM_UP} are "
            "left out): train it longer, or with log.every_steps=1"
        )
    return speed_of(effort, ranks, lines[WARM_UP:], link, device.fp8_gain)


def speed_of(
    effort: Effort, ranks: int, lines: Sequence[Mapping[str, float]], link: float, fp8_gain: float | None = None
) -> Speed:
    """By the medians of logged steps. `link`: bytes/s between the ranks, as the planner has it: what the reduction of
    the gradients took by that is none of the passes' time, nor is what a CPU took for stage 3's gathers. `fp8_gain`: of
    the device, as the planner has it."""
    forward, backward, update = (statistics.median(line[part] for line in lines) for part in _PARTS)
    step = statistics.median(line["step_seconds"] - line["data_wait_seconds"] for line in lines)
    passes = forward + backward
    network = (effort.gradient_bytes + effort.awaited_bytes) / (link * LINK_SHARE)
    passes -= min(passes / 2, network + effort.host_seconds)
    own = update - min(update / 2, effort.gathered_bytes / (link * LINK_SHARE))
    bandwidth = effort.update_bytes / own if effort.update_bytes and own else None
    if bandwidth is not None:
        passes -= min(passes / 4, effort.again_bytes / bandwidth)
    if not passes or (effort.update_bytes and not own):
        raise ConfigError("the run's forward, backward or optimizer took no time: it cannot calibrate a plan")
    rest = max(0.0, step - forward - backward - update)
    return Speed(sum(effort.passes(fp8_gain)) / passes, bandwidth, rest, ranks)


def at_speed(plan: Plan, speed: Speed, source: str) -> Plan:
    """The same plan at the speed of a run; `source` says of which. A CPU's cores are shared by its ranks, and its rate
    is one that was measured in a moment: what a run reached is no more than the machine's."""
    cluster, device = plan.cluster, plan.cluster.hardware
    shared = speed.ranks / cluster.devices_per_node if device.is_cpu else 1.0
    precision, rate = plan.work.precision, speed.rate * shared
    if speed.bandwidth is not None:
        device = replace(device, bandwidth=speed.bandwidth * shared)
    if device.is_cpu and rate > device.rates[precision]:
        device = replace(device, rates={**device.rates, precision: rate})
    return replace(
        plan,
        cluster=replace(cluster, hardware=device),
        share=rate / device.rates[precision],
        share_source=source,
        rest=speed.rest,
    )


def _read_plan(run: Path, device: Hardware) -> tuple[Effort, int]:
    try:
        plan = json.loads((run / PLAN).read_text(encoding="utf-8"))
        effort, ranks, trained_on = Effort(**plan["effort"]), int(plan["ranks_of_node"]), str(plan["device"])
        if not all(math.isfinite(value) and value >= 0 for value in asdict(effort).values()) or ranks < 1:
            raise ValueError("not finite")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--calibrate {run}: its plan.json does not tell what a step takes ({type(error).__name__}): give the "
            "run.dir of a pretraining run of this version"
        ) from None
    known = hardware_of(trained_on)
    if (trained_on == CPU) != device.is_cpu or (known is not None and known.name != device.name):
        raise ConfigError(
            f"--calibrate {run}: it trained on {trained_on}, which is no {device.name}: give --gpu "
            f"{known.name if known is not None else CPU}, or a run on the devices that are planned"
        )
    return effort, ranks


def _lines(run: Path) -> list[dict[str, Any]]:
    """Those of training steps; what a kill tore is left out."""
    names = (*_PARTS, "step_seconds", "data_wait_seconds")
    try:
        lines = read_lines(run / METRICS)
    except OSError as error:
        raise ConfigError(
            f"--calibrate {run}: its metrics.jsonl cannot be read ({error.strerror}): give the run.dir of a run"
        ) from None
    return [line for line in lines if all(_is_seconds(line.get(name)) for name in names) and line["step_seconds"] > 0]


def _is_seconds(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value >= 0
