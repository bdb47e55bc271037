"""A dataset folder at a URL: its files are fetched with retries, checked, and kept in a cache on this machine."""

import os
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from scaletrain.data.cache import Cache, NoRoomError, Wanted, cache_at
from scaletrain.data.transport import Remote, Retry
from scaletrain.data.transport_faults import AbsentError, StoppedError
from scaletrain.errors import DataError

__all__ = ["RemoteFolder", "Retry", "is_url", "open_remote"]

_RETRY = Retry()
# For servers that cannot list a folder: what Tokenizer.save writes, and what other tools add.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


@dataclass
class _Threads:
    """The threads that fetch ahead; they and their lock belong to one process."""

    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    pending: deque[Wanted] = field(default_factory=deque)
    running: int = 0


class RemoteFolder:
    """A dataset folder at a URL through a cache; any thread and any process may use it, also after a fork."""

    def __init__(
        self,
        url: str,
        cache: Cache,
        storage_options: Mapping[str, Any] = {},
        *,
        retry: Retry = _RETRY,
        block_bytes: int = 8 << 20,
        threads: int = 4,
    ) -> None:
        self._remote = Remote(url, storage_options, retry, block_bytes)
        self.url = self._remote.url
        self._cache, self._most_threads = cache, threads
        self._ahead: tuple[str, ...] = ()  # the hashes that the newest prefetch named
        self._threads = _Threads()

    def read(self, name: str) -> bytes:
        """The content of a small file as it is now; DataError if it is missing, denied or out of reach."""
        return self._remote.read(name)

    def folder(self, name: str, key: str | None = None, files: Sequence[str] = TOKENIZER_FILES) -> Path:
        """A local copy of the small files under `name`. Without `key` they are read anew: none is out of date.

        `key` stands for their content (such as a hash of the index): the copy that was made under it is taken as it is.
        Where the server cannot list a folder, those of `files` that exist are taken.
        """
        found = self._cache.find_folder(_hash(name, key)) if key is not None else None
        if found is not None:
            return found
        listed = self._remote.names(name)
        contents: dict[str, bytes] = {}
        absent: list[AbsentError] = []
        for file in files if listed is None else listed:
            if ".." in PurePosixPath(file).parts:
                raise DataError(f"{self.url}/{name}/{file} leads out of the folder {name}: remove it there")
            try:
                contents[file] = self.read(f"{name}/{file}")
            except AbsentError as error:
                if listed is not None:
                    raise
                absent.append(error)
        if absent and not contents:
            raise absent[0]
        if not contents:
            raise DataError(f"{self.url}/{name} has no files: copy the whole dataset there again")
        parts = [text for file in sorted(contents) for text in (file, xxhash.xxh3_128_hexdigest(contents[file]))]
        return self._cache.store_folder(_hash(*parts) if key is None else _hash(name, key), contents)

    def path(self, file: Wanted) -> Path:
        """The whole, checked file on this machine; waits for it if need be. DataError after the last try."""
        self._cache.need(id(self), (file.xxh3, *self._ahead))
        found = self._cache.find(file)
        if found is not None:
            return found
        with self._cache.writing(file, patient=True) as part:
            if part is not None:
                self._remote.fetch(file, part, self._remote.retry, None)
        return self._cache.place(file)

    def prefetch(self, files: Sequence[Wanted]) -> None:
        """Threads fetch what is missing of `files`, in this order, instead of what the call before named.

        Returns at once. A file that cannot be fetched is left to path(), which says why.
        """
        self._ahead = tuple(file.xxh3 for file in files)
        self._cache.need(id(self), self._ahead)
        # The first is marked last: of the files that are here, the one that is needed first is the newest.
        missing = deque(reversed([file for file in reversed(files) if self._cache.find(file) is None]))
        threads = self._own_threads()
        with threads.lock:
            if threads.stop.is_set():
                return
            threads.pending = missing
            for _ in range(min(self._most_threads, len(missing)) - threads.running):
                threading.Thread(target=self._work, args=(threads,), name="prefetch", daemon=True).start()
                threads.running += 1

    def close(self) -> None:
        """Ends the threads at their next block; a file that they had not finished is removed."""
        threads = self._own_threads()
        with threads.lock:
            threads.stop.set()
        self._cache.need(id(self), ())
        self._remote.forget()

    def _own_threads(self) -> _Threads:
        if self._threads.pid != os.getpid():
            self._threads = _Threads()
        return self._threads

    def _work(self, threads: _Threads) -> None:
        """Fetches ahead until nothing is left to do."""
        retry = self._remote.retry
        brief = Retry(min(3, retry.tries), 1, retry.first_delay, retry.longest_delay)  # path() is the patient one
        while True:
            with threads.lock:
                if not threads.pending or threads.stop.is_set():
                    threads.running -= 1
                    return
                file = threads.pending.popleft()
            try:
                with self._cache.writing(file, patient=False) as part:
                    if part is not None:
                        self._remote.fetch(file, part, brief, threads.stop)
            except (DataError, NoRoomError, StoppedError):
                continue
            except BaseException:
                with threads.lock:
                    threads.running -= 1
                raise


def is_url(text: str) -> bool:
    """Whether `text` is a URL of any kind that fsspec opens (s3://, https://, zip://a::s3:// ...), not a path."""
    return re.match("[A-Za-z][A-Za-z0-9+.-]+(::|://)", text) is not None


def open_remote(url: str, cache_dir: Path, cache_bytes: int | None, storage_options: Mapping[str, Any]) -> RemoteFolder:
    """The folder at `url`, with the cache that all of this process's datasets in `cache_dir` share."""
    return RemoteFolder(url, cache_at(cache_dir, cache_bytes), storage_options)


def _hash(*texts: str) -> str:
    return str(xxhash.xxh3_128_hexdigest("\0".join(texts).encode()))
