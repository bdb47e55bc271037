"""The network interface over which this node reaches the others, chosen by the route to rank 0."""

import os
import socket

import psutil

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_ELSEWHERE = "192.0.2.1"  # on no network (RFC 5737): the way there is the default route


def choose_interface(master_address: str) -> None:
    """Tells gloo and NCCL which interface to use, unless the user did.

    Left alone gloo takes the one of this host's name, which Debian's /etc/hosts maps to 127.0.1.1, out of the others'
    reach. Nothing is set where no interface can be told from the rest.
    """
    interface = interface_towards(master_address)
    if interface is not None:
        os.environ.setdefault(VARIABLES[0], interface)
        os.environ.setdefault(VARIABLES[1], f"={interface}")  # without = NCCL takes eth0 for eth01 too


def interface_towards(address: str) -> str | None:
    """The interface whose address this host would use towards `address`.

    Where that is the host itself by a loopback address, as its own name may be: that of the default route, else the
    only one that there is.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    every = psutil.net_if_addrs().items()
    names: dict[str, str] = {
        entry.address.partition("%")[0]: name for name, own in every for entry in own if entry.family in families
    }
    for target in (address, _ELSEWHERE):
        source = _source(target)
        if source is not None and not _is_loopback(source) and source in names:
            return names[source]
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    usable = {name for own, name in names.items() if name in up and not _is_loopback(own)}
    return usable.pop() if len(usable) == 1 else None


def _source(target: str) -> str | None:
    """The own address towards `target`; connecting a datagram socket looks up the route and sends nothing."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return None


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
