"""What a process on a CPU holds beside what is in use: libraries that load late, and memory that the C library keeps.

glibc takes blocks below 32 MB from a heap, which a run keeps once it is built (runtime/heap.py). So what activations
took in a backward pass is still held in the update, which needs other, large blocks; but where float32 gradients go
into a large block too (a bucket of stages 1 and 2), the update finds room there. The constants were fitted to
benchmarks/plan_memory.py: torch 2.13, DeepSpeed 0.19.
"""

from scaletrain.planner.workload import Workload

LATE_LIBRARIES = 60_000_000  # 45 to 75: files' pages that the system has at hand come with those that are asked for
FINETUNE_LIBRARIES = 190_000_000  # transformers' models and PEFT among them
# What an import of each adds, for recipes that need it: bitsandbytes 0.50, datasets 5.2, wandb 0.31, mlflow 3.17,
# trackio 0.43, comet_ml 3.58.
FURTHER_LIBRARIES = {
    "bitsandbytes": 126_000_000,
    "datasets": 90_000_000,
    "wandb": 17_000_000,
    "mlflow": 134_000_000,
    "trackio": 28_000_000,
    "comet": 58_000_000,
}
_TOP = 96 << 20  # of a heap, beside what its blocks ever took at once
_MAPPED = 32 << 20  # from here on a block is no part of the heap
_WRITING = 16 << 20  # a block on its way to the disk, see engine/state_files.py
_MASTER = 4  # bytes of a float32 weight


def kept(work: Workload, most: int, used: int) -> int:
    """Freed, but held, at a moment at which `used` bytes of small blocks are in use, of `most` at any."""
    top = min(_TOP, work.itemsize * work.parameters)
    # At stage 3 each parameter was built in float32 between what stays of the ones before it: holes.
    holes = _MASTER * work.share_of(work.parameters) if work.zero.stage == 3 else 0
    # Buckets and a rank's gradients, where they are no large blocks, lie between activations: as much is lost in holes.
    bucket, own = _bucket_bytes(work), work.itemsize * work.share_of(work.parameters)
    if work.zero.stage in (1, 2) and not work.keeps_gradients_in_place and max(bucket, own) < _MAPPED:
        holes = 3 * bucket + own
    writing = _WRITING if work.copies_state else 0
    freed = max(0, most - used)
    if work.zero.stage in (1, 2) and work.itemsize == _MASTER and bucket > _MAPPED:
        return max(freed, top) + writing
    return freed + top + holes + writing


def _bucket_bytes(work: Workload) -> int:
    return work.itemsize * min(work.parameters, work.reduce_bucket)
