"""SLURM's lists of hosts and of tasks, written out."""

import pytest

from scaletrain.cluster.hosts import expand_counts, expand_hosts
from scaletrain.errors import ClusterError


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", "n1"),
        ("n[1-3,7],m2", "n1 n2 n3 n7 m2"),
        ("gpu-a[08-11]-ib.cluster", "gpu-a08-ib.cluster gpu-a09-ib.cluster gpu-a10-ib.cluster gpu-a11-ib.cluster"),
        ("n[001,099-101]", "n001 n099 n100 n101"),
        ("r[1-2]n[5-6],login", "r1n5 r1n6 r2n5 r2n6 login"),
    ],
)
def test_a_list_of_hosts(text: str, hosts: str) -> None:
    assert expand_hosts(text) == hosts.split()


@pytest.mark.parametrize("text", ["", "n[1-", "n]1[", "n[3-1]", "n[a]", "n1,,n2", "n1 n2", "n[]"])
def test_what_is_no_list_of_hosts_is_named(text: str) -> None:
    with pytest.raises(ClusterError) as error:
        expand_hosts(text)
    assert str(error.value) == (
        f"{text!r} is no list of hosts (such as n[1-3,7],m2): set MASTER_ADDR to the host of rank 0"
    )


def test_a_list_of_counts() -> None:
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]


@pytest.mark.parametrize("text", ["", "2(x3", "two"])
def test_what_is_no_list_of_counts_is_named(text: str) -> None:
    with pytest.raises(ClusterError, match="is no list of task counts.*start the ranks with srun"):
        expand_counts(text)
