"""Whether a plan fits into the memory that there is, and which change makes it fit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from scaletrain.planner.memory import Memory, memory_of
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import Zero

# Assumptions, of a GPU: the driver's context, cuBLAS's and NCCL's buffers; and what torch's allocator cannot use of the
# memory that it took, in parts of what is used.
GPU_RESERVE = 1_500_000_000
FRAGMENTATION = 0.05
HOST_RESERVE = 3_000_000_000  # of host memory, a rank: its process with CUDA's libraries
# Of a process on a CPU with torch, DeepSpeed, TensorBoard and the tokenizer, measured; and by how much a plan may
# be wrong, which benchmarks/plan_memory.py tells.
PROCESS_BYTES = 385_000_000
CPU_MARGIN = 0.05


@dataclass(frozen=True)
class Room:
    """Bytes of one rank: of its device, or of its part of the machine's memory. `host`: of its part of its node's
    memory beside a GPU; None where it is not known, and not judged."""

    bytes: int
    is_cpu: bool = False
    host: int | None = None

    @property
    def margin(self) -> float:
        """By how much a plan may be wrong, in parts of it."""
        return CPU_MARGIN if self.is_cpu else FRAGMENTATION

    def need(self, memory: Memory) -> int:
        """What a rank takes of it at most, margins included."""
        reserve = PROCESS_BYTES if self.is_cpu else GPU_RESERVE
        return reserve + int(memory.peak_bytes * (1 + self.margin))

    def spare(self, memory: Memory) -> int:
        """What is left of it; less than 0: what is missing."""
        return self.bytes - self.need(memory)

    def host_spare(self, memory: Memory) -> int:
        """As spare(), of host memory; 0 where that is not judged."""
        return 0 if self.host is None else self.host - HOST_RESERVE - memory.host_peak.host

    def holds(self, memory: Memory) -> bool:
        return self.spare(memory) >= 0 and self.host_spare(memory) >= 0


@dataclass(frozen=True)
class Variant:
    """Another way to train the same: `overrides` are words of a launch line that turn the recipe into it."""

    work: Workload
    overrides: tuple[str, ...]


def remedy(work: Workload, room: Room, presets: dict[str, Zero]) -> Variant | None:
    """The first single change that makes it fit: a smaller micro-batch, more checkpointing, no copy for saving, another
    DeepSpeed file of `presets` (by path, from the least that is split to the most); then two of micro-batch,
    checkpointing and file, then all. None: nothing does."""
    micro, modes, files = list(_smaller(work)), list(_leaner(work)), list(_split(work, presets))
    smallest, leanest = micro[-1:], modes[-1:]
    combined = [*_joined(smallest, leanest, work), *_joined(leanest, files, work), *_joined(smallest, files, work)]
    most = _joined(_joined(smallest, leanest, work), files, work)
    for variant in (*micro, *modes, *_without_copy(work), *files, *combined, *most):
        if variant.work.is_allowed and room.holds(memory_of(variant.work)):
            return variant
    return None


def checkpointing_that_fits(work: Workload, room: Room, modes: Sequence[str]) -> str:
    """The first of `modes`, from the least that is computed again to the most; the last where none fits."""
    allowed = [mode for mode in modes if replace(work, checkpointing=mode).is_allowed]
    fitting = (mode for mode in allowed if room.holds(memory_of(replace(work, checkpointing=mode))))
    return next(fitting, allowed[-1])


def micro_batches(work: Workload) -> list[int]:
    """Those that divide what a rank reads in a step, from the largest power of two down, the given one among them."""
    samples = work.micro_batch * work.accumulation
    powers = {1 << n for n in range(samples.bit_length()) if samples % (1 << n) == 0}
    return sorted(powers | {work.micro_batch}, reverse=True)


def with_micro_batch(work: Workload, size: int) -> Workload:
    return replace(work, micro_batch=size, accumulation=work.micro_batch * work.accumulation // size)


def _smaller(work: Workload) -> Iterator[Variant]:
    for size in micro_batches(work):
        if size < work.micro_batch:
            yield Variant(with_micro_batch(work, size), (f"train.micro_batch_size={size}",))


def _leaner(work: Workload) -> Iterator[Variant]:
    order = ["none", "selective", "full"]
    held = order.index(work.checkpointing) if work.checkpointing in order else 1
    for mode in order[held + 1 :]:
        yield Variant(replace(work, checkpointing=mode), (f"train.activation_checkpointing={mode}",))


def _without_copy(work: Workload) -> Iterator[Variant]:
    if work.copies_state:
        yield Variant(replace(work, copies_state=False), ("checkpoint.background=false",))


def _split(work: Workload, presets: dict[str, Zero]) -> Iterator[Variant]:
    """Those that split less, too: they may offload less, where host memory is what lacks."""
    for path, zero in presets.items():
        yield Variant(replace(work, zero=zero), (f"deepspeed={path}",))


def _joined(some: Iterable[Variant], others: Sequence[Variant], work: Workload) -> list[Variant]:
    """Each of the ones with each of the others: they change different things."""
    found = []
    for one in some:
        for other in others:
            changed = {
                name: getattr(other.work, name)
                for name in ("micro_batch", "accumulation", "checkpointing", "zero")
                if getattr(other.work, name) != getattr(work, name)
            }
            found.append(Variant(replace(one.work, **changed), one.overrides + other.overrides))
    return found
