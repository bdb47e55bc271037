"""The place that a launcher gives a process."""

import pytest

from scaletrain.cluster.env import read_world
from scaletrain.errors import ClusterError
from scaletrain.runtime.dist import World


def test_no_launcher_is_one_rank() -> None:
    assert read_world({}) == World()


def test_torchrun() -> None:
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
    world = read_world({**env, "MASTER_ADDR": "n0", "MASTER_PORT": "1234"})
    assert world == World(5, 8, 1, 4, node=1, nodes=2, master_address="n0", master_port=1234)


def test_deepspeed_launcher() -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    assert read_world({**env, "MASTER_PORT": "7"}) == World(1, 2, 1, 2, node=0, nodes=1, master_port=7)


@pytest.mark.parametrize("env", [{"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}])
def test_missing_or_odd_variables_are_named(env: dict[str, str]) -> None:
    with pytest.raises(ClusterError, match="RANK=0, WORLD_SIZE=.*each must be a number: launch with"):
        read_world(env)


def test_contradicting_variables_are_named() -> None:
    with pytest.raises(ClusterError, match="RANK=3, WORLD_SIZE=2.*contradict each other"):
        read_world({"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_tasks_that_would_each_train_alone_are_refused(name: str) -> None:
    with pytest.raises(ClusterError, match=f"{name}=8, but RANK and WORLD_SIZE are unset: each task would train alone"):
        read_world({name: "8"})
    assert read_world({name: "1"}) == World()
