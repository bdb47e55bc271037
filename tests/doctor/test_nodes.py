"""Hostfiles in DeepSpeed's form, SLURM's allocation, and how a node is reached."""

import os
from pathlib import Path

import pytest

from scaletrain.cluster.doctor.nodes import parse_hostfile, read_cluster, without
from scaletrain.errors import ClusterError

PROBE = ("/opt/py thon", "-m", "probe")


def hostfile(folder: Path, text: str) -> Path:
    (folder / "hosts").write_text(text)
    return folder / "hosts"


def test_a_hostfile_gives_hosts_in_order(tmp_path: Path) -> None:
    assert parse_hostfile(hostfile(tmp_path, "# ours\n\nb slots=4 # four\na  slots=8\n")) == {"b": 4, "a": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n", "hosts:1: 'a' is not `HOST slots=N`: write it like node1 slots=8"),
        ("a slots=1\nb slots=two\n", "hosts:2: 'b slots=two' is not `HOST slots=N`"),
        ("a slots=1\na slots=2\n", "hosts:2: a stands there twice: keep one line, with all its slots"),
        ("# none\n", "hosts names no host: write a line like node1 slots=8 for each"),
    ],
)
def test_a_fault_of_a_hostfile_is_told_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=message):
        parse_hostfile(hostfile(tmp_path, text))


def test_a_missing_hostfile_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="--hostfile .*none cannot be read .No such file.*: give a file of hosts"):
        parse_hostfile(tmp_path / "none")


def test_bad_hosts_become_comments(tmp_path: Path) -> None:
    file = hostfile(tmp_path, "# ours\na slots=8\nb slots=8\nc slots=8\n")
    assert without(file, ["b"]) == "# ours\na slots=8\n# scaletrain doctor: b slots=8\nc slots=8\n"
    assert list(parse_hostfile(hostfile(tmp_path, without(file, ["a", "c"])))) == ["b"]


def test_hosts_are_reached_by_ssh_without_a_question(tmp_path: Path) -> None:
    env = {"NCCL_IB_HCA": "mlx5 0", "PYTHONPATH": "/code", "HOME": "/root", "SCALETRAIN_CACHE": "/c"}
    cluster = read_cluster(hostfile(tmp_path, "a slots=8\n"), env, PROBE)
    (place,) = cluster.places
    assert (cluster.by, place.name, place.slots) == ("ssh", "a", 8)
    assert place.command[:3] == ("ssh", "-oBatchMode=yes", "-oConnectTimeout=5")
    variables = "'NCCL_IB_HCA=mlx5 0' PYTHONPATH=/code SCALETRAIN_CACHE=/c"
    assert place.command[-2:] == ("a", f"cd {Path.cwd()} && exec env {variables} '/opt/py thon' -m probe")


def test_nodes_of_an_allocation_are_reached_by_srun() -> None:
    cluster = read_cluster(None, {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "8"}, PROBE)
    assert cluster.is_slurm
    assert [(place.name, place.slots) for place in cluster.places] == [("n1", 8), ("n2", 8)]
    expected = ("srun", "--overlap", "--nodes=1", "--ntasks=1", "--cpu-bind=none", "--input=0", "--quiet")
    assert cluster.places[1].command == (*expected, "--nodelist=n2", *PROBE)


def test_a_task_of_many_is_refused() -> None:
    env = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    with pytest.raises(
        ClusterError, match="SLURM_STEP_NUM_TASKS=2: each task would look at all nodes; run doctor in the"
    ):
        read_cluster(None, env, PROBE)


def test_without_any_it_is_this_machine() -> None:
    cluster = read_cluster(None, {}, PROBE)
    assert cluster.by == "itself"
    assert [(place.name, place.command) for place in cluster.places] == [(os.uname().nodename, PROBE)]
