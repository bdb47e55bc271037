"""Reading from a folder at a URL, through any fsspec back end, with the patience that networks need."""

import contextlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scaletrain.data.cache import NoRoomError, Wanted
from scaletrain.data.cache_part import Part
from scaletrain.data.transport_faults import DamagedError, StoppedError, describe, fault_of, status_of, without_secrets
from scaletrain.errors import DataError

_PIECE = 1 << 20  # bytes taken at once from an HTTP answer
# s3fs has limits of its own: 5 s to connect, 15 s without a byte. So has huggingface_hub: 10 s.
_HTTP_SECONDS = {"total": None, "sock_connect": 30, "sock_read": 60}
_GS_SECONDS = 60

_log = logging.getLogger(__name__)
_random = random.SystemRandom()  # the generator of the module belongs to the training


@dataclass(frozen=True)
class Retry:
    """How patient a read is: about five minutes of waiting in all, twice as long after each failure in a row."""

    tries: int = 12
    damaged_tries: int = 4
    first_delay: float = 0.5
    longest_delay: float = 60.0

    def delay(self, failures: int) -> float:
        """Seconds until the next try, drawn so that the processes of a run do not come back all at once."""
        return min(self.longest_delay, self.first_delay * 2.0 ** (failures - 1)) * _random.uniform(0.75, 1.25)


class Remote:
    """Reads from a folder at a URL until it succeeds or further tries are of no use.

    `url` is fit for messages: without password and query. Nothing of `storage_options` ever appears in one.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any], retry: Retry, block_bytes: int) -> None:
        self._url, self._options, self._block = url, dict(storage_options), block_bytes
        self.url, self.retry = without_secrets(url).rstrip("/"), retry
        self.protocol = re.split("::|://", url, maxsplit=1)[0].lower()
        self._is_http = self.protocol in ("http", "https")
        self._connection: tuple[int, Any, str] | None = None  # the process that made it, file system, path

    def read(self, name: str) -> bytes:
        """The content of a small file as it is now."""
        patience = _Patience(self, name, self.retry, None)
        while True:
            try:
                file_system, path = self._place(name)
                return bytes(file_system.cat_file(path))
            except Exception as error:  # noqa: BLE001  back ends share no base class
                patience.after(error)

    def names(self, folder: str) -> list[str] | None:
        """The files under `folder`, relative to it; None if they cannot be listed here."""
        if self._is_http:
            return None
        patience = _Patience(self, folder, self.retry, None)
        while True:
            try:
                file_system, path = self._place(folder)
                root = f"{path.strip('/')}/"
                return [str(file).partition(root)[2] for file in file_system.find(path)]
            except PermissionError:
                return None
            except Exception as error:  # noqa: BLE001  back ends share no base class
                patience.after(error)

    def fetch(self, file: Wanted, part: Part, retry: Retry, stop: threading.Event | None) -> None:
        """Writes the whole, checked file: a cut goes on where it was cut, a wrong file begins again."""
        damaged = 0
        while True:
            try:
                self._fill(file, part, _Patience(self, file.name, retry, stop))
                if part.xxh3 == file.xxh3:
                    return
                raise DamagedError(f"the xxh3 {part.xxh3}")
            except DamagedError as error:
                damaged += 1
                if damaged >= retry.damaged_tries:
                    raise DataError(
                        f"{self.url}/{file.name} is damaged: it has {error}, the index says {file.bytes} bytes and "
                        f"the xxh3 {file.xxh3} ({damaged} tries): copy the dataset there again"
                    ) from None
                _log.warning("%s/%s has %s: it is fetched again", self.url, file.name, error)
            _sleep(retry.delay(damaged), stop)
            part.restart()

    def describe(self, error: Exception) -> str:
        """The error in a few words, none of them secret."""
        return describe(error, self._options)

    def forget(self) -> None:
        """Makes a new connection for the next call."""
        self._connection = None

    def _place(self, name: str) -> tuple[Any, str]:
        """This process's file system and the path of a file in it, as it is now: no listing of before is believed."""
        found = self._connection
        if found is None or found[0] != os.getpid():  # connections and their thread do not survive a fork
            found = self._connection = (os.getpid(), *_connect(self.protocol, self._url, self._options))
        _, file_system, root = found
        # The query of a URL (a signature) belongs to every file; elsewhere a question mark is part of a name.
        root, mark, query = root.partition("?") if self._is_http else (root, "", "")
        path = f"{root.rstrip('/')}/{name}{mark}{query}"
        file_system.invalidate_cache(path)
        return file_system, path

    def _fill(self, file: Wanted, part: Part, patience: "_Patience") -> None:
        """Brings `part` from what it holds to the size of the file."""
        while part.written < file.bytes:
            before = part.written
            try:
                with contextlib.closing(self._pieces(file, before)) as pieces:
                    for piece in pieces:
                        if part.written + len(piece) > file.bytes:
                            raise DamagedError(f"more than {file.bytes} bytes")
                        part.write(piece)
                        patience.go_on()
                if part.written < file.bytes:
                    raise ConnectionError(f"the answer ended after {part.written} of {file.bytes} bytes")
            except Exception as error:  # noqa: BLE001  back ends share no base class
                if part.written - before >= self._block:
                    patience.failures = 0
                patience.after(error)

    def _pieces(self, file: Wanted, start: int) -> Generator[bytes, None, None]:
        """The bytes of the remote file from `start` on, a few MB at once."""
        file_system, path = self._place(file.name)
        if self._is_http:
            yield from _http_pieces(file_system, path, start, file.bytes)
            return
        with file_system.open(path, "rb", block_size=self._block, cache_type="none") as stream:
            size = getattr(stream, "size", None)
            size = file_system.info(path)["size"] if size is None else size
            if size != file.bytes:
                raise DamagedError(f"{size} bytes")
            stream.seek(start)
            while piece := stream.read(self._block):
                yield piece


@dataclass
class _Patience:
    """The failures in a row of one read, and whether it goes on after another."""

    remote: Remote
    name: str
    retry: Retry
    stop: threading.Event | None
    failures: int = 0

    def after(self, error: Exception) -> None:
        """Waits until the next try, or raises: the error if it is ours, else DataError if no try is left."""
        if isinstance(error, DataError | NoRoomError | DamagedError | StoppedError):
            raise error
        self.failures += 1
        where, text = f"{self.remote.url}/{self.name}", self.remote.describe(error)
        fault = fault_of(error, where, self.remote.protocol, text)
        if fault is None and self.failures >= self.retry.tries:
            fault = DataError(
                f"{where} cannot be read ({text}; {self.failures} tries): check the network, then run the same again"
            )
        if fault is not None:
            raise fault from None  # a back end's own text may hold a secret
        delay = self.retry.delay(self.failures)
        _log.warning("%s: %s; try %d of %d follows in %.1f s", where, text, self.failures + 1, self.retry.tries, delay)
        self.remote.forget()
        _sleep(delay, self.stop)

    def go_on(self) -> None:
        if self.stop is not None and self.stop.is_set():
            raise StoppedError


def _connect(protocol: str, url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """A file system of our own, not one that fsspec keeps for others, and the folder's path in it."""
    import fsspec.core

    options = {**options, "skip_instance_cache": True}
    if protocol in ("http", "https"):
        import aiohttp

        client = dict(options.get("client_kwargs", {}))
        seconds = client.get("timeout", {})
        if not isinstance(seconds, aiohttp.ClientTimeout):  # a recipe can only hold a number or a table
            own = seconds if isinstance(seconds, Mapping) else {"sock_connect": seconds, "sock_read": seconds}
            client["timeout"] = aiohttp.ClientTimeout(**{**_HTTP_SECONDS, **own})
        options["client_kwargs"] = client
    if protocol in ("gs", "gcs"):
        options.setdefault("requests_timeout", _GS_SECONDS)
    file_system, path = fsspec.core.url_to_fs(url, **options)
    return file_system, str(path)


def _http_pieces(file_system: Any, path: str, start: int, size: int) -> Iterator[bytes]:
    """The bytes from `start` on in one answer, also from a server that can only send the whole file."""
    headers = {**file_system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        stream = file_system.open(path, "rb", block_size=0, size=size, headers=headers)  # 0: no blocks, one stream
    except Exception as error:
        if status_of(error) == 416:
            raise DamagedError(f"at most {start} bytes") from None
        raise
    with contextlib.closing(stream):
        answer = stream.r
        is_part = answer.status == 206
        total = answer.headers.get("Content-Range", "").rpartition("/")[2] if is_part else answer.content_length
        if total is not None and str(total).isdigit() and int(total) != size:
            raise DamagedError(f"{total} bytes")
        skip = 0 if is_part else start
        while piece := stream.read(_PIECE):
            skipped = min(skip, len(piece))
            skip -= skipped
            yield piece[skipped:]


def _sleep(seconds: float, stop: threading.Event | None) -> None:
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise StoppedError
