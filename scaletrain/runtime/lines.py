"""What ranks say to each other outside of training: JSON messages over a socket, and a clock of their waiting."""

import json
import socket
import threading
import time
from typing import Any

Message = dict[str, Any]


class Lines:
    """JSON messages over a socket, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self._rest, self._lock, self._clogged = connection, b"", threading.Lock(), False
        connection.settimeout(1.0)

    def send(self, message: Message) -> None:
        """Any thread may; nothing is sent any more to one who no longer reads or has gone."""
        with self._lock:
            try:
                if not self._clogged:
                    self.socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self._clogged = True

    def read(self) -> list[Message] | None:
        """What has come since, once select() says that something has; None at the end of the connection."""
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None


class Clock:
    """Seconds in which this process ran: what passes while it is stopped (Ctrl-Z) makes nobody late."""

    def __init__(self) -> None:
        self._look, self._lost = time.monotonic(), 0.0

    def now(self) -> float:
        """To be asked at least each two seconds."""
        now = time.monotonic()
        if now - self._look > 3:
            self._lost += now - self._look
        self._look = now
        return now - self._lost
