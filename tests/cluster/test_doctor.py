"""`scaletrain doctor` on two nodes, by ssh and in an allocation: healthy ones, and ones with planted faults."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaletrain.data.shards import Dataset
from tests.cluster.machines import ROOT, Machine, end, wait_until
from tests.cluster.slurm import Slurm
from tests.conftest import scaletrain, write_recipe

pytestmark = pytest.mark.cluster
_GONE = "10.77.0.9"  # an address on the switch that nothing answers at, as of a node without power
_PORT = 29500
ALLOCATION = ("salloc", "--quiet", "--nodes=2", "--mem=4G", "--time=10")
# A kernel has one clock for all machines, and Python cannot sleep under faketime.
_FAST_CLOCK = "import time\n\nhost = time.time\ntime.time = lambda: host() + 300\n"
_LISTENER = "import socket, time; ear = socket.create_server(('', 29500)); print('ready', flush=True); time.sleep(60)"


@dataclass(frozen=True)
class Shared:
    """What the nodes share until a fault is planted; doctor is called in `folder`."""

    folder: Path
    dataset: Dataset
    recipe: Path

    @property
    def ops(self) -> Path:
        return self.folder / "ops"

    @property
    def packages(self) -> Path:
        """On the PYTHONPATH of all."""
        return self.folder / "packages"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{ROOT}:{self.packages}", "TORCH_EXTENSIONS_DIR": str(self.ops)}


@pytest.fixture
def shared(dataset: Dataset, tmp_path: Path) -> Shared:
    shared = Shared(tmp_path, dataset, write_recipe(tmp_path, dataset, tmp_path / "runs" / "run"))
    for folder in (shared.ops, shared.packages, shared.runs):
        folder.mkdir()
    return shared


def test_a_healthy_cluster_is_well_and_left_as_it_was(slurm: Slurm, shared: Shared) -> None:
    hosts = shared.folder / "hosts"
    hosts.write_text("n1 slots=1\nn2 slots=1\n", encoding="utf-8")
    words = ("scaletrain", "doctor", shared.recipe, "--hostfile", hosts, "--exclude-bad", "good")
    done = slurm.head.run(*words, folder=shared.folder, check=False, **shared.env)
    assert done.returncode == 0, done
    told = done.stdout.splitlines()
    assert told[0] == "nodes   2: n1, n2, by ssh"
    assert not [line for line in told if line.startswith("fail ")]
    assert "note    n1, n2: ranks talk over eth0" in told
    assert [line for line in told if line.startswith("note    1 pair: ")]
    assert (shared.folder / "good").read_text(encoding="utf-8") == hosts.read_text(encoding="utf-8")
    assert not list(shared.runs.iterdir())


def test_every_planted_fault_is_found_by_ssh_and_in_an_allocation(slurm: Slurm, shared: Shared) -> None:
    n1, n2 = slurm.nodes
    _spoil(n2, shared)
    slurm.machines.slow_down("tbf rate 50mbit burst 64kbit latency 1s")
    hosts = shared.folder / "hosts"
    hosts.write_text(f"n1 slots=1\nn2 slots=1  # the rack's second\n{_GONE} slots=1\n", encoding="utf-8")
    doctor = ("scaletrain", "doctor", shared.recipe, "--json", "--expect-gbps=0.2")
    by_hostfile = ("--hostfile", hosts, "--exclude-bad", "good")
    said = shared.folder / "listener.txt"
    try:
        by_ssh = _failures(slurm.head.run(*doctor, *by_hostfile, folder=shared.folder, check=False, **shared.env))
        listener = n1.start_program(said, "python", "-c", _LISTENER)
        wait_until(said.read_text, 30)
        by_srun = _failures(slurm.head.run(*ALLOCATION, *doctor, folder=shared.folder, check=False, **shared.env))
        end(listener)
    finally:
        slurm.machines.power_off(n2)  # and what was planted is gone
    planted = {
        ("n2", "clock", ""): " s ahead",
        ("n2", "versions", ""): "torch 9.9, most nodes have ",
        ("n2", "dataset", ""): "its dataset has the fingerprint ",
        ("n2", "disk", "/dev/shm"): "4 MB of 21 MB free",
        ("n2", "leftovers", str(shared.ops / "cpu_adam" / "lock")): "hours old that nothing holds",
        ("n2", "storage", str(shared.runs / "run")): "Read-only file system",
        ("", "link", "n1 - n2"): "--expect-gbps is 0.2",
    }
    _check(
        by_ssh,
        planted
        | {
            ("n2", "port", ""): f"does not reach n1: port {_PORT} (master) ",
            (_GONE, "reach", ""): "cannot be asked (ssh: connect to host ",
        },
    )
    in_use = f"port {_PORT} cannot be listened on (Address already in use)"
    _check(by_srun, planted | {("n1", "port", ""): in_use})
    assert (shared.folder / "good").read_text(encoding="utf-8").splitlines() == [
        "n1 slots=1",
        "# scaletrain doctor: n2 slots=1  # the rack's second",
        f"# scaletrain doctor: {_GONE} slots=1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["facts", "storage", "ranks"])
def test_a_node_that_loses_power_meanwhile_is_named(slurm: Slurm, shared: Shared, phase: str) -> None:
    hosts = shared.folder / "hosts"
    hosts.write_text("n1 slots=1\nn2 slots=1\n", encoding="utf-8")
    told = _told_without_power_on_n2(slurm, shared, phase, "--hostfile", hosts)
    assert "wrote   excluded: 1 of 2 nodes\n" in told
    assert (shared.folder / "excluded").read_text(encoding="utf-8") == "n1 slots=1\n# scaletrain doctor: n2 slots=1\n"


@pytest.mark.slow
def test_a_node_of_an_allocation_that_loses_power_is_excluded(slurm: Slurm, shared: Shared) -> None:
    told = _told_without_power_on_n2(slurm, shared, "facts", by=(*ALLOCATION, "--no-kill"))
    assert "wrote   excluded: 1 of 2 nodes\n" in told
    assert (shared.folder / "excluded").read_text(encoding="utf-8") == "--exclude=n2\n"
    again = "sbatch --test-only --nodes=1 --mem=1G --wrap=true $(cat excluded) 2>&1"
    assert " on nodes n1 " in slurm.head.run("sh", "-c", again, folder=shared.folder).stdout


def _told_without_power_on_n2(
    slurm: Slurm, shared: Shared, phase: str, *options: str | Path, by: Sequence[str] = ()
) -> str:
    """What a doctor says that n2 answers no more from a phase on."""
    said, begun = shared.folder / "doctor.txt", time.monotonic()
    words = (*by, "scaletrain", "doctor", shared.recipe, *options, "--exclude-bad", "excluded")
    doctor = slurm.head.start_program(said, *words, folder=shared.folder, **shared.env)
    try:
        wait_until(lambda: _has_come_to(phase, slurm.n2, shared), 60, lambda: said.read_text(encoding="utf-8"))
        slurm.machines.power_off(slurm.n2)
        code = doctor.wait(60)
    finally:
        end(doctor)
    told = said.read_text(encoding="utf-8")
    assert code == 1, told
    assert time.monotonic() - begun < 60
    failures = [line for line in told.splitlines() if line.startswith("fail ")]
    assert failures
    assert all(line.startswith("fail    n2: ") for line in failures), told
    return told


def _has_come_to(phase: str, node: Machine, shared: Shared) -> bool:
    if phase == "storage":
        return bool(list(shared.runs.glob("run/.doctor-*")))
    name = "scaletrain.commands.probe" if phase == "facts" else "scaletrain.commands.probe_torch"
    processes = psutil.Process(node.init).children(recursive=True)
    return any(name in process.info["cmdline"] for process in psutil.process_iter(["cmdline"]) if process in processes)


def _spoil(node: Machine, shared: Shared) -> None:
    """Plants on a node what keeps a run from training well: until it crashes, and on no other."""
    own = shared.folder / node.name
    (own / "packages" / "torch-9.9.dist-info").mkdir(parents=True)
    (own / "packages" / "torch-9.9.dist-info" / "METADATA").write_text("Name: torch\nVersion: 9.9\n", encoding="utf-8")
    (own / "packages" / "sitecustomize.py").write_text(_FAST_CLOCK, encoding="utf-8")  # each Python begins with it
    lock = own / "ops" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - 10800,) * 2)
    tokenizer = shared.dataset.path / "tokenizer"
    done = scaletrain("prepare", "--input", json.__file__, "--output", own / "data", "--tokenizer", tokenizer)
    assert done.code == 0, done.err
    node.mount(own / "packages", shared.packages)
    node.mount(own / "ops", shared.ops)
    node.mount(own / "data", shared.dataset.path)
    node.mount(shared.runs, shared.runs, read_only=True)
    node.run("mount", "-o", "remount,size=20M", "/dev/shm")
    node.run("fallocate", "--length=16M", "/dev/shm/full")
    node.run("ip", "rule", "add", "ipproto", "tcp", "dport", str(_PORT), "prohibit")  # as a firewall would


def _failures(done: "subprocess.CompletedProcess[str]") -> dict[tuple[str, str, str], str]:
    """What fails: by node, check and place."""
    assert done.returncode == 1, done
    report: dict[str, Any] = json.loads(done.stdout)
    findings = [finding for finding in report["findings"] if finding["severity"] == "fail"]
    failures = {(finding["node"], finding["check"], finding["place"]): finding["what"] for finding in findings}
    assert len(failures) == len(findings), findings
    return failures


def _check(failures: dict[tuple[str, str, str], str], planted: dict[tuple[str, str, str], str]) -> None:
    """All that was planted and nothing else."""
    assert failures.keys() == planted.keys(), failures
    assert not [key for key, words in planted.items() if words not in failures[key]], failures
