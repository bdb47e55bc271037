"""Environment variables of a launcher (DeepSpeed's, torchrun, or none) -> one World."""

from collections.abc import Mapping

from scaletrain.errors import ClusterError
from scaletrain.runtime.dist import World

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def read_world(env: Mapping[str, str]) -> World:
    """The place that the launcher gave this process; one rank when no launcher spoke.

    torchrun sets LOCAL_WORLD_SIZE and GROUP_RANK, DeepSpeed's launcher LOCAL_SIZE, CROSS_RANK and CROSS_SIZE.
    Raises ClusterError when the variables contradict each other.
    """
    if "RANK" not in env and "WORLD_SIZE" not in env:
        for tasks in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
            if int(env.get(tasks, "1")) > 1:
                raise ClusterError(
                    f"{tasks}={env[tasks]}, but RANK and WORLD_SIZE are unset: each task would train alone; start one "
                    "torchrun a node instead (srun --ntasks-per-node=1 torchrun ...)"
                )
        return World()
    seen = ", ".join(f"{n}={env.get(n, 'unset')}" for n in _NAMES)
    try:
        rank, size, local_rank = (int(env[n]) for n in _NAMES)
        local_size = int(env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or 1)
        node = int(env.get("GROUP_RANK") or env.get("CROSS_RANK") or rank // local_size)
        port = int(env.get("MASTER_PORT", "29500"))
    except (KeyError, ValueError) as error:
        raise ClusterError(
            f"{seen}: each must be a number: launch with deepspeed, torchrun, or plain python with none of them set"
        ) from error
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise ClusterError(
            f"{seen}, {local_size} ranks on this node: these contradict each other: unset them or launch with "
            "deepspeed or torchrun"
        )
    return World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        node=node,
        nodes=-(-size // local_size),
        master_address=env.get("MASTER_ADDR", "127.0.0.1"),
        master_port=port,
    )
