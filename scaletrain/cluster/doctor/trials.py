"""What a node tries out for the others: it listens, it connects, it writes and reads the run folder."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from scaletrain.cluster.doctor.facts import Storage, Unreached
from scaletrain.runtime.files import forget_pages

_CONNECT_SECONDS = 4.0  # a dropped packet is sent again after 1 and 3 s
_AT_ONCE = 64
_BLOCK = 1 << 20
_MOST_BYTES = 64 << 20
_SECONDS = 2.0  # of writing, and of reading
_LOOKS = 4  # a network file system may show a new file late
_MARK = ".doctor-"  # files of a doctor in the run folder


class Ears:
    """Ports that this node listens on, until they are closed."""

    def __init__(self) -> None:
        self._open: dict[int, socket.socket] = {}

    def open(self, ports: Sequence[int]) -> tuple[list[int], dict[int, str]]:
        """The ports that are open now, 0 having become a free one, and why others are not."""
        opened, refused = [], {}
        for port in ports:
            try:
                ear = socket.create_server(("", port), backlog=1024)
            except OSError as error:
                refused[port] = os.strerror(error.errno or 0)  # Python adds the address to its own words
                continue
            number = int(ear.getsockname()[1])
            self._open[number] = ear  # the kernel completes connections by itself
            opened.append(number)
        return opened, refused

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def connect(targets: Sequence[tuple[str, int]]) -> list[Unreached]:
    """Those (host, port) that this node cannot connect to, tried side by side."""
    with ThreadPoolExecutor(min(_AT_ONCE, len(targets)) or 1) as pool:
        return [found for found in pool.map(_try, targets) if found is not None]


def _try(target: tuple[str, int]) -> Unreached | None:
    try:
        socket.create_connection(target, _CONNECT_SECONDS).close()
    except OSError as error:
        return Unreached(*target, "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error))
    return None


class RunFolder:
    """The run folder as this node sees it. It is made if need be; `clear` leaves it as it was."""

    def __init__(self, path: Path, nonce: str) -> None:
        self._path = path.expanduser().absolute()
        self._mark, self._nonce = self._path / f"{_MARK}{nonce}", nonce
        self._made: list[Path] = []

    def leave_mark(self) -> str:
        """Writes a file for the other nodes to see; why not, "" if it is there."""
        try:
            self._make()
            with self._mark.open("x", encoding="utf-8") as file:
                file.write(self._nonce)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def sees_mark(self) -> bool:
        for number in range(_LOOKS):
            if number:
                time.sleep(0.5)
            with contextlib.suppress(OSError):
                if self._mark.read_text(encoding="utf-8") == self._nonce:
                    return True
        return False

    def measure(self) -> Storage:
        """Writes, makes durable and reads back some 64 MB, or less in two seconds each."""
        path = self._mark.with_name(f"{self._mark.name}-{socket.gethostname()}-{os.getpid()}")
        try:
            self._make()
            with path.open("x+b", buffering=0) as file:
                path.unlink()  # whatever happens from here on, nothing stays
                written, write_seconds = _timed(lambda: _write(file))
                forget_pages(file.fileno())  # to be read from the disk
                file.seek(0)
                read, read_seconds = _timed(lambda: _read(file))
        except OSError as error:
            return Storage(fault=error.strerror or str(error))
        return Storage(written, write_seconds, read, read_seconds)

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            self._mark.unlink()
        with contextlib.suppress(OSError):  # something else is in it by now
            while self._made:
                self._made.pop().rmdir()

    def _make(self) -> None:
        missing = [place for place in (self._path, *self._path.parents) if not place.exists()]
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            self._made.append(place)


def _timed(work: Callable[[], int]) -> tuple[int, float]:
    begun = time.monotonic()
    return work(), time.monotonic() - begun


def _write(file: FileIO) -> int:
    block, written, end = os.urandom(_BLOCK), 0, time.monotonic() + _SECONDS
    while written < _MOST_BYTES and time.monotonic() < end:
        written += file.write(block)
    os.fsync(file.fileno())
    return written


def _read(file: FileIO) -> int:
    read, end = 0, time.monotonic() + _SECONDS
    while time.monotonic() < end and (block := file.read(_BLOCK)):
        read += len(block)
    return read
