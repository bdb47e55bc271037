"""The interface that ranks of several nodes meet over."""

import os
import shutil
import subprocess
import sys

import pytest

from scaletrain.runtime.network import VARIABLES, choose_interface
from tests.conftest import ROOT

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
ASK = "import sys; from scaletrain.runtime.network import interface_towards; print(interface_towards(sys.argv[1]))"
INTERFACES = """
ip link set lo up
for net in 1 2; do
    ip link add "wire$net" type veth peer name "end$net"
    ip addr add "10.99.$net.1/24" dev "wire$net"
    ip link set "wire$net" up
    ip link set "end$net" up
done
"""


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("address", "default", "interface"),
    [
        ("10.99.1.7", "", "wire1"),  # another node
        ("10.99.2.7", "", "wire2"),
        ("10.99.2.1", "", "wire2"),  # this node by its address: the way there is lo
        ("127.0.1.1", "10.99.2.9", "wire2"),  # this node by its name, on Debian
        ("127.0.1.1", "", "None"),  # two, and nothing tells which
        ("no-such-host.invalid", "10.99.1.9", "wire1"),
    ],
)
def test_the_interface_is_that_of_the_route(address: str, default: str, interface: str) -> None:
    route = f"ip route add default via {default}" if default else ":"
    script = f'set -e\n{INTERFACES}\n{route}\nexec "$@"'
    command = ["unshare", "--net", "bash", "-c", script, "bash", sys.executable, "-c", ASK, address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == (interface, "")


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "mine")
    choose_interface("192.0.2.1")
    assert [os.environ[name] for name in VARIABLES] == ["mine", "mine"]
