"""Machines within this one: namespaces with a network, a name, processes and an sshd of their own, which can fail."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
_NETWORK = "10.77.0"
_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
# Process 1 of a machine. What it mounts is its own: the host sees none of it. Without DNS, since a look-up that no
# server answers takes ten seconds.
_INIT = """
set -e
hostname "$1"
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -p /run/munge /run/sshd /run/lock
for file in hosts nsswitch.conf slurm ssh/ssh_config; do mount --bind "$2/$file" "/etc/$file"; done
ip link set lo up
echo ready
trap 'exit 0' TERM INT
while :; do sleep 3600 & wait $!; done
"""


class Machine:
    """One machine; `etc` holds what it sees below /etc, `logs` what its daemons say."""

    def __init__(self, name: str, number: int, etc: Path, logs: Path) -> None:
        self.name, self.address = name, f"{_NETWORK}.{number}"
        # Its card's, over a power loss too: with another, the ARP tables of the others point to nobody for a minute.
        self.mac = f"02:00:00:00:00:{number:02x}"
        self._etc, self._logs = etc, logs
        self._unshare: subprocess.Popen[str] | None = None
        self.init = 0  # its process 1, by the number that it has on the host

    def start(self) -> None:
        """Boots it: no network yet, no daemon."""
        namespaces = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        for_tests = ("setpriv", "--pdeathsig", "KILL")  # it does not outlive them, whatever ends them
        self._unshare = subprocess.Popen(
            [*for_tests, "unshare", *namespaces, "bash", "-c", _INIT, "bash", self.name, str(self._etc)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == "ready\n", f"{self.name} does not boot"
        (child,) = psutil.Process(self._unshare.pid).children()
        self.init = child.pid

    def start_daemons(self, *slurm: str) -> None:
        """munged, sshd and SLURM's own, which go into the background by themselves."""
        key, log = self._etc / "munge.key", self._logs / f"munged-{self.name}.log"
        at = ["--socket=/run/munge/munge.socket.2", "--pid-file=/run/munge/munged.pid", "--seed-file=/run/munge/seed"]
        self.run("munged", "--force", f"--key-file={key}", f"--log-file={log}", *at)
        self.run(
            "/usr/sbin/sshd", "-f", str(self._etc / "sshd_config"), "-E", str(self._logs / f"sshd-{self.name}.log")
        )
        for daemon in slurm:
            self.run(daemon)

    def mount(self, source: Path, target: Path, *, read_only: bool = False) -> None:
        """Shows `source` in the place of `target` on this machine alone, until it crashes."""
        self.run("mount", "--bind", source, target)
        if read_only:
            self.run("mount", "-o", "remount,bind,ro", target)

    @property
    def is_up(self) -> bool:
        return self._unshare is not None and self._unshare.poll() is None

    def crash(self) -> None:
        """Every process ends at once; the kernel closes their connections."""
        if self._unshare is not None:
            if self._unshare.poll() is None:
                psutil.Process(self.init).kill()
            self._unshare.wait(10)
            self._unshare = None

    def command(self, *words: str | Path, folder: Path = ROOT) -> list[str]:
        """What runs a program in it, from the host."""
        enter = ["nsenter", "--target", str(self.init), "--net", "--uts", "--ipc", "--mount", "--pid"]
        return [*enter, f"--wd={folder}", "--", *map(str, words)]

    def run(
        self, *words: str | Path, folder: Path = ROOT, seconds: float = 60, check: bool = True, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a program to its end."""
        done = subprocess.run(
            self.command(*words, folder=folder), env=environment(**env), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, (words, done)
        return done

    def start_program(
        self, log: Path, *words: str | Path, folder: Path = ROOT, **env: str
    ) -> "subprocess.Popen[bytes]":
        """Starts a program, whose output goes to `log`; see `end`."""
        with log.open("wb") as output:
            return subprocess.Popen(
                self.command(*words, folder=folder), env=environment(**env), stdin=subprocess.DEVNULL, stdout=output,
                stderr=output,
            )  # fmt: skip


class Machines:
    """A head and nodes n1, n2, ... on one switch, which stands in the head."""

    def __init__(self, nodes: int, etc: Path, logs: Path) -> None:
        self.head = Machine("head", 254, etc, logs)
        self.nodes = [Machine(f"n{number}", number, etc, logs) for number in range(1, nodes + 1)]
        hosts = [f"{machine.address} {machine.name}" for machine in (self.head, *self.nodes)]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]), encoding="utf-8")

    def start_head(self) -> None:
        self.head.start()
        for words in ("add br0 type bridge", "set br0 up"):
            self.head.run("ip", "link", *words.split())
        self.head.run("ip", "addr", "add", f"{self.head.address}/24", "dev", "br0")

    def start_node(self, node: Machine) -> None:
        """Boots it and plugs it in."""
        node.start()
        cable = f"to-{node.name}"
        self.head.run("ip", "link", "del", cable, check=False)  # of its last life
        # In the head's namespace the number of the node's process 1 means nothing: the host hands the cable over.
        peer = ("peer", "name", f"its-{node.name}", "address", node.mac)
        self.head.run("ip", "link", "add", cable, "type", "veth", *peer)
        move = ["ip", "link", "set", f"its-{node.name}", "netns", str(node.init), "name", "eth0"]
        subprocess.run(["nsenter", "--target", str(self.head.init), "--net", *move], check=True)
        self.head.run("ip", "link", "set", cable, "master", "br0", "up")
        node.run("ip", "addr", "add", f"{node.address}/24", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        node.run("ip", "route", "add", "default", "via", self.head.address)

    def unplug(self, node: Machine) -> None:
        self.head.run("ip", "link", "set", f"to-{node.name}", "down")

    def plug_in(self, node: Machine) -> None:
        self.head.run("ip", "link", "set", f"to-{node.name}", "up")

    def power_off(self, node: Machine) -> None:
        """The others hear nothing more of it, as after a power loss: the cable goes before the processes."""
        self.unplug(node)
        node.crash()

    def slow_down(self, by: str = "tbf rate 8mbit burst 16kbit latency 1s") -> None:
        """Shapes what the nodes send, in the words of tc-tbf(8) or tc-netem(8), which many kernels lack.

        By default each sends 1 MB a second, and a step of these tests' model takes a fifth of one.
        """
        self.speed_up()
        for node in self.nodes:
            node.run("tc", "qdisc", "add", "dev", "eth0", "root", *by.split())

    def speed_up(self) -> None:
        """As fast as can be, again."""
        for node in self.nodes:
            node.run("tc", "qdisc", "del", "dev", "eth0", "root", check=False)

    def stop(self) -> None:
        for machine in (*self.nodes, self.head):
            machine.crash()


def environment(**more: str) -> dict[str, str]:
    """For programs in a machine: this interpreter's own first on the PATH, one thread, nothing of a launcher."""
    bin_folder = Path(sys.executable).parent
    return {
        "HOME": os.environ.get("HOME", "/root"), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu", "PATH": f"{bin_folder}:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        **more,
    }  # fmt: skip


def clock(seconds: int) -> dict[str, str]:
    """Variables of a program whose clock is ahead by so much; a machine's kernel has the host's time."""
    return {"LD_PRELOAD": str(_FAKETIME), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def has_clock() -> bool:
    return _FAKETIME.is_file()


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to a started program and all that it started and still holds."""
    if process.poll() is None:
        for child in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
            child.kill()
    process.wait(10)


def wait_until(condition: Callable[[], object], seconds: float, told: Callable[[], object] = str) -> None:
    """Polls; what `told` gives is the failure's message."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


def missing() -> str | None:
    """Why there can be no machines here."""
    if os.geteuid() != 0:
        return "needs root"
    programs = ("unshare", "nsenter", "setpriv", "ip", "tc", "slurmctld", "slurmd", "munged", "sshd", "ssh", "pdsh")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if gone := [name for name in programs if shutil.which(name, path=path) is None]:
        return f"{', '.join(gone)} not installed (.ci/run tells the packages)"
    probe = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, check=False)
    return "the kernel gives no namespaces here" if probe.returncode else None
