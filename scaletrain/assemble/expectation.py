"""What a run expects to need, before its model is built: a hopeless one is refused, and its end tells how it was."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from scaletrain.assemble.planned import workload_of
from scaletrain.assemble.pretraining import Pretraining
from scaletrain.assemble.settle import Settled
from scaletrain.cluster.doctor.finding import Finding
from scaletrain.config.hardware import CPU, Hardware, cpu, hardware_of
from scaletrain.engine.plan import Plan
from scaletrain.engine.state import RunState
from scaletrain.errors import ConfigError
from scaletrain.planner.effort import Effort, effort_of
from scaletrain.planner.fit import PROCESS_BYTES, Room, remedy
from scaletrain.planner.memory import Memory, memory_of
from scaletrain.planner.plan import parts_of
from scaletrain.planner.time import Cluster, step_time
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import read_zero
from scaletrain.runtime import dist
from scaletrain.runtime.files import write_json
from scaletrain.runtime.machine import available_memory
from scaletrain.runtime.run_files import METRICS, PLAN
from scaletrain.track.meter import peak_memory_bytes
from scaletrain.track.peak import Peak
from scaletrain.track.sinks import read_lines

_TOLD_HOURS = 0.5
HOPELESS = 1.1  # times the memory that there is: a plan that needs more is wrong by less than what is missing


@dataclass(frozen=True)
class Expected:
    """Of one rank. `peak_bytes`: of its device; on a CPU above what the process holds with its libraries loaded.
    `tokens_per_second`: of all ranks, None where the device's rates are not known. `host_bytes`: at most in host memory
    beside a GPU."""

    peak_bytes: int
    moment: str
    parts: dict[str, int]
    process_bytes: int
    tokens_per_second: float | None
    effort: Effort | None  # None of a fine-tuning
    ranks_of_node: int
    device: str  # as its driver calls it, or "cpu"
    host_bytes: int = 0
    host_moment: str = ""

    @property
    def measured_as(self) -> int:
        """What peak_memory_bytes should tell: a CPU's counts the process."""
        return self.peak_bytes + self.process_bytes


def begin(settled: Settled, *, force: bool) -> Expected:
    """What the run expects. ConfigError on all ranks where it is hopeless, unless told to go on; before that, where
    the data are too short for it. NotPlannableError as expect(). All ranks call it."""
    with dist.together():
        settled.job.data.check_length(settled.batch.global_batch)
    expected = expect(settled)
    check_room(settled, expected, force=force)
    return expected


def doubts(settled: Settled, expected: Expected) -> list[Finding]:
    """A plan that is nearer to the memory that there is than plans are right, and was not refused."""
    room = _room(settled)
    if room is None or (need := int(expected.peak_bytes * (1 + room.margin))) <= room.bytes:
        return []
    what = f"a rank needs {need / 1e9:,.2f} GB by plan with its margin, and has {room.bytes / 1e9:,.2f} GB"
    return [Finding("warn", "plan", what, f"it may not last; {_change(settled, room)}")]


def at_peak(expected: Expected, settled: Settled, peak: Peak) -> Expected:
    """With the rate of a CPU, which is known once it is measured."""
    work = workload(settled)
    if work is None or settled.device.type == "cuda" or peak.flops is None:
        return expected
    return replace(expected, tokens_per_second=_rate_on(cpu(peak.flops, peak.source), settled, work))


def expect(settled: Settled) -> Expected:
    """NotPlannableError, on all ranks, for a fine-tuning whose model does not take a dry pass."""
    work = workload(settled)
    memory = memory_of(work) if work is not None else _finetune_memory(settled)
    host = memory.host_peak
    return Expected(
        peak_bytes=memory.peak_bytes,
        moment=memory.peak.name,
        parts=parts_of(memory),
        process_bytes=PROCESS_BYTES if memory.is_one else 0,
        tokens_per_second=None if work is None else _rate(settled, work),
        effort=None if work is None else effort_of(work),
        ranks_of_node=settled.world.local_size,
        device=torch.cuda.get_device_name(settled.device) if settled.device.type == "cuda" else CPU,
        host_bytes=0 if memory.is_one else host.host,
        host_moment="" if memory.is_one else host.name,
    )


def _finetune_memory(settled: Settled) -> Memory:
    from scaletrain.assemble.finetuning import Finetuning

    assert isinstance(settled.job, Finetuning)
    memory: Memory | None = None
    with dist.together():
        if settled.world.is_first:  # a dry pass takes a second, and 100 MB for what it loads; all ranks hold alike
            memory = settled.job.memory(
                read_zero(settled.deepspeed),
                settled.launch.precision,
                ranks=settled.world.size,
                rows=settled.batch.micro_batch,
                is_cpu=settled.device.type == "cpu",
            )
    told: list[Memory] = dist.gather(memory)
    return told[0]


def workload(settled: Settled) -> Workload | None:
    """As the planner takes it; None for a fine-tuning."""
    if not isinstance(settled.job, Pretraining):
        return None
    return workload_of(
        settled.job.recipe,
        settled.deepspeed,
        settled.job.architecture,
        ranks=settled.world.size,
        precision=settled.launch.precision,
        device="cuda" if settled.device.type == "cuda" else "cpu",
    )


def check_room(settled: Settled, expected: Expected, *, force: bool) -> None:
    """ConfigError on all ranks where one could not hold what it is to hold, unless told to go on."""
    if force:
        return
    with dist.together():
        if (room := _room(settled)) is not None:
            _refuse(settled, room, expected.peak_bytes, room.bytes)
            _refuse(settled, room, expected.host_bytes, room.host, f" of host memory at the {expected.host_moment}")


def _refuse(settled: Settled, room: Room, need: int, there: int | None, what: str = "") -> None:
    if there is not None and need > HOPELESS * there:
        raise ConfigError(
            f"{settled.recipe.run.dir}: a rank needs {need / 1e9:,.2f} GB{what} by plan, and has "
            f"{there / 1e9:,.2f} GB: {_change(settled, room)}, --force goes on"
        )


def _change(settled: Settled, room: Room) -> str:
    """What the user can do."""
    work = workload(settled)
    change = None if work is None else remedy(work, room, {})
    return "`scaletrain plan` says what fits" if change is None else f"{' '.join(change.overrides)} makes it fit"


def write(expected: Expected, folder: Path) -> None:
    write_json(folder / PLAN, asdict(expected))


def duration(expected: Expected | None, plan: Plan, state: RunState) -> Iterator[str]:
    """How long what is left takes by plan, where that is told in hours rather than minutes."""
    if expected is None or expected.tokens_per_second is None:
        return
    tokens = (plan.total_samples - state.samples_seen) * plan.tokens_per_sample
    hours = tokens / expected.tokens_per_second / 3600
    if hours >= _TOLD_HOURS:
        took = f"{hours:,.1f} hours" if hours < 72 else f"{hours / 24:,.0f} days"
        yield f"time    about {took}, at {expected.tokens_per_second:,.0f} tokens/s by plan"


def compare(expected: Expected, settled: Settled) -> str:
    """The run's end beside its plan, in one line. All ranks call it."""
    measured = max(dist.gather(peak_memory_bytes(settled.device)))
    planned = expected.measured_as
    line = (
        f"plan    a rank's memory: {planned / 1e9:,.2f} GB planned, {measured / 1e9:,.2f} GB measured "
        f"({planned / measured - 1:+.0%})"
    )
    if expected.tokens_per_second is None:
        return line
    rates = list(_rates(Path(settled.recipe.run.dir) / METRICS))
    if not rates:
        return line
    rate = statistics.median(rates)
    return f"{line}; tokens/s: {expected.tokens_per_second:,.0f} planned, {rate:,.0f} measured"


def _rates(metrics: Path) -> Iterator[float]:
    for line in read_lines(metrics) if metrics.is_file() else ():
        if line.get("tokens_per_second") is not None:
            yield float(line["tokens_per_second"])


def room_of(settled: Settled) -> int | None:
    """Bytes of this rank's device, or of its part of what the machine has left."""
    if settled.device.type == "cuda":
        return int(torch.cuda.get_device_properties(settled.device).total_memory)
    return _host_room(settled)


def _host_room(settled: Settled) -> int | None:
    """This rank's part of what its node has left."""
    available = available_memory()
    return None if available is None else available // settled.world.local_size


def _room(settled: Settled) -> Room | None:
    """Of this rank; None where nothing tells."""
    there = room_of(settled)
    if there is None or settled.device.type == "cpu":
        return None if there is None else Room(there, is_cpu=True)
    return Room(there, host=_host_room(settled))


def _rate(settled: Settled, work: Workload) -> float | None:
    """Of GPUs that are known."""
    known = hardware_of(torch.cuda.get_device_name(settled.device)) if settled.device.type == "cuda" else None
    return None if known is None else _rate_on(known, settled, work)


def _rate_on(device: Hardware, settled: Settled, work: Workload) -> float:
    world = settled.world
    return step_time(work, Cluster(device, world.nodes, world.local_size, device.network)).tokens_per_second
