"""The variables of a launcher (srun, torchrun, DeepSpeed's, mpirun, or none) -> one World."""

from collections.abc import Mapping

from scaletrain.cluster.hosts import expand_counts, expand_hosts
from scaletrain.errors import ClusterError
from scaletrain.runtime.world import World

_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # torchrun, and DeepSpeed's launchers that ssh, pdsh or mpich start
_MPI = {  # rank, size, local rank, local size; hydra starts MPICH's and Intel's ranks
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE")
_SPECIAL_STEPS = 0xFFFF_FF00  # batch, interactive and external steps: shells, no tasks of srun
_FIRST_PORT, _PORTS = 20_000, 10_000  # below those that Linux gives to outgoing connections


def read_world(env: Mapping[str, str]) -> World:
    """The place that the launcher gave this process; one rank when no launcher spoke.

    The launcher nearest to the process counts: torchrun under srun, and mpirun, whose daemons srun starts, see SLURM's
    variables too. Raises ClusterError when variables contradict each other, or do not say where rank 0 is.
    """
    if "RANK" in env or ("WORLD_SIZE" in env and not _is_srun_task(env)):
        return _from_torch(env)
    for name, variables in _MPI.items():
        if variables[0] in env and variables[2] in env:
            return _from_mpi(env, name, variables)
    if _is_srun_task(env):
        return _from_srun(env)
    for tasks in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if env.get(tasks, "1") != "1":
            raise ClusterError(
                f"{tasks}={env[tasks]}, but nothing says which rank this is: each would train alone; start one "
                "torchrun a node instead"
            )
    return World()


def _from_torch(env: Mapping[str, str]) -> World:
    """torchrun also sets LOCAL_WORLD_SIZE and GROUP_RANK, DeepSpeed's launcher LOCAL_SIZE and CROSS_RANK."""
    try:
        rank, size, local_rank = (int(env[name]) for name in _TORCH)
        local_size = int(env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or 1)
        node = int(env.get("GROUP_RANK") or env.get("CROSS_RANK") or rank // max(1, local_size))
        port = int(env.get("MASTER_PORT", "29500"))
    except (KeyError, ValueError) as error:
        raise ClusterError(
            f"{_seen(env, _TORCH)}: each must be a number: launch with deepspeed, torchrun, srun, or plain python with "
            "none of them set"
        ) from error
    world = World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        node=node,
        nodes=-(-size // max(1, local_size)),
        master_address=env.get("MASTER_ADDR", "127.0.0.1"),
        master_port=port,
    )
    by_hand = env.keys().isdisjoint({"GROUP_RANK", "CROSS_RANK", "PMI_RANK"})
    if by_hand and _is_srun_task(env) and env.get("SLURM_STEP_NUM_TASKS") == str(size) != "1":
        _check(world, env, (*_TORCH, "SLURM_PROCID"), consistent=env["SLURM_PROCID"] == str(rank))
    return _check(world, env, (*_TORCH, "LOCAL_WORLD_SIZE", "LOCAL_SIZE"))


def _from_mpi(env: Mapping[str, str], name: str, variables: tuple[str, ...]) -> World:
    try:
        rank, size, local_rank, local_size = (int(env[variable]) for variable in variables)
    except (KeyError, ValueError) as error:
        raise ClusterError(
            f"{_seen(env, variables)}: each must be a number: launch with deepspeed, torchrun or srun"
        ) from error
    if size > local_size and "MASTER_ADDR" not in env:
        raise ClusterError(
            f"{variables[1]}={size} on several nodes, but {name} does not tell its ranks where rank 0 is: give them "
            "MASTER_ADDR=HOST (deepspeed: a line in .deepspeed_env; mpirun: -x MASTER_ADDR=HOST; mpiexec.hydra: -genv "
            "MASTER_ADDR HOST)"
        )
    world = World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        node=rank // max(1, local_size),
        nodes=-(-size // max(1, local_size)),
        master_address=env.get("MASTER_ADDR", "127.0.0.1"),
        master_port=_given_port(env) or 29500,
    )
    return _check(world, env, variables)


def _is_srun_task(env: Mapping[str, str]) -> bool:
    """A batch script and the shell of salloc have SLURM's variables too, and are no task."""
    step = env.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in env and step.isdecimal() and int(step) < _SPECIAL_STEPS


def _from_srun(env: Mapping[str, str]) -> World:
    tasks = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS", "")
    try:
        size, rank, local_rank, node = int(tasks), *(int(env[name]) for name in _SRUN[:3])
        cores = int(env["SLURM_CPUS_PER_TASK"]) if "SLURM_CPUS_PER_TASK" in env else None
    except (KeyError, ValueError) as error:
        raise ClusterError(
            f"{_seen(env, _SRUN)}: each must be set, and the first four be numbers: start the ranks with srun, or with "
            "torchrun, one a node"
        ) from error
    if size == 1:
        return World(cores=cores)
    counts = expand_counts(env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", ""))
    world = World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=counts[node] if node < len(counts) else 0,
        node=node,
        nodes=len(counts),
        master_address=env.get("MASTER_ADDR") or _first_host(env, len(counts)),
        master_port=_given_port(env) or _port_of_step(env),
        cores=cores,
    )
    whole = sum(counts) == size and env.get("WORLD_SIZE", tasks) == tasks
    return _check(world, env, (*_SRUN, "WORLD_SIZE"), consistent=whole)


def _first_host(env: Mapping[str, str], nodes: int) -> str:
    """srun gives rank 0 to the first node of its list."""
    if nodes == 1:
        return "127.0.0.1"
    return expand_hosts(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))[0]


def _port_of_step(env: Mapping[str, str]) -> int:
    """Another for each job, for each start of a requeued one and for each step, so that none meets another's."""
    job, restarts, step = (int(env.get(f"SLURM_{name}") or 0) for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    return _FIRST_PORT + (10 * job + restarts + step) % _PORTS


def _given_port(env: Mapping[str, str]) -> int | None:
    port = env.get("MASTER_PORT")
    if port is not None and not port.isdecimal():
        raise ClusterError(f"MASTER_PORT={port} is no number: give it one from 1024 to 65535, or unset it")
    return int(port) if port else None


def _check(world: World, env: Mapping[str, str], names: tuple[str, ...], *, consistent: bool = True) -> World:
    fits = 0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size
    if not (consistent and fits and 0 <= world.node < world.nodes):
        raise ClusterError(
            f"{_seen(env, names)}: these contradict each other: unset those that were set by hand, or launch with "
            "deepspeed, torchrun or srun"
        )
    return world


def _seen(env: Mapping[str, str], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}={env.get(name, 'unset')}" for name in names)
