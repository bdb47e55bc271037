"""The place that a launcher gives a process."""

import pytest

from scaletrain.cluster.env import read_world
from scaletrain.errors import ClusterError
from scaletrain.runtime.world import World

# What srun gives task 3 of `srun --nodes 3 --ntasks 5` in a requeued job, as seen on SLURM 22.05.
SRUN = {
    "SLURM_JOB_ID": "4321", "SLURM_STEP_ID": "2", "SLURM_RESTART_COUNT": "1", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_NTASKS": "5", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NODELIST": "n[07-08],m1",
}  # fmt: skip
BATCH = {name: value for name, value in SRUN.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_no_launcher_is_one_rank() -> None:
    assert read_world({}) == World()


def test_torchrun() -> None:
    world = read_world({**TORCHRUN, "MASTER_ADDR": "n0", "MASTER_PORT": "1234"})
    assert world == World(5, 8, 1, 4, node=1, nodes=2, master_address="n0", master_port=1234)


def test_deepspeed_launcher() -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    assert read_world({**env, "MASTER_PORT": "7"}) == World(1, 2, 1, 2, node=0, nodes=1, master_port=7)


def test_srun_gives_rank_0_to_the_first_node_and_each_start_another_port() -> None:
    world = World(3, 5, 1, 2, node=1, nodes=3, master_address="n07", master_port=20_000 + 3213)
    assert read_world(SRUN) == world
    assert read_world({**SRUN, "SLURM_RESTART_COUNT": "2"}).master_port == 20_000 + 3214


def test_srun_on_one_node_needs_no_name_and_takes_the_cores_of_its_task() -> None:
    env = {**SRUN, "SLURM_PROCID": "1", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_CPUS_PER_TASK": "8"}
    world = read_world({**env, "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "?"})
    assert world == World(1, 2, 1, 2, master_port=23213, cores=8)


def test_one_task_of_srun_is_one_rank() -> None:
    one = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert read_world({**SRUN, **one}) == World()


def test_an_address_that_is_given_wins_over_sruns() -> None:
    world = read_world({**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000", "SLURM_STEP_NODELIST": "?"})
    assert (world.master_address, world.master_port) == ("10.0.0.7", 4000)


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "batch"}, {"SLURM_STEP_ID": str(0xFFFFFFFA)}])
def test_a_shell_of_sbatch_or_salloc_is_one_rank(step: dict[str, str]) -> None:
    assert read_world({**BATCH, **step}) == World()


@pytest.mark.parametrize("inner", [TORCHRUN, OPEN_MPI | {"MASTER_ADDR": "n1"}, HYDRA | {"MASTER_ADDR": "n1"}])
def test_the_launcher_nearest_to_the_process_counts(inner: dict[str, str]) -> None:
    assert read_world({**SRUN, **inner}) == read_world(inner)


@pytest.mark.parametrize("env", [OPEN_MPI, HYDRA])
def test_mpirun(env: dict[str, str]) -> None:
    world = read_world({**env, "MASTER_ADDR": "n1", "MASTER_PORT": "5000"})
    assert world == World(3, 4, 1, 2, node=1, nodes=2, master_address="n1", master_port=5000)
    alone = {name: value.replace("4", "2").replace("3", "1") for name, value in env.items()}
    assert read_world(alone) == World(1, 2, 1, 2, master_port=29500)


@pytest.mark.parametrize(("env", "name"), [(OPEN_MPI, "Open MPI"), (HYDRA, "MPICH")])
def test_mpirun_on_several_nodes_needs_an_address(env: dict[str, str], name: str) -> None:
    with pytest.raises(
        ClusterError, match=f"_SIZE=4 on several nodes, but {name} does not tell.*give them MASTER_ADDR"
    ):
        read_world(env)


def test_mpich_by_deepspeed() -> None:
    env = {**HYDRA, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "MASTER_ADDR": "n1"}
    assert read_world(env) == World(3, 4, 1, 2, node=1, nodes=2, master_address="n1", master_port=29500)


@pytest.mark.parametrize("env", [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {**TORCHRUN, "WORLD_SIZE": "two"}])
def test_missing_or_odd_variables_are_named(env: dict[str, str]) -> None:
    with pytest.raises(ClusterError, match="RANK=.*, WORLD_SIZE=.*each must be a number: launch with"):
        read_world(env)


@pytest.mark.parametrize(
    ("env", "seen"),
    [
        (SRUN | {"SLURM_LOCALID": "one"}, "SLURM_PROCID=3, SLURM_LOCALID=one, .*each must be set"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE=, .*each must be a number"),
        (SRUN | {"MASTER_PORT": "auto"}, "MASTER_PORT=auto is no number: give it one from 1024"),
    ],
)
def test_what_is_no_number_is_named(env: dict[str, str], seen: str) -> None:
    with pytest.raises(ClusterError, match=seen):
        read_world(env)


@pytest.mark.parametrize(
    ("env", "seen"),
    [
        ({"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=3, WORLD_SIZE=2"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4, LOCAL_WORLD_SIZE=4"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0"),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "5", "LOCAL_RANK": "0"}, "RANK=0, .*, SLURM_PROCID=3"),
        (SRUN | {"SLURM_NODEID": "3"}, "SLURM_NODEID=3"),
        (SRUN | {"SLURM_LOCALID": "2"}, "SLURM_LOCALID=2"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4, SLURM_STEP_TASKS_PER_NODE=2"),
        (SRUN | {"WORLD_SIZE": "16"}, "WORLD_SIZE=16"),
        (HYDRA | {"PMI_RANK": "4", "MASTER_ADDR": "n1"}, "PMI_RANK=4, PMI_SIZE=4"),
    ],
)
def test_contradicting_variables_are_named(env: dict[str, str], seen: str) -> None:
    with pytest.raises(ClusterError, match=f"{seen}.*: these contradict each other: unset those"):
        read_world(env)


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_tasks_that_would_each_train_alone_are_refused(name: str) -> None:
    with pytest.raises(ClusterError, match=f"{name}=8, but nothing says which rank this is: each would train alone"):
        read_world({name: "8"})
    assert read_world({name: "1"}) == World()
