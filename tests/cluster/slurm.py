"""A SLURM of two nodes on machines of our own, with GPUs that are none."""

import re
import secrets
import subprocess
import time
from pathlib import Path

from tests.cluster.machines import Machine, Machines, wait_until

_GPUS = 8
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
# cred_expire=5 is the least: a job is queued again so many seconds after it ended. KillOnBadExit as on some sites: a
# script has to do without it. Nodes say what they have (config_overrides): more than this machine.
_SLURM_CONF = """\
ClusterName=tests
SlurmctldHost=head
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillOnBadExit=1
KillWait=30
MinJobAge=600
DefMemPerCPU=500
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=2
"""
_NODE = (
    "NodeName={name} NodeAddr={address} CPUs=64 Boards=1 SocketsPerBoard=1 CoresPerSocket=64 ThreadsPerCore=1 "
    "RealMemory=512000 Gres=gpu:{gpus} State=UNKNOWN"
)
_SSHD_CONF = """\
HostKey {etc}/host_key
AuthorizedKeysFile {etc}/key.pub
PermitRootLogin yes
StrictModes no
UseDNS no
UsePAM no
MaxStartups 100
PidFile /run/sshd.pid
"""
_SSH_CONF = """\
Host *
  IdentityFile {etc}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


class Slurm:
    """The controller on the head, a slurmd on each node."""

    def __init__(self, folder: Path) -> None:
        etc, self.logs, state = folder / "etc", folder / "logs", folder / "state"
        for place in (etc / "slurm", etc / "ssh", self.logs, state / "ctld"):
            place.mkdir(parents=True)
        self.machines = Machines(2, etc, self.logs)
        self.head, self.nodes = self.machines.head, self.machines.nodes
        self.n1, self.n2 = self.nodes
        _write_settings(etc, self.logs, state, self.nodes)

    def start(self) -> None:
        self.machines.start_head()
        self.head.start_daemons("slurmctld")
        for node in self.nodes:
            self.start_node(node)
        self.wait_for_nodes()

    def start_node(self, node: Machine) -> None:
        self.machines.start_node(node)
        node.start_daemons("slurmd")

    def repair(self) -> None:
        """Whatever the last test broke or left works or is gone."""
        self.head.run("scancel", "--user=root")
        for node in self.nodes:
            if not node.is_up:
                self.start_node(node)
            self.machines.plug_in(node)
        self.machines.speed_up()
        wait_until(lambda: not self.head.run("squeue", "--noheader").stdout, 60)
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        def states() -> str:
            return self.head.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T", check=False).stdout

        wait_until(lambda: states().split() == ["idle"] * len(self.nodes), 60, states)

    def restart_controller(self, pause: float) -> None:
        """Kills it and starts it again after `pause` seconds."""
        self.head.run("bash", "-c", "kill -9 $(cat /run/slurmctld.pid)")
        time.sleep(pause)
        self.head.run("slurmctld")

    def restart_slurmd(self, node: Machine) -> None:
        """Kills SLURM's daemon of a node, as an upgrade does, and starts it again."""
        node.run("bash", "-c", "kill -9 $(cat /run/slurmd.pid)")
        node.run("slurmd")

    def submit(self, *words: str | Path, folder: Path, **env: str) -> "Job":
        """`sbatch WORDS`, called in `folder`; the job's log lies there."""
        log = folder / "job.log"
        options = ["--parsable", f"--output={log}", "--mem=4G", "--time=10"]
        done = self.head.run("sbatch", *options, *words, folder=folder, **env)
        return Job(self, int(done.stdout), log)

    def asks(self, *words: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """A command of SLURM on the head."""
        return self.head.run(*words, check=check)


class Job:
    """A job that was submitted."""

    def __init__(self, slurm: Slurm, number: int, log: Path) -> None:
        self._slurm, self.number, self.log = slurm, number, log

    def shows(self, name: str) -> str:
        """A field of `scontrol show job`; "" while the controller does not answer."""
        shown = self._slurm.asks("scontrol", "--oneliner", "show", "job", str(self.number), check=False).stdout
        found = re.search(rf"(?:^|\s){name}=(\S+)", shown)
        return found[1] if found else ""

    def is_over(self) -> bool:
        return self.shows("JobState").startswith(_OVER)

    def wait(self, seconds: float = 240) -> str:
        """How it ended: its state and exit code. Polls: `sbatch --wait` looks after 2, 4, 8, 16, 32 seconds."""
        wait_until(self.is_over, seconds, self.said)
        return f"{self.shows('JobState')} {self.shows('ExitCode')}"

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else "no log yet"

    def signal(self, name: str) -> None:
        """To its tasks, as --signal=NAME@SECONDS does."""
        self._slurm.asks("scancel", f"--signal={name}", str(self.number))

    def cancel(self) -> None:
        self._slurm.asks("scancel", str(self.number))


def _write_settings(etc: Path, logs: Path, state: Path, nodes: list[Machine]) -> None:
    names = Path("/etc/nsswitch.conf").read_text(encoding="utf-8")
    (etc / "nsswitch.conf").write_text(re.sub(r"^hosts:.*$", "hosts: files", names, flags=re.M), encoding="utf-8")
    (etc / "munge.key").write_bytes(secrets.token_bytes(1024))
    (etc / "munge.key").chmod(0o400)
    for key in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(etc / key)], check=True)
    (etc / "sshd_config").write_text(_SSHD_CONF.format(etc=etc), encoding="utf-8")
    (etc / "ssh" / "ssh_config").write_text(_SSH_CONF.format(etc=etc), encoding="utf-8")
    for number in range(_GPUS):  # SLURM wants a device a GPU: each is a /dev/null
        subprocess.run(["mknod", str(etc / f"gpu{number}"), "c", "1", "3"], check=True)
    lines = [_NODE.format(name=node.name, address=node.address, gpus=_GPUS) for node in nodes]
    (etc / "slurm" / "slurm.conf").write_text(
        _SLURM_CONF.format(logs=logs, state=state, nodes="\n".join(lines)), encoding="utf-8"
    )
    (etc / "slurm" / "gres.conf").write_text(
        f"AutoDetect=off\nNodeName=n[1-{len(nodes)}] Name=gpu File={etc}/gpu[0-{_GPUS - 1}]\n", encoding="utf-8"
    )
