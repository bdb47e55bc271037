"""Bytes that one rank holds at each moment of a run, by part: on its device, and in its host's memory.

Follows DeepSpeed 0.19 as it is written (runtime/zero/stage_1_and_2.py, stage3.py, fp16/unfused_optimizer.py) and
scaletrain/engine. P parameters, S = P / ranks, b bytes of a weight. An allocation that is touched later counts at once
on a GPU, and as it fills on a CPU, whose resident memory is what is measured there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from scaletrain.planner.gradients import Held, backward_parts
from scaletrain.planner.resident import FURTHER_LIBRARIES, LATE_LIBRARIES, kept
from scaletrain.planner.workload import Workload

_MASTER = 4  # float32 weights
# Bytes of each of a group's elements: moments, gradient and two results in float32 (bitsandbytes, backends/cpu/ops.py).
_EIGHT_BITS_ON_CPU = 20


@dataclass(frozen=True)
class Part:
    """`is_host`: in the memory of the machine, not of the GPU. On a CPU they are one."""

    name: str
    bytes: int
    is_host: bool = False


@dataclass(frozen=True)
class Moment:
    """What is held while the run is at one thing."""

    name: str
    parts: tuple[Part, ...]

    @property
    def device(self) -> int:
        return sum(part.bytes for part in self.parts if not part.is_host)

    @property
    def host(self) -> int:
        return sum(part.bytes for part in self.parts if part.is_host)

    @property
    def whole(self) -> int:
        return self.device + self.host


@dataclass(frozen=True)
class Memory:
    """One rank's, at each moment. `is_one`: device and host are one memory, as on a CPU."""

    moments: tuple[Moment, ...]
    is_one: bool

    @property
    def peak(self) -> Moment:
        """The moment at which the device holds most."""
        return max(self.moments, key=lambda moment: moment.whole if self.is_one else moment.device)

    @property
    def peak_bytes(self) -> int:
        return self.peak.whole if self.is_one else self.peak.device

    @property
    def host_peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.host)


def memory_of(work: Workload) -> Memory:
    state = (*standing(work), *_copy(work))
    # A resume fills the state from mapped files, whose pages make way; an old copy it has not.
    moments = [
        Moment("start", tuple(_start(work))),
        Moment("load", (*standing(work), *_load(work))),
        *(Moment(held.moment, (*state, *_inputs(work), *_parts(held))) for held in backward_parts(work)),
        Moment("update", (*state, *_update(work))),
        Moment("save", state),
    ]
    if work.device == "cpu":
        # What an update takes finds room among what activations left.
        most = max(_small(work, moment) for moment in moments if moment.name != "update")
        moments = [_resident(work, moment, most) for moment in moments]
    return Memory(tuple(moments), is_one=work.device == "cpu")


def _resident(work: Workload, moment: Moment, most: int) -> Moment:
    """With what the process holds beside it, see resident.py."""
    late = LATE_LIBRARIES + sum(FURTHER_LIBRARIES[name] for name in work.libraries)
    more = (
        Part("libraries that load late", late),
        Part("freed, kept by the C library", kept(work, most, _small(work, moment))),
    )
    return Moment(moment.name, (*moment.parts, *more))


def _small(work: Workload, moment: Moment) -> int:
    """Of what comes and goes, the bytes in small blocks: not buckets, nor what is joined of all parameters."""
    of_all = ("activations", "gathered weights")
    names = (*of_all, "gradients", "float32 gradients") if work.keeps_gradients_in_place else of_all
    return sum(part.bytes for part in moment.parts if part.name in names)


def _parts(held: Held) -> Iterator[Part]:
    for name, size in (
        ("activations", held.activations),
        ("gradients", held.gradients),
        ("communication buckets", held.buckets),
        ("gathered weights", held.gathered),
    ):
        if size:
            yield Part(name, size)


def _inputs(work: Workload) -> Iterator[Part]:
    """Of blocks, which activation_checkpointing=offload keeps in host memory, pinned beside a GPU."""
    if host := work.activations.host:
        if work.device == "cuda":
            blocks = max(1, work.arch.num_layers - 1)  # not of the last one
            host = blocks * _power_of_two(host // blocks)
        yield Part("inputs of blocks", host, is_host=True)


def standing(work: Workload) -> Iterator[Part]:
    """What a rank holds from the first update on, whatever it is at."""
    zero, b, P = work.zero, work.itemsize, work.parameters
    S = work.share_of(P)
    if zero.stage == 0:
        yield Part("weights", b * P)
        if b < _MASTER:
            yield Part("float32 masters", _MASTER * P)
        yield Part("optimizer moments", work.moments_of(P))
        return
    off = zero.offloads_optimizer
    # In float32 too the masters are a copy: stage 3 would share the weights, but compares a device with its name.
    weights = P if zero.stage < 3 else S
    yield Part("weights", b * weights, is_host=zero.offloads_parameters)
    yield Part("float32 masters", _rounded(work, _MASTER * S, off), is_host=off)
    yield Part("optimizer moments", work.moments_of(S), is_host=off)
    if zero.copy_ranks > 1:
        yield Part("weights for its node", b * -(-P // zero.copy_ranks))
    if zero.stage == 3:
        yield Part("gradients of its part", _rounded(work, b * S, off), is_host=off)
        bucket = work.reduce_bucket if work.device == "cuda" else min(P, work.reduce_bucket)
        yield Part("communication buckets", b * bucket)
    if off:
        yield Part("float32 gradients", _rounded(work, _MASTER * S, off), is_host=True)
        if zero.stage < 3:
            yield Part("weights on their way", _rounded(work, b * S, off), is_host=True)
            yield Part("a gradient on its way", b * work.largest_parameter, is_host=True)
            yield Part("a gradient on its way", b * work.largest_parameter)


def _copy(work: Workload) -> Iterator[Part]:
    """The state for a checkpoint that is written behind training; kept for the next one (engine.py). Stage 0 splits it
    among the ranks too."""
    if work.copies_state:
        mine = work.share_of(work.parameters)
        size = _MASTER * mine + work.float_moments_of(mine)
        is_pinned = work.device == "cuda"
        yield Part("copy for saving", _power_of_two(size) if is_pinned else size, is_host=True)


def _start(work: Workload) -> Iterator[Part]:
    """Below stage 3 each rank builds the whole model in float32 in host memory; under zero.Init it never exists."""
    if work.zero.stage < 3:
        yield Part("model as it is built", _MASTER * work.parameters, is_host=True)
        return
    yield Part("weights", work.itemsize * work.share_of(work.parameters), is_host=work.zero.offloads_parameters)
    yield Part("parameter as it is built", _MASTER * work.largest_parameter)


def _load(work: Workload) -> Iterator[Part]:
    """Moments in 8 bits are read in float32 first, see optim/eight_bit.py."""
    if work.optimizer == "adamw_8bit":
        yield Part("moments as they are read", work.float_moments_of(work.updated_parameters))


def _update(work: Workload) -> Iterator[Part]:
    """Gradients become float32 and are used, a group at a time."""
    zero, b, P = work.zero, work.itemsize, work.parameters
    if zero.stage == 0:
        yield Part("gradients", b * P)
        if b < _MASTER:  # updated in blocks: those of the step on zeros that DeepSpeed takes at the start, kept since
            yield Part("float32 gradients", _MASTER * P)
        return
    if zero.offloads_optimizer:
        return  # they are there already, see standing
    group = work.share_of(work.largest_group)
    if zero.stage == 3:
        group = min(group, max(zero.sub_group, work.share_of(work.largest_parameter)))
    flat = b * group if b < _MASTER else 0  # joined, then made float32; joined is enough in float32
    if work.optimizer == "muon":  # then momentum in float32 and matrices in the run's precision, see optim/matrices.py
        flat = max(flat, (_MASTER + b) * group)
    if zero.stage < 3:
        yield Part("gradients" if work.keeps_gradients_in_place else "gradients of its part", b * work.share_of(P))
    if not work.updates_in_blocks:
        yield Part("float32 gradients", flat + _MASTER * group)
    if work.optimizer == "adamw_8bit" and work.device == "cpu":
        yield Part("moments in float32", _EIGHT_BITS_ON_CPU * group)


def _rounded(work: Workload, size: int, is_pinned: bool) -> int:
    """torch's allocator of pinned memory gives powers of two (CachingHostAllocator)."""
    return _power_of_two(size) if is_pinned and work.zero.pins and work.device == "cuda" else size


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
