"""A folder of whole, checked files named by their hash: one writer a file, bounded, least recently used out first.

shards/<xxh3> is whole. shards/<xxh3>.part belongs to whoever holds its flock; without one, its writer was killed and
the next process removes it. A lock ends with its process, so that a kill leaves nothing to wait for.
"""

import contextlib
import errno
import functools
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.data.cache_eviction import Entry, least_needed, survey
from scaletrain.data.cache_part import FULL, PART, Part
from scaletrain.errors import DataError
from scaletrain.runtime.files import sync_folder
from scaletrain.runtime.locks import NoLocksError, locked

_POLL = 0.05  # seconds between two looks at what others hold
_FULL_SECONDS = 30.0  # how long a full disk is waited for while others write to it


@dataclass(frozen=True)
class Wanted:
    """One file of a remote dataset: its name inside the folder, its size, its xxh3 as `hash_file` computes it."""

    name: str
    bytes: int
    xxh3: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{32}", self.xxh3) or self.bytes < 0:  # the hash becomes a file's name
            raise DataError(
                f"{self.name}: {self.bytes} bytes with the xxh3 {self.xxh3!r} cannot be: an xxh3 has 32 hexadecimal "
                "digits; prepare the dataset again"
            )


class NoRoomError(Exception):
    """A download that nobody waits for found no room: to make some, it would drop files that are needed sooner."""


class Cache:
    """Files by hash in `folder`, at most `limit_bytes` of them; shared by threads, by processes and by later runs.

    `grace_seconds`: how long a file that was asked for stays, if anything else can go, so that it can be opened.
    """

    def __init__(self, folder: Path, limit_bytes: int | None, grace_seconds: float = 2.0) -> None:
        self.folder, self.limit_bytes, self._grace = folder, limit_bytes, grace_seconds
        self._shards, self._folders = folder / "shards", folder / "folders"
        self._needs: dict[int, tuple[str, ...]] = {}
        with self._faults():
            self._shards.mkdir(parents=True, exist_ok=True)
            self._folders.mkdir(exist_ok=True)
            survey(self._shards)
            with locked(folder / "folders.lock", block=False) as handle:
                if handle is not None:
                    for left in self._folders.glob(f"*{PART}"):
                        shutil.rmtree(left)

    def place(self, file: Wanted) -> Path:
        """Where the file is when it is here."""
        return self._shards / file.xxh3

    def find(self, file: Wanted) -> Path | None:
        """The file, marked as used just now; None if it is not here."""
        path = self.place(file)
        try:
            if path.stat().st_size != file.bytes:  # cut by a disk check after a crash, or by hand
                path.unlink()
                return None
            with contextlib.suppress(PermissionError):  # another user's file, which only its owner may mark
                os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.fault(error) from error
        return path

    def need(self, owner: int, xxh3s: Sequence[str]) -> None:
        """What `owner` needs from now on, soonest first: it is dropped last. Nothing: the owner is gone."""
        self._needs.pop(owner, None)
        if xxh3s:
            self._needs[owner] = tuple(xxh3s)

    @contextlib.contextmanager
    def writing(self, file: Wanted, patient: bool) -> Iterator[Part | None]:
        """The file's only writer on this machine, with room for it; None when it is here, or (not patient) on its way.

        On leaving, a part that is whole becomes the file; after an error it is removed. Patient waits for others and
        may drop any other file; not patient raises NoRoomError before it drops what is needed sooner.
        """
        path = self.place(file).with_suffix(PART)
        with self._faults(), locked(path, block=patient) as handle:
            if handle is None:
                yield None
                return
            if self.find(file) is not None:
                path.unlink()
                yield None
                return
            try:
                os.ftruncate(handle, 0)
                self._reserve(handle, file, patient)
                part = Part(handle, file.bytes, functools.partial(self._relieve, file, patient), self.fault)
                yield part
                assert (part.written, part.xxh3) == (file.bytes, file.xxh3), "left before the file was whole"
                os.fdatasync(handle)
                with locked(self.folder / "shards.lock"):  # who counts meanwhile might see neither of its names
                    path.rename(self.place(file))
            except BaseException:
                path.unlink(missing_ok=True)  # only here: after the rename, the name may be the next writer's
                raise

    def find_folder(self, key: str) -> Path | None:
        path = self._folders / key
        return path if path.is_dir() else None

    def store_folder(self, key: str, files: Mapping[str, bytes]) -> Path:
        """A folder of small files under a key that stands for their content; it appears whole and is kept."""
        path = self._folders / key
        with self._faults(), locked(self.folder / "folders.lock"):
            if not path.is_dir():
                part = path.with_suffix(PART)
                shutil.rmtree(part, ignore_errors=True)
                for name, content in files.items():
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    with (part / name).open("wb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                sync_folder(part)
                part.rename(path)
        return path

    def fault(self, error: OSError) -> DataError:
        """What a user reads when the cache's own disk fails."""
        if isinstance(error, NoLocksError):
            return DataError(
                f"the cache {self.folder} is on a file system without locks ({error.strerror}): "
                "set data.cache.dir to a folder on a local disk"
            )
        if error.errno in FULL:
            return DataError(
                f"the disk of the cache {self.folder} is full: free some space, or set data.cache.dir to a larger disk"
            )
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return DataError(
                f"the cache {self.folder} cannot be used ({error.strerror}): raise the limit of open files (ulimit -n)"
            )
        return DataError(
            f"the cache {self.folder} cannot be used ({error.strerror}): set data.cache.dir to a folder that you may "
            "write, on a disk that works"
        )

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.fault(error) from error

    def _reserve(self, handle: int, file: Wanted, patient: bool) -> None:
        """Drops files until this one fits below the limit; its part then has the whole size, which others count."""
        limit = self.limit_bytes
        if limit is None:
            return
        if file.bytes > limit:
            raise DataError(
                f"the cache {self.folder} may hold {limit} bytes, {file.name} alone has {file.bytes}: "
                "raise data.cache.max_gb"
            )
        since = time.monotonic()
        while True:
            with locked(self.folder / "shards.lock"):
                entries, parts = survey(self._shards)
                missing = sum(parts) + sum(entry.bytes for entry in entries) + file.bytes - limit
                victims = self._victims(entries, missing, file, patient, time.monotonic() - since)
                if sum(entry.bytes for entry in victims) >= missing:
                    self._drop(victims)
                    os.ftruncate(handle, file.bytes)
                    return
            if not patient:
                raise NoRoomError
            time.sleep(_POLL)  # until others have written what they reserved

    def _relieve(self, file: Wanted, patient: bool, missing: int, full_since: float) -> None:
        """Drops up to `missing` bytes from a full disk, or waits a moment while that may help; DataError at last."""
        with self._faults(), locked(self.folder / "shards.lock"):
            entries, parts = survey(self._shards)
            waited = time.monotonic() - full_since
            victims = self._victims(entries, missing, file, patient, waited)
            self._drop(victims)
        if victims:
            return
        if not patient:
            raise NoRoomError
        if waited >= (_FULL_SECONDS if len(parts) > 1 else self._grace):  # one part is this file's own
            raise DataError(
                f"the disk of the cache {self.folder} is full: {file.name} needs {missing} more of its {file.bytes} "
                f"bytes, {shutil.disk_usage(self.folder).free} are free and nothing is left to drop: free some space, "
                "or set data.cache.dir to a larger disk"
            )
        time.sleep(_POLL)

    def _victims(
        self, entries: Sequence[Entry], missing: int, file: Wanted, patient: bool, waited: float
    ) -> list[Entry]:
        """What may be dropped for `file`, up to `missing` bytes."""
        turns: dict[str, int] = {}
        for xxh3s in list(self._needs.values()):
            for turn, xxh3 in enumerate(xxh3s):
                turns[xxh3] = min(turn, turns.get(xxh3, turn))
        soonest = 0 if patient else turns.get(file.xxh3, math.inf) + 1
        grace = 0 if patient and waited >= self._grace else self._grace
        return least_needed(entries, missing, turns, soonest, grace)

    def _drop(self, victims: Sequence[Entry]) -> None:
        for victim in victims:  # a process that has the file open goes on reading it
            (self._shards / victim.name).unlink(missing_ok=True)


@functools.cache
def cache_at(folder: Path, limit_bytes: int | None) -> Cache:
    """This process's one cache in a folder, so that each of its datasets knows what the others need."""
    return Cache(folder, limit_bytes)
