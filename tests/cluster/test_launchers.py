"""Every launcher on two nodes: deepspeed over ssh, torchrun, srun and mpirun; ranks that die and links that fail."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from tests.cluster.machines import clock, has_clock, wait_until
from tests.cluster.runs import PROGRAM, STEPS, Run
from tests.cluster.slurm import Slurm
from tests.launches import last_step

pytestmark = pytest.mark.cluster
ENDLESS = ("train.max_steps=100000", "checkpoint.every_steps=null")
DEEPSPEED = ("deepspeed", "--hostfile", "hosts")


@pytest.fixture
def run(slurm: Slurm, dataset: Dataset, tmp_path: Path) -> Iterator[Run]:
    """With what `deepspeed` reads in the folder that it is called in."""
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n", encoding="utf-8")
    (tmp_path / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n", encoding="utf-8")
    run = Run(slurm, dataset, tmp_path)
    yield run
    run.end()


def test_deepspeed_over_ssh_outlives_an_outage_and_a_killed_rank_is_named_and_ends_all(slurm: Slurm, run: Run) -> None:
    launcher = run.start_on(slurm.head, *DEEPSPEED, PROGRAM, *run.arguments(*ENDLESS))
    run.reach(3)
    assert run.events("start")[0]["hosts"] == ["n1", "n2"]
    slurm.machines.unplug(slurm.n2)
    time.sleep(6)
    cut_at = last_step(run.path)
    slurm.machines.plug_in(slurm.n2)
    run.reach(cut_at + 3)
    time.sleep(1.5)  # ranks tell their phase once a second
    os.kill(run.ranks()[1], signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: launcher.poll() is not None and not run.ranks(), 60, run.said)
    assert time.monotonic() - killed < 10
    assert launcher.returncode != 0
    (line,) = set(re.findall(r"error: rank .*", run.said()))
    assert re.match(r"error: rank 1 on n2 \(process \d+\) died in or after phase \w+ of step \d+; its log is ", line)


def test_a_link_that_stays_down_is_told_on_both_nodes_and_ends_them(slurm: Slurm, run: Run) -> None:
    launcher = run.start_on(slurm.head, *DEEPSPEED, PROGRAM, *run.arguments(*ENDLESS, "guard.hang_seconds=5"))
    run.reach(3)
    time.sleep(1.5)
    slurm.machines.unplug(slurm.n2)
    wait_until(lambda: not run.ranks(), 30, run.said)
    slurm.machines.plug_in(slurm.n2)  # so that the launcher hears of its end there
    wait_until(lambda: launcher.poll() is not None, 60, run.said)
    assert launcher.returncode != 0
    assert "guard.hang_seconds=5: nothing is heard of rank 1 on n2 " in run.said()
    other = (run.path / "logs" / "rank-00001.log").read_text(encoding="utf-8")
    assert "guard.hang_seconds=5: nothing is heard of rank 0 on n1 " in other
    assert all((run.path / "logs" / f"stacks-rank-0000{rank}.txt").is_file() for rank in (0, 1))


def test_torchrun_on_hosts_whose_own_names_are_loopback(slurm: Slurm, run: Run, whole: Run) -> None:
    programs = []
    for number, node in enumerate(slurm.nodes):
        hosts = run.folder / f"hosts-{node.name}"
        others = [f"{other.address} {other.name}" for other in slurm.nodes if other is not node]
        hosts.write_text("\n".join(["127.0.0.1 localhost", f"127.0.1.1 {node.name}", *others, ""]), encoding="utf-8")
        debian = ("unshare", "--mount", "sh", "-c", 'mount --bind "$1" /etc/hosts; shift; exec "$@"', "sh", hosts)
        words = ("torchrun", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={number}", "--master_addr=n1")
        log = run.folder / f"torchrun-{number}.txt"
        programs.append(run.start_on(node, *debian, *words, PROGRAM, *run.arguments(), log=log))
    wait_until(
        lambda: all(program.poll() is not None for program in programs),
        240,
        lambda: [path.read_text(encoding="utf-8") for path in run.folder.glob("torchrun-*")],
    )
    assert [program.returncode for program in programs] == [0, 0]
    assert run.events("start")[0]["hosts"] == ["n1", "n2"]
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)


@pytest.mark.slow
def test_torchrun_started_again_with_a_replaced_node_goes_on(slurm: Slurm, run: Run, whole: Run) -> None:
    def start(number: int, name: str) -> "subprocess.Popen[bytes]":
        words = ("torchrun", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={number}", "--master_addr=n1")
        settings = run.arguments("guard.hang_seconds=10")
        return run.start_on(slurm.nodes[number], *words, PROGRAM, *settings, log=run.folder / f"{name}.txt")

    slurm.machines.slow_down()
    left, _ = start(0, "left"), start(1, "lost")
    run.reach(12)
    slurm.machines.power_off(slurm.n2)
    slurm.machines.speed_up()
    wait_until(lambda: left.poll() is not None and not run.ranks(), 90, run.said)
    assert left.returncode != 0
    assert "nothing is heard of rank 1 on n2" in (run.folder / "left.txt").read_text(encoding="utf-8")
    slurm.start_node(slurm.n2)
    programs = [start(0, "first"), start(1, "new")]
    wait_until(lambda: all(program.poll() is not None for program in programs), 240, run.said)
    assert [program.returncode for program in programs] == [0, 0]
    assert run.events("resume")[-1]["step"] >= 10
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)


@pytest.mark.skipif(not has_clock(), reason="faketime is not installed")
def test_srun_with_unlike_nodes_one_of_which_has_another_time(slurm: Slurm, run: Run) -> None:
    """Two ranks on n1, one on n2, whose clock is an hour ahead."""
    ahead = " ".join(f"{name}={value}" for name, value in clock(3600).items())
    choose = f'if [ "$SLURM_NODEID" = 1 ]; then export {ahead}; fi; exec "$@"'
    three = ("--nodes=2", "--ntasks=3", "--mem=4G", "--time=10")
    words = ("srun", *three, "sh", "-c", choose, "sh", sys.executable, PROGRAM)
    program = run.start_on(slurm.head, *words, *run.arguments("train.global_batch_size=6", "train.micro_batch_size=2"))
    wait_until(lambda: program.poll() is not None, 240, run.said)
    assert program.returncode == 0, run.said()
    (start,) = run.events("start")
    assert (start["ranks"], start["hosts"]) == (3, ["n1", "n2"])
    assert len(run.losses()) == STEPS


@pytest.mark.skipif(shutil.which("mpirun.openmpi") is None, reason="openmpi-bin is not installed")
def test_open_mpi_by_deepspeed_needs_an_address_and_says_so(slurm: Slurm, run: Run, whole: Run) -> None:
    words = (*DEEPSPEED, "--launcher=openmpi", "--launcher_args=--allow-run-as-root", PROGRAM, *run.arguments())
    refused = run.start_on(slurm.head, *words)
    wait_until(lambda: refused.poll() is not None, 120, run.said)
    assert refused.returncode != 0
    assert (
        "Open MPI does not tell its ranks where rank 0 is: give them MASTER_ADDR=HOST (deepspeed: a line in"
        in run.said()
    )
    with (run.folder / ".deepspeed_env").open("a", encoding="utf-8") as file:
        file.write("MASTER_ADDR=n1\n")
    done = run.start_on(slurm.head, *words)
    wait_until(lambda: done.poll() is not None, 240, run.said)
    assert done.returncode == 0, run.said()
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)


@pytest.mark.skipif(shutil.which("mpirun.mpich") is None, reason="mpich is not installed")
def test_mpich_by_deepspeed(slurm: Slurm, run: Run, whole: Run) -> None:
    programs = run.folder / "bin"  # Debian calls it mpirun.mpich where Open MPI is there too
    programs.mkdir()
    (programs / "mpirun").symlink_to("/usr/bin/mpirun.mpich")
    (programs / "hydra_pmi_proxy").symlink_to("/usr/bin/hydra_pmi_proxy")
    words = (*DEEPSPEED, "--launcher=mpich", PROGRAM, *run.arguments())
    path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = run.start_on(slurm.head, *words, PATH=path)
    wait_until(lambda: done.poll() is not None, 240, run.said)
    assert done.returncode == 0, run.said()
    assert run.events("start")[0]["hosts"] == ["n1", "n2"]
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)
