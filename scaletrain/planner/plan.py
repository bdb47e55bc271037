"""A plan, whole: memory, room, time and cost of a workload on a cluster."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scaletrain.model.count import checkpoint_bytes
from scaletrain.planner.communication import sent_bytes
from scaletrain.planner.cost import DEFAULT_NODE_MTBF_HOURS, Cost, cost_of
from scaletrain.planner.fit import Room
from scaletrain.planner.memory import Memory, memory_of
from scaletrain.planner.time import COMPUTE_SHARES, Cluster, StepTime, step_time
from scaletrain.planner.workload import Workload

_COPY_RATE = 20e9  # bytes/s of a rank's state into pinned host memory: PCIe 4.0 x16
_DISK_RATE = 1e9  # bytes/s that the ranks of a node write together: an assumption


@dataclass(frozen=True)
class Plan:
    """`steps`: of the whole run. `keep_last` checkpoints are on the disk at most, and `kept` that stay for ever.
    `save_steps`: between checkpoints, None: at the end alone. `price`: of a device's hour."""

    work: Workload
    cluster: Cluster
    room: Room
    steps: int
    keep_last: int
    kept: int = 0
    save_steps: int | None = None
    price: float | None = None
    node_mtbf_hours: float = DEFAULT_NODE_MTBF_HOURS
    share: float | None = None  # of the dense peak, see step_time
    share_source: str = "assumed"
    rest: float = 0.0  # seconds of a step that are neither passes, update nor collectives

    @cached_property
    def memory(self) -> Memory:
        return memory_of(self.work)

    @cached_property
    def time(self) -> StepTime:
        return step_time(self.work, self.cluster, self.share, self.rest)

    @property
    def compute_share(self) -> float:
        return COMPUTE_SHARES[self.work.device] if self.share is None else self.share

    @property
    def fits(self) -> bool:
        return self.room.holds(self.memory)

    @property
    def save_seconds(self) -> float:
        """That training waits for a checkpoint: for the copy, or for the disk."""
        size = checkpoint_bytes(self.work.arch, self.work.optimizer)
        if self.work.copies_state:
            return size / self.work.ranks / _COPY_RATE
        return size / self.cluster.nodes / _DISK_RATE

    @property
    def disk_bytes(self) -> int:
        """Of the checkpoints that are kept, and of one that is being written."""
        return (self.keep_last + self.kept + 1) * checkpoint_bytes(self.work.arch, self.work.optimizer)

    @cached_property
    def cost(self) -> Cost:
        return cost_of(
            self.steps * self.time.seconds,
            devices=self.cluster.ranks,
            nodes=self.cluster.nodes,
            save_seconds=self.save_seconds,
            interval=min(self.save_steps or self.steps, self.steps) * self.time.seconds,
            node_mtbf_hours=self.node_mtbf_hours,
            price=self.price,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a program. Bytes are a rank's unless they are named otherwise."""
        time, cost, memory = self.time, self.cost, self.memory
        return {
            "fits": self.fits,
            "spare_bytes": self.room.spare(memory),
            "peak_bytes": memory.peak_bytes,
            "peak_with_margins_bytes": self.room.need(memory),
            "room_bytes": self.room.bytes,
            "peak_moment": memory.peak.name,
            "peak_parts": parts_of(memory),
            "moments": {m.name: {"device_bytes": m.device, "host_bytes": m.host} for m in memory.moments},
            "node_host_bytes": memory.host_peak.host * self.cluster.devices_per_node,
            "node_host_room_bytes": None if self.room.host is None else self.room.host * self.cluster.devices_per_node,
            "node_host_moment": memory.host_peak.name,
            "disk_bytes": self.disk_bytes,
            "sent_bytes": sent_bytes(self.work),
            "step_seconds": time.seconds,
            "step_parts": {
                "forward": time.forward,
                "backward": time.backward,
                "update": time.update,
                "exposed_communication": time.exposed,
                "host": time.host,
                "rest": time.rest,
            },
            "tokens_per_second": time.tokens_per_second,
            "compute_share": self.compute_share,
            "steps": self.steps,
            "hours": cost.hours,
            "device_hours": cost.device_hours,
            "money": cost.money,
            "run_mtbf_hours": cost.run_mtbf / 3600,
            "checkpoint_interval_seconds": cost.interval,
            "goodput": cost.goodput,
            "best_checkpoint_interval_seconds": cost.best_interval,
            "best_goodput": cost.best_goodput,
        }


def parts_of(memory: Memory) -> dict[str, int]:
    """The bytes of the peak by part: on a GPU those on the device."""
    found: dict[str, int] = {}
    for part in memory.peak.parts:
        if memory.is_one or not part.is_host:
            found[part.name] = found.get(part.name, 0) + part.bytes
    return found
