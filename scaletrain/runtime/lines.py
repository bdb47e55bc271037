"""What ranks say to each other outside of training: JSON messages over a socket, and a clock of their waiting."""

import contextlib
import json
import math
import socket
import threading
import time
from typing import Any

Message = dict[str, Any]


class Lines:
    """JSON messages over a socket, one a line; of a stranger no line may be longer than `most_bytes`."""

    def __init__(self, connection: socket.socket, most_bytes: float = math.inf) -> None:
        self.socket, self._rest, self._lock, self._clogged = connection, b"", threading.Lock(), False
        self.most_bytes = most_bytes
        connection.settimeout(1.0)

    def send(self, message: Message) -> None:
        """Any thread may; nothing is sent any more to one who no longer reads or has gone."""
        with self._lock:
            try:
                if not self._clogged:
                    self.socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self._clogged = True

    def hurry(self) -> None:
        """From now on nothing waits for the other side."""
        with contextlib.suppress(OSError):  # closed meanwhile, by the thread that reads
            self.socket.settimeout(0)

    def read(self) -> list[Message] | None:
        """What has come since, once select() says that something has; None at the end of the connection, and where
        something else than messages comes."""
        try:
            data = self.socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):  # no JSON, or nested thousands deep
            return None
        are_messages = all(isinstance(message, dict) for message in messages)
        return messages if data and are_messages and len(self._rest) <= self.most_bytes else None


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
