"""Facts with one planted fault each: the finding names node and place, says what is wrong and how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scaletrain.cluster.doctor.cluster_rules import judge
from scaletrain.cluster.doctor.facts import (
    Clock,
    Devices,
    Disk,
    Evidence,
    Facts,
    Gpu,
    GpuProcess,
    Interface,
    Job,
    Leftover,
    Node,
    Pair,
    Port,
    Ranks,
    Storage,
    Unreached,
    Wants,
)
from scaletrain.cluster.doctor.finding import Finding, bad_nodes, lines

GB = 10**9
NAMES = [f"n{n}" for n in range(8)]
WANTS = Wants(run_folder="/runs/a", checkpoint_bytes=10 * GB)
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "deepspeed": "0.19.8", "code": "c0de"}


def gpu(index: int, **fields: Any) -> Gpu:
    return Gpu(index, "NVIDIA H100 80GB HBM3", f"GPU-{index}", 80 << 30, 40.0, 700.0, 700.0, 0, **fields)


FACTS = Facts(
    host="n",
    versions=VERSIONS,
    disks=(
        Disk("run folder", "/runs/a", "nfs4", 900 * GB, 1000 * GB),
        Disk("temporary folder", "/tmp", "ext4", 90 * GB, 100 * GB),
        Disk("/dev/shm", "/dev/shm", "tmpfs", 60 * GB, 64 * GB),
    ),
    limits={"open files": 1 << 20, "locked memory": None, "processes": 100_000},
    devices=Devices(2, (gpu(0), gpu(1)), (), {"NV18": 1}),
    infiniband=(Port("mlx5_0:1", "ACTIVE", 400.0),),
    interface=Interface("eth0", 25.0),
    job=Job("recipe", "deepspeed", datasets={"data": "f1"}, vocab_size=512),
    tools=("ninja", "c++"),
)
STORED = Storage(64_000_000, 0.1, 64_000_000, 0.1)


def cluster(count: int = 4) -> Evidence:
    """Nodes n0, n1, ... without a fault."""
    names = [f"n{n}" for n in range(count)]
    nodes = [
        Node(name, facts=FACTS, clock=Clock(0.0, 0.01), storage=STORED, ranks=Ranks(),
             sees_run_folder=None if name == "n0" else True)
        for name in names
    ]  # fmt: skip
    pairs = [Pair(a, b, 90.0 + n) for n, a in enumerate(names) for b in names[n + 1 :]]
    return Evidence(tuple(nodes), tuple(pairs))


def with_node(evidence: Evidence, name: str, **fields: Any) -> Evidence:
    return replace(evidence, nodes=tuple(replace(n, **fields) if n.name == name else n for n in evidence.nodes))


def with_facts(name: str, **fields: Any) -> Callable[[], Evidence]:
    return lambda: with_node(cluster(), name, facts=replace(FACTS, **fields))


def with_disk(name: str, free: int) -> tuple[Disk, ...]:
    return tuple(replace(disk, free_bytes=free) if disk.name == name else disk for disk in FACTS.disks)


def bad(evidence: Evidence, wants: Wants = WANTS) -> list[Finding]:
    return [finding for finding in judge(evidence, wants) if finding.severity != "note"]


def slow(*pairs: tuple[str, str]) -> Evidence:
    whole = cluster()
    return replace(whole, pairs=tuple(replace(p, gbps=9.0) if (p.one, p.other) in pairs else p for p in whole.pairs))


def test_a_sound_cluster_has_only_notes() -> None:
    assert bad(cluster()) == []
    assert lines(judge(cluster(), WANTS)) == [
        "note    n0, n1, n2, n3: ranks talk over eth0, 25 Gb/s",
        "note    /runs/a: 640 MB/s are written until they are on the disk, 640 MB/s read back",
        "note    6 pairs: 90.00 to 92.00 Gb/s, 91.00 is usual",
    ]


LOCK = Leftover("lock", "/home/me/.cache/torch_extensions/cpu_adam/lock", 7200.0)
FAULTS: dict[str, tuple[Callable[[], Evidence], str]] = {
    "another torch on one node": (
        with_facts("n2", versions={**VERSIONS, "torch": "2.12.0"}),
        "fail    n2: torch 2.12.0, most nodes have 2.13.0: install the same on every node",
    ),
    "another Python": (
        with_facts("n2", versions={**VERSIONS, "python": "3.12.1"}),
        "warn    n2: python 3.12.1, most nodes have 3.11.7: install the same on every node",
    ),
    "other source files": (
        with_facts("n2", versions={**VERSIONS, "code": "beef"}),
        "fail    n2: other scaletrain source files than most nodes: install the same on every node",
    ),
    "no DeepSpeed": (
        with_facts("n2", versions={name: v for name, v in VERSIONS.items() if name != "deepspeed"}),
        "fail    n2: deepspeed none, most nodes have 0.19.8: install the same on every node",
    ),
    "a node that ssh does not reach": (
        lambda: with_node(
            cluster(), "n3", facts=None, clock=None, storage=None, ranks=None, sees_run_folder=None,
            fault=("time", "ssh: connect to host n3 port 22: No route to host"),
        ),
        "fail    n3: cannot be asked (ssh: connect to host n3 port 22: No route to host): look at that node",
    ),
    "a node without our key": (
        lambda: with_node(cluster(), "n3", facts=None, fault=("time", "me@n3: Permission denied (publickey).")),
        "fail    n3: cannot be asked (me@n3: Permission denied (publickey).): give this user a key there (ssh-copy-id "
        "n3); doctor types no password",
    ),
    "a node that falls silent": (
        lambda: with_node(cluster(), "n3", ranks=None, fault=("ranks", "no answer in 50 s")),
        "fail    n3: fell silent when asked for 'ranks' (no answer in 50 s): look there for a dead mount, a full disk "
        "or a hanging driver",
    ),
    "a dead mount": (
        with_facts("n1", disks=(), late=("disks",)),
        "fail    n1: the folders of the run gave no answer in time: look for a dead mount (df hangs)",
    ),
    "a clock five minutes off": (
        lambda: with_node(cluster(), "n1", clock=Clock(-300.2, 0.2)),
        "fail    n1: its clock is 300.0 s behind: run chrony or ntpd there",
    ),
    "a clock three seconds off": (
        lambda: with_node(cluster(), "n1", clock=Clock(3.0, 0.1)),
        "warn    n1: its clock is 2.9 s ahead: run chrony or ntpd there",
    ),
    "a clock that may be right after a slow answer": (
        lambda: with_node(cluster(), "n1", clock=Clock(3.0, 2.5)),
        "",
    ),
    "a full /dev/shm": (
        with_facts("n1", disks=with_disk("/dev/shm", 1 << 20)),
        "fail    n1: /dev/shm: 1 MB of 64,000 MB free: remove what is left there, or give the container more (docker "
        "run --shm-size=8g)",
    ),
    "a temporary folder that is nearly full": (
        with_facts("n1", disks=with_disk("temporary folder", 500_000_000)),
        "warn    n1: /tmp: 0.5 GB of 100 GB free: free space, or set TMPDIR to another disk",
    ),
    "no room for a checkpoint": (
        with_facts("n0", disks=with_disk("run folder", 9 * GB)),
        "fail    n0: /runs/a: 9.0 GB of 1,000 GB free, a checkpoint takes 10.0 GB, twice that while one replaces "
        "another: free space, or choose another run.dir",
    ),
    "few open files": (
        with_facts("n1", limits={**FACTS.limits, "open files": 1024}),
        "warn    n1: a process may have 1,024 open files, a run may need 4,096: raise it (ulimit -n, "
        "/etc/security/limits.conf)",
    ),
    "little locked memory with InfiniBand": (
        with_facts("n1", limits={**FACTS.limits, "locked memory": 65536}),
        "fail    n1: a process may lock 0.1 MB of memory, InfiniBand needs it without limit: set memlock to unlimited "
        "in /etc/security/limits.conf (SLURM: LimitMEMLOCK of slurmd)",
    ),
    "a stale build lock": (
        with_facts("n1", leftovers=(LOCK,)),
        f"fail    n1: {LOCK.path}: a build lock 2.0 hours old that nothing holds: a start that builds this op would "
        f"wait for ever: rm {LOCK.path}",
    ),
    "memory of dead processes": (
        with_facts("n1", leftovers=(Leftover("memory", "/dev/shm/torch_1", 69e6),)),
        "warn    n1: /dev/shm: 1 files of dead processes hold 69 MB of memory: rm /dev/shm/torch_1",
    ),
    "a lost GPU": (
        with_facts("n1", devices=Devices(2, (gpu(0),), (), {})),
        "fail    n1: 1 GPUs answer, 2 are expected: look for lost ones (nvidia-smi, dmesg | grep Xid)",
    ),
    "a driver that fails": (
        with_facts("n1", devices=Devices(2, fault="Failed to initialize NVML: Driver/library version mismatch")),
        "fail    n1: Failed to initialize NVML: Driver/library version mismatch: reboot it, or have its driver or GPU "
        "repaired",
    ),
    "memory errors of a GPU": (
        with_facts("n1", devices=replace(FACTS.devices, gpus=(gpu(0), replace(gpu(1), ecc_uncorrected=3)))),
        "fail    n1: GPU 1: 3 memory errors that could not be corrected since the last reset: reset it (nvidia-smi "
        "-r); have it replaced if they come back",
    ),
    "a GPU that wants a reset": (
        with_facts("n1", devices=replace(FACTS.devices, gpus=(gpu(0), gpu(1, needs_reset=("remapped_rows.pending",))))),
        "fail    n1: GPU 1: remapped_rows.pending is set: reset it; have it replaced if it stays",
    ),
    "a GPU that answers no more": (
        with_facts("n1", devices=replace(FACTS.devices, gpus=(gpu(0), gpu(1, fault="GPU requires reset")))),
        "fail    n1: GPU 1: GPU requires reset: reset it (nvidia-smi -r) or reboot the node",
    ),
    "a GPU that is slowed down": (
        with_facts("n1", devices=replace(FACTS.devices, gpus=(gpu(0), gpu(1, throttles=("heat",))))),
        "warn    n1: GPU 1: slowed down by heat: see to cooling and power",
    ),
    "a hot GPU": (
        with_facts("n1", devices=replace(FACTS.devices, gpus=(gpu(0), replace(gpu(1), temperature=91.0)))),
        "warn    n1: GPU 1: 91 degrees hot: see to cooling",
    ),
    "a power cap": (
        with_facts("n1", devices=replace(FACTS.devices, gpus=(gpu(0), replace(gpu(1), power_limit=400.0)))),
        "warn    n1: GPU 1: its power is limited to 400 W of 700 W: nvidia-smi -i 1 -pl 700",
    ),
    "a GPU in use": (
        with_facts("n1", devices=replace(FACTS.devices, processes=(GpuProcess("GPU-1", 4242, "python", 3 * GB),))),
        "warn    n1: GPU 1: in use by process 4242 (python, 3.0 GB): end it, or wait for it",
    ),
    "other GPU links": (
        with_facts("n1", devices=replace(FACTS.devices, links={"SYS": 1})),
        "warn    n1: GPU links: 1 x SYS, most nodes have 1 x NV18: it slows down all",
    ),
    "a lost InfiniBand port": (
        with_facts("n1", infiniband=(Port("mlx5_0:1", "DOWN", 10.0),)),
        "warn    n1: active InfiniBand ports: none, most nodes have 1 x 400 Gb/s: it slows down all",
    ),
    "a slow network adapter": (
        with_facts("n1", interface=Interface("eth0", 1.0)),
        "warn    n1: network speed: 1 Gb/s, most nodes have 25 Gb/s: it slows down all",
    ),
    "another recipe": (
        with_facts("n2", job=replace(FACTS.job, recipe="other")),
        "fail    n2: its recipe is another than that of most nodes: copy it to every node, or put it on a disk that "
        "all share",
    ),
    "another DeepSpeed file": (
        with_facts("n2", job=replace(FACTS.job, deepspeed="other")),
        "fail    n2: its DeepSpeed file is another than that of most nodes: copy it to every node, or put it on a disk "
        "that all share",
    ),
    "a recipe that is not there": (
        with_facts("n2", job=Job(fault="a.yaml: the recipe cannot be read (No such file): give a YAML file")),
        "fail    n2: a.yaml: the recipe cannot be read (No such file): give a YAML file",
    ),
    "another dataset": (
        with_facts("n2", job=replace(FACTS.job, datasets={"data": "f2"})),
        "fail    n2: its dataset has the fingerprint f2, that of most nodes f1: copy it to every node, or put it on a "
        "disk that all share",
    ),
    "a dataset that is not there": (
        with_facts("n2", job=replace(FACTS.job, datasets={}, data_fault="dataset d is not a folder: make it")),
        "fail    n2: dataset d is not a folder: make it",
    ),
    "an op without a compiler": (
        with_facts("n2", job=replace(FACTS.job, ops={"cpu_adam": False}), tools=("ninja",)),
        "fail    n2: cpu_adam is not built and c++ missing: install it there",
    ),
    "an op that does not build": (
        lambda: with_node(
            cluster(), "n2", facts=replace(FACTS, job=replace(FACTS.job, ops={"cpu_adam": False})),
            builds={"cpu_adam": "Error building extension 'cpu_adam'"},
        ),
        "fail    n2: cpu_adam cannot be built: Error building extension 'cpu_adam': install what is missing",
    ),
    "a master port in use": (
        lambda: with_node(cluster(), "n0", refused_ports={29500: "Address already in use"}),
        "fail    n0: port 29500 cannot be listened on (Address already in use): another run may use it: give the "
        "launcher --master_port another number",
    ),
    "a firewall on one node": (
        lambda: with_node(cluster(), "n2", unreached=(Unreached("n0", 29500, "timed out"),)),
        "fail    n2: does not reach n0: port 29500 (master) timed out: let nodes reach each other on all ports "
        "(firewall, security group, names in /etc/hosts)",
    ),
    "a firewall on the first node": (
        lambda: replace(
            cluster(),
            nodes=tuple(
                node if node.name == "n0" else replace(node, unreached=(Unreached("n0", 41234, "timed out"),))
                for node in cluster().nodes
            ),
        ),
        "fail    n0: no node reaches it: port 41234 timed out: let nodes reach each other on all ports (firewall, "
        "security group, names in /etc/hosts)",
    ),
    "a read-only run folder": (
        lambda: with_node(cluster(), "n1", storage=Storage(fault="Read-only file system")),
        "fail    n1: /runs/a: Read-only file system: choose a run.dir that can be written there",
    ),
    "a slow disk": (
        lambda: with_node(cluster(), "n1", storage=Storage(8_000_000, 2.0, 8_000_000, 0.1)),
        "warn    n1: /runs/a: writes 4 MB/s, 640 MB/s is usual here: saves will be slow: look at its disk or mount",
    ),
    "a run folder that one node does not share": (
        lambda: with_node(cluster(), "n1", sees_run_folder=False),
        "fail    n1: /runs/a: is not the same folder as on the other nodes: the checkpoint folder must be shared or a "
        "save cannot be whole: put run.dir on a disk that all nodes mount",
    ),
    "wrong sums": (
        lambda: with_node(cluster(), "n1", ranks=Ranks(wrong=("all-reduce on cuda on rank 3",))),
        "fail    n1: wrong values after an all-reduce on cuda on rank 3: do not train there: have it repaired",
    ),
    "test ranks that fail": (
        lambda: with_node(cluster(), "n1", ranks=Ranks(faults=("ProcessGroupNCCL failed",))),
        "fail    n1: its test ranks failed: ProcessGroupNCCL failed: let nodes reach each other on all ports; "
        "NCCL_DEBUG=INFO tells more",
    ),
    "a node lost while ranks met": (
        lambda: with_node(
            with_node(cluster(), "n1", fault=("ranks", "Timeout, server n1 not responding.")),
            "n2",
            ranks=Ranks(faults=("rank 2 cannot meet the others",)),
            unreached=(Unreached("n1", 41234, "timed out"),),
        ),
        "fail    n1: fell silent when asked for 'ranks' (Timeout, server n1 not responding.): look whether it has "
        "power and network",
    ),
    "a slow link": (
        lambda: slow(("n1", "n3")),
        "warn    n1 - n3: 9.00 Gb/s; 90.00 Gb/s is usual: look at the way between the two, and at the interface that "
        "is used",
    ),
    "a node with slow links": (
        lambda: slow(("n0", "n2"), ("n1", "n2"), ("n2", "n3")),
        "fail    n2: slow to most others, 9.00 to 9.00 Gb/s; 90.00 Gb/s is usual: look at its cable, adapter and "
        "switch port",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_only_finding(fault: str) -> None:
    evidence, line = FAULTS[fault]
    told = lines(bad(evidence()))
    assert told == ([line] if line else [])


@pytest.mark.parametrize("fault", FAULTS)
def test_the_nodes_to_leave_out_are_those_that_fail(fault: str) -> None:
    evidence, line = FAULTS[fault]
    nodes = [node.name for node in evidence().nodes]
    expected = [line.split()[1].rstrip(":")] if line.startswith("fail") else []
    assert bad_nodes(judge(evidence(), WANTS), nodes) == expected


def test_what_fails_alike_on_all_nodes_leaves_none_out() -> None:
    locked = replace(FACTS, leftovers=(LOCK,))
    evidence = replace(cluster(), nodes=tuple(replace(node, facts=locked) for node in cluster().nodes))
    found = bad(with_node(evidence, "n2", clock=Clock(-300.2, 0.2)))
    assert [line.split(": ")[0] for line in lines(found)] == ["fail    n0, n1, n2, n3", "fail    n2"]
    assert bad_nodes(found, NAMES[:4]) == ["n2"]
    assert bad_nodes(bad(replace(evidence, nodes=evidence.nodes[:1], pairs=())), NAMES[:1]) == ["n0"]


def test_fewer_gpus_than_the_hostfile_says_are_told() -> None:
    found = bad(cluster(1), replace(WANTS, gpus={"n0": 8}))
    assert lines(found) == [
        "fail    n0: 2 GPUs answer, 8 are expected: look for lost ones (nvidia-smi, dmesg | grep Xid)"
    ]


def test_dockers_64_mb_of_shared_memory_fail_only_where_several_gpus_share_them() -> None:
    facts = replace(FACTS, disks=with_disk("/dev/shm", 64 << 20))
    alone = replace(facts, devices=Devices(1, (gpu(0),)))
    assert [f.severity for f in bad(with_node(cluster(1), "n0", facts=facts))] == ["fail"]
    assert [f.severity for f in bad(with_node(cluster(1), "n0", facts=alone))] == ["warn"]


def test_slots_of_a_cluster_without_gpus_are_ranks() -> None:
    evidence = with_node(cluster(1), "n0", facts=replace(FACTS, devices=Devices()))
    assert bad(evidence, replace(WANTS, gpus={"n0": 8})) == []


def test_a_run_folder_that_no_other_node_sees_is_nobodys_fault() -> None:
    evidence = cluster(3)
    for name in ("n1", "n2"):
        evidence = with_node(evidence, name, sees_run_folder=False)
    found = bad(evidence)
    assert [finding.check for finding in found] == ["shared"]
    assert "(n1, n2 do not see what n0 writes)" in found[0].what
    assert bad_nodes(found, NAMES) == []


def test_a_wrong_clock_of_the_machine_that_asks_is_not_blamed_on_the_nodes() -> None:
    evidence = replace(cluster(), nodes=tuple(replace(n, clock=Clock(300.0, 0.1)) for n in cluster().nodes))
    assert lines(bad(evidence)) == [
        "warn    all nodes' clocks agree, that of this machine is 300.0 s off: run chrony or ntpd here"
    ]


def test_links_below_what_is_expected_fail() -> None:
    found = bad(slow(("n1", "n3")), replace(WANTS, gbps=50.0))
    assert lines(found) == [
        "fail    n1 - n3: 9.00 Gb/s; 90.00 Gb/s is usual, --expect-gbps is 50: look at the way between the two, and at "
        "the interface that is used"
    ]
    assert bad_nodes(found, NAMES) == []


def test_a_cluster_that_is_slower_than_expected_everywhere_names_no_node_and_not_every_pair() -> None:
    found = bad(cluster(8), replace(WANTS, gbps=400.0))
    assert len(found) == 8
    assert bad_nodes(found, NAMES) == []
    assert found[-1].what.endswith("(and 20 more pairs are slow)")


def test_of_three_nodes_the_one_with_slow_links_is_named() -> None:
    pairs = (Pair("n0", "n1", 9.0), Pair("n0", "n2", 90.0), Pair("n1", "n2", 9.0))
    assert bad_nodes(judge(replace(cluster(3), pairs=pairs), WANTS), NAMES) == ["n1"]


def test_a_slow_gpu_of_a_single_node_is_its_place() -> None:
    pairs = tuple(Pair(f"GPU {a}", f"GPU {b}", 9.0 if b == 3 else 90.0) for a in range(4) for b in range(a + 1, 4))
    (finding,) = bad(replace(cluster(1), pairs=pairs))
    assert (finding.node, finding.place, finding.severity) == ("n0", "GPU 3", "fail")


def test_pairs_that_were_not_measured_are_told() -> None:
    told = lines(judge(replace(cluster(), rounds_left_out=2), WANTS))
    assert told[-1].endswith("; 2 rounds of pairs did not fit in the time")


def test_nodes_that_keep_their_own_copies_of_code_and_data_are_a_note() -> None:
    own = (*FACTS.disks, Disk("code", "/opt/scaletrain", "ext4", GB, GB), Disk("dataset d", "/data/d", "xfs", GB, GB))
    told = lines(judge(with_facts("n1", disks=own)(), WANTS))
    assert "note    the code lies on a disk of the node: keep the copies alike (n1)" in told
    assert "note    the dataset lies on a disk of the node: keep the copies alike (n1)" in told


def test_a_taken_master_port_of_a_single_node_is_a_warning() -> None:
    (finding,) = bad(with_node(cluster(1), "n0", refused_ports={29500: "Address already in use"}))
    assert (finding.severity, finding.check) == ("warn", "port")


def test_ops_that_training_would_compile_are_a_note() -> None:
    told = lines(judge(with_facts("n1", job=replace(FACTS.job, ops={"cpu_adam": False, "async_io": True}))(), WANTS))
    assert (
        "note    n1: cpu_adam will be compiled when training starts, a minute or more: scaletrain doctor RECIPE "
        "--build does it ahead"
    ) in told


def test_gpus_that_are_joined_only_in_part_are_a_note() -> None:
    gpus = tuple(gpu(n) for n in range(4))
    devices = Devices(4, gpus, (), {"NV4": 2, "SYS": 4})
    told = lines(judge(with_node(cluster(1), "n0", facts=replace(FACTS, devices=devices)), WANTS))
    assert "note    n0: 2 of 6 pairs of GPUs have NVLink, the others go over PCIe" in told


def test_infiniband_that_is_down_everywhere_is_told() -> None:
    down = replace(FACTS, infiniband=(Port("mlx5_0:1", "DOWN", 10.0),))
    evidence = replace(cluster(2), nodes=tuple(replace(node, facts=down) for node in cluster(2).nodes))
    assert lines(bad(evidence)) == ["warn    n0, n1: no port is active (mlx5_0:1): look at its cables"]


def test_many_nodes_are_one_line() -> None:
    findings = [Finding("warn", "gpu", "hot", "see to cooling", f"n{n}") for n in range(20)]
    assert lines(findings) == ["warn    n0, n1, n2, n3, n4, n5, n6, n7 and 12 more: hot: see to cooling"]
