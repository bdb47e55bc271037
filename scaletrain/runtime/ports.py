"""TCP ports of this machine."""

import socket


def free_port() -> int:
    """One that nothing listens on now; another program may take it at any time."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
