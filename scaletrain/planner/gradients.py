"""What a rank holds in a forward and backward pass, block by block: activations go, gradients come."""

from collections.abc import Iterator
from dataclasses import dataclass

from scaletrain.planner.workload import Workload


@dataclass(frozen=True)
class Held:
    """Bytes beside the state. `gathered`: weights of other ranks, at stage 3."""

    moment: str
    activations: int = 0
    gradients: int = 0
    buckets: int = 0
    gathered: int = 0


def backward_parts(work: Workload) -> Iterator[Held]:
    """The computation of the loss, the backward pass of each block and its end."""
    blocks = work.activations.blocks
    gathered = _gathered(work)
    before = _before(work)
    yield Held("loss", work.activations.head, before, _buckets(work, 0), gathered)
    done = 0 if work.arch.tie_embeddings else work.embedding  # an untied head comes first
    for index in reversed(range(len(blocks))):
        done += work.of_block
        yield Held(f"backward pass of block {index}", blocks[index], *_gradients(work, done, before), gathered)
    # Embeddings come last, as dense gradients; a tied matrix has had its head's part waiting.
    vocabulary = work.itemsize * work.embedding
    stream = work.itemsize * work.tokens * work.arch.hidden_size
    late = vocabulary * (2 if work.arch.tie_embeddings else 1)
    gradients, buckets = _gradients(work, done, before)
    yield Held("end of the backward pass", stream + late, gradients, buckets, gathered)
    gradients, buckets = _gradients(work, work.parameters, before)
    yield Held("reduction of the gradients", 0, gradients, buckets + _joined(work, work.parameters), 0)


def _before(work: Workload) -> int:
    """Gradients of earlier micro-batches."""
    if work.accumulation == 1:
        return 0
    if work.zero.stage < 2:
        return work.itemsize * work.parameters
    return work.itemsize * work.share_of(work.parameters) if work.zero.stage == 2 else 0


def _gradients(work: Workload, done: int, before: int) -> tuple[int, int]:
    """Of `done` parameters, and the buckets that they went through. `before`: see _before."""
    b, bucket = work.itemsize, work.reduce_bucket
    if work.keeps_gradients_in_place:
        return before + b * done if work.zero.stage == 2 else max(before, b * done), 0
    # A bucket that is full is summed over the ranks, and a rank's own part is kept: stage 3 has it among its state.
    own = 0
    if work.zero.stage < 3 and (done > bucket or done == work.parameters) and not work.zero.offloads_optimizer:
        own = b * work.share_of(work.parameters)
    late = before - b * done if work.zero.stage == 1 and before else before  # they go into the buckets one by one
    joined = _joined(work, min(done, bucket)) if done > bucket else 0
    return max(0, late) + own, _buckets(work, done) + joined


def _buckets(work: Workload, done: int) -> int:
    """Of gradients on their way: at stages 1 and 2 two of them where collectives overlap; they go after each pass. That
    of stage 3 stays, see memory.py."""
    b, bucket = work.itemsize, work.reduce_bucket
    if work.zero.stage not in (1, 2) or work.keeps_gradients_in_place:
        return 0
    number = 2 if work.zero.overlaps and work.ranks > 1 else 1  # engine/buckets.py
    if work.device == "cuda":
        return number * b * bucket if done else 0
    return b * min(done, number * bucket)


def _joined(work: Workload, elements: int) -> int:
    """A bucket's gradients, copied into one tensor for the collective."""
    stage = work.zero.stage
    if work.ranks == 1 and stage < 3:
        return 0
    bucket = 500_000_000 if stage == 0 else work.reduce_bucket  # engine.py: MEMORY_OPT_ALLREDUCE_SIZE
    return work.itemsize * min(elements, max(bucket, work.largest_parameter))


def _gathered(work: Workload) -> int:
    """Stage 3: whole weights that are there at a time; they stay from the forward to the backward pass while they are
    fewer than both limits. What is gathered at once comes as one tensor and is copied out of it."""
    if work.zero.stage < 3 or (work.ranks == 1 and not work.zero.offloads_parameters):
        return 0
    zero, largest = work.zero, work.largest_parameter
    live = min(work.parameters, max(zero.max_live, largest))
    return work.itemsize * (live + min(work.parameters, max(zero.prefetch_bucket, largest)))
