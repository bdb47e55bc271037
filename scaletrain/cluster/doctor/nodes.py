"""Which nodes a doctor looks at and how it gets there: this machine, a hostfile by ssh, a SLURM allocation by srun."""

import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.cluster.hosts import expand_hosts
from scaletrain.errors import ClusterError

_LINE = re.compile(r"(\S+)\s+slots=(\d+)")
# A node that loses power is known 15 s later, whatever it was asked; `ssh` tells why it ends only where it may log.
_SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=5", "ServerAliveCountMax=3", "LogLevel=INFO")
_SSH = ("ssh", *(f"-o{option}" for option in _SSH_OPTIONS))
# Not bound to the one processor of its one task: it starts a test rank a GPU.
_SRUN = ("srun", "--overlap", "--nodes=1", "--ntasks=1", "--cpu-bind=none", "--input=0", "--quiet")
# What a remote shell would not have; DeepSpeed's launcher passes on such names too.
_PASSED = re.compile(r"(PYTHON|NCCL_|GLOO_|SCALETRAIN_|HF_)\w*|TORCH_EXTENSIONS_DIR|XDG_CACHE_HOME|TMPDIR|MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """A node: `command` runs the probe there. `slots`: the ranks that are to run there, if anyone said."""

    name: str
    command: tuple[str, ...]
    slots: int | None = None


@dataclass(frozen=True)
class Cluster:
    """`by`: how its nodes are reached, in words."""

    by: str
    places: tuple[Place, ...]

    @property
    def is_slurm(self) -> bool:
        return self.by == "srun"


def read_cluster(hostfile: Path | None, env: Mapping[str, str], probe: Sequence[str]) -> Cluster:
    """The nodes of the hostfile if there is one, else those of the SLURM allocation, else this machine.

    `probe`: the command that is to run on each. ClusterError when that is not clear.
    """
    if hostfile is not None:
        hosts = parse_hostfile(hostfile)
        return Cluster("ssh", tuple(Place(n, (*_SSH, n, _remotely(probe, env)), slots) for n, slots in hosts.items()))
    if int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and "SLURM_PROCID" in env:
        raise ClusterError(
            f"SLURM_STEP_NUM_TASKS={env['SLURM_STEP_NUM_TASKS']}: each task would look at all nodes; run doctor in the "
            "allocation without srun, it starts a task a node by itself"
        )
    if nodes := env.get("SLURM_JOB_NODELIST"):
        slots = env.get("SLURM_GPUS_ON_NODE", "")
        return Cluster(
            "srun",
            tuple(
                Place(name, (*_SRUN, f"--nodelist={name}", *probe), int(slots) if slots.isdecimal() else None)
                for name in expand_hosts(nodes)
            ),
        )
    return Cluster("itself", (Place(socket.gethostname(), tuple(probe)),))


def parse_hostfile(path: Path) -> dict[str, int]:
    """Slots of each host, in the file's order: DeepSpeed's form, `HOST slots=N` a line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ClusterError(f"--hostfile {path} cannot be read ({error.strerror}): give a file of hosts") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        match = _LINE.fullmatch(words)
        if match is None:
            raise ClusterError(f"{path}:{number}: {words!r} is not `HOST slots=N`: write it like node1 slots=8")
        if match[1] in hosts:
            raise ClusterError(f"{path}:{number}: {match[1]} stands there twice: keep one line, with all its slots")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ClusterError(f"{path} names no host: write a line like node1 slots=8 for each")
    return hosts


def without(path: Path, bad: Sequence[str]) -> str:
    """The hostfile's text with the lines of the bad hosts as comments."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        lines.append(f"# scaletrain doctor: {line}" if words and words[0] in bad else line)
    return "\n".join(lines) + "\n"


def _remotely(probe: Sequence[str], env: Mapping[str, str]) -> str:
    """A shell's words that run the probe in the same folder with the variables that matter."""
    passed = [f"{name}={value}" for name, value in sorted(env.items()) if _PASSED.fullmatch(name)]
    return f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(['env', *passed, *probe])}"  # noqa: PTH109  as the shell has it


def probe_command() -> tuple[str, ...]:
    """What answers on a node; the same Python has to be there."""
    return (sys.executable, "-m", "scaletrain.commands.probe")
