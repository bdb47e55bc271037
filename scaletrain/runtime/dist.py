"""Ranks and what they tell each other; with links.py the only user of torch.distributed."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from scaletrain.errors import ClusterError, ScaleTrainError
from scaletrain.runtime import network
from scaletrain.runtime.world import World

TIMEOUT = timedelta(minutes=30)  # torch's default too
_REACH_SECONDS = 60.0
_SHARED = "all ranks raise this"  # a note on the error, which its traceback shows


def device_of(world: World) -> torch.device:
    """The GPU of this rank, or the CPU where there is none. ClusterError when there are fewer GPUs than ranks."""
    gpus = torch.cuda.device_count()
    if 0 < gpus <= world.local_rank:
        raise ClusterError(
            f"rank {world.rank} is number {world.local_rank} on this node, which shows {gpus} GPUs: start one rank a "
            "GPU, and let each rank see all GPUs of the node (SLURM: --gpus-per-node, not --gpus-per-task)"
        )
    return torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def start(world: World, timeout: timedelta = TIMEOUT) -> None:
    """Joins all ranks. CPU tensors travel over gloo and GPU tensors over NCCL, so a number can be shared without
    waiting for the GPU.

    A rank that waits for the others longer than `timeout` fails, in the groups that DeepSpeed makes later too: those
    are made without a time and take torch's default, whatever init_process_group was given.
    """
    if dist.is_initialized():
        return
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        if hasattr(dist.distributed_c10d, name):
            setattr(dist.distributed_c10d, name, timeout)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    if world.nodes > 1:
        network.choose_interface(world.master_address)
    # One rank needs no port: a store in memory cannot meet another run's port.
    store = torch._C._distributed_c10d.HashStore() if world.size == 1 else None
    # torch's env:// knows that torchrun's agent holds the store already; DeepSpeed reads the variables as well.
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        MASTER_ADDR=world.master_address,
        MASTER_PORT=str(world.master_port or 0),
    )
    init = "env://" if store is None else None
    if store is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _reach_torchrun(world)
    try:
        dist.init_process_group(
            backend, init_method=init, store=store, rank=world.rank, world_size=world.size, timeout=timeout
        )
    except dist.DistError as error:
        raise ClusterError(
            f"rank {world.rank} cannot meet the others at {world.master_address}:{world.master_port} "
            f"({str(error).splitlines()[0]}): is the port taken by another run? Give another one (--master_port; under "
            "srun MASTER_PORT)"
        ) from error


def _reach_torchrun(world: World) -> None:
    """torchrun's store is up before its ranks. Without this torch looks for a dead one for all of its timeout."""
    try:
        socket.create_connection((world.master_address, world.master_port or 0), _REACH_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"rank {world.rank} does not reach torchrun at {world.master_address}:{world.master_port} "
            f"({error.strerror or error}): it was killed, or its node is out of reach; start the run again"
        ) from error


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_integers(values: Sequence[int]) -> list[int]:
    """Elementwise sums of `values` over all ranks."""
    if size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor)
    return [int(v) for v in tensor.tolist()]


def sum_numbers(values: Sequence[float]) -> list[float]:
    """Elementwise sums of `values` over all ranks in float64, the same on each: integers stay exact below 2**53."""
    if size() == 1:
        return [float(value) for value in values]
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return [float(v) for v in tensor.tolist()]


def sum_modulo(values: Sequence[int]) -> list[int]:
    """Elementwise sums of unsigned `values` over all ranks, modulo 2**64."""
    signed = [(value + 2**63) % 2**64 - 2**63 for value in values]
    return [value % 2**64 for value in sum_integers(signed)]  # int64 sums wrap around


def sum_tensors(tensor: torch.Tensor) -> torch.Tensor:
    """Elementwise sum over all ranks, on the tensor's device."""
    if size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def exchange(values: torch.Tensor, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
    """Sends each rank its elements of the flat `values`, sent[r] of them to rank r in turn, and returns what the ranks
    sent here, received[r] from rank r. On the tensor's device; all ranks call it."""
    arrived = values.new_empty(sum(received))
    dist.all_to_all_single(arrived, values, list(received), list(sent))
    return arrived


def gather(value: Any) -> list[Any]:
    """What each rank holds, in rank order; pickled."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """All ranks succeed or all raise the first rank's error: none is left waiting for one that failed.

    Every rank must enter it. A ScaleTrainError or an OSError inside is shared, see is_shared; anything else is a defect
    and ends its rank at once.
    """
    mine: ScaleTrainError | OSError | None = None
    try:
        yield
    except (ScaleTrainError, OSError) as error:
        mine = error
    for theirs in gather(mine):
        if theirs is not None:
            if not is_shared(theirs):  # by a together() inside of this one
                theirs.add_note(_SHARED)
            raise theirs


def is_shared(error: BaseException) -> bool:
    """Whether all ranks raise it: together() did, or what it raised is the cause."""
    return _SHARED in getattr(error, "__notes__", ()) or (error.__cause__ is not None and is_shared(error.__cause__))
