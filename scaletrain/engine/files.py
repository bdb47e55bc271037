"""Checkpoint files: hashed while they are written, and on the disk before they count."""

import os
from pathlib import Path
from typing import IO, Any

import torch
import xxhash


class _HashingFile:
    """The file object that torch.save writes to: every byte goes through the hash on its way."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.hash, self.bytes = xxhash.xxh3_128(), 0

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.bytes += memoryview(data).nbytes
        return self._raw.write(data)

    def flush(self) -> None:
        self._raw.flush()


class HashedWriter:
    """Writes files and remembers each one's size and hash.

    An error of the disk is kept and raised by `written`: DeepSpeed saves between two barriers, and a rank that left
    there would keep the others waiting until their time-out.
    """

    def __init__(self) -> None:
        self._done: dict[Path, tuple[int, str]] = {}
        self._error: OSError | None = None

    def save(self, value: Any, path: Path) -> None:
        """torch.save to `path`, synced to the disk."""
        if self._error is not None:
            return
        try:
            self._write(value, path)
        except (OSError, RuntimeError) as error:
            self._error = _disk_error(error)
            if self._error is None:
                raise

    def _write(self, value: Any, path: Path) -> None:
        with path.open("wb") as raw:
            file = _HashingFile(raw)
            torch.save(value, file)  # type: ignore[arg-type]  # it only calls write and flush
            raw.flush()
            os.fsync(raw.fileno())
        self._done[path] = (file.bytes, file.hash.hexdigest())

    def forget(self) -> None:
        self._done.clear()
        self._error = None

    def written(self, folder: Path) -> dict[str, tuple[int, str]]:
        """Name inside `folder` -> (bytes, xxh3-128) of the files written since `forget`; raises what went wrong."""
        if self._error is not None:
            raise self._error
        return {str(path.relative_to(folder)): record for path, record in self._done.items()}


def _disk_error(error: BaseException) -> OSError | None:
    """The OSError behind what torch.save raised: it wraps that of its file in a RuntimeError."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause
